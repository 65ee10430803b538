//! Every object that we ever write.
//!
//! ```text
//! tenants/<tenant shard>/timelines/<timeline>/<layer>[-<generation>]
//! tenants/<tenant shard>/timelines/<timeline>/index_part.json[-<generation>]
//! tenants/<tenant shard>/heatmap-v1.json
//! tenants/<tenant shard>/tenant-manifest-<generation>.json
//! palimpsest/claims/<tenant shard>/<generation>
//! palimpsest/tombstones/<tenant shard>/<timeline>
//! palimpsest/wal/<tenant shard>/<timeline>/<Postgres timeline %08X>/<start %016X>-<end %016X>-<generation>
//! palimpsest/config/<tenant shard>/<generation>
//! palimpsest/metering/<tenant shard>/<generation>
//! palimpsest/probes/<32 hexadecimal digits>
//! ```
//!
//! What lies under `tenants/` is Neon's layout; everything else of ours is under `palimpsest/`. A suffix-less layer or index is older
//! than generations: read, never written.

use std::fmt;
use std::str::FromStr;

use model::{Generation, LayerObjectName, Lsn, TenantShardId, TimelineId, Tli};

const INDEX: &str = "index_part.json";
const HEAT_MAP: &str = "heatmap-v1.json";
const MANIFEST: &str = "tenant-manifest-";

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ObjectPath {
    /// A layer of a timeline.
    Layer {
        /// Whose prefix it is under: the tenant shard that wrote it.
        tenant: TenantShardId,
        /// Whose history it is of.
        timeline: TimelineId,
        /// The layer, and the generation that wrote it.
        name: LayerObjectName,
    },
    /// What a timeline consists of, as one of its owners has it.
    Index {
        /// Whose.
        tenant: TenantShardId,
        /// Which timeline.
        timeline: TimelineId,
        /// The owner; `None` for one older than generations.
        generation: Option<Generation>,
    },
    /// What of a tenant shard its last owner had near at hand.
    HeatMap {
        /// Which tenant shard.
        tenant: TenantShardId,
    },
    /// Which timelines of a tenant shard are in the bucket only, as one of its owners has it.
    Manifest {
        /// Which tenant shard.
        tenant: TenantShardId,
        /// The owner.
        generation: Generation,
    },
    /// Says that a process owns, or owned, a tenant shard.
    Claim {
        /// Which tenant shard.
        tenant: TenantShardId,
        /// As which of its owners.
        generation: Generation,
    },
    /// Says that a timeline was deleted and must never come back.
    Tombstone {
        /// Whose.
        tenant: TenantShardId,
        /// Which timeline.
        timeline: TimelineId,
    },
    /// Raw WAL that no layer covers yet.
    Wal {
        /// Whose.
        tenant: TenantShardId,
        /// Received for which timeline.
        timeline: TimelineId,
        /// On which timeline of Postgres.
        tli: Tli,
        /// First byte.
        start: Lsn,
        /// Past the last byte.
        end: Lsn,
        /// Who received it.
        generation: Generation,
    },
    /// What a tenant is told to do otherwise than servers do, as one of its owners has it.
    Config {
        /// Which tenant shard.
        tenant: TenantShardId,
        /// The owner.
        generation: Generation,
    },
    /// How much of what was written was told to whoever bills it, as one of its owners has it.
    Metering {
        /// Which tenant shard.
        tenant: TenantShardId,
        /// The owner.
        generation: Generation,
    },
    /// Written and removed again while a process starts, to see whether conditions hold in this bucket.
    Probe {
        /// Different each time.
        nonce: u128,
    },
}

/// Where the timelines of a tenant shard are, with a slash at the end.
pub fn timelines_prefix(tenant: TenantShardId) -> String {
    format!("tenants/{tenant}/timelines/")
}

/// Where the layers and indexes of a timeline are, with a slash at the end.
pub fn timeline_prefix(tenant: TenantShardId, timeline: TimelineId) -> String {
    format!("tenants/{tenant}/timelines/{timeline}/")
}

/// How all index objects of a timeline begin.
pub fn index_prefix(tenant: TenantShardId, timeline: TimelineId) -> String {
    format!("tenants/{tenant}/timelines/{timeline}/{INDEX}")
}

