//! Faults that are planted in the world must be noticed: each within 500 seeds.

use sim::run::play;
use sim::scenario::Scenario;
use sim::world::Planted;

fn is_caught(planted: Planted) {
    for seed in 0..500 {
        let report = play(&Scenario::of(seed), Some(planted), false);
        if let Some(violation) = report.violation {
            println!("seed {seed}: {violation}");
            return;
        }
    }
    panic!("500 seeds did not notice {planted:?}");
}

#[test]
fn a_skipped_validation_is_caught() {
    is_caught(Planted::ValidationSkipped);
}

#[test]
fn a_report_of_what_is_only_in_memory_is_caught() {
    is_caught(Planted::MemoryReported);
}

#[test]
fn an_index_that_is_put_whatever_is_there_is_caught() {
    is_caught(Planted::PutsUnconditional);
}

#[test]
fn a_file_that_was_not_synced_is_caught() {
    is_caught(Planted::PutsUnsynced);
}

#[test]
fn a_file_that_was_not_synced_and_is_believed_is_caught() {
    is_caught(Planted::PutsTorn);
}

#[test]
fn a_merge_that_drops_a_version_is_caught() {
    is_caught(Planted::MergeDropsVersion);
}

#[test]
fn a_tombstone_that_nobody_looks_at_is_caught() {
    is_caught(Planted::TombstonesHidden);
}

#[test]
fn a_listing_that_lacks_the_newest_wal_is_caught() {
    is_caught(Planted::WalListedLate);
}

#[test]
fn history_that_is_collected_a_record_too_early_is_caught() {
    is_caught(Planted::CollectedEarly);
}

#[test]
fn a_layer_that_is_lost_is_caught() {
    is_caught(Planted::LayerLost);
}
