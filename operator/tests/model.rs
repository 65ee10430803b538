//! The state machine and the engine's claims together, under faults.
//!
//! Random interleavings of two operators, three pageservers, a bucket, an etcd and a Postgres with one slot are played from a seed, with a
//! crash possible between any two effects. The operators run the operator's own `decide`; the pageservers run the engine's own claims,
//! indexes, tombstones, deletions, choice of WAL and comparison of histories, against a bucket in memory. Everything between them is a
//! model: messages that come late, twice or never, requests to the bucket that fail or take effect later, processes that die or stand
//! still, nodes that are cut off, a primary that is replaced by its standby (in some worlds by one that lacks what was not reported, in
//! others by a cluster that was restored from here, or by another such), an etcd that is restored from a backup, users who change their
//! minds.
//!
//! What must hold: no generation is given or claimed twice; what was promised (WAL reported to the source, branches, leases, deletions) is
//! there for every later owner; what the newest index names is there; a committed place never goes back; and when faults stop, the tenant
//! is served, its source drained and able to shut down, or it is gone as its user wished.
//!
//! A check that finds nothing proves nothing. So each rule that keeps this is broken on purpose, and must be caught.
//!
//! Some rules concern what is not in this world; tests elsewhere hold them:
//!
//! * a missing inherited WAL object is an error and not the end of history, and overlapping WAL must be equal: nothing takes objects away
//!   here, and WAL has no bytes. `a_missing_inherited_wal_object_is_an_error_and_not_the_end_of_history` in the engine's `fencing` tests,
//!   `overlapping_bytes_must_be_equal` in its `wal_run`;
//! * WAL of a superseded owner does not count: here it is what the source has too, unless the primary and a pageserver die together, which no
//!   seed of the first 20,000 turns into a difference. `wal_that_a_superseded_owner_puts_after_its_successor_listed_does_not_count` in
//!   `fencing`, `only_own_and_inherited_objects_count` in `wal_run`;
//! * a claim that appears while a deletion begins stops it: what it protects is that somebody looks, and the repeat goes on.
//!   `a_claim_that_appears_while_a_deletion_begins_stops_it` in the engine's `deletion`.
//!
//! `MODEL_SEEDS` says how many seeds are played; `MODEL_SEED` plays one of them and tells its story.

#[path = "model/broken.rs"]
mod broken;
#[path = "model/bucket.rs"]
mod bucket;
#[path = "model/owner.rs"]
mod owner;
#[path = "model/source.rs"]
mod source;
#[path = "model/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use broken::Broken;
use world::{STEPS, World};

/// Seeds that are played unless told otherwise.
const SEEDS: u64 = 100_000;
/// Within so many seeds a broken rule must be caught.
const SEEDS_TO_CATCH: u64 = 20_000;

