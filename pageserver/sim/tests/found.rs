//! Runs that once went wrong.

use sim::run::play;
use sim::scenario::Scenario;

fn holds(text: &str) {
    let scenario: Scenario = text.parse().expect("it was written by the simulation");
    let report = play(&scenario, None, true);
    assert_eq!(report.violation, None, "{}", report.story.join("\n"));
}

/// Images left out what had an empty value, and a rewriting took absence for nothing new: line 0 had relations that had been dropped.
#[test]
fn a_dropped_relation_stays_dropped_however_often_its_layers_are_rewritten() {
    holds(
        "
         seed 363
         +30 lease 0 210 16
         +545 lease 6 325 2
         +0 write 7 6 1075993674
         +5 write 3 31 3479649896
         +44 seal 1
         +3649 crash 3 59
         +171380 write 4 2 643626733
         +11 write 2 2 3354162942
         +371 write 1 51 1756476495
         +60066 lease 3 626 4023
         +0 crash 3 1466
         +0 write 3 38 3149033025
         +21975 restart
         +5897 write 6 47 3296538696
         +0 take-over
        ",
    );
}
