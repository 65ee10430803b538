//! Where a shard is best placed. A pure function of what is known of the pool.

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash as _, Hasher as _};

use model::TenantShardId;

use crate::api::tenant::{Placement, SpreadShards};
use crate::pool::view::{OpenPool, Pageserver, Report};

/// A pageserver that has more than this many times the average number of shards is overloaded.
const OVERLOAD_FACTOR: u32 = 2;
/// Utilisation is compared in so many steps: smaller differences are noise.
const UTILISATION_STEPS: u32 = 5;

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Which shard.
    pub shard: TenantShardId,
    /// What its tenant asks for.
    pub placement: &'a Placement,
    /// Pods that have, or are to have, other shards of the tenant; one entry for each shard.
    pub siblings: &'a [&'a str],
    /// Take this one if it can be taken at all: its cache is warm.
    pub prefer: Option<&'a str>,
    /// Not this one.
    pub exclude: Option<&'a str>,
}

/// Why no pageserver can be taken: how many fell out for which reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoCapacity {
    silent: u32,
    leaving: u32,
    storage: u32,
    full: u32,
    sibling: u32,
    excluded: u32,
}

impl fmt::Display for NoCapacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = [
            (self.silent, "do not answer"),
            (self.leaving, "are being emptied"),
            (self.storage, "cannot use their bucket"),
            (self.full, "are full"),
            (self.sibling, "have another shard of the tenant"),
            (self.excluded, "have the shard now"),
        ];
        let told: Vec<_> = told.iter().filter(|(n, _)| *n > 0).map(|(n, why)| format!("{n} {why}")).collect();
        if told.is_empty() {
            return f.write_str("the pool has no pageservers");
        }
        write!(f, "no pageserver of the pool can take the shard: {}", told.join(", "))
    }
}

/// The best pageserver for a shard.
pub fn choose<'a>(
    pool: &'a OpenPool,
    wanted: Wanted<'_>,
) -> Result<(&'a Pageserver, &'a Report), NoCapacity> {
    let mut fell_out = NoCapacity::default();
    let candidates: Vec<_> = pool
        .pageservers
        .values()
        .filter_map(|pageserver| {
            eligible(pool, pageserver, wanted, &mut fell_out).map(|report| (pageserver, report))
        })
        .collect();
    let preferred = candidates.iter().find(|(pageserver, _)| wanted.prefer == Some(&pageserver.pod));
    if let Some(preferred) = preferred {
        return Ok(*preferred);
    }
    let average = candidates.iter().map(|(p, r)| load(p, r)).sum::<u32>() / candidates.len().max(1) as u32;
    candidates
        .into_iter()
        .min_by_key(|(pageserver, report)| score(pool, pageserver, report, wanted, average))
        .ok_or(fell_out)
}

fn eligible<'a>(
    pool: &OpenPool,
    pageserver: &'a Pageserver,
    wanted: Wanted<'_>,
    fell_out: &mut NoCapacity,
) -> Option<&'a Report> {
    let has_sibling = wanted.siblings.contains(&pageserver.pod.as_str());
    let why = match pageserver.report() {
        _ if wanted.exclude == Some(&pageserver.pod) => &mut fell_out.excluded,
        None => &mut fell_out.silent,
        Some(report) if pageserver.leaving.is_some() || report.draining => &mut fell_out.leaving,
        Some(report) if !pool.storage_is_fit(report.storage) => &mut fell_out.storage,
        Some(report)
            if load(pageserver, report) >= pool.max_shards
                || report.disk_percent >= pool.disk_high_watermark_percent =>
        {
            &mut fell_out.full
        }
        Some(_) if has_sibling && wanted.placement.spread_shards == SpreadShards::Required => {
            &mut fell_out.sibling
        }
        Some(report) => return Some(report),
    };
    *why += 1;
    None
}

/// Shards that it has or is to have: what it reports lags behind what was given to it.
fn load(pageserver: &Pageserver, report: &Report) -> u32 {
    pageserver.placed.max(report.shards.len() as u32)
}

/// Smaller is better, the first difference decides.
fn score(
    pool: &OpenPool,
    pageserver: &Pageserver,
    report: &Report,
    wanted: Wanted<'_>,
    average: u32,
) -> impl Ord + use<> {
    let zones = &wanted.placement.zones;
    let zone = zones.iter().position(|zone| pageserver.zone.as_ref() == Some(zone)).unwrap_or(zones.len());
    let siblings = wanted.siblings.iter().filter(|pod| **pod == pageserver.pod).count();
    let load = load(pageserver, report);
    let overloaded = load > average.saturating_mul(OVERLOAD_FACTOR).max(1);
    let of_shards = load.saturating_mul(UTILISATION_STEPS) / pool.max_shards.max(1);
    let of_disk = report.disk_percent.saturating_mul(UTILISATION_STEPS) / 100;
    (
        zone,
        siblings,
        overloaded,
        of_shards.max(of_disk),
        load,
        Reverse(rendezvous(wanted.shard, &pageserver.pod)),
    )
}