/// How the manifests of a tenant shard begin.
pub fn manifest_prefix(tenant: TenantShardId) -> String {
    format!("tenants/{tenant}/{MANIFEST}")
}

/// Where everything of a tenant shard in Neon's layout is, with a slash at the end.
pub fn tenant_prefix(tenant: TenantShardId) -> String {
    format!("tenants/{tenant}/")
}

/// Where the claims of a tenant shard are, with a slash at the end.
pub fn claims_prefix(tenant: TenantShardId) -> String {
    format!("palimpsest/claims/{tenant}/")
}

/// Where the settings of a tenant shard are, with a slash at the end.
pub fn config_prefix(tenant: TenantShardId) -> String {
    format!("palimpsest/config/{tenant}/")
}

/// Where the meters of a tenant shard are, with a slash at the end.
pub fn metering_prefix(tenant: TenantShardId) -> String {
    format!("palimpsest/metering/{tenant}/")
}

/// Where the tombstones of a tenant shard are, with a slash at the end.
pub fn tombstones_prefix(tenant: TenantShardId) -> String {
    format!("palimpsest/tombstones/{tenant}/")
}

/// Where the WAL of all timelines of a tenant shard is, with a slash at the end.
pub fn tenant_wal_prefix(tenant: TenantShardId) -> String {
    format!("palimpsest/wal/{tenant}/")
}

/// Where the WAL of a timeline is, with a slash at the end. Within it objects sort by Postgres timeline, then LSN.
pub fn wal_prefix(tenant: TenantShardId, timeline: TimelineId) -> String {
    format!("palimpsest/wal/{tenant}/{timeline}/")
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectPath::Layer { tenant, timeline, name } => {
                write!(f, "tenants/{tenant}/timelines/{timeline}/{name}")
            }
            ObjectPath::Index { tenant, timeline, generation } => {
                write!(f, "tenants/{tenant}/timelines/{timeline}/{INDEX}")?;
                generation.map_or(Ok(()), |generation| write!(f, "-{generation}"))
            }
            ObjectPath::HeatMap { tenant } => write!(f, "tenants/{tenant}/{HEAT_MAP}"),
            ObjectPath::Manifest { tenant, generation } => {
                write!(f, "tenants/{tenant}/{MANIFEST}{generation}.json")
            }
            ObjectPath::Claim { tenant, generation } => write!(f, "palimpsest/claims/{tenant}/{generation}"),
            ObjectPath::Tombstone { tenant, timeline } => {
                write!(f, "palimpsest/tombstones/{tenant}/{timeline}")
            }
            ObjectPath::Wal { tenant, timeline, tli, start, end, generation } => write!(
                f,
                "palimpsest/wal/{tenant}/{timeline}/{:08X}/{:016X}-{:016X}-{generation}",
                tli.0, start.0, end.0
            ),
            ObjectPath::Config { tenant, generation } => write!(f, "palimpsest/config/{tenant}/{generation}"),
            ObjectPath::Metering { tenant, generation } => {
                write!(f, "palimpsest/metering/{tenant}/{generation}")
            }
            ObjectPath::Probe { nonce } => write!(f, "palimpsest/probes/{nonce:032x}"),
        }
    }
}

/// A path that names no object of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the path of an object of ours")]
pub struct UnknownObject(String);

impl FromStr for ObjectPath {
    type Err = UnknownObject;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text)
            // Texts that differ must be objects that differ: what prints otherwise was not written by us.
            .filter(|path| path.to_string() == text)
            .ok_or_else(|| UnknownObject(text.into()))
    }
}

