//! Places in the WAL.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A place in the WAL: bytes since the beginning of the log. Comparable with other places; not a length, not a count.
///
/// Text form: `X/X`, two hexadecimal halves without padding, as Postgres prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// LSNs from `start` (inclusive) to `end` (exclusive).
pub type LsnRange = Range<Lsn>;

/// Bytes of a WAL page.
pub const WAL_PAGE_SIZE: u64 = 8192;
/// Bytes of the header of the first page of a WAL segment.
pub const LONG_PAGE_HEADER: u64 = 40;
/// Bytes of the header of every other WAL page.
pub const SHORT_PAGE_HEADER: u64 = 24;

impl Lsn {
    /// Postgres' `InvalidXLogRecPtr`: no place.
    pub const INVALID: Lsn = Lsn(0);
    /// What clients send for "the newest there is".
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// Whether this is a place at all.
    pub fn is_valid(self) -> bool {
        self != Self::INVALID
    }

    /// The first multiple of 8 at or after this place: where a record may start.
    #[must_use]
    pub fn align_up(self) -> Lsn {
        Lsn((self.0 + 7) & !7)
    }

    /// Whether a record may start here as far as alignment goes.
    pub fn is_aligned(self) -> bool {
        self.0.is_multiple_of(8)
    }

    /// The place `bytes` further on.
    #[must_use]
    #[allow(clippy::should_implement_trait, reason = "`lsn + lsn` must not look possible")]
    pub fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }

    /// Bytes from `earlier` to here; 0 when `earlier` is later.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Start of the WAL page that holds this place.
    #[must_use]
    pub fn page_start(self) -> Lsn {
        Lsn(self.0 & !(WAL_PAGE_SIZE - 1))
    }

    /// Where a record that comes next would really start: aligned, and past the page header when this lies within one.
    #[must_use]
    pub fn normalized(self, segment_size: u64) -> Lsn {
        let at = self.align_up();
        let page = at.page_start();
        let header = if page.0.is_multiple_of(segment_size) { LONG_PAGE_HEADER } else { SHORT_PAGE_HEADER };
        at.max(page.add(header))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is not `X/X`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an LSN: expected two hexadecimal numbers of up to 32 bits, separated by '/'")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| {
            let wellformed = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
            wellformed.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some((half(high)?, half(low)?)))
            .map(|(high, low)| Lsn(u64::from(high) << 32 | u64::from(low)))
            .ok_or_else(|| ParseLsnError(text.into()))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_postgres_own() {
        assert_eq!(Lsn(0x1_6B37_4D48).to_string(), "1/6B374D48");
        assert_eq!("1/6b374d48".parse(), Ok(Lsn(0x1_6B37_4D48)));
        for bad in ["", "1", "1/", "/1", "1/2/3", "1/123456789", "+1/2", "g/1", "1 /2"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_record_never_starts_on_a_page_header() {
        let segment = 16 << 20;
        assert_eq!(Lsn(0x1000000).normalized(segment), Lsn(0x1000028));
        assert_eq!(Lsn(0x1002000).normalized(segment), Lsn(0x1002018));
        assert_eq!(Lsn(0x1002001).normalized(segment), Lsn(0x1002018));
        assert_eq!(Lsn(0x1002019).normalized(segment), Lsn(0x1002020));
        assert_eq!(Lsn(0x1001FFF).normalized(segment), Lsn(0x1002018));
    }

    proptest! {
        #[test]
        fn text_round_trips(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse(), Ok(Lsn(value)));
        }
    }
}