#[test]
fn no_interleaving_breaks_a_promise_or_leaves_a_tenant_unserved() {
    if let Some(seed) = number("MODEL_SEED") {
        let end = World::play(seed, Broken::Nothing, &BTreeSet::new(), true);
        println!("{}", end.story.join("\n"));
        assert_eq!(end.violation, None);
        return;
    }
    let seeds = number("MODEL_SEEDS").unwrap_or(SEEDS);
    if let Some(seed) = first_violation(seeds, Broken::Nothing) {
        panic!("{}\nplay it alone with MODEL_SEED={seed}", shortest_story(seed, Broken::Nothing));
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The lowest seed in whose world something is that must not be.
fn first_violation(seeds: u64, broken: Broken) -> Option<u64> {
    let (next, found) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.min(found.load(Ordering::Relaxed)) {
                        return;
                    }
                    if World::play(seed, broken, &BTreeSet::new(), false).violation.is_some() {
                        found.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    Some(found.into_inner()).filter(|found| *found != u64::MAX)
}

/// What happened in a world, without the steps that it also goes wrong without.
fn shortest_story(seed: u64, broken: Broken) -> String {
    let fails = |skipped: &BTreeSet<usize>| World::play(seed, broken, skipped, false).violation.is_some();
    let mut skipped = BTreeSet::new();
    let mut size = STEPS / 2;
    while size > 0 {
        for from in (0..STEPS).step_by(size) {
            let mut fewer = skipped.clone();
            fewer.extend(from..(from + size).min(STEPS));
            if fewer.len() > skipped.len() && fails(&fewer) {
                skipped = fewer;
            }
        }
        size /= 2;
    }
    let end = World::play(seed, broken, &skipped, true);
    let steps = STEPS - skipped.len();
    let violation = end.violation.expect("the last of those that went wrong");
    format!("seed {seed}, {steps} of {STEPS} steps:\n{}\n{violation}", end.story.join("\n"))
}

/// A broken rule is caught soon, by a seed in which nothing goes wrong otherwise.
fn caught(broken: Broken) {
    let seed = first_violation(SEEDS_TO_CATCH, broken)
        .unwrap_or_else(|| panic!("{broken:?} is not caught within {SEEDS_TO_CATCH} seeds"));
    let play = |broken| World::play(seed, broken, &BTreeSet::new(), false).violation;
    assert_eq!(play(Broken::Nothing), None, "seed {seed} goes wrong without {broken:?}");
    println!("{broken:?}: seed {seed}: {}", play(broken).expect("as it did before"));
}

#[test]
fn a_generation_that_is_not_raised_for_a_new_process_is_caught() {
    caught(Broken::SameGenerationForNewProcess);
}

#[test]
fn a_status_that_is_written_without_comparing_its_version_is_caught() {
    caught(Broken::StatusOverwritten);
}

#[test]
fn a_call_that_another_process_than_the_one_meant_accepts_is_caught() {
    caught(Broken::AnyInstanceAccepted);
}

#[test]
fn a_pageserver_that_goes_on_when_its_claim_is_refused_is_caught() {
    caught(Broken::RefusedClaimIgnored);
}

#[test]
fn a_pageserver_that_claims_without_looking_for_higher_claims_is_caught() {
    caught(Broken::ClaimsUnread);
}

#[test]
fn acknowledging_or_deleting_without_validation_is_caught() {
    caught(Broken::NoValidation);
}

#[test]
fn validation_before_the_put_is_caught() {
    caught(Broken::ValidationBeforePut);
}

#[test]
fn reporting_what_is_only_in_memory_is_caught() {
    caught(Broken::MemoryReported);
}

#[test]
fn a_source_that_shuts_down_and_gets_no_answer_is_caught() {
    caught(Broken::KeepaliveIgnored);
}

#[test]
fn an_index_that_is_put_unconditionally_is_caught() {
    caught(Broken::IndexPutUnconditional);
}

#[test]
fn an_owner_that_begins_without_its_own_index_is_caught() {
    caught(Broken::NoOwnIndex);
}

#[test]
fn a_branch_that_is_noted_before_its_wal_is_stored_is_caught() {
    caught(Broken::BranchBeforeWal);
}

#[test]
fn a_branch_that_is_acknowledged_without_validation_is_caught() {
    caught(Broken::BranchUnvalidated);
}

#[test]
fn collecting_objects_of_any_generation_is_caught() {
    caught(Broken::CollectsAnyGeneration);
}

#[test]
fn collecting_objects_that_the_own_index_names_is_caught() {
    caught(Broken::CollectsNamed);
}

#[test]
fn deleting_layers_by_an_index_that_was_not_validated_is_caught() {
    caught(Broken::DeletesUnvalidated);
}

#[test]
fn a_deletion_of_a_tenant_that_only_an_owner_can_finish_is_caught() {
    caught(Broken::OnlyOwnersDelete);
}

#[test]
fn a_deleted_tenant_whose_generation_is_to_be_exceeded_is_caught() {
    caught(Broken::DeletionIsAnOwner);
}

#[test]
fn deleting_a_tenant_without_claiming_it_for_good_is_caught() {
    caught(Broken::DeletionUnclaimed);
}

#[test]
fn deleting_a_timeline_without_a_tombstone_is_caught() {
    caught(Broken::NoTombstone);
}

#[test]
fn a_tombstone_that_comes_before_the_index_says_so_is_caught() {
    caught(Broken::DeletionUnmarked);
}

#[test]
fn creating_a_timeline_where_a_tombstone_is_is_caught() {
    caught(Broken::TombstoneIgnored);
}

#[test]
fn holding_the_slot_without_looking_for_newer_owners_is_caught() {
    caught(Broken::SlotUnlisted);
}

#[test]
fn waiting_for_the_slot_of_a_process_that_stands_still_is_caught() {
    caught(Broken::ActiveSlotWaitedFor);
}

#[test]
fn a_switch_of_the_postgres_timeline_that_is_not_noted_first_is_caught() {
    caught(Broken::SwitchNotNoted);
}

#[test]
fn an_archived_timeline_that_does_not_say_what_goes_on_in_its_place_is_caught() {
    caught(Broken::SuccessorUnrecorded);
}

#[test]
fn following_another_restore_of_the_same_place_is_caught() {
    caught(Broken::NonceIgnored);
}

#[test]
fn deleting_wal_by_an_index_that_was_not_validated_is_caught() {
    caught(Broken::WalDeletedUnvalidated);
}

#[test]
fn a_layer_that_is_put_again_with_other_bytes_is_caught() {
    caught(Broken::LayerPutUnconditional);
}

#[test]
fn a_lease_that_is_granted_without_validation_is_caught() {
    caught(Broken::LeaseUnvalidated);
}

#[test]
fn a_missing_object_that_is_believed_without_asking_for_newer_claims_is_caught() {
    caught(Broken::MissingBelieved);
}
