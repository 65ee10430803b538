//! Names of tenants, shards and timelines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is not the id it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}")]
pub struct ParseIdError {
    text: String,
    what: &'static str,
}

macro_rules! id16 {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// Text form: exactly 32 hexadecimal digits, written in lower case, read in either.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; 16];
                hex::decode_to_slice(text, &mut bytes)
                    .map_err(|_| ParseIdError { text: text.into(), what: $what })?;
                Ok(Self(bytes))
            }
        }

        text_serde!($name);
    };
}

macro_rules! text_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id16!(
    /// Names a tenant: a set of timelines that share history and are kept by the same owner.
    TenantId,
    "a tenant id (32 hexadecimal digits)"
);
id16!(
    /// Names a timeline: one line of history. A branch is a timeline with an ancestor.
    TimelineId,
    "a timeline id (32 hexadecimal digits)"
);

/// Which shard of how many. A count of 0 means "never sharded" and prints nothing in object names; it differs from
/// a count of 1, which is a sharded tenant that has one shard.
///
/// Text form: `NNCC`, number and count as two hexadecimal digits each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardIndex {
    /// 0-based; below `count` unless `count` is 0.
    pub number: u8,
    /// Shards of the tenant; 0 when it was never sharded.
    pub count: u8,
}

impl ShardIndex {
    /// The only shard of a tenant that was never sharded.
    pub const UNSHARDED: ShardIndex = ShardIndex { number: 0, count: 0 };

    fn is_wellformed(self) -> bool {
        self.number < self.count || self == Self::UNSHARDED
    }
}

impl fmt::Display for ShardIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}", self.number, self.count)
    }
}

impl FromStr for ShardIndex {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 2];
        hex::decode_to_slice(text, &mut bytes)
            .ok()
            .map(|()| ShardIndex { number: bytes[0], count: bytes[1] })
            .filter(|index| index.is_wellformed())
            .ok_or_else(|| ParseIdError { text: text.into(), what: "a shard index (NNCC in hexadecimal)" })
    }
}

text_serde!(ShardIndex);

/// One shard of a tenant: the unit of ownership, of generations and of object prefixes.
///
/// Text form: `<tenant>` when unsharded, else `<tenant>-NNCC`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantShardId {
    /// Whose shard this is.
    pub tenant: TenantId,
    /// Which one.
    pub shard: ShardIndex,
}

impl TenantShardId {
    /// The whole of a tenant that was never sharded.
    pub fn unsharded(tenant: TenantId) -> Self {
        TenantShardId { tenant, shard: ShardIndex::UNSHARDED }
    }
}

impl fmt::Display for TenantShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tenant.fmt(f)?;
        if self.shard == ShardIndex::UNSHARDED { Ok(()) } else { write!(f, "-{}", self.shard) }
    }
}

impl fmt::Debug for TenantShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TenantShardId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('-') {
            None => Ok(Self::unsharded(text.parse()?)),
            Some((tenant, shard)) => {
                let shard: ShardIndex = shard.parse()?;
                if shard == ShardIndex::UNSHARDED {
                    return Err(ParseIdError {
                        text: text.into(),
                        what: "a tenant shard id (a count of 0 has no suffix)",
                    });
                }
                Ok(TenantShardId { tenant: tenant.parse()?, shard })
            }
        }
    }
}

text_serde!(TenantShardId);

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn ids_print_in_lower_case_and_read_in_either() {
        let id: TenantId = TENANT.to_uppercase().parse().unwrap();
        assert_eq!(id.to_string(), TENANT);
        assert!("0011".parse::<TenantId>().is_err());
        assert!(format!("{TENANT}00").parse::<TimelineId>().is_err());
    }

    #[test]
    fn unsharded_and_one_shard_are_different_names() {
        let plain: TenantShardId = TENANT.parse().unwrap();
        let one: TenantShardId = format!("{TENANT}-0001").parse().unwrap();
        assert_ne!(plain, one);
        assert_eq!(plain.to_string(), TENANT);
        assert_eq!(one.to_string(), format!("{TENANT}-0001"));
        assert!(format!("{TENANT}-0000").parse::<TenantShardId>().is_err());
        assert!(format!("{TENANT}-0808").parse::<TenantShardId>().is_err());
    }
}
