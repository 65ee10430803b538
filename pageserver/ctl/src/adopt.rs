//! `pagectl adopt`: the resources that make an operator serve what is in a bucket. With a new cluster and the bucket, it is all that a disaster leaves.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, bail};
use clap::Args;
use codec::index_part::Source;
use model::{Generation, ShardIndex, TenantShardId, TimelineId};

use crate::indexes::{self, FoundIndex};

/// Prints Tenants and Timelines, as YAML to be applied, for everything that is in a bucket.
#[derive(Debug, Args)]
pub struct Adopt {
    /// The bucket: `s3://…` as in the pageserver's configuration, or a directory.
    place: String,
    /// The pool that is to serve it: a `PageserverPool` over this bucket.
    #[arg(long)]
    pool: String,
    /// Namespace of the pool. Without it: the resources' own.
    #[arg(long)]
    pool_namespace: Option<String>,
    /// Only this tenant.
    #[arg(long)]
    tenant: Option<model::TenantId>,
}

/// Runs it.
pub async fn run(arguments: &Adopt) -> Result<()> {
    let mut tenants: BTreeMap<model::TenantId, Found> = BTreeMap::new();
    for found in indexes::find(&arguments.place).await? {
        let Some((shard, timeline)) = whose(&found.place) else { continue };
        if arguments.tenant.is_some_and(|tenant| tenant != shard.tenant) {
            continue;
        }
        let tenant = tenants.entry(shard.tenant).or_default();
        tenant.shards = tenant.shards.max(shard.shard.count);
        // Every shard has every timeline; what is being deleted is gone.
        if found.index.deleted_at.is_none() {
            tenant.timelines.insert(timeline, found);
        }
    }
    if let Some(bucket) = indexes::bucket(&arguments.place).await? {
        for (id, found) in &mut tenants {
            let shard = TenantShardId { tenant: *id, shard: ShardIndex { number: 0, count: found.shards } };
            let last = engine::claim::last_claim(&*bucket, shard).await?;
            found.is_deleted =
                last.as_ref().is_some_and(|(generation, _)| *generation == Generation::DELETED);
            found.pool_uid = last.and_then(|(_, by)| by).map(|by| by.pool_uid).filter(|uid| !uid.is_empty());
        }
    }
    tenants.retain(|_, found| !found.is_deleted);
    if tenants.is_empty() {
        bail!("there is nothing to adopt in {}", arguments.place);
    }
    for (id, found) in &tenants {
        print!("{}", yaml(*id, found, arguments));
    }
    Ok(())
}

/// What there is of a tenant.
#[derive(Default)]
struct Found {
    /// Shards; 0 if it was never sharded.
    shards: u8,
    timelines: BTreeMap<TimelineId, FoundIndex>,
    /// Whose pageserver claimed it last.
    pool_uid: Option<String>,
    /// It was deleted, and its last objects are about to go.
    is_deleted: bool,
}

/// `…/tenants/<tenant shard>/timelines/<timeline>/index_part.json-<generation>`.
fn whose(place: &str) -> Option<(TenantShardId, TimelineId)> {
    let mut folders = place.rsplit('/').skip(1);
    let timeline = folders.next()?.parse().ok()?;
    if folders.next()? != "timelines" {
        return None;
    }
    Some((folders.next()?.parse().ok()?, timeline))
}

fn yaml(tenant: model::TenantId, found: &Found, arguments: &Adopt) -> String {
    let name = format!("t-{}", &tenant.to_string()[..12]);
    let namespace = arguments
        .pool_namespace
        .as_ref()
        .map(|namespace| format!("namespace: {namespace}, "))
        .unwrap_or_default();
    let mut text = String::new();
    let mut line = |line: &str| {
        let _ = writeln!(text, "{line}");
    };
    line("---\napiVersion: palimpsest.dev/v1alpha1\nkind: Tenant");
    match &found.pool_uid {
        None => line(&format!("metadata: {{name: {name}}}")),
        Some(uid) => {
            line("# Takes the tenant over from the pool that had it last.");
            line(&format!(
                "metadata: {{name: {name}, annotations: {{palimpsest.dev/take-over: \"{uid}\"}}}}"
            ));
        }
    }
    line("spec:");
    line(&format!("  poolRef: {{{namespace}name: {}}}", arguments.pool));
    line(&format!("  tenantID: \"{tenant}\""));
    if found.shards > 1 {
        line(&format!("  sharding: {{count: {}}}", found.shards));
    }
    for (id, FoundIndex { index, .. }) in &found.timelines {
        let metadata = index.metadata();
        line("---\napiVersion: palimpsest.dev/v1alpha1\nkind: Timeline");
        line(&format!("metadata: {{name: {name}-{}}}", &id.to_string()[..12]));
        if let Some(ancestor) = metadata.ancestor_timeline {
            line(&format!("# A branch of {ancestor} at {}.", metadata.ancestor_lsn));
        }
        line("spec:");
        line(&format!("  tenantRef: {{name: {name}}}"));
        line(&format!("  timelineID: \"{id}\""));
        line(&format!("  postgresVersion: {}", metadata.pg_version));
        if index.archived_at.is_some() {
            line("  state: Archived");
        }
        if let Some(source) = index.palimpsest.as_ref().and_then(|ours| ours.source.as_ref()) {
            line(&source_yaml(*id, source));
        }
    }
    text
}

