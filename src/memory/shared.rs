//! What the handles, the blocks and the reclaimer of one memory share.

use super::block::BlockState;
use super::spill::SpillArea;
use crate::client::{Client, ClientId, untracked};
use crate::clock::Clock;
use crate::ledger::retire::{ended, sweep_ended, take_ended};
use crate::ledger::whole::{
    WholeMutex, WholeMutexGuard, WholeReadGuard, WholeRwLock, WholeWriteGuard,
};
use crate::registry::budget::MAX_TIERS;
use crate::registry::rungs::{Relief, Rung, RungTotals};
use crate::registry::tree::Tree;
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use core::fmt;
use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Names to clients, by id: half the size of a handle.
pub(crate) type Names = HashMap<Arc<str>, ClientId>;

/// Retired clients looked at whenever one is added or removed: enough to keep
/// up, few enough that the cost does not grow with their number.
const SWEEP: usize = 4;

/// Running totals of what the reclaimer has done.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) spilled_bytes: AtomicU64,
    pub(crate) spilled_blocks: AtomicU64,
    pub(crate) discarded_bytes: AtomicU64,
    pub(crate) discarded_blocks: AtomicU64,
    pub(crate) restored_bytes: AtomicU64,
    pub(crate) restored_blocks: AtomicU64,
    restore_ns: AtomicU64,
    longest_restore_ns: AtomicU64,
    pub(crate) failed_spills: AtomicU64,
    pub(crate) passes: AtomicU64,
    /// By rung: times it was climbed, and bytes that it gained.
    rungs: [[AtomicU64; 2]; Rung::ALL.len()],
    pub(crate) stopped_clients: AtomicU64,
    pub(crate) panicked_reclaimers: AtomicU64,
    pub(crate) late_reclaimers: AtomicU64,
    pub(crate) failed_sources: AtomicU64,
    /// Whether a source reports pressure, or somebody is short.
    pub(crate) under_pressure: AtomicBool,
    /// By tier: how often and how long its clients were short.
    pub(crate) relief: WholeMutex<[Relief; MAX_TIERS]>,
}

impl Counts {
    pub(super) fn restored(&self, bytes: u64, took: Duration) {
        let took_ns = took.as_nanos() as u64;
        self.restored_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.restored_blocks.fetch_add(1, Ordering::Relaxed);
        self.restore_ns.fetch_add(took_ns, Ordering::Relaxed);
        self.longest_restore_ns
            .fetch_max(took_ns, Ordering::Relaxed);
    }

    pub(crate) fn restore_time(&self) -> (Duration, Duration) {
        let ns = |count: &AtomicU64| Duration::from_nanos(count.load(Ordering::Relaxed));
        (ns(&self.restore_ns), ns(&self.longest_restore_ns))
    }

    /// Counts a climb of a rung, and what it gained.
    pub(crate) fn climbed(&self, rung: Rung, gained_bytes: u64) {
        self.rungs[rung as usize][0].fetch_add(1, Ordering::Relaxed);
        self.gained(rung, gained_bytes);
    }

    /// Counts what an earlier climb gained later.
    pub(crate) fn gained(&self, rung: Rung, bytes: u64) {
        self.rungs[rung as usize][1].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn rungs(&self) -> [RungTotals; Rung::ALL.len()] {
        Rung::ALL.map(|rung| {
            let [times, bytes] = &self.rungs[rung as usize];
            RungTotals {
                rung,
                climbed: times.load(Ordering::Relaxed),
                reclaimed_bytes: bytes.load(Ordering::Relaxed),
            }
        })
    }

    pub(crate) fn relief(&self) -> WholeMutexGuard<'_, [Relief; MAX_TIERS]> {
        self.relief.lock()
    }
}

/// See the module's description.
pub(crate) struct Shared {
    pub(crate) total_bytes: u64,
    pub(crate) tree: Arc<Tree>,
    pub(crate) counts: Counts,
    names: WholeRwLock<Names>,
    retired: WholeMutex<VecDeque<Client>>,
    blocks: WholeMutex<HashMap<usize, Arc<BlockState>>>,
    spill: SpillArea,
    clock: Box<dyn Clock>,
    /// How long a call that can fail waits for what lower tiers have borrowed.
    pub(super) patience: Duration,
}

