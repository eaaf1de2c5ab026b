//! [`MemoryBuilder`]: configuration of a memory, checked before anything is
//! made.

use super::facade::Memory;
use super::shared::Shared;
use super::spill::SpillArea;
use crate::client::untracked;
use crate::clock::{Clock, SystemClock};
use crate::ledger::fork;
use crate::reclaim::pressure::PressureSource;
use crate::reclaim::purge::Purge;
use crate::reclaim::{Intervals, Ladder, Plan, Reclaimer};
use crate::registry::overage::LONGEST;
use crate::registry::policies::{ConfigError, LARGEST};
use crate::registry::tree::Tree;
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
    ladder: Ladder,
    sources: Vec<Box<dyn PressureSource>>,
    purge: Option<Box<dyn Purge>>,
    patience: Duration,
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
            ladder: Ladder::default(),
            sources: Vec::new(),
            purge: None,
            patience: LONGEST,
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

    /// What is done when memory is short, and for how long.
    pub fn ladder(mut self, ladder: Ladder) -> MemoryBuilder {
        self.ladder = ladder;
        self
    }

    /// Adds a source of pressure. The ledger's own watermarks are always
    /// watched ([`Ladder::watermarks`]); without another source nothing is
    /// known of what the system has left.
    ///
    /// ```
    /// use tiered_allocator::Memory;
    /// use tiered_allocator::pressure::ResidentSet;
    ///
    /// let memory = Memory::builder(1 << 30)
    ///     .pressure_source(ResidentSet::new(0.95, 0.9)?)
    ///     .build()?;
    /// # drop(memory);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pressure_source(mut self, source: impl PressureSource + 'static) -> MemoryBuilder {
        self.sources.push(Box::new(source));
        self
    }

    /// How often the sources of pressure are read. Those that can wake the
    /// reclaimer are read at once when they do. Default: 1 s.
    pub fn watch_every(mut self, interval: Duration) -> MemoryBuilder {
        self.intervals.watch = interval;
        self
    }

    /// The allocator that is asked to return free pages to the system when
    /// that is short, usually the global one. Default: none is asked.
    ///
    /// ```
    /// use tiered_allocator::{Memory, TieredAllocator};
    ///
    /// #[global_allocator]
    /// static HEAP: TieredAllocator = TieredAllocator::system();
    ///
    /// let memory = Memory::builder(1 << 30).purge(&HEAP).build()?;
    /// # drop(memory);
    /// # Ok::<(), tiered_allocator::ConfigError>(())
    /// ```
    pub fn purge(mut self, purge: impl Purge + 'static) -> MemoryBuilder {
        self.purge = Some(Box::new(purge));
        self
    }

    /// How long a call that can fail ([`Memory::allocate_for_client`], a pin
    /// that brings bytes back) waits for the reclaimer while the memory is full
    /// of what lower tiers have borrowed. Default: 100 ms. Allocations on the
    /// heap never wait.
    pub fn patience(mut self, patience: Duration) -> MemoryBuilder {
        self.patience = patience;
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
            ("the watch interval", self.intervals.watch),
        ];
        match intervals.into_iter().find(|(_, time)| time.is_zero()) {
            Some((what, _)) => Err(ConfigError::ZeroInterval { what }),
            None => Ok(()),
        }
    }

    pub(super) fn build_unchecked(self) -> Result<Memory, ConfigError> {
        fork::install_before_the_heap();
        let usable = Limit::Share(self.usable)
            .resolve(self.total_bytes)
            .unwrap_or(self.total_bytes);
        let tree = Tree::new(usable, self.total_bytes - usable);
        for (tier, policy) in &self.tiers {
            tree.define(tier, *policy)?;
        }
        crate::unwind::install();
        let spill = SpillArea::new(self.spill_dir, self.spill_limit_bytes);
        let shared = Shared::new(self.total_bytes, tree, spill, self.clock, self.patience);
        let shared = Arc::new(shared);
        let plan = Plan {
            intervals: self.intervals,
            ladder: self.ladder,
            sources: self.sources,
            purge: self.purge,
            background: self.background,
        };
        let reclaimer = Reclaimer::start(Arc::clone(&shared), plan);
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
            .field("ladder", &self.ladder)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}
