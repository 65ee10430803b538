//! Named LSNs: places in history that people marked, for good or for a time.
//!
//! A name is answered like a lease: it is in the index in the bucket, and a listing of claims afterwards found no newer owner. So is the end of
//! one. What collects treats a named LSN as a leased one.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use codec::index_part::{Extension, NamedLsn, Unknown, UtcTime};
use model::Lsn;

use super::Timeline;
use super::lease::{OutOfHistory, check_promise};
use crate::claim::ValidateError;
use crate::index_keeper::Changed;
use crate::index_store::PutIndexError;

/// Named LSNs that a timeline may have at once. Each keeps a version of everything from going, so there are fewer than leases.
pub const MAX_NAMED_LSNS: usize = 1000;

/// Longest name in bytes: what fits a label elsewhere.
pub const MAX_NAME: usize = 63;

/// Why an LSN was not named, or its name was not forgotten.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum NameError {
    #[error(
        "{0:?} is no name: it takes 1 to {MAX_NAME} letters, digits, dots, hyphens and underscores, and begins with a letter or digit"
    )]
    Malformed(String),
    #[error("the name {name} is taken: it names LSN {lsn}")]
    Taken { name: String, lsn: Lsn },
    #[error(transparent)]
    OutOfHistory(#[from] OutOfHistory),
    #[error("the timeline has {MAX_NAMED_LSNS} named LSNs, which is the most; delete some")]
    TooMany,
    #[error("the timeline does not follow a Postgres")]
    NoPostgres,
    #[error("cannot store the name")]
    Index(#[from] PutIndexError),
    #[error(transparent)]
    Validate(#[from] ValidateError),
}

impl Timeline {
    /// Keeps `lsn` readable under a name, for good or for so long after `now`. Asked again it lasts as long as is asked now, if that is longer.
    pub async fn name_lsn(
        &self,
        name: &str,
        lsn: Lsn,
        length: Option<Duration>,
        now: SystemTime,
    ) -> Result<NamedLsn, NameError> {
        check_name(name)?;
        let lsn = self.place_of(lsn)?;
        self.check_readable(lsn)?;
        let readable_from = self.readable_from();
        let mut named = None;
        let mut is_new = false;
        self.index()
            .change(|part| {
                check_promise(part, readable_from, lsn)?;
                let ours = part.palimpsest.as_mut().ok_or(NameError::NoPostgres)?;
                let (given, changed) = give_name(ours, name, lsn, length, now)?;
                is_new = given.created_at == Some(UtcTime::from_system_time(now));
                named = Some(given);
                Ok::<_, NameError>(changed)
            })
            .await?;
        // Also what was durable before: whoever stored it may have died before its own listing.
        self.index().claim().validate().await?;
        if let Err(gone) = self.check_readable(lsn) {
            // What it was to keep went meanwhile: the name keeps nothing.
            if is_new {
                self.forget_named_lsn(name).await?;
            }
            return Err(gone.into());
        }
        named.ok_or(NameError::NoPostgres)
    }

    /// All names that are valid.
    pub async fn named_lsns(&self, now: SystemTime) -> BTreeMap<String, NamedLsn> {
        let part = self.index().part().await;
        let mut named = part.palimpsest.as_ref().map(|ours| ours.named_lsns.clone()).unwrap_or_default();
        named.retain(|_, named| is_valid(named, now));
        named
    }

    /// Ends a name. One that is gone is ended already.
    pub async fn forget_named_lsn(&self, name: &str) -> Result<(), NameError> {
        check_name(name)?;
        self.index()
            .change(|part| {
                let ours = part.palimpsest.as_mut().ok_or(NameError::NoPostgres)?;
                let changed = ours.named_lsns.remove(name).map_or(Changed::No, |_| Changed::Yes);
                Ok::<_, NameError>(changed)
            })
            .await?;
        Ok(self.index().claim().validate().await?)
    }
}

/// Whether a name still counts.
pub(crate) fn is_valid(named: &NamedLsn, now: SystemTime) -> bool {
    named.valid_until.as_ref().is_none_or(|until| until.to_system_time() > now)
}

fn check_name(name: &str) -> Result<(), NameError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins && name.len() <= MAX_NAME && name.bytes().all(plain) {
        Ok(())
    } else {
        Err(NameError::Malformed(name.chars().take(MAX_NAME + 1).collect()))
    }
}

fn give_name(
    ours: &mut Extension,
    name: &str,
    lsn: Lsn,
    length: Option<Duration>,
    now: SystemTime,
) -> Result<(NamedLsn, Changed), NameError> {
    let until = length.map(|length| UtcTime::from_system_time(now + length));
    if let Some(known) = ours.named_lsns.get_mut(name).filter(|known| is_valid(known, now)) {
        if known.lsn != lsn {
            return Err(NameError::Taken { name: name.to_owned(), lsn: known.lsn });
        }
        let longer = match (&known.valid_until, &until) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(known), Some(until)) => until.to_system_time() > known.to_system_time(),
        };
        if longer {
            known.valid_until = until;
        }
        return Ok((known.clone(), if longer { Changed::Yes } else { Changed::No }));
    }
    if ours.named_lsns.len() >= MAX_NAMED_LSNS {
        return Err(NameError::TooMany);
    }
    let created_at = Some(UtcTime::from_system_time(now));
    let named = NamedLsn { lsn, valid_until: until, created_at, unknown: Unknown::new() };
    ours.named_lsns.insert(name.to_owned(), named.clone());
    Ok((named, Changed::Yes))
}