impl Shared {
    pub(super) fn new(
        total_bytes: u64,
        tree: Tree,
        spill: SpillArea,
        clock: Box<dyn Clock>,
        patience: Duration,
    ) -> Shared {
        Shared {
            total_bytes,
            tree: Arc::new(tree),
            counts: Counts::default(),
            names: WholeRwLock::default(),
            retired: WholeMutex::default(),
            blocks: WholeMutex::default(),
            spill,
            clock,
            patience,
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.clock.now()
    }

    pub(super) fn spill(&self) -> &SpillArea {
        &self.spill
    }

    /// Bytes in the spill file.
    pub(crate) fn spilled_now_bytes(&self) -> u64 {
        self.spill.used_bytes()
    }

    pub(crate) fn names(&self) -> WholeReadGuard<'_, Names> {
        self.names.read()
    }

    pub(super) fn names_mut(&self) -> WholeWriteGuard<'_, Names> {
        self.names.write()
    }

    fn lock_blocks(&self) -> WholeMutexGuard<'_, HashMap<usize, Arc<BlockState>>> {
        self.blocks.lock()
    }

    fn lock_retired(&self) -> WholeMutexGuard<'_, VecDeque<Client>> {
        self.retired.lock()
    }

    pub(super) fn remember(&self, block: &Arc<BlockState>) {
        untracked(|| self.lock_blocks().insert(block.id(), Arc::clone(block)));
    }

    pub(super) fn forget(&self, block: &BlockState) {
        let removed = self.lock_blocks().remove(&block.id());
        drop(removed);
    }

    /// All blocks that exist now.
    pub(crate) fn blocks(&self) -> Vec<Arc<BlockState>> {
        self.lock_blocks().values().cloned().collect()
    }

    /// Puts a removed client on the list of those to be closed.
    pub(super) fn retire(&self, client: Client) {
        if client.retire() {
            untracked(|| self.lock_retired().push_back(client));
        }
        self.sweep_some();
    }

    /// Looks at up to `most` retired clients and closes those of which nothing
    /// is left.
    pub(crate) fn sweep(&self, most: usize) {
        for _ in 0..most {
            let Some(client) = self.lock_retired().pop_front() else {
                return;
            };
            if !client.try_close() {
                untracked(|| self.lock_retired().push_back(client));
            }
        }
    }

    pub(super) fn sweep_some(&self) {
        sweep_ended(&self.tree, SWEEP);
        self.sweep(SWEEP);
    }

    /// Looks at every retired client.
    pub(crate) fn sweep_all(&self) {
        sweep_ended(&self.tree, ended(&self.tree));
        let most = self.lock_retired().len();
        self.sweep(most);
    }

    /// The removed clients of which something is left.
    pub(crate) fn retired(&self) -> Vec<Client> {
        self.lock_retired().iter().cloned().collect()
    }

    /// The end of the memory: its clients are removed, what they hold stays
    /// accounted for until it is freed.
    pub(super) fn close(&self) {
        while let Some(slot) = take_ended(&self.tree) {
            let budget = Client::new(slot, slot.generation());
            if !budget.try_close() {
                Orphans::adopt(budget);
            }
        }
        let names = core::mem::take(&mut *self.names_mut());
        for client in names.into_values().filter_map(Client::with_id) {
            if client.retire() && !client.try_close() {
                // Nobody will look at it again but its own last use.
                Orphans::adopt(client);
            }
        }
        let retired = core::mem::take(&mut *self.lock_retired());
        for client in retired {
            if !client.try_close() {
                Orphans::adopt(client);
            }
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("total_bytes", &self.total_bytes)
            .finish_non_exhaustive()
    }
}

/// Retired clients whose memory is gone. Whoever registers a client somewhere
/// looks at a few of them.
pub(super) struct Orphans;

static ORPHANS: WholeMutex<VecDeque<Client>> = WholeMutex::new(VecDeque::new());

impl Orphans {
    fn lock() -> WholeMutexGuard<'static, VecDeque<Client>> {
        ORPHANS.lock()
    }

    fn adopt(client: Client) {
        untracked(|| Self::lock().push_back(client));
    }

    pub(super) fn sweep() {
        for _ in 0..SWEEP {
            let Some(client) = Self::lock().pop_front() else {
                return;
            };
            // Its request budgets may have ended after the memory did.
            if let Ok(tree) = client.tree() {
                sweep_ended(&tree, SWEEP);
            }
            if !client.try_close() {
                untracked(|| Self::lock().push_back(client));
            }
        }
    }
}
