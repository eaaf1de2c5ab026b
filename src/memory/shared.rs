//! What the handles, the blocks and the reclaimer of one memory share.

use super::block::BlockState;
use super::spill::SpillArea;
use crate::client::{Client, ClientId, untracked};
use crate::clock::Clock;
use crate::ledger::retire::sweep_ended;
use crate::registry::budget::Tree;
use core::fmt;
use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Names to clients, by id: half the size of a handle.
pub(crate) type Names = HashMap<Arc<str>, ClientId>;

/// Retired clients looked at whenever one is added or removed: enough to keep
/// up, few enough that the cost does not grow with their number.
const SWEEP: usize = 4;

/// Running totals of what the reclaimer has done.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) spilled_bytes: AtomicU64,
    pub(crate) discarded_bytes: AtomicU64,
    pub(crate) restored_bytes: AtomicU64,
    pub(crate) failed_spills: AtomicU64,
    pub(crate) passes: AtomicU64,
}

/// See the module's description.
pub(crate) struct Shared {
    pub(crate) total_bytes: u64,
    pub(crate) tree: Arc<Tree>,
    pub(crate) counts: Counts,
    names: RwLock<Names>,
    retired: Mutex<VecDeque<Client>>,
    blocks: Mutex<HashMap<usize, Arc<BlockState>>>,
    spill: SpillArea,
    clock: Box<dyn Clock>,
}

impl Shared {
    pub(super) fn new(
        total_bytes: u64,
        tree: Tree,
        spill: SpillArea,
        clock: Box<dyn Clock>,
    ) -> Shared {
        Shared {
            total_bytes,
            tree: Arc::new(tree),
            counts: Counts::default(),
            names: RwLock::default(),
            retired: Mutex::default(),
            blocks: Mutex::default(),
            spill,
            clock,
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

    pub(super) fn count_restored(&self, bytes: u64) {
        self.counts
            .restored_bytes
            .fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn names(&self) -> RwLockReadGuard<'_, Names> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn names_mut(&self) -> RwLockWriteGuard<'_, Names> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_blocks(&self) -> MutexGuard<'_, HashMap<usize, Arc<BlockState>>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_retired(&self) -> MutexGuard<'_, VecDeque<Client>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
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
        let ended = self.tree.ended.lock().len();
        sweep_ended(&self.tree, ended);
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
        loop {
            // Not in the loop's condition: the lock must be free below.
            let ended = self.tree.ended.lock().pop();
            let Some(slot) = ended else {
                break;
            };
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
        for client in self.lock_retired().drain(..) {
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

static ORPHANS: Mutex<VecDeque<Client>> = Mutex::new(VecDeque::new());

impl Orphans {
    fn lock() -> MutexGuard<'static, VecDeque<Client>> {
        ORPHANS.lock().unwrap_or_else(PoisonError::into_inner)
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
