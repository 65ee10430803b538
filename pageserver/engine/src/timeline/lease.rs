//! Leases: LSNs that stay readable until a time.
//!
//! A lease is granted like a branch: it is in the index in the bucket, and a listing of claims afterwards found no newer owner. Whoever owns
//! the timeline next reads it there. A lease that is prolonged by little is answered from what is durable already, so that many clients that
//! renew often do not rewrite the index each time.
//!
//! Collection ([`crate::collect`]) keeps every leased LSN readable, as if a branch began there, until the lease is over by the collector's clock and by the bucket's. One that lies
//! before a branch's own beginning is read from its ancestors: it is granted only if they still keep it once it is durable.

use std::time::{Duration, SystemTime};

use codec::index_part::{Extension, IndexPart, Lease, UtcTime};
use model::Lsn;

use super::Timeline;
use crate::as_of::ReadError;
use crate::claim::ValidateError;
use crate::index_keeper::{Changed, wishes_of};
use crate::index_store::PutIndexError;

/// Leases that a timeline may have at once. Each is about 70 bytes of an index that is written as a whole.
pub const MAX_LEASES: usize = 10_000;

/// Why an LSN was not leased.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LeaseError {
    #[error(transparent)]
    OutOfHistory(#[from] OutOfHistory),
    #[error("the timeline has {MAX_LEASES} leases, which is the most; they end by themselves")]
    TooMany,
    #[error("the timeline does not follow a Postgres")]
    NoPostgres,
    #[error("cannot store the lease")]
    Index(#[from] PutIndexError),
    #[error(transparent)]
    Validate(#[from] ValidateError),
}

/// Why nobody can be promised that an LSN stays readable.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum OutOfHistory {
    #[error("LSN {asked} cannot be kept: it is below {oldest}, before which the timeline cannot be read")]
    TooOld { asked: Lsn, oldest: Lsn },
    #[error("the timeline cannot be read")]
    Read(#[source] Box<ReadError>),
    #[error("LSN {asked} cannot be kept: it is beyond {last}, the end of the timeline")]
    Future { asked: Lsn, last: Lsn },
}

/// Whether an LSN that is not beyond the end stays readable by what the index says that is about to promise it: also below the cutoff, if another promise
/// keeps it already, or a branch that begins there.
pub(super) fn check_promise(part: &IndexPart, readable_from: Lsn, lsn: Lsn) -> Result<(), OutOfHistory> {
    let oldest = part.metadata().latest_gc_cutoff_lsn;
    let kept = part.palimpsest.as_ref().and_then(|ours| ours.kept_lsns.as_ref());
    let is_point = wishes_of(part).lsns.contains(&lsn) || kept.is_some_and(|kept| kept.contains(&lsn));
    if lsn < readable_from || (lsn < oldest && !is_point) {
        return Err(OutOfHistory::TooOld { asked: lsn, oldest: oldest.max(readable_from) });
    }
    Ok(())
}

impl Timeline {
    /// The place that an LSN means, unless it is beyond the end. One place has one LSN, so that two clients' wishes for it are one.
    pub(super) fn place_of(&self, lsn: Lsn) -> Result<Lsn, OutOfHistory> {
        let last = self.last_record_lsn();
        if lsn.align_up() > last {
            return Err(OutOfHistory::Future { asked: lsn, last });
        }
        Ok(lsn.normalized(self.facts().wal_segment_size.bytes()))
    }

    /// Whether an LSN can be read now, here and in the ancestors that it is read from. Asked before a promise is put, and again when it is durable: what
    /// collects looks for promises after it said what it keeps, so one of the two sees the other.
    pub(super) fn check_readable(&self, lsn: Lsn) -> Result<(), OutOfHistory> {
        self.check_kept(lsn).map_err(|error| match error {
            ReadError::BehindCutoff { asked, cutoff } => OutOfHistory::TooOld { asked, oldest: cutoff },
            other => OutOfHistory::Read(Box::new(other)),
        })
    }

    /// Keeps `lsn` readable until `length` after `now`, or until when an earlier lease of it ends, if that is later. Answers until when. A lease
    /// that lasts for nine tenths of that already is left as it is.
    pub async fn lease_lsn(
        &self,
        lsn: Lsn,
        length: Duration,
        now: SystemTime,
    ) -> Result<SystemTime, LeaseError> {
        let lsn = self.place_of(lsn)?;
        self.check_readable(lsn)?;
        let readable_from = self.readable_from();
        let mut granted = now;
        self.index()
            .change(|part| {
                check_promise(part, readable_from, lsn)?;
                let ours = part.palimpsest.as_mut().ok_or(LeaseError::NoPostgres)?;
                let (until, changed) = grant(ours, lsn, length, now)?;
                granted = until;
                Ok::<_, LeaseError>(changed)
            })
            .await?;
        // Also what was durable before: whoever stored it may have died before its own listing.
        self.index().claim().validate().await?;
        self.check_readable(lsn)?;
        Ok(granted)
    }
}

fn grant(
    ours: &mut Extension,
    lsn: Lsn,
    length: Duration,
    now: SystemTime,
) -> Result<(SystemTime, Changed), LeaseError> {
    let until = UtcTime::from_system_time(now + length);
    if let Some(known) = ours.leases.iter_mut().find(|lease| lease.lsn == lsn) {
        let ends = known.valid_until.to_system_time();
        if ends >= now + length.mul_f64(0.9) {
            return Ok((ends, Changed::No));
        }
        known.valid_until = until.clone();
    } else {
        if ours.leases.len() >= MAX_LEASES {
            return Err(LeaseError::TooMany);
        }
        ours.leases.push(Lease { lsn, valid_until: until.clone() });
        ours.leases.sort_by_key(|lease| lease.lsn);
    }
    Ok((until.to_system_time(), Changed::Yes))
}

/// Forgets leases and names that are over.
pub(crate) fn drop_expired(ours: &mut Extension, now: SystemTime) {
    ours.leases.retain(|lease| lease.valid_until.to_system_time() > now);
    ours.named_lsns.retain(|_, named| super::named::is_valid(named, now));
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_mins(10);

    fn at(minutes: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_hours(500_000) + Duration::from_mins(minutes)
    }

    fn nothing() -> Extension {
        let segment = model::WalSegmentSize::DEFAULT;
        crate::index_keeper::vanilla_extension(1, segment, false, model::Tli(1), Lsn(8))
    }

    #[test]
    fn a_lease_is_prolonged_and_never_shortened_and_not_rewritten_for_little() {
        let mut ours = nothing();
        assert_eq!(grant(&mut ours, Lsn(8), LENGTH, at(0)).unwrap(), (at(10), Changed::Yes));
        assert_eq!(grant(&mut ours, Lsn(8), LENGTH, at(1)).unwrap(), (at(10), Changed::No));
        assert_eq!(grant(&mut ours, Lsn(8), LENGTH, at(2)).unwrap(), (at(12), Changed::Yes));
        assert_eq!(grant(&mut ours, Lsn(8), Duration::from_mins(1), at(3)).unwrap(), (at(12), Changed::No));
        assert_eq!(grant(&mut ours, Lsn(16), LENGTH, at(3)).unwrap(), (at(13), Changed::Yes));
        assert_eq!(ours.leases.len(), 2);
        drop_expired(&mut ours, at(12));
        assert_eq!(ours.leases.iter().map(|lease| lease.lsn).collect::<Vec<_>>(), [Lsn(16)]);
    }

    #[test]
    fn there_are_so_many_leases_and_no_more_until_some_are_over() {
        let mut full = nothing();
        for n in 1..=MAX_LEASES as u64 {
            full.leases.push(Lease { lsn: Lsn(n * 8), valid_until: UtcTime::from_system_time(at(n % 2)) });
        }
        let more = Lsn(8 * (MAX_LEASES as u64 + 1));
        assert!(matches!(grant(&mut full, more, LENGTH, at(0)), Err(LeaseError::TooMany)));
        // One that is known may still be prolonged.
        assert_eq!(grant(&mut full, Lsn(8), Duration::from_mins(90), at(0)).unwrap().1, Changed::Yes);
        drop_expired(&mut full, at(0));
        assert_eq!(grant(&mut full, more, LENGTH, at(0)).unwrap().1, Changed::Yes);
    }
}
