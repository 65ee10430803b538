//! Rules that can be broken, one at a time.

/// Which rule is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// None.
    Nothing,

    // What the operators do.
    /// A process that started again gets the generation of the one before.
    SameGenerationForNewProcess,
    /// Statuses are written over whatever is there.
    StatusOverwritten,
    /// A process accepts calls that were meant for another.
    AnyInstanceAccepted,

    // Claims.
    /// A claim that exists is taken for one's own.
    RefusedClaimIgnored,
    /// Who claims does not look for higher claims.
    ClaimsUnread,
    /// Nothing is validated.
    NoValidation,
    /// It is, before what it is to prove.
    ValidationBeforePut,

    // WAL and its source.
    /// The source is told of what is only in memory.
    MemoryReported,
    /// A source that asks for a reply gets none before its WAL is sealed for another reason.
    KeepaliveIgnored,
    /// Who holds the slot, or takes it, does not look for newer owners.
    SlotUnlisted,
    /// Who finds the slot active waits.
    ActiveSlotWaitedFor,
    /// That the source went on as another Postgres timeline is not noted before its WAL is stored.
    SwitchNotNoted,
    /// That a timeline is archived is noted without what goes on in its place.
    SuccessorUnrecorded,
    /// Two restores of one place are not told apart.
    NonceIgnored,
    /// Covered WAL is deleted though it is not known whether the index that covers it is what a next owner reads.
    WalDeletedUnvalidated,

    // Indexes.
    /// An index replaces whatever is there.
    IndexPutUnconditional,
    /// An owner begins without an index of its own.
    NoOwnIndex,
    /// A branch is noted before the WAL that it shares is in the bucket.
    BranchBeforeWal,
    /// A branch is acknowledged by an owner that may be none any more.
    BranchUnvalidated,
    /// A lease is, too.
    LeaseUnvalidated,
    /// A timeline is deleted without a tombstone.
    NoTombstone,
    /// Its index does not say before that it is to be deleted.
    DeletionUnmarked,
    /// A timeline is created where a tombstone is.
    TombstoneIgnored,

    // Objects.
    /// A layer replaces whatever is there.
    LayerPutUnconditional,
    /// Objects are collected that a newer owner may be about to name.
    CollectsAnyGeneration,
    /// Objects are collected that the own index names.
    CollectsNamed,
    /// Layers are deleted by an owner that may be none any more.
    DeletesUnvalidated,
    /// A missing object is believed to be lost.
    MissingBelieved,

    // Deletion of the tenant.
    /// Only an owner may delete the tenant's data, and there can be none once that has begun.
    OnlyOwnersDelete,
    /// The claim that deletes a tenant is told to the operators as any other.
    DeletionIsAnOwner,
    /// A tenant's data is deleted without the claim that keeps others away.
    DeletionUnclaimed,
}
