//! `pagectl verify --neon`: whether Neon can serve what is in a bucket.
//!
//! [`names`] looks at what an index says, [`values`] at what a layer file holds, [`walk`] goes through the history of every key over all layers.

mod names;
#[cfg(test)]
mod tests;
mod values;
mod walk;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Args;
use codec::index_part::IndexPart;
use engine::error_story::error_story;
use engine::index_keeper::wishes_of;
use engine::index_store::{IndexStore, LoadIndexError};
use engine::onlooker::snapshot;
use engine::ports::{Bucket, BucketError};
use futures::StreamExt as _;
use model::{Generation, Key, LayerName, Lsn, TenantId, TenantShardId, TimelineId};
use serde::Serialize;

use crate::{buckets, scrub};

/// Checks that Neon can serve the timelines of a bucket that say so.
///
/// Every rule that its pageserver relies on is checked, each violation is named with layer, key and LSN. Ends with 0 when there is none, 1 when there are,
/// 2 when it could not look.
#[derive(Debug, Args)]
pub struct Verify {
    /// By Neon's rules; there are no others yet.
    #[arg(long, required = true)]
    neon: bool,
    /// The bucket: `s3://…` as in the pageserver's configuration, or a directory.
    url: String,
    /// Only this tenant.
    tenant: Option<TenantId>,
    /// Only this timeline.
    timeline: Option<TimelineId>,
    /// Also timelines that say why Neon cannot serve them.
    #[arg(long)]
    all: bool,
    /// Layers that are looked at at once: memory is theirs.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Print a JSON object for each violation, and one at the end.
    #[arg(long)]
    json: bool,
}

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The index is one that Neon reads.
    Index,
    /// The metadata of a timeline, and of a branch and its ancestor, fit together.
    Metadata,
    /// No layer holds what lies beyond the end of the index.
    FutureLayer,
    /// No delta begins or ends within another one that shares keys with it.
    DeltaOverlap,
    /// A layer is there, has the size that the index says, and can be read.
    Readable,
    /// Sizes of files and values are within bounds.
    Size,
    /// What a layer's first block says is what its name says.
    Summary,
    /// Entries are in strict order, at least one, and within the layer's ranges.
    Entries,
    /// A key is one that Neon can have.
    KeySpace,
    /// A value is encoded as Neon does.
    Value,
    /// One version of a key has one content.
    OneContent,
    /// The versions of a key go back to a whole value.
    History,
    /// An image layer has every key that exists in its range.
    CompleteImage,
    /// What every cluster has is there.
    Cluster,
}

/// A rule that does not hold, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// Of which timeline.
    pub timeline: String,
    /// In which layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// Of which key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsn: Option<String>,
    /// In words.
    pub what: String,
}

/// Collects violations of one timeline. Beyond a number of them for a rule they are only counted.
#[derive(Debug)]
pub struct Violations {
    timeline: TimelineId,
    told: Vec<Violation>,
    counts: BTreeMap<Rule, u64>,
}

/// So many violations of one rule in one timeline are named.
const NAMED: u64 = 100;

impl Violations {
    fn new(timeline: TimelineId) -> Violations {
        Violations { timeline, told: Vec::new(), counts: BTreeMap::new() }
    }

    fn add(
        &mut self,
        rule: Rule,
        layer: Option<&LayerName>,
        key: Option<Key>,
        lsn: Option<Lsn>,
        what: impl Into<String>,
    ) {
        let count = self.counts.entry(rule).or_default();
        *count += 1;
        if *count <= NAMED {
            self.told.push(Violation {
                rule,
                timeline: self.timeline.to_string(),
                layer: layer.map(ToString::to_string),
                key: key.map(|key| key.to_string()),
                lsn: lsn.map(|lsn| lsn.to_string()),
                what: what.into(),
            });
        }
    }

    fn append(&mut self, others: Vec<Violation>) {
        for violation in others {
            let count = self.counts.entry(violation.rule).or_default();
            *count += 1;
            if *count <= NAMED {
                self.told.push(violation);
            }
        }
    }

    fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    timelines: u64,
    skipped: u64,
    layers: u64,
    versions: u64,
    keys: u64,
    /// Values of deltas that are compressed. Neon reads them and writes none.
    compressed_changes: u64,
    /// Values under a key that only we have. Neon never asks for it.
    own_values: u64,
}

/// Carries the verb out.
pub fn run(verify: &Verify) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done =
        runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(verify_bucket(verify)));
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn verify_bucket(verify: &Verify) -> Result<u64> {
    let bucket = buckets::open(&verify.url, false).await?;
    let mut totals = Totals::default();
    let mut found = 0;
    for tenant in scrub::look::tenants(&*bucket, verify.tenant).await.context("cannot list the bucket")? {
        let reports =
            verify_tenant(&bucket, tenant, verify.timeline, verify.all, verify.jobs.into(), &mut totals)
                .await
                .with_context(|| format!("cannot look at tenant {tenant}"))?;
        for violations in reports {
            found += violations.total();
            print(&violations, verify.json)?;
        }
    }
    if totals.timelines + totals.skipped == 0 {
        anyhow::bail!("there is no such timeline in {}", verify.url);
    }
    if verify.json {
        println!("{}", serde_json::json!({ "totals": totals, "violations": found }));
    } else {
        println!(
            "{} timelines ({} more say that Neon cannot serve them), {} layers, {} versions of {} keys: {found} violations",
            totals.timelines, totals.skipped, totals.layers, totals.versions, totals.keys
        );
        if totals.compressed_changes > 0 {
            println!(
                "{} values of deltas are compressed: Neon reads such values, and writes none itself",
                totals.compressed_changes
            );
        }
        if totals.own_values > 0 {
            println!("{} values are logical sizes, under a key that Neon never asks for", totals.own_values);
        }
    }
    Ok(found)
}

