//! Charts and examples against real API servers: what they print is accepted strictly, obeys the restricted pod standard, and does what it says.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::platform::{example, repository_file};
use e2e::{Cluster, tool};
use testkit::kubernetes::ControlPlane;

const CHARTS: [&str; 3] = ["palimpsest-crds", "palimpsest", "palimpsest-pool"];
const BUCKET: [&str; 2] = ["--set", "storage.bucket=history"];
/// Every switch that needs no foreign resource.
const OPERATOR_SWITCHES: [&str; 6] = [
    "--set",
    "networkPolicy.enabled=true",
    "--set",
    "metrics.dashboard.enabled=true",
    "--set",
    "tests.image=localhost/palimpsest/pageserver:dev",
];
const POOL_SWITCHES: [&str; 8] = [
    "--set",
    "networkPolicy.enabled=true",
    "--set",
    "clients.tls.secretName=tls",
    "--set",
    "clients.jwt.publicKeySecretName=keys",
    "--set",
    "sources.secretName=sources",
];

fn helm(arguments: &[&str]) -> Result<String> {
    tool::text(Command::new(tool::find("helm/helm")?).args(arguments), None)
}

fn chart(name: &str) -> String {
    repository_file("charts").join(name).display().to_string()
}

fn template(name: &str, release: &str, namespace: &str, rest: &[&str]) -> Result<String> {
    let chart = chart(name);
    let mut arguments = vec!["template", release, &chart, "--namespace", namespace];
    arguments.extend(rest);
    helm(&arguments)
}

/// API servers to try: `KUBERNETES_VERSIONS`, by default the one that is installed.
fn versions() -> Vec<Option<String>> {
    match std::env::var("KUBERNETES_VERSIONS") {
        Ok(versions) => versions.split_whitespace().map(|version| Some(version.to_owned())).collect(),
        Err(_) => vec![None],
    }
}

struct Plane {
    cluster: Cluster,
    _kubeconfig: tempfile::NamedTempFile,
    _server: ControlPlane,
}

/// An API server with our definitions, and the namespaces of the examples, in which only restricted pods may run.
async fn plane(version: Option<&str>) -> Result<Plane> {
    let server = ControlPlane::start_version(version).await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), server.kubeconfig())?;
    let cluster = Cluster::at(file.path())?;
    cluster.apply(&template("palimpsest-crds", "palimpsest-crds", "default", &[])?)?;
    for crd in ["pageserverpools", "tenants", "timelines"] {
        cluster.wait(
            "default",
            &format!("crd/{crd}.palimpsest.dev"),
            "Established",
            Duration::from_secs(30),
        )?;
    }
    for namespace in ["palimpsest-system", "storage", "team-acme"] {
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, labels: \
             {{pod-security.kubernetes.io/enforce: restricted, pod-security.kubernetes.io/warn: restricted}}}}}}"
        ))?;
    }
    Ok(Plane { cluster, _kubeconfig: file, _server: server })
}

/// Applies YAML strictly without keeping it; warnings are errors.
fn dry_run(cluster: &Cluster, what: &str, yaml: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), yaml)?;
    let path = file.path().display().to_string();
    let arguments = [
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "--warnings-as-errors",
        "--filename",
        &path,
    ];
    tool::run(&mut cluster.command(&arguments), None).map(drop).with_context(|| format!("{what} is refused"))
}

/// The documents of a file that are ours or Kubernetes' own.
fn without_foreign(yaml: &str) -> String {
    let foreign = ["postgresql.cnpg.io", "cert-manager.io", "monitoring.coreos.com"];
    let kept = yaml
        .split("\n---")
        .filter(|part| !foreign.iter().any(|group| part.contains(&format!("apiVersion: {group}/"))));
    kept.collect::<Vec<_>>().join("\n---")
}

#[test]
fn charts_pass_helms_own_lint() -> Result<()> {
    for name in CHARTS {
        let chart = chart(name);
        let mut arguments = vec!["lint", "--strict", &chart];
        if name == "palimpsest-pool" {
            arguments.extend(BUCKET);
        }
        helm(&arguments)?;
    }
    Ok(())
}

