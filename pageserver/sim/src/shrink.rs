//! Making a run that goes wrong shorter, as long as it goes wrong.

use std::time::{Duration, Instant};

use crate::run::{Report, play};
use crate::scenario::Scenario;
use crate::world::Planted;

/// The shortest scenario that was found in the time given and still goes wrong, with how it does.
pub fn shrink(failed: &Scenario, planted: Option<Planted>, within: Duration) -> (Scenario, Report) {
    let since = Instant::now();
    let mut best = failed.clone();
    let mut report = play(&best, planted, false);
    let mut chunk = best.steps.len().div_ceil(2).max(1);
    while since.elapsed() < within {
        let mut at = 0;
        let mut is_shorter = false;
        while at < best.steps.len() && since.elapsed() < within {
            let end = (at + chunk).min(best.steps.len());
            let mut without = best.clone();
            let dropped: u64 = without.steps.drain(at..end).map(|step| step.after).sum();
            // Time passes all the same, or else not: what follows may need either.
            let mut later = without.clone();
            if let Some(next) = later.steps.get_mut(at) {
                next.after += dropped;
            }
            let shorter = [without, later].into_iter().find_map(|scenario| {
                let report = play(&scenario, planted, false);
                report.violation.is_some().then_some((scenario, report))
            });
            match shorter {
                Some((scenario, how)) => {
                    (best, report) = (scenario, how);
                    is_shorter = true;
                }
                None => at = end,
            }
        }
        if chunk == 1 && !is_shorter {
            break;
        }
        chunk = (chunk / 2).max(1);
    }
    (best, report)
}

/// A test that plays a scenario, to be kept.
pub fn as_test(scenario: &Scenario, violation: &str) -> String {
    let lines: String = scenario.to_string().lines().map(|line| format!("         {line}\n")).collect();
    format!(
        "/// {violation}\n#[test]\nfn name_it_after_what_was_wrong() {{\n    holds(\n        \"\n{lines}        \",\n    );\n}}\n"
    )
}
