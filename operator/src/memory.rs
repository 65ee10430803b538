//! What reconcilers remember of a resource between passes. All of it may be lost: it only spares repetitions.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// First pause before calls that failed go out again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The same when only a person can mend what is wrong: at most six passes a minute.
const FIRST_PAUSE_FOR_PEOPLE: Duration = Duration::from_secs(10);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// How long a resource is waited for that was written and not seen since.
const UNSEEN: Duration = Duration::from_secs(5);

/// What is remembered of each resource, by uid.
pub struct Memory<A> {
    // Guards the table; held for a look-up or an update.
    entries: Mutex<HashMap<String, Entry<A>>>,
}

struct Entry<A> {
    answers: A,
    /// `metadata.generation` that the answers are about: another spec gets other answers.
    generation: Option<i64>,
    /// The version that our last write replaced, and when.
    replaced: Option<(String, Instant)>,
    failed: Option<Failure>,
}

/// Calls that failed.
struct Failure {
    calls: String,
    times: u32,
    until: Instant,
}

impl<A> Default for Memory<A> {
    fn default() -> Self {
        Memory { entries: Mutex::default() }
    }
}

impl<A: Clone + Default + PartialEq> Memory<A> {
    /// What was answered about this spec of a resource.
    pub fn answers(&self, uid: &str, generation: Option<i64>) -> A {
        self.with(uid, |entry| {
            if entry.generation != generation {
                *entry = Entry { generation, replaced: entry.replaced.take(), ..Entry::default() };
            }
            entry.answers.clone()
        })
    }

    /// Changes what was answered. Answers whether that was anything new.
    pub fn learn(&self, uid: &str, change: impl FnOnce(&mut A)) -> bool {
        self.with(uid, |entry| {
            let before = entry.answers.clone();
            change(&mut entry.answers);
            entry.answers != before
        })
    }

    /// We replaced this version of a resource.
    pub fn replaced(&self, uid: &str, version: Option<&str>, now: Instant) {
        let version = version.unwrap_or_default().to_owned();
        self.with(uid, |entry| entry.replaced = Some((version, now)));
    }

    /// Whether this version of a resource is one that we replaced, so that a newer one is about to be seen.
    pub fn is_outdated(&self, uid: &str, version: Option<&str>, now: Instant) -> bool {
        self.with(uid, |entry| {
            let replaced = entry.replaced.as_ref();
            replaced.is_some_and(|(replaced, at)| {
                Some(replaced.as_str()) == version && now.saturating_duration_since(*at) < UNSEEN
            })
        })
    }

    /// How long these calls are not to go out again, since they failed.
    pub fn pause(&self, uid: &str, calls: &str, now: Instant) -> Option<Duration> {
        self.with(uid, |entry| {
            let failure = entry.failed.as_ref().filter(|failed| failed.calls == calls)?;
            failure.until.checked_duration_since(now).filter(|pause| !pause.is_zero())
        })
    }

    /// These calls failed; `for_people`: only a person can mend it. Answers how long they are not to go out again.
    pub fn failed(&self, uid: &str, calls: &str, for_people: bool, now: Instant) -> Duration {
        self.with(uid, |entry| {
            let times =
                entry.failed.as_ref().filter(|failed| failed.calls == calls).map_or(0, |failed| failed.times);
            let first = if for_people { FIRST_PAUSE_FOR_PEOPLE } else { FIRST_PAUSE };
            let pause = first.saturating_mul(1 << times.min(16)).min(LONGEST_PAUSE);
            let pause = pause.mul_f64(rand::random_range(1.0..1.2));
            entry.failed = Some(Failure { calls: calls.into(), times: times + 1, until: now + pause });
            pause
        })
    }

    /// Calls went well.
    pub fn succeeded(&self, uid: &str) {
        self.with(uid, |entry| entry.failed = None);
    }

    /// The resource is gone.
    pub fn forget(&self, uid: &str) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    fn with<T>(&self, uid: &str, act: impl FnOnce(&mut Entry<A>) -> T) -> T {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        act(entries.entry(uid.into()).or_default())
    }
}

impl<A: Default> Default for Entry<A> {
    fn default() -> Self {
        Entry { answers: A::default(), generation: None, replaced: None, failed: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_keep_failing_go_out_ever_more_seldom_until_they_are_others() {
        let memory = Memory::<u32>::default();
        let start = Instant::now();
        let mut now = start;
        for _ in 0..6 {
            let pause = memory.failed("a", "attach to ps-0", true, now);
            assert!(memory.pause("a", "attach to ps-0", now).is_some());
            now += pause;
            assert!(memory.pause("a", "attach to ps-0", now).is_none());
        }
        assert!(now - start > Duration::from_mins(5), "at most six times in a minute: {:?}", now - start);
        memory.failed("a", "attach to ps-0", true, now);
        assert!(memory.pause("a", "attach to ps-1", now).is_none());
        memory.succeeded("a");
        assert!(memory.pause("a", "attach to ps-0", now).is_none());
    }

    #[test]
    fn answers_are_about_one_spec_and_an_outdated_version_is_known() {
        let memory = Memory::<u32>::default();
        let now = Instant::now();
        memory.answers("a", Some(1));
        memory.learn("a", |answers| *answers = 7);
        memory.replaced("a", Some("41"), now);
        assert_eq!(memory.answers("a", Some(1)), 7);
        assert_eq!(memory.answers("a", Some(2)), 0);
        assert!(memory.is_outdated("a", Some("41"), now) && !memory.is_outdated("a", Some("42"), now));
        let later = now + Duration::from_secs(6);
        assert!(!memory.is_outdated("a", Some("41"), later), "the write may have been lost");
    }
}