fn parse(text: &str) -> Option<ObjectPath> {
    let mut parts = text.split('/');
    let mut part = || parts.next();
    let path = match part()? {
        "tenants" => {
            let tenant = part()?.parse().ok()?;
            let next = part()?;
            if let Some(rest) = next.strip_prefix(MANIFEST) {
                ObjectPath::Manifest { tenant, generation: rest.strip_suffix(".json")?.parse().ok()? }
            } else if next == HEAT_MAP {
                ObjectPath::HeatMap { tenant }
            } else if next == "timelines" {
                let timeline = part()?.parse().ok()?;
                let name = part()?;
                match name.strip_prefix(INDEX) {
                    Some("") => ObjectPath::Index { tenant, timeline, generation: None },
                    Some(suffix) => {
                        let generation = suffix.strip_prefix('-')?.parse().ok()?;
                        ObjectPath::Index { tenant, timeline, generation: Some(generation) }
                    }
                    None => ObjectPath::Layer { tenant, timeline, name: name.parse().ok()? },
                }
            } else {
                return None;
            }
        }
        "palimpsest" => match part()? {
            "claims" => {
                ObjectPath::Claim { tenant: part()?.parse().ok()?, generation: part()?.parse().ok()? }
            }
            "tombstones" => {
                ObjectPath::Tombstone { tenant: part()?.parse().ok()?, timeline: part()?.parse().ok()? }
            }
            "wal" => {
                let tenant = part()?.parse().ok()?;
                let timeline = part()?.parse().ok()?;
                let tli = Tli(u32::from_str_radix(part()?, 16).ok()?);
                let mut fields = part()?.split('-');
                let mut lsn = || u64::from_str_radix(fields.next()?, 16).ok().map(Lsn);
                let (start, end) = (lsn()?, lsn()?);
                let generation = fields.next()?.parse().ok()?;
                ObjectPath::Wal { tenant, timeline, tli, start, end, generation }
            }
            "config" => {
                ObjectPath::Config { tenant: part()?.parse().ok()?, generation: part()?.parse().ok()? }
            }
            "metering" => {
                ObjectPath::Metering { tenant: part()?.parse().ok()?, generation: part()?.parse().ok()? }
            }
            "probes" => ObjectPath::Probe { nonce: u128::from_str_radix(part()?, 16).ok()? },
            _ => return None,
        },
        _ => return None,
    };
    part().is_none().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "00112233445566778899aabbccddeeff";
    const TIMELINE: &str = "ffeeddccbbaa99887766554433221100";

    #[test]
    fn every_object_reads_back_from_its_path() {
        let key = |hex: char| hex.to_string().repeat(36);
        for text in [
            format!(
                "tenants/{TENANT}-0208/timelines/{TIMELINE}/{}-{}__0000000002000000-00000007",
                key('0'),
                key('F')
            ),
            format!(
                "tenants/{TENANT}/timelines/{TIMELINE}/{}-{}__0000000002000001-0000000012000001-0000000a",
                key('0'),
                key('F')
            ),
            format!("tenants/{TENANT}/timelines/{TIMELINE}/{}-{}__0000000002000000", key('0'), key('F')),
            format!("tenants/{TENANT}/timelines/{TIMELINE}/index_part.json-00000007"),
            format!("tenants/{TENANT}/timelines/{TIMELINE}/index_part.json"),
            format!("tenants/{TENANT}-0102/heatmap-v1.json"),
            format!("tenants/{TENANT}-0208/tenant-manifest-0000000a.json"),
            format!("palimpsest/claims/{TENANT}-0102/ffffffff"),
            format!("palimpsest/tombstones/{TENANT}/{TIMELINE}"),
            format!("palimpsest/wal/{TENANT}/{TIMELINE}/0000000B/00000000020000A0-0000000003000000-00000001"),
            format!("palimpsest/config/{TENANT}/00000007"),
            format!("palimpsest/metering/{TENANT}/00000007"),
            format!("palimpsest/probes/{TENANT}"),
        ] {
            let path: ObjectPath = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(path.to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_no_objects_of_ours() {
        for text in [
            String::new(),
            "tenants".into(),
            format!("tenants/{TENANT}/timelines/{TIMELINE}/index_part.json-7"),
            format!("tenants/{TENANT}/timelines/{TIMELINE}/index_part.json-0000000A"),
            format!("tenants/{TENANT}/timelines/{TIMELINE}/initdb.tar.zst"),
            format!("tenants/{TENANT}/timelines/{TIMELINE}/index_part.json-00000007/x"),
            format!("tenants/{TENANT}/heatmap-v2.json"),
            format!("tenants/{TENANT}/heatmap-v1.json/x"),
            format!("palimpsest/claims/{TENANT}/+fffffff"),
            format!("palimpsest/wal/{TENANT}/{TIMELINE}/+000000B/0-1-00000001"),
            "palimpsest/other/x".into(),
        ] {
            assert_eq!(text.parse::<ObjectPath>(), Err(UnknownObject(text.clone())));
        }
    }
}
