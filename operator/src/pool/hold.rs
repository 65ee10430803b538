//! Whether silence of pageservers is theirs or ours.

use std::time::Duration;

use super::view::{Contact, Pageserver};

/// Whether more than `max_unhealthy_percent` of the pageservers that should answer do not. Then it is likely the operator that is cut off:
/// attaching everything elsewhere would be of no use to anyone.
pub fn failover_is_held<'a>(
    pageservers: impl IntoIterator<Item = &'a Pageserver>,
    patience: Duration,
    max_unhealthy_percent: u32,
) -> bool {
    let (mut lost, mut all) = (0_u64, 0_u64);
    for pageserver in pageservers {
        if pageserver.leaving.is_some() {
            continue;
        }
        match pageserver.contact {
            Contact::Starting => {}
            Contact::Silent(since) => {
                all += 1;
                lost += u64::from(since > patience);
            }
            Contact::Answering(_) => all += 1,
        }
    }
    lost * 100 > all * u64::from(max_unhealthy_percent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{answering, silent};
    use crate::pool::view::Leaving;

    const PATIENCE: Duration = Duration::from_secs(15);

    #[test]
    fn half_of_the_pageservers_may_be_lost_by_default_and_no_more() {
        let held = |lost: usize, alive: usize| {
            let pageservers: Vec<_> = (0..lost)
                .map(|n| silent(&format!("lost-{n}"), 16))
                .chain((0..alive).map(|n| answering(&format!("alive-{n}"), "i")))
                .collect();
            failover_is_held(&pageservers, PATIENCE, 50)
        };
        let table = [
            ((0, 0), false),
            ((0, 3), false),
            ((1, 2), false),
            ((1, 1), false),
            ((2, 1), true),
            ((1, 0), true),
        ];
        for ((lost, alive), expected) in table {
            assert_eq!(held(lost, alive), expected, "{lost} lost, {alive} alive");
        }
    }

    #[test]
    fn those_that_are_silent_for_a_moment_or_are_leaving_do_not_count_as_lost() {
        let mut leaving = silent("ps-1", 60);
        leaving.leaving = Some(Leaving::Terminating);
        let pageservers = [silent("ps-0", 14), leaving, silent("ps-2", 15)];
        assert!(!failover_is_held(&pageservers, PATIENCE, 0));
    }
}