fn print(violations: &Violations, json: bool) -> Result<()> {
    for violation in &violations.told {
        if json {
            println!("{}", serde_json::to_string(violation)?);
            continue;
        }
        let Violation { rule, timeline, layer, key, lsn, what } = violation;
        let rule = serde_json::to_value(rule)?;
        let mut line =
            format!("{}: timeline {timeline}", rule.as_str().unwrap_or_default().replace('_', " "));
        for (name, value) in [("layer", layer), ("key", key), ("at", lsn)] {
            if let Some(value) = value {
                let _ = write!(line, ", {name} {value}");
            }
        }
        println!("{line}: {what}");
    }
    for (rule, count) in violations.counts.iter().filter(|(_, count)| **count > NAMED) {
        eprintln!("timeline {}: {} more violations of {rule:?}", violations.timeline, count - NAMED);
    }
    Ok(())
}

/// Violations of each timeline that was looked at.
async fn verify_tenant(
    bucket: &Arc<dyn Bucket>,
    tenant: TenantShardId,
    only: Option<TimelineId>,
    all: bool,
    jobs: usize,
    totals: &mut Totals,
) -> Result<Vec<Violations>> {
    let store = IndexStore::as_of_generation(Arc::clone(bucket), tenant, Generation::LAST_OWNER);
    let mut indexes: BTreeMap<TimelineId, IndexPart> = BTreeMap::new();
    let mut reports = Vec::new();
    for id in store.timelines().await? {
        match store.find(id).await {
            Ok(Some(found)) if found.index.deleted_at.is_none() => {
                indexes.insert(id, found.index);
            }
            Ok(_) | Err(LoadIndexError::Buried(_)) => {}
            Err(LoadIndexError::Malformed { path, source }) => {
                let mut violations = Violations::new(id);
                violations.add(Rule::Index, None, None, None, format!("{path}: {}", error_story(&source)));
                if only.is_none_or(|only| only == id) {
                    totals.timelines += 1;
                    reports.push(violations);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    let (_folder, cache) = buckets::temporary_cache(bucket, 64 << 20, 1 << 30)?;
    let wishes = indexes.iter().map(|(id, index)| (*id, wishes_of(index))).collect();
    for (id, index) in indexes.iter().filter(|(id, _)| only.is_none_or(|only| only == **id)) {
        let is_portable = index.palimpsest.as_ref().is_none_or(|ours| ours.not_portable.is_empty());
        if !is_portable && !all {
            totals.skipped += 1;
            continue;
        }
        totals.timelines += 1;
        let mut violations = Violations::new(*id);
        let parent = index.metadata().ancestor_timeline.and_then(|parent| indexes.get(&parent));
        names::check(index, parent, &mut violations);
        let are_whole = check_files(bucket, tenant, *id, index, jobs, totals, &mut violations).await?;
        if are_whole {
            match snapshot(bucket, &cache, tenant, *id, &|id| indexes.get(&id), &wishes) {
                Ok(snapshot) => walk::check(&snapshot, index, totals, &mut violations).await?,
                Err(error) => violations.add(Rule::Readable, None, None, None, error_story(&error)),
            }
        }
        reports.push(violations);
    }
    Ok(reports)
}

/// Each layer for itself. Answers whether all of them can be read.
async fn check_files(
    bucket: &Arc<dyn Bucket>,
    tenant: TenantShardId,
    timeline: TimelineId,
    index: &IndexPart,
    jobs: usize,
    totals: &mut Totals,
    violations: &mut Violations,
) -> Result<bool> {
    let pg = index.metadata().pg_version;
    let files = index.layer_metadata.iter().map(|(name, metadata)| {
        let path = scrub::layer::layer_path(tenant, timeline, name, metadata);
        let (bucket, name, metadata) = (Arc::clone(bucket), name.clone(), metadata.clone());
        async move {
            let bytes = match bucket.get(&path, None).await {
                Ok(object) => object.bytes,
                Err(BucketError::NotFound(_)) => {
                    let mut violations = Violations::new(timeline);
                    violations.add(Rule::Readable, Some(&name), None, None, "it is not in the bucket");
                    return Ok(values::File {
                        violations: violations.told,
                        is_whole: false,
                        ..Default::default()
                    });
                }
                Err(error) => return Err(error),
            };
            let checked = tokio::task::spawn_blocking(move || {
                values::check_file(&bytes, tenant.tenant, timeline, pg, &name, &metadata)
            });
            Ok(checked.await.expect("the check does not panic"))
        }
    });
    let mut checked = futures::stream::iter(files).buffer_unordered(jobs.max(1));
    let mut are_whole = true;
    while let Some(file) = checked.next().await {
        let file: values::File = file?;
        totals.layers += 1;
        totals.compressed_changes += file.compressed_changes;
        totals.own_values += file.own_values;
        are_whole &= file.is_whole;
        violations.append(file.violations);
    }
    Ok(are_whole)
}
