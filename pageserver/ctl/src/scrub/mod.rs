//! `pagectl scrub`: looks at everything in a bucket, and deletes what nothing names.

mod clean;
mod finding;
pub mod layer;
pub mod look;
#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use clap::Args;
use model::{TenantId, TenantShardId};

use crate::{buckets, key_text};
use clean::Deleted;
use finding::Finding;
use look::{Look, Report, Totals};

/// How often something is said of work that takes long.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Looks at every object of every tenant in a bucket: layers, WAL, indexes, claims; and lists what nothing names.
///
/// Layers are read whole and all their checksums compared; memory is that of the largest layer, as many times as --jobs says. A server may be at
/// work meanwhile. Ends with 0 when nothing was found, 1 when something was, 2 when it could not look.
#[derive(Debug, Args)]
pub struct Scrub {
    /// The bucket: `s3://…` as in the pageserver's configuration, or a directory.
    url: String,
    /// Only this tenant.
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Delete orphans older than --grace, and finish deletions that were begun. THIS CLAIMS THE TENANTS CONCERNED: a pageserver that runs on its own
    /// and has one of them ENDS with an error, and has to be started again. Only for buckets that no server is at work on, or where that does not matter.
    #[arg(long)]
    delete: bool,
    /// With --delete: also tenants that an operator gave to a pageserver. It gives them a new generation afterwards.
    #[arg(long, requires = "delete")]
    take_over: bool,
    /// What nothing names is an orphan when it is so old.
    #[arg(long, default_value = "1d", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Layers that are looked at at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Print a JSON object for each finding, and one at the end.
    #[arg(long)]
    json: bool,
}

/// Carries the verb out.
pub fn run(scrub: &Scrub) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(scrub_bucket(scrub)));
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Answers how much was found and is still there.
async fn scrub_bucket(scrub: &Scrub) -> Result<u64> {
    let bucket = buckets::open(&scrub.url, scrub.delete).await?;
    let look = Look {
        bucket,
        tenant: scrub.tenant,
        jobs: scrub.jobs.into(),
        grace: scrub.grace,
        now: SystemTime::now(),
    };
    let mut printer = Printer { json: scrub.json, found: 0, damage: 0, lasting: 0, said: Instant::now() };
    let (totals, deleted) =
        scrub_all(&look, scrub.delete.then_some(Deleting { take_over: scrub.take_over }), &mut printer)
            .await?;
    printer.end(&totals, deleted.as_ref())?;
    Ok(match &deleted {
        Some(deleted) => printer.lasting + deleted.left_alone.len() as u64,
        None => printer.found,
    })
}

/// How to delete.
#[derive(Clone, Copy)]
struct Deleting {
    take_over: bool,
}

async fn scrub_all(
    look: &Look,
    deleting: Option<Deleting>,
    report: &mut dyn Report,
) -> Result<(Totals, Option<Deleted>)> {
    let mut totals = Totals::default();
    let mut wasteful = Vec::new();
    let tenants = look::tenants(&*look.bucket, look.tenant).await.context("cannot list the bucket")?;
    for tenant in tenants {
        let waste = look::look_at(look, tenant, &mut totals, report)
            .await
            .with_context(|| format!("cannot look at tenant {tenant}"))?;
        wasteful.extend(waste.is_any.then_some(waste));
    }
    let Some(Deleting { take_over }) = deleting else { return Ok((totals, None)) };
    let claimed: Vec<TenantShardId> = wasteful
        .iter()
        .filter(|waste| waste.last_claim != Some(model::Generation::DELETED))
        .map(|waste| waste.tenant)
        .collect();
    // Before anything is claimed: one that is refused shall not cost the others their owners.
    for tenant in &claimed {
        clean::check_owner(&*look.bucket, *tenant, take_over).await?;
        eprintln!("tenant {tenant} is about to be claimed: a pageserver that has it on its own ends by that");
    }
    let mut deleted = Deleted::default();
    for waste in &wasteful {
        clean::clean(&look.bucket, waste, take_over, look.grace, look.now, &mut deleted)
            .await
            .with_context(|| format!("cannot clean tenant {}", waste.tenant))?;
    }
    Ok((totals, Some(deleted)))
}

/// Prints as it goes.
struct Printer {
    json: bool,
    found: u64,
    damage: u64,
    /// What deleting does not end.
    lasting: u64,
    said: Instant,
}

impl Report for Printer {
    fn found(&mut self, finding: Finding) {
        self.found += 1;
        self.damage += u64::from(finding.kind.is_damage());
        self.lasting += u64::from(!finding.kind.is_deletable());
        let mut out = std::io::stdout().lock();
        let written = if self.json {
            let line = serde_json::to_string(&finding).expect("findings are text");
            writeln!(out, "{line}")
        } else {
            let loudness = if finding.kind.is_damage() { "DAMAGE" } else { "waste" };
            writeln!(out, "{loudness}: {}: {}: {}", finding.kind.name(), finding.object, finding.what)
        };
        if written.is_err() {
            std::process::exit(2); // nobody reads it any more
        }
    }

    fn progress(&mut self, at: &str, totals: &Totals) {
        if self.said.elapsed() < PROGRESS_EVERY {
            return;
        }
        self.said = Instant::now();
        eprintln!(
            "{at}: so far {} layers with {} and {} values, {} WAL objects, {} findings",
            totals.layers,
            key_text::bytes(totals.layer_bytes),
            totals.values,
            totals.wal_objects,
            self.found
        );
    }
}

impl Printer {
    fn end(&self, totals: &Totals, deleted: Option<&Deleted>) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            let end = serde_json::json!({
                "totals": totals, "findings": self.found, "damage": self.damage, "deleted": deleted
            });
            writeln!(out, "{end}")?;
            return Ok(());
        }
        writeln!(
            out,
            "{} tenant shards, {} timelines, {} layers with {} and {} values, {} WAL objects: {} findings, {} of them damage",
            totals.tenants,
            totals.timelines,
            totals.layers,
            key_text::bytes(totals.layer_bytes),
            totals.values,
            totals.wal_objects,
            self.found,
            self.damage
        )?;
        if totals.young + totals.of_present_owner > 0 {
            writeln!(
                out,
                "besides, {} objects that nothing names are too young, and {} are the present owner's, who alone knows what for",
                totals.young, totals.of_present_owner
            )?;
        }
        if let Some(deleted) = deleted {
            let bytes = key_text::bytes(deleted.orphan_bytes);
            writeln!(out, "deleted {} objects, {bytes} of them orphans", deleted.objects)?;
            for left in &deleted.left_alone {
                writeln!(out, "left alone: {left}")?;
            }
        }
        Ok(())
    }
}
