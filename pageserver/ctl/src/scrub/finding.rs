//! What a scrub found.

use model::{TenantShardId, TimelineId};
use serde::{Serialize, Serializer};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An index that cannot be believed.
    MalformedIndex,
    /// A layer that an index names is not there.
    MissingLayer,
    /// A layer has other bytes than the index says.
    WrongSize,
    /// A layer's bytes are not those that were written.
    WrongChecksum,
    /// A layer is not sound in itself.
    DamagedLayer,
    /// A layer is another than its name says.
    WrongLayer,
    /// WAL that counts is not there.
    MissingWal,
    /// WAL that counts cannot be decoded, or is other WAL.
    DamagedWal,
    /// The timeline that a branch goes on from is not there.
    MissingAncestor,
    /// The timeline that a branch goes on from was deleted.
    DeletedAncestor,
    /// A branch begins where its ancestor cannot be read.
    UnreadableBranchPoint,
    /// A claim that is none.
    MalformedClaim,
    /// Settings that are none.
    MalformedConfig,
    /// A heat map that is none.
    MalformedHeatMap,
    /// A tenant manifest that is none.
    MalformedManifest,
    /// An index of an owner that nobody will ask for.
    OldIndex,
    /// An object that nothing names.
    Orphan,
    /// An object of a timeline or a tenant that was deleted.
    Remains,
    /// A timeline is to be deleted, and is still there.
    UnfinishedDeletion,
    /// An object whose name is not ours.
    Unknown,
}

impl Kind {
    /// Whether something cannot be read as it should, rather than only lies about.
    pub fn is_damage(self) -> bool {
        self < Kind::OldIndex
    }

    /// Whether deleting ends it.
    pub fn is_deletable(self) -> bool {
        matches!(self, Kind::OldIndex | Kind::Orphan | Kind::Remains | Kind::UnfinishedDeletion)
    }

    /// As it is printed.
    pub fn name(self) -> String {
        let name = serde_json::to_value(self).expect("a name without content");
        name.as_str().unwrap_or_default().replace('_', " ")
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub kind: Kind,
    /// Whose it is.
    #[serde(serialize_with = "as_text")]
    pub tenant: TenantShardId,
    /// Which timeline it is of, if of any.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_optional_text")]
    pub timeline: Option<TimelineId>,
    /// Which object.
    pub object: String,
    /// In words.
    pub what: String,
}

fn as_text<T: ToString, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

#[allow(clippy::ref_option, reason = "serde passes references")]
fn as_optional_text<T: ToString, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_some(&value.as_ref().map(ToString::to_string))
}