/// Spreads equals: each shard has its own order of pods, which a pod that comes or goes does not change.
fn rendezvous(shard: TenantShardId, pod: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (shard, pod).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fixtures::{answering, pool, report_mut, shard, silent};
    use crate::pool::view::{Leaving, Storage};

    static ANYWHERE: Placement = Placement { zones: Vec::new(), spread_shards: SpreadShards::Preferred };

    fn wanted(placement: &Placement) -> Wanted<'_> {
        Wanted { shard: shard(0), placement, siblings: &[], prefer: None, exclude: None }
    }

    fn chosen(pool: &OpenPool, wanted: Wanted<'_>) -> String {
        choose(pool, wanted).unwrap().0.pod.clone()
    }

    #[test]
    fn only_a_pageserver_that_can_take_the_shard_is_chosen() {
        let mut leaving = answering("ps-0", "a");
        leaving.leaving = Some(Leaving::Terminating);
        let mut draining = answering("ps-1", "b");
        report_mut(&mut draining).draining = true;
        let mut full = answering("ps-2", "c");
        report_mut(&mut full).disk_percent = 85;
        let mut busy = answering("ps-3", "d");
        busy.placed = 10;
        let mut cut_off = answering("ps-4", "e");
        report_mut(&mut cut_off).storage = Storage::Unavailable;
        let unfit = [leaving, draining, full, busy, cut_off, silent("ps-5", 1)];
        let mut pool = pool(unfit);
        pool.max_shards = 10;
        let said = choose(&pool, wanted(&ANYWHERE)).unwrap_err().to_string();
        assert_eq!(
            said,
            "no pageserver of the pool can take the shard: 1 do not answer, 2 are being emptied, 1 cannot use their bucket, 2 are full"
        );
        pool.pageservers.insert("ps-6".into(), answering("ps-6", "f"));
        assert_eq!(chosen(&pool, wanted(&ANYWHERE)), "ps-6");
        let not_that_one = Wanted { exclude: Some("ps-6"), ..wanted(&ANYWHERE) };
        assert!(choose(&pool, not_that_one).unwrap_err().to_string().ends_with("1 have the shard now"));
    }

    #[test]
    fn a_store_without_conditional_writes_is_taken_only_where_the_pool_allows_it() {
        let mut pageserver = answering("ps-0", "a");
        report_mut(&mut pageserver).storage = Storage::BestEffort;
        let mut pool = pool([pageserver]);
        assert!(choose(&pool, wanted(&ANYWHERE)).is_err());
        pool.best_effort = true;
        assert!(choose(&pool, wanted(&ANYWHERE)).is_ok());
    }

    #[test]
    fn a_wanted_zone_comes_before_load_and_load_before_chance() {
        let mut far = answering("ps-0", "a");
        far.zone = Some("a".into());
        let mut near = answering("ps-1", "b");
        (near.zone, near.placed) = (Some("b".into()), 3);
        let mut nearer = answering("ps-2", "c");
        (nearer.zone, nearer.placed) = (Some("b".into()), 2);
        let pool = pool([far, near, nearer]);
        let in_b = Placement { zones: vec!["b".into()], ..ANYWHERE.clone() };
        assert_eq!(chosen(&pool, wanted(&in_b)), "ps-2");
        assert_eq!(chosen(&pool, wanted(&ANYWHERE)), "ps-0");
        assert_eq!(chosen(&pool, Wanted { prefer: Some("ps-1"), ..wanted(&ANYWHERE) }), "ps-1");
    }

    #[test]
    fn shards_of_one_tenant_share_a_pageserver_only_when_they_may_and_must() {
        let pool = pool([answering("ps-0", "a"), answering("ps-1", "b")]);
        let beside = |siblings, placement| choose(&pool, Wanted { siblings, ..wanted(placement) });
        assert_eq!(beside(&["ps-0"], &ANYWHERE).unwrap().0.pod, "ps-1");
        assert_eq!(beside(&["ps-0", "ps-1", "ps-1"], &ANYWHERE).unwrap().0.pod, "ps-0");
        let apart = Placement { spread_shards: SpreadShards::Required, ..ANYWHERE.clone() };
        assert!(beside(&["ps-0", "ps-1"], &apart).is_err());
    }

    #[test]
    fn equals_are_chosen_equally_often_and_always_the_same_for_a_shard() {
        let pool = pool((0..4).map(|n| answering(&format!("ps-{n}"), "i")));
        let mut counts = BTreeMap::<String, u32>::new();
        for n in 0..=u8::MAX {
            let one = Wanted { shard: shard(n), ..wanted(&ANYWHERE) };
            assert_eq!(chosen(&pool, one), chosen(&pool, one));
            *counts.entry(chosen(&pool, one)).or_default() += 1;
        }
        assert!(counts.len() == 4 && counts.values().all(|n| (35..=95).contains(n)), "{counts:?}");
    }
}