/// The source as it was followed. Without it the operator would take the timeline from it, and its slot with that.
fn source_yaml(timeline: TimelineId, source: &Source) -> String {
    let words = keywords(&source.conninfo);
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut primary = Vec::new();
    for (keyword, field) in [("host", "host"), ("user", "user")] {
        if let Some(value) = words.get(keyword) {
            primary.push(format!("{field}: {}", quoted(value)));
        }
    }
    // Of the two defaults libpq's was meant.
    primary.push(format!("sslMode: {}", quoted(words.get("sslmode").map_or("prefer", String::as_str))));
    if let Some(port) = words.get("port").and_then(|port| port.parse::<u16>().ok()) {
        primary.push(format!("port: {port}"));
    }
    if let Some(slot) = source.slot.as_ref().filter(|slot| **slot != format!("palimpsest_{timeline}")) {
        primary.push(format!("slotName: {}", quoted(slot)));
    }
    let credentials =
        words.get("credentials").map(|key| format!("\n    credentials: {}", quoted(key))).unwrap_or_default();
    format!("  source:\n    primary: {{{}}}{credentials}", primary.join(", "))
}

/// libpq's `keyword=value …`, with values in quotes or not.
fn keywords(conninfo: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = conninfo.chars().peekable();
    loop {
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        let mut keyword = String::new();
        while let Some(c) = rest.next_if(|c| *c != '=') {
            keyword.push(c);
        }
        if rest.next().is_none() {
            return found;
        }
        let is_quoted = rest.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        while let Some(c) = rest.next_if(|c| is_quoted || !c.is_whitespace()) {
            match c {
                '\'' if is_quoted => break,
                '\\' => value.extend(rest.next()),
                c => value.push(c),
            }
        }
        found.insert(keyword.trim().to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use codec::index_part::IndexPart;

    use super::*;

    fn id(text: &str) -> TimelineId {
        text.repeat(16).parse().unwrap()
    }

    fn found(timeline: &str, json: &str) -> (TimelineId, FoundIndex) {
        let index = IndexPart::from_json(json.as_bytes()).unwrap();
        (id(timeline), FoundIndex { place: String::new(), timeline: None, generation: None, index })
    }

    fn index(ancestor: &str) -> String {
        format!(
            r#"{{"version": 15, "layer_metadata": {{}}, "disk_consistent_lsn": "0/2000000", "metadata_bytes": {{
                 "disk_consistent_lsn": "0/2000000", "prev_record_lsn": "0/0", "ancestor_timeline": {ancestor},
                 "ancestor_lsn": "0/1500000", "latest_gc_cutoff_lsn": "0/1000000", "initdb_lsn": "0/1000000", "pg_version": 17}},
                 "lineage": {{}}}}"#
        )
    }

    #[test]
    fn a_tenant_is_printed_with_its_timelines() {
        let ancestor = format!("\"{}\"", id("0a"));
        let tenant = "6f".repeat(16).parse().unwrap();
        let all = Found {
            shards: 0,
            timelines: BTreeMap::from([found("0a", &index("null")), found("0b", &index(&ancestor))]),
            pool_uid: Some("u-1".into()),
            is_deleted: false,
        };
        let arguments = Adopt {
            place: String::new(),
            pool: "main".into(),
            pool_namespace: Some("storage".into()),
            tenant: None,
        };
        let printed = yaml(tenant, &all, &arguments);
        let expected = "---\n\
            apiVersion: palimpsest.dev/v1alpha1\n\
            kind: Tenant\n\
            # Takes the tenant over from the pool that had it last.\n\
            metadata: {name: t-6f6f6f6f6f6f, annotations: {palimpsest.dev/take-over: \"u-1\"}}\n\
            spec:\n\
            \x20 poolRef: {namespace: storage, name: main}\n\
            \x20 tenantID: \"6f6f6f6f6f6f6f6f6f6f6f6f6f6f6f6f\"\n\
            ---\n\
            apiVersion: palimpsest.dev/v1alpha1\n\
            kind: Timeline\n\
            metadata: {name: t-6f6f6f6f6f6f-0a0a0a0a0a0a}\n\
            spec:\n\
            \x20 tenantRef: {name: t-6f6f6f6f6f6f}\n\
            \x20 timelineID: \"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a\"\n\
            \x20 postgresVersion: 17\n\
            ---\n\
            apiVersion: palimpsest.dev/v1alpha1\n\
            kind: Timeline\n\
            metadata: {name: t-6f6f6f6f6f6f-0b0b0b0b0b0b}\n\
            # A branch of 0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a at 0/1500000.\n\
            spec:\n\
            \x20 tenantRef: {name: t-6f6f6f6f6f6f}\n\
            \x20 timelineID: \"0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b\"\n\
            \x20 postgresVersion: 17\n";
        assert_eq!(printed, expected);
    }

    #[test]
    fn a_source_is_printed_as_it_was_followed() {
        let json = r#"{"conninfo": "host='db.example' port=5433 user='re\\'pl' dbname='postgres' credentials=acme", "slot": "mine"}"#;
        let source: Source = serde_json::from_str(json).unwrap();
        assert_eq!(
            source_yaml(id("0a"), &source),
            "  source:\n    primary: {host: \"db.example\", user: \"re'pl\", sslMode: \"prefer\", port: 5433, slotName: \"mine\"}\n    credentials: \"acme\""
        );
    }

    #[test]
    fn only_indexes_of_tenants_are_adopted() {
        let (tenant, timeline) = ("6f".repeat(16), "0a".repeat(16));
        let place = format!("/bucket/tenants/{tenant}-0102/timelines/{timeline}/index_part.json-00000003");
        let (shard, found) = whose(&place).unwrap();
        assert_eq!((shard.shard.count, found), (2, timeline.parse().unwrap()));
        assert_eq!(whose(&format!("{timeline}/index_part.json-00000003")), None);
        assert_eq!(whose("index_part.json"), None);
    }
}
