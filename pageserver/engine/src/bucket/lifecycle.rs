//! Lifecycle rules of an S3 bucket that would delete our objects, or put them out of reach.
//!
//! Nothing here may vanish by itself: a claim that expires looks like one that was never made, and history is kept on purpose.

use aws_sdk_s3::types::{ExpirationStatus, LifecycleRule, TransitionStorageClass};

/// What the rules do to objects below `prefix` (empty, or with a slash at the end), in words; empty when they leave them alone.
pub(super) fn threats(rules: &[LifecycleRule], prefix: &str) -> Vec<String> {
    let touches = |rule: &&LifecycleRule| {
        let below = prefix_of(rule);
        *rule.status() == ExpirationStatus::Enabled
            && (below.starts_with(prefix) || prefix.starts_with(below))
    };
    rules.iter().filter(touches).filter_map(threat).collect()
}

fn threat(rule: &LifecycleRule) -> Option<String> {
    let deletes = rule.expiration().is_some_and(|when| when.days().is_some() || when.date().is_some());
    let archives = rule.transitions().iter().any(|transition| {
        // The other classes answer a GET at once.
        matches!(
            transition.storage_class(),
            Some(TransitionStorageClass::Glacier | TransitionStorageClass::DeepArchive)
        )
    });
    let does = match (deletes, archives) {
        (true, _) => "deletes objects",
        (false, true) => "moves objects to where they cannot be read at once",
        (false, false) => return None,
    };
    Some(format!("rule {:?} for prefix {:?} {does}", rule.id().unwrap_or(""), prefix_of(rule)))
}

/// What the keys that the rule is for begin with. Tags and sizes narrow it further; ours may have any.
fn prefix_of(rule: &LifecycleRule) -> &str {
    let filter = rule.filter();
    let within = filter.and_then(|filter| filter.and()).and_then(|and| and.prefix());
    // The rule's own prefix is the older form, and still in use.
    #[allow(deprecated, reason = "stores still answer it")]
    filter.and_then(|filter| filter.prefix()).or(within).or(rule.prefix()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::types::{LifecycleExpiration, LifecycleRuleFilter, Transition};

    use super::*;

    fn rule(status: ExpirationStatus, prefix: &str) -> LifecycleRule {
        LifecycleRule::builder()
            .id("tidy")
            .status(status)
            .filter(LifecycleRuleFilter::builder().prefix(prefix).build())
            .expiration(LifecycleExpiration::builder().days(30).build())
            .build()
            .unwrap()
    }

    #[test]
    fn a_rule_that_deletes_ours_is_named() {
        for prefix in ["", "history/", "hist", "history/palimpsest/claims/"] {
            let found = threats(&[rule(ExpirationStatus::Enabled, prefix)], "history/");
            assert_eq!(found, [format!("rule \"tidy\" for prefix {prefix:?} deletes objects")]);
        }
    }

    #[test]
    fn rules_that_are_off_or_for_others_or_harmless_are_not() {
        let harmless = LifecycleRule::builder().status(ExpirationStatus::Enabled).build().unwrap();
        let rules =
            [rule(ExpirationStatus::Disabled, ""), rule(ExpirationStatus::Enabled, "logs/"), harmless];
        assert!(threats(&rules, "history/").is_empty());
    }

    #[test]
    fn an_archive_is_as_bad_as_none() {
        let to = |class| {
            LifecycleRule::builder()
                .status(ExpirationStatus::Enabled)
                .transitions(Transition::builder().days(1).storage_class(class).build())
                .build()
                .unwrap()
        };
        assert_eq!(threats(&[to(TransitionStorageClass::DeepArchive)], "").len(), 1);
        assert!(threats(&[to(TransitionStorageClass::StandardIa)], "").is_empty());
    }
}