#[cfg(test)]
mod tests {
    use super::super::lease::drop_expired;
    use super::*;

    fn at(minutes: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_hours(500_000) + Duration::from_mins(minutes)
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_mins(minutes)
    }

    fn nothing() -> Extension {
        let segment = model::WalSegmentSize::DEFAULT;
        crate::index_keeper::vanilla_extension(1, segment, false, model::Tli(1), Lsn(8))
    }

    #[test]
    fn a_name_is_given_once_and_lasts_longer_but_never_shorter_when_it_is_given_again() {
        let mut ours = nothing();
        let mut give = |length, now| {
            let (named, changed) = give_name(&mut ours, "x", Lsn(8), length, at(now)).unwrap();
            assert_eq!(named.created_at, Some(UtcTime::from_system_time(at(0))));
            (named.valid_until.map(|until| until.to_system_time()), changed)
        };
        assert_eq!(give(Some(minutes(10)), 0), (Some(at(10)), Changed::Yes));
        assert_eq!(give(Some(minutes(5)), 1), (Some(at(10)), Changed::No));
        assert_eq!(give(Some(minutes(10)), 1), (Some(at(11)), Changed::Yes));
        assert_eq!(give(None, 2), (None, Changed::Yes));
        assert_eq!(give(Some(minutes(10)), 3), (None, Changed::No));
        assert!(matches!(
            give_name(&mut ours, "x", Lsn(16), None, at(4)),
            Err(NameError::Taken { lsn: Lsn(8), .. })
        ));
    }

    #[test]
    fn a_name_that_is_over_is_free_and_leaves_like_a_lease() {
        let mut ours = nothing();
        give_name(&mut ours, "short", Lsn(8), Some(minutes(1)), at(0)).unwrap();
        give_name(&mut ours, "good", Lsn(8), None, at(0)).unwrap();
        let (named, changed) = give_name(&mut ours, "short", Lsn(16), None, at(1)).unwrap();
        assert_eq!((named.lsn, changed), (Lsn(16), Changed::Yes));
        give_name(&mut ours, "other", Lsn(8), Some(minutes(1)), at(0)).unwrap();
        drop_expired(&mut ours, at(1));
        assert_eq!(ours.named_lsns.keys().collect::<Vec<_>>(), ["good", "short"]);
    }

    #[test]
    fn there_are_so_many_names_and_no_more() {
        let mut full = nothing();
        for n in 0..MAX_NAMED_LSNS {
            give_name(&mut full, &n.to_string(), Lsn(8), None, at(0)).unwrap();
        }
        assert!(matches!(give_name(&mut full, "more", Lsn(8), None, at(0)), Err(NameError::TooMany)));
        assert_eq!(give_name(&mut full, "0", Lsn(8), None, at(0)).unwrap().1, Changed::No);
    }

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "before-the-accident", "2026.11_29", &"x".repeat(MAX_NAME)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".", "a b", "a/b", "ä", "a\n", &"x".repeat(MAX_NAME + 1)] {
            assert!(matches!(check_name(bad), Err(NameError::Malformed(_))), "{bad}");
        }
    }
}