#[test]
fn values_that_mean_nothing_are_refused() -> Result<()> {
    let wrong = [
        ("palimpsest-crds", "kep=true", "kep"),
        ("palimpsest", "replica=2", "replica"),
        ("palimpsest", "image.digest=sha256:12", "digest"),
        ("palimpsest", "controlAuth.mode=Plain", "mode"),
        ("palimpsest", "controlAuth.certManager.enabled=true", "issuerRef"),
        ("palimpsest", "networkPolicy.apiServerPorts={0}", "apiServerPorts"),
        ("palimpsest-pool", "storage.bucket=", "bucket"),
        ("palimpsest-pool", "storage.prefix=/prod", "prefix"),
        ("palimpsest-pool", "storage.credentials.mode=SecretRef", "secretName"),
        ("palimpsest-pool", "cache.disk=20GB", "disk"),
        ("palimpsest-pool", "settings.bucket=s3://other", "settings"),
        ("palimpsest-pool", "pool.allowedNamespaces.from=Selector", "selector"),
        ("palimpsest-pool", "drainDeadline=14", "drainDeadline"),
    ];
    for (name, value, named) in wrong {
        let mut rest = vec![];
        if name == "palimpsest-pool" {
            rest.extend(BUCKET);
        }
        rest.extend(["--set", value]);
        let refused = template(name, "test", "default", &rest);
        let error = refused.err().with_context(|| format!("{name} takes {value}"))?;
        let error = format!("{error:#}");
        ensure!(error.contains(named), "of {value} {name} only says {error}");
    }
    Ok(())
}

#[test]
fn one_replica_has_no_disruption_budget() -> Result<()> {
    for (name, rest) in [("palimpsest", &[][..]), ("palimpsest-pool", &BUCKET[..])] {
        for (replicas, is_there) in [("1", false), ("2", true)] {
            let replicas = format!("replicas={replicas}");
            let mut all = rest.to_vec();
            all.extend(["--set", &replicas]);
            let printed = template(name, "test", "default", &all)?;
            ensure!(printed.contains("PodDisruptionBudget") == is_there, "{name} with {replicas}");
        }
    }
    Ok(())
}

#[test]
fn manifests_are_what_the_charts_print() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let script = repository_file("scripts/manifests.sh");
    tool::run(Command::new(script).arg(folder.path()), None)?;
    for file in ["crds.yaml", "operator.yaml", "pool.yaml"] {
        let (new, old) = (folder.path().join(file), repository_file("manifests").join(file));
        let (new, old) = (std::fs::read_to_string(new)?, std::fs::read_to_string(&old)?);
        ensure!(new == old, "{} is outdated: run make manifests", old.lines().next().unwrap_or(file));
    }
    Ok(())
}

#[tokio::test]
async fn charts_and_examples_are_accepted_strictly() -> Result<()> {
    for version in versions() {
        let plane = plane(version.as_deref()).await?;
        let cluster = &plane.cluster;
        let server = cluster.kubectl(&["version", "--output=yaml"])?;
        eprintln!(
            "on {}",
            server.lines().filter(|line| line.contains("gitVersion")).collect::<Vec<_>>().join(" ")
        );
        let pool_values = repository_file("manifests/examples/pool-values.yaml").display().to_string();
        let printed = [
            ("operator", template("palimpsest", "palimpsest", "palimpsest-system", &OPERATOR_SWITCHES)?),
            (
                "operator of two namespaces",
                template(
                    "palimpsest",
                    "palimpsest",
                    "palimpsest-system",
                    &["--set", "watchNamespaces={storage,team-acme}"],
                )?,
            ),
            (
                "pool",
                template("palimpsest-pool", "main", "storage", &[&BUCKET[..], &POOL_SWITCHES].concat())?,
            ),
            (
                "pool of the examples",
                template("palimpsest-pool", "main", "storage", &["--values", &pool_values])?,
            ),
        ];
        for (what, yaml) in &printed {
            dry_run(cluster, what, yaml)?;
        }
        let mut examples: Vec<PathBuf> = std::fs::read_dir(repository_file("manifests/examples"))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        examples.sort();
        for path in examples {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name != "pool-values.yaml" {
                dry_run(cluster, &name, &without_foreign(&example(&name)?))?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_protected_tenant_is_not_deleted() -> Result<()> {
    let plane = plane(None).await?;
    let cluster = &plane.cluster;
    cluster.apply(&template("palimpsest", "palimpsest", "palimpsest-system", &[])?)?;
    let tenant = |protected: bool| {
        format!(
            "{{apiVersion: palimpsest.dev/v1alpha1, kind: Tenant, metadata: {{name: acme, namespace: team-acme}}, \
             spec: {{poolRef: {{namespace: storage, name: main}}, retention: {{deletionProtection: {protected}}}}}}}"
        )
    };
    // The policy takes effect a moment after it was made.
    let since = Instant::now();
    loop {
        cluster.apply(&tenant(true))?;
        match cluster.kubectl(&["--namespace", "team-acme", "delete", "tenant/acme", "--timeout=10s"]) {
            Err(error) => {
                ensure!(format!("{error:#}").contains("deletionProtection to false first"), "{error:#}");
                break;
            }
            Ok(_) => ensure!(since.elapsed() < Duration::from_secs(30), "it is deleted all the same"),
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    cluster.apply(&tenant(false))?;
    cluster.kubectl(&["--namespace", "team-acme", "delete", "tenant/acme", "--timeout=10s"])?;
    Ok(())
}
