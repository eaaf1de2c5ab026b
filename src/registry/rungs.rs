//! The rungs of the reclaim ladder, as reports name them.

use core::time::Duration;

/// One rung of the ladder; each is climbed only if those before were not
/// enough.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
#[repr(usize)]
pub enum Rung {
    /// Blocks that nobody has pinned for a while: spilled or discarded.
    IdleBlocks,
    /// Caches of clients above their soft limit.
    SoftLimitCaches,
    /// Caches of borrowers, from the lowest tier up.
    BorrowerCaches,
    /// Free pages of the inner allocator, given back to the system.
    Purge,
    /// The work of the worst borrower, stopped at its next safe point.
    Cancel,
}

impl Rung {
    /// All of them, in the order in which they are climbed.
    pub const ALL: [Rung; 5] = [
        Rung::IdleBlocks,
        Rung::SoftLimitCaches,
        Rung::BorrowerCaches,
        Rung::Purge,
        Rung::Cancel,
    ];

    /// The name, in snake case, as metrics label it.
    pub const fn name(self) -> &'static str {
        match self {
            Rung::IdleBlocks => "idle_blocks",
            Rung::SoftLimitCaches => "soft_limit_caches",
            Rung::BorrowerCaches => "borrower_caches",
            Rung::Purge => "purge",
            Rung::Cancel => "cancel",
        }
    }
}

/// What one rung has done since the memory was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RungTotals {
    /// Which rung.
    pub rung: Rung,
    /// How often it was climbed.
    pub climbed: u64,
    /// Bytes that it gained: what the ledger showed, or for a purge what the
    /// resident set did; for a cancellation what its clients gave back while
    /// they were stopped.
    pub reclaimed_bytes: u64,
}

/// How often clients of a tier, within their own limits, found the memory
/// full of what lower tiers had borrowed, and how long until that was made up
/// for. They were lent the bytes meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Relief {
    /// Times that it began.
    pub shortages: u64,
    /// Times that it ended.
    pub reliefs: u64,
    /// From beginnings to ends, all together, by the memory's clock.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "total_ns", serialize_with = "duration_ns")
    )]
    pub total: Duration,
    /// The longest.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "longest_ns", serialize_with = "duration_ns")
    )]
    pub longest: Duration,
}

/// Serialises a time as whole nanoseconds.
#[cfg(feature = "serde")]
pub(crate) fn duration_ns<S: serde::Serializer>(
    time: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let ns = u64::try_from(time.as_nanos());
    serializer.serialize_u64(ns.unwrap_or(u64::MAX))
}
