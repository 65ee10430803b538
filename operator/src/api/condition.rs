//! Conditions, by Kubernetes' conventions: one entry for each type, positive meaning, a stable reason, a message for people.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest message that is stored; a longer one is cut.
const MESSAGE_LENGTH: usize = 1024;

/// Something that is, is not, or may be the case with a resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What may be the case, in `CamelCase`.
    #[serde(rename = "type")]
    #[schemars(length(max = 64))]
    pub type_: String,
    /// Whether it is.
    pub status: ConditionStatus,
    /// Why, in one `CamelCase` word for programs.
    #[schemars(length(min = 1, max = 128))]
    pub reason: String,
    /// Why, and what to do about it, for people.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// `metadata.generation` of the resource that this was said of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` changed last.
    pub last_transition_time: Time,
}

/// Whether something is the case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It is.
    True,
    /// It is not.
    False,
    /// Nobody knows yet.
    Unknown,
}

/// What is to be said of a condition, before it is compared with what was said before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which condition.
    pub type_: &'static str,
    /// Whether it is the case.
    pub status: ConditionStatus,
    /// Why, for programs.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

impl Verdict {
    /// It is the case.
    pub fn yes(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Verdict { type_, status: ConditionStatus::True, reason, message: message.into() }
    }

    /// It is not.
    pub fn no(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Verdict { type_, status: ConditionStatus::False, reason, message: message.into() }
    }
}

/// The conditions that follow from `before` and what is to be said now. Those of which nothing is said stay as they were.
pub fn merge(
    before: &[Condition],
    verdicts: &[Verdict],
    observed_generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut merged = before.to_vec();
    for verdict in verdicts {
        let old = merged.iter().position(|condition| condition.type_ == verdict.type_);
        let since = match old.map(|at| &merged[at]) {
            Some(old) if old.status == verdict.status => old.last_transition_time.clone(),
            // Kubernetes keeps seconds.
            _ => Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
        };
        let condition = Condition {
            type_: verdict.type_.into(),
            status: verdict.status,
            reason: verdict.reason.into(),
            message: cut(&verdict.message),
            observed_generation,
            last_transition_time: since,
        };
        match old {
            Some(at) => merged[at] = condition,
            None => merged.push(condition),
        }
    }
    merged
}

/// Whether a condition is the case.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    conditions.iter().any(|condition| condition.type_ == type_ && condition.status == ConditionStatus::True)
}

fn cut(message: &str) -> String {
    match message.char_indices().nth(MESSAGE_LENGTH) {
        Some((at, _)) => message[..at].into(),
        None => message.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_time_of_a_condition_moves_only_with_its_status() {
        let first = merge(&[], &[Verdict::no("Ready", "Importing", "1 of 3")], Some(1), at(10));
        let same = merge(&first, &[Verdict::no("Ready", "Importing", "2 of 3")], Some(2), at(20));
        assert_eq!(same[0].last_transition_time, Time(at(10)));
        assert_eq!((same[0].message.as_str(), same[0].observed_generation), ("2 of 3", Some(2)));
        let other = merge(&same, &[Verdict::yes("Ready", "Created", "")], Some(2), at(30));
        assert_eq!(other[0].last_transition_time, Time(at(30)));
        assert_eq!(other.len(), 1);
        assert!(is_true(&other, "Ready") && !is_true(&same, "Ready"));
    }

    #[test]
    fn a_condition_of_which_nothing_is_said_stays() {
        let before =
            merge(&[], &[Verdict::yes("Ready", "A", ""), Verdict::no("Degraded", "B", "")], None, at(1));
        let after = merge(&before, &[Verdict::no("Ready", "C", "")], None, at(2));
        assert_eq!(after[1], before[1]);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = "ü".repeat(5000);
        let merged = merge(&[], &[Verdict::yes("Ready", "A", long)], None, at(1));
        assert_eq!(merged[0].message.chars().count(), MESSAGE_LENGTH);
    }
}
