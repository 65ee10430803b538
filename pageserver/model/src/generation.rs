//! Generations: which owner wrote an object.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Counts the owners of a tenant shard. Every object carries the generation of its writer, so that two writers
/// never overwrite each other. At most one process ever runs with a given (tenant shard, generation).
///
/// Text form in object names: eight lower-case hexadecimal digits; JSON: a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u32);

impl Generation {
    /// The claim that deletes a tenant: above every owner, never cleaned.
    pub const DELETED: Generation = Generation(u32::MAX);
    /// The highest generation that an owner can have.
    pub const LAST_OWNER: Generation = Generation(u32::MAX - 1);

    /// The generation after this one; `None` when it would run into [`Generation::DELETED`].
    pub fn next(self) -> Option<Generation> {
        (self < Self::LAST_OWNER).then(|| Generation(self.0 + 1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A text that is not eight hexadecimal digits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a generation (eight hexadecimal digits)")]
pub struct ParseGenerationError(String);

impl FromStr for Generation {
    type Err = ParseGenerationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wellformed = text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
        wellformed
            .then(|| u32::from_str_radix(text, 16).ok())
            .flatten()
            .map(Generation)
            .ok_or_else(|| ParseGenerationError(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deleting_claim_is_never_reached_by_counting() {
        assert_eq!(Generation(7).next(), Some(Generation(8)));
        assert_eq!(Generation::LAST_OWNER.next(), None);
        assert_eq!(Generation::DELETED.next(), None);
        assert_eq!(Generation::DELETED.to_string(), "ffffffff");
    }
}
