//! How often the reclaimer looks, and how far it goes.

use super::pressure::Watermarks;
use core::time::Duration;

/// How often what is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intervals {
    pub(crate) reclaim: Duration,
    pub(crate) sample: Duration,
    pub(crate) watch: Duration,
}

impl Default for Intervals {
    fn default() -> Intervals {
        Intervals {
            reclaim: Duration::from_secs(60),
            sample: Duration::from_secs(10),
            watch: Duration::from_secs(1),
        }
    }
}

/// What is done when memory is short, and for how long: the reclaim ladder of
/// a memory, rung by rung. See [`MemoryBuilder::ladder`](crate::MemoryBuilder::ladder).
///
/// | rung | climbed | ends with |
/// |---|---|---|
/// | idle blocks | always | [`blocks`](Ladder::blocks) |
/// | caches of clients above their soft limit, then of borrowers | if that was not enough and the goal can be reached | [`caches`](Ladder::caches) all together, [`call`](Ladder::call) each |
/// | free pages of the inner allocator | when the system, not the ledger, is short; or caches gave something | done; not again for [`purge_every`](Ladder::purge_every) |
/// | cancellation | when a client of a higher tier is short, or the system is at its limit | [`cancel`](Ladder::cancel) a client |
///
/// ```
/// use std::time::Duration;
/// use tiered_allocator::pressure::Watermarks;
/// use tiered_allocator::{Ladder, Memory};
///
/// let ladder = Ladder::default()
///     .watermarks(Watermarks::new(0.95, 0.85)?)
///     .call(Duration::from_millis(20))
///     .cancel(None);
/// let memory = Memory::builder(1 << 30).ladder(ladder).build()?;
/// # drop(memory);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Ladder {
    pub(super) watermarks: Watermarks,
    pub(super) blocks: Duration,
    pub(super) caches: Duration,
    pub(super) call: Duration,
    pub(super) purge_every: Duration,
    pub(super) cancel: Option<Duration>,
}

impl Default for Ladder {
    /// Watermarks of 90 % and 80 % of the usable part; 5 s for blocks, 1 s for
    /// caches, 100 ms a call, a purge a second, 1 s for a client to stop.
    fn default() -> Ladder {
        Ladder {
            watermarks: Watermarks::default(),
            blocks: Duration::from_secs(5),
            caches: Duration::from_secs(1),
            call: Duration::from_millis(100),
            purge_every: Duration::from_secs(1),
            cancel: Some(Duration::from_secs(1)),
        }
    }
}

impl Ladder {
    /// Where reclaiming begins and ends by the ledger's own figures.
    pub fn watermarks(mut self, watermarks: Watermarks) -> Ladder {
        self.watermarks = watermarks;
        self
    }

    /// After this long no further idle block is begun.
    pub fn blocks(mut self, deadline: Duration) -> Ladder {
        self.blocks = deadline;
        self
    }

    /// After this long no further cache is asked.
    pub fn caches(mut self, deadline: Duration) -> Ladder {
        self.caches = deadline;
        self
    }

    /// How long one cache is waited for. One that takes longer goes on by
    /// itself, and the ladder goes on to the next.
    pub fn call(mut self, deadline: Duration) -> Ladder {
        self.call = deadline;
        self
    }

    /// The time between two purges of the inner allocator.
    pub fn purge_every(mut self, interval: Duration) -> Ladder {
        self.purge_every = interval;
        self
    }

    /// How long the worst borrower has, once asked to stop, to give back before
    /// the next one is asked instead; `None` never stops anybody.
    pub fn cancel(mut self, deadline: Option<Duration>) -> Ladder {
        self.cancel = deadline;
        self
    }
}
