//! [`MemoryBuilder`]: configuration of a memory, checked before anything is
//! made.

use super::facade::Memory;
use super::shared::Shared;
use super::spill::SpillArea;
use crate::client::untracked;
use crate::clock::{Clock, SystemClock};
use crate::reclaim::{Intervals, Reclaimer};
use crate::registry::budget::Tree;
use crate::registry::policies::{ConfigError, LARGEST};
use crate::registry::{Limit, Tier, TierPolicy};
use core::fmt;
use core::time::Duration;
use std::path::PathBuf;
use std::sync::Arc;

/// How a [`Memory`] is to be. Everything has a default.
///
/// ```
/// use std::time::Duration;
/// use tiered_allocator::{Limit, Memory, SubscriptionTier, TierPolicy};
///
/// let memory = Memory::builder(8 << 30)
///     .usable(0.9)
///     .tier(
///         SubscriptionTier::Enterprise,
///         TierPolicy::from(SubscriptionTier::Enterprise).guarantee(Limit::Bytes(256 << 20)),
///     )
///     .reclaim_every(Duration::from_secs(5))
///     .build()?;
/// # drop(memory);
/// # Ok::<(), tiered_allocator::ConfigError>(())
/// ```
pub struct MemoryBuilder {
    total_bytes: u64,
    usable: f64,
    tiers: Vec<(Tier, TierPolicy)>,
    intervals: Intervals,
    background: bool,
    spill_dir: PathBuf,
    spill_limit_bytes: u64,
    clock: Box<dyn Clock>,
}

impl MemoryBuilder {
    pub(super) fn new(total_bytes: u64) -> MemoryBuilder {
        MemoryBuilder {
            total_bytes,
            usable: 0.8,
            tiers: Vec::new(),
            intervals: Intervals::default(),
            background: true,
            spill_dir: std::env::temp_dir(),
            spill_limit_bytes: LARGEST,
            clock: Box::new(SystemClock::default()),
        }
    }

    /// The share of the total that clients may have within their limits; the
    /// rest is headroom for overdrafts. Default: 0.8.
    pub fn usable(mut self, share: f64) -> MemoryBuilder {
        self.usable = share;
        self
    }

    /// Defines a tier, or changes one of the three that are there.
    pub fn tier(mut self, tier: impl Into<Tier>, policy: TierPolicy) -> MemoryBuilder {
        self.tiers.push((tier.into(), policy));
        self
    }

    /// How often the reclaimer looks for idle blocks. Default: 60 s.
    pub fn reclaim_every(mut self, interval: Duration) -> MemoryBuilder {
        self.intervals.reclaim = interval;
        self
    }

    /// How often what clients use is measured. Default: 10 s.
    pub fn sample_every(mut self, interval: Duration) -> MemoryBuilder {
        self.intervals.sample = interval;
        self
    }

    /// Whether the memory has a reclaimer thread. Without one,
    /// [`Memory::tick`] and [`Memory::reclaim_unused_memory`] do its work on
    /// the caller's thread. Default: it has.
    pub fn background(mut self, background: bool) -> MemoryBuilder {
        self.background = background;
        self
    }

    /// Where idle blocks are spilled to. Default: the system's directory for
    /// temporary files. The file is made when the first block is spilled; it
    /// has no name and mode 0600.
    pub fn spill_dir(mut self, dir: impl Into<PathBuf>) -> MemoryBuilder {
        self.spill_dir = dir.into();
        self
    }

    /// How large the spill file may become. Default: as large as it gets.
    pub fn spill_limit_bytes(mut self, bytes: u64) -> MemoryBuilder {
        self.spill_limit_bytes = bytes;
        self
    }

    /// Where the memory takes its time from. Default: the system's clock.
    pub fn clock(mut self, clock: impl Clock) -> MemoryBuilder {
        self.clock = Box::new(clock);
        self
    }

    /// Makes the memory and starts its reclaimer thread. If the system has no
    /// thread to give, the memory works without one, as with
    /// [`background(false)`](MemoryBuilder::background).
    ///
    /// # Errors
    /// Figures that make no sense; nothing was made then.
    pub fn build(self) -> Result<Memory, ConfigError> {
        self.check()?;
        untracked(|| self.build_unchecked())
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.total_bytes == 0 {
            return Err(ConfigError::ZeroTotal);
        }
        if self.total_bytes > LARGEST {
            return Err(ConfigError::TooLarge {
                what: "the total",
                bytes: self.total_bytes,
                limit: LARGEST,
            });
        }
        let what = "the usable part";
        let share = self.usable;
        match Limit::Share(share).resolve(self.total_bytes) {
            None => return Err(ConfigError::ShareOutOfRange { what, share }),
            Some(0) => return Err(ConfigError::ZeroLimit { what }),
            Some(_) => {}
        }
        let intervals = [
            ("the reclaim interval", self.intervals.reclaim),
            ("the sample interval", self.intervals.sample),
        ];
        match intervals.into_iter().find(|(_, time)| time.is_zero()) {
            Some((what, _)) => Err(ConfigError::ZeroInterval { what }),
            None => Ok(()),
        }
    }

    pub(super) fn build_unchecked(self) -> Result<Memory, ConfigError> {
        let usable = Limit::Share(self.usable)
            .resolve(self.total_bytes)
            .unwrap_or(self.total_bytes);
        let tree = Tree::new(usable, self.total_bytes - usable);
        for (tier, policy) in &self.tiers {
            let (place, aggregate) = tree.policies.define(tier, *policy)?;
            tree.tiers[place].set_limit(aggregate);
        }
        crate::unwind::install();
        let spill = SpillArea::new(self.spill_dir, self.spill_limit_bytes);
        let shared = Arc::new(Shared::new(self.total_bytes, tree, spill, self.clock));
        let reclaimer = Reclaimer::start(Arc::clone(&shared), self.intervals, self.background);
        Ok(Memory::assemble(shared, reclaimer))
    }
}

impl fmt::Debug for MemoryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBuilder")
            .field("total_bytes", &self.total_bytes)
            .field("usable", &self.usable)
            .field("tiers", &self.tiers)
            .field("intervals", &self.intervals)
            .field("background", &self.background)
            .field("spill_dir", &self.spill_dir)
            .field("spill_limit_bytes", &self.spill_limit_bytes)
            .finish_non_exhaustive()
    }
}
