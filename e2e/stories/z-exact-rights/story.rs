//! After all other stories: the operator used the rights that its roles grant, and no others were granted.

use std::collections::BTreeSet;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, platform};
use serde_json::Value;

/// API group, resource with subresource, verb.
type Right = (String, String, String);

/// Asked for by checks of the API server itself, which no log shows.
const UNSEEN: [(&str, &str); 2] =
    [("palimpsest.dev", "tenants/finalizers"), ("discovery.k8s.io", "endpointslices/restricted")];

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn granted(cluster: &Cluster) -> Result<BTreeSet<Right>> {
    let mut rights = BTreeSet::new();
    let leader = cluster.get(platform::OPERATOR_NAMESPACE, "role/palimpsest-leader")?;
    for role in [cluster.get("default", "clusterrole/palimpsest")?, leader] {
        for rule in role["rules"].as_array().context("a role without rules")? {
            let list = |name: &str| rule[name].as_array().cloned().unwrap_or_default();
            for (group, resource) in list("apiGroups").iter().flat_map(|group| {
                list("resources").into_iter().map(move |resource| (text(group), text(&resource)))
            }) {
                if UNSEEN.contains(&(group.as_str(), resource.as_str())) {
                    continue;
                }
                let verbs = list("verbs");
                rights.extend(verbs.iter().map(|verb| (group.clone(), resource.clone(), text(verb))));
            }
        }
    }
    Ok(rights)
}

/// A log and what it was before the API server began it anew: `audit.log`, `audit-<time>.log`.
fn parts(log: &Path) -> Result<Vec<PathBuf>> {
    let stem = log.file_stem().and_then(|stem| stem.to_str()).context("the audit log has no name")?;
    let directory = log.parent().context("the audit log is in no directory")?;
    let is_part = |path: &PathBuf| {
        path.extension() == log.extension()
            && path.file_stem().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(stem))
    };
    let entries: Vec<_> = std::fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    Ok(entries.into_iter().map(|entry| entry.path()).filter(is_part).collect())
}

fn used_by(user: &str, log: impl std::io::BufRead) -> Result<BTreeSet<Right>> {
    let mut rights = BTreeSet::new();
    for line in log.lines() {
        let event: Value =
            serde_json::from_str(&line?).context("the audit log holds a line that is no JSON")?;
        let object = &event["objectRef"];
        if event["user"]["username"] != user || object.is_null() || !object["resource"].is_string() {
            continue;
        }
        let resource = match object["subresource"].as_str() {
            Some(subresource) => format!("{}/{subresource}", text(&object["resource"])),
            None => text(&object["resource"]),
        };
        rights.insert((text(&object["apiGroup"]), resource, text(&event["verb"])));
    }
    Ok(rights)
}

#[test]
#[ignore = "needs a cluster: make e2e"]
fn the_operator_used_exactly_what_its_roles_grant() -> Result<()> {
    let Some(log) = std::env::var_os("E2E_AUDIT_LOG") else {
        eprintln!(
            "z-exact-rights: nobody says where this cluster's audit log is (E2E_AUDIT_LOG), so nothing is compared"
        );
        return Ok(());
    };
    let cluster = Cluster::from_environment()?;
    let user = format!("system:serviceaccount:{}:palimpsest", platform::OPERATOR_NAMESPACE);
    let mut used = BTreeSet::new();
    for file in parts(Path::new(&log))? {
        let file = std::fs::File::open(&file).with_context(|| format!("cannot open {}", file.display()))?;
        used.extend(used_by(&user, BufReader::new(file))?);
    }
    let granted = granted(&cluster)?;
    let beyond: Vec<_> = used.difference(&granted).collect();
    // An apply that makes an object is logged as a patch, and needs both rights.
    let applies = |(group, resource, verb): &&Right| {
        verb == "create" && used.contains(&(group.clone(), resource.clone(), "patch".into()))
    };
    let idle: Vec<_> = granted.difference(&used).filter(|right| !applies(right)).collect();
    eprintln!("z-exact-rights: {} rights used, {} granted", used.len(), granted.len());
    ensure!(beyond.is_empty(), "asked for and not granted: {beyond:?}");
    ensure!(idle.is_empty(), "granted and never used: {idle:?}");
    Ok(())
}

#[test]
fn a_log_tells_groups_resources_and_verbs_of_one_user() {
    let log = r#"{"user":{"username":"a"},"verb":"update","objectRef":{"apiGroup":"palimpsest.dev","resource":"tenants","subresource":"status"}}
{"user":{"username":"a"},"verb":"list","objectRef":{"resource":"pods"}}
{"user":{"username":"b"},"verb":"delete","objectRef":{"resource":"pods"}}
{"user":{"username":"a"},"verb":"get","requestURI":"/version"}"#;
    let right =
        |group: &str, resource: &str, verb: &str| (group.to_owned(), resource.to_owned(), verb.to_owned());
    let rights = used_by("a", log.as_bytes()).unwrap();
    assert_eq!(
        rights,
        [right("", "pods", "list"), right("palimpsest.dev", "tenants/status", "update")].into()
    );
}
