//! A client's block: charged while its bytes are in memory, reclaimed while
//! nobody has pinned it.
//!
//! ```text
//!            pin, pin_mut (any number of readers, or one writer)
//!                 ^ v
//!   allocate --> resident --spill--> spilled --pin--> resident
//!                        \--discard--> discarded --renew--> resident (zeroed)
//! ```
//!
//! Whether bytes are there (`whereabouts`) and whether a pin lives (`pins`) is
//! decided under one lock: a pin is counted under it, the reclaimer looks at
//! the count under it. So a pinned block is never touched, and a block that is
//! being reclaimed is pinned only afterwards.
//!
//! The lock is not held while bytes are written or read, since a fork waits for
//! it: the block is [`Whereabouts::Moving`] meanwhile, and whoever needs it to be
//! somewhere waits for the mover. In a forked child there may be a move without
//! a mover: then the block is where the move had come to.

use crate::client::{Client, quota_exceeded, untracked};
use crate::ledger::fork::Cold;
use crate::ledger::whole::{WholeMutex, WholeMutexGuard};
use crate::ledger::{admit, grant, settle, thread};
use crate::memory::error::{PinError, TransferError};
use crate::memory::pages::Pages;
use crate::memory::relief;
use crate::memory::shared::Shared;
use crate::memory::spill::Extent;
use crate::registry::ReclaimPolicy;
use crate::registry::budget::{BudgetNode, Refusal};
use crate::registry::events::EventKind;
use crate::registry::slot::Slot;
use crate::sync::{
    AtomicBool, AtomicU32, AtomicU64, Condvar, Mutex, MutexGuard, Ordering, PoisonError,
};
use crate::sys;
use core::time::Duration;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Where a block's bytes are.
#[derive(Clone, Debug)]
enum Place {
    Resident,
    Spilled(Extent),
    Discarded,
}

/// What is known of a block's place.
#[derive(Debug)]
enum Whereabouts {
    At(Place),
    /// On its way; the bytes are the mover's alone.
    Moving {
        /// Where the block is if the move ends now.
        at: Place,
        gate: Arc<Gate>,
        /// Where the mover runs.
        process: u32,
    },
}

/// Opens once, when a move has ended.
#[derive(Debug, Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) {
        *self.lock() = true;
        self.opened.notify_all();
    }

    fn wait(&self) {
        let _open = self
            .opened
            .wait_while(self.lock(), |is_open| !*is_open)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

/// What the reclaimer did with a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reclaimed {
    Spilled,
    Discarded,
    /// Pinned, not idle for long enough, not reclaimable, or reclaimed before.
    Left,
    /// Could not be written out: it stays in memory.
    Failed,
}

/// What the handle, its pins and the reclaimer share of one block.
#[derive(Debug)]
pub(crate) struct BlockState {
    pages: Pages,
    len: usize,
    shared: Arc<Shared>,
    whereabouts: WholeMutex<Whereabouts>,
    /// Whether the owner has been charged for bytes that are not there, and gets
    /// them back when the move ends.
    is_owed: AtomicBool,
    /// Changed under the lock of `whereabouts` only.
    owner: WholeMutex<Client>,
    pins: AtomicU32,
    /// The memory's clock at the end of the last pin, in nanoseconds.
    idle_since: AtomicU64,
    resident_bytes: AtomicU64,
}

impl BlockState {
    /// Allocates the bytes of a block that has been charged already. Holds the
    /// client's slot for as long as the block lives.
    pub(in crate::memory) fn allocate(
        len: usize,
        client: Client,
        shared: Arc<Shared>,
    ) -> Option<Arc<BlockState>> {
        let pages = Pages::allocate(len)?;
        client.slot().hold();
        let now = shared.now();
        let state = BlockState {
            pages,
            len,
            shared,
            whereabouts: WholeMutex::new(Whereabouts::At(Place::Resident)),
            is_owed: AtomicBool::new(false),
            owner: WholeMutex::new(client),
            pins: AtomicU32::new(0),
            idle_since: AtomicU64::new(now.as_nanos() as u64),
            resident_bytes: AtomicU64::new(0),
        };
        state.count_idle(1);
        Some(Arc::new(state))
    }

    /// Where the block is, as of now. Ends a move that a fork has left without
    /// a mover.
    fn whereabouts(&self) -> WholeMutexGuard<'_, Whereabouts> {
        let mut whereabouts = self.whereabouts.lock();
        if let Whereabouts::Moving { at, process, .. } = &*whereabouts
            && *process != sys::process_id()
        {
            let at = at.clone();
            // SAFETY: the block is locked, and moves without a mover.
            unsafe { self.give_up_bytes_unless(&at) };
            self.arrive(&mut whereabouts, at);
        }
        whereabouts
    }

    /// Where the block is, under the lock; waits while it is on its way.
    fn settled(&self) -> (WholeMutexGuard<'_, Whereabouts>, Place) {
        loop {
            let whereabouts = self.whereabouts();
            let gate = match &*whereabouts {
                Whereabouts::At(place) => {
                    let place = place.clone();
                    return (whereabouts, place);
                }
                Whereabouts::Moving { gate, .. } => Arc::clone(gate),
            };
            drop(whereabouts);
            gate.wait();
        }
    }

    /// Begins to move the block.
    fn start(&self, mut whereabouts: WholeMutexGuard<'_, Whereabouts>, from: Place) -> Moving<'_> {
        let gate: Arc<Gate> = untracked(Arc::default);
        *whereabouts = Whereabouts::Moving {
            at: from.clone(),
            gate: Arc::clone(&gate),
            process: sys::process_id(),
        };
        Moving {
            block: self,
            at: from,
            gate,
        }
    }

    /// The end of a move, after bytes that have no place here are given up: only
    /// then does the owner get them back.
    fn arrive(&self, whereabouts: &mut Whereabouts, at: Place) {
        *whereabouts = Whereabouts::At(at);
        if self.is_owed.swap(false, Ordering::Relaxed) {
            settle::refund_block(self.slot(), self.len as u64, 0);
        }
    }

    /// Gives physical memory back that a block at `place` has no use for.
    ///
    /// # Safety
    /// Nobody uses the bytes.
    unsafe fn give_up_bytes_unless(&self, place: &Place) {
        if !matches!(place, Place::Resident) {
            // SAFETY: by contract.
            unsafe { self.pages.discard() };
        }
    }

    pub(in crate::memory) fn client(&self) -> Client {
        self.owner.lock().clone()
    }

    fn slot(&self) -> &'static Slot {
        self.client().slot()
    }

    pub(in crate::memory) fn pages(&self) -> &Pages {
        &self.pages
    }

    pub(crate) fn id(&self) -> usize {
        self.pages.as_ptr().as_ptr() as usize
    }

    /// How long the block has not been pinned.
    pub(crate) fn idle_for(&self, now: Duration) -> Duration {
        let since = Duration::from_nanos(self.idle_since.load(Ordering::Relaxed));
        now.saturating_sub(since)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The index of the owner's slot.
    pub(crate) fn owner_index(&self) -> u32 {
        self.slot().index()
    }

    /// The slot of the owner.
    pub(crate) fn owner(&self) -> &'static Slot {
        self.slot()
    }

    /// Whether a reclaim could help at all.
    pub(crate) fn is_idle(&self) -> bool {
        self.pages.can_be_reclaimed()
            && self.pins.load(Ordering::Relaxed) == 0
            && matches!(*self.whereabouts(), Whereabouts::At(Place::Resident))
    }

    /// Measures the physical bytes in use, and remembers the answer.
    pub(crate) fn measure(&self) -> u64 {
        let is_there = || match &*self.whereabouts() {
            Whereabouts::At(place) | Whereabouts::Moving { at: place, .. } => {
                matches!(place, Place::Resident)
            }
        };
        let mut resident = 0;
        if is_there() {
            resident = self.pages.resident_bytes() as u64;
        }
        self.resident_bytes.store(resident, Ordering::Relaxed);
        // It may have gone while it was measured.
        if !is_there() {
            resident = 0;
            self.resident_bytes.store(0, Ordering::Relaxed);
        }
        resident
    }

    /// What [`BlockState::measure`] found last.
    pub(crate) fn last_measured(&self) -> u64 {
        self.resident_bytes.load(Ordering::Relaxed)
    }

    /// Counts a pin, bringing the bytes back first if need be.
    pub(super) fn pin(&self) -> Result<(), PinError> {
        let (whereabouts, place) = self.settled();
        match place {
            Place::Resident => {}
            Place::Discarded => return Err(PinError::Reclaimed { bytes: self.len }),
            Place::Spilled(extent) => {
                let moving = self.start(whereabouts, Place::Spilled(extent.clone()));
                return self.bring_back(moving, &extent);
            }
        }
        if self.pins.fetch_add(1, Ordering::Relaxed) == 0 {
            self.count_idle(-1);
        }
        Ok(())
    }

    /// Charges the bytes of a spilled block, reads them, and counts a pin.
    fn bring_back(&self, mut moving: Moving<'_>, extent: &Extent) -> Result<(), PinError> {
        self.charge(|| self.is_owed.store(true, Ordering::Relaxed))?;
        let began = Instant::now();
        // SAFETY: the block was spilled, so no pin lives, and none can be
        // counted while it moves: the bytes are ours.
        let bytes = unsafe { self.pages.bytes_mut() };
        self.shared.spill().read(extent, bytes)?;
        moving.pass(Place::Resident, || {
            self.is_owed.store(false, Ordering::Relaxed);
            self.pins.fetch_add(1, Ordering::Relaxed);
        });
        self.shared.spill().free(extent);
        self.shared
            .counts
            .restored(self.len as u64, began.elapsed());
        Ok(())
    }

    /// Adds the block to, or takes it from, what its owner could give back.
    fn count_idle(&self, sign: i64) {
        if self.pages.can_be_reclaimed() {
            self.slot().add_idle_block_bytes(sign * self.len as i64);
        }
    }

    /// Charges the bytes of the block; a fork comes before that and the note, or
    /// after both.
    fn charge(&self, note: impl Fn()) -> Result<(), PinError> {
        let (slot, bytes) = (self.slot(), self.len as u64);
        relief::charge(&self.shared, slot, bytes, || {
            let _cold = Cold::enter(thread::attached());
            grant::restore_block(slot, bytes).map(|()| note())
        })
        .map_err(|refusal| quota_exceeded(slot, refusal).into())
    }

    pub(in crate::memory) fn unpin(&self) {
        let now = self.shared.now().as_nanos() as u64;
        self.idle_since.store(now, Ordering::Relaxed);
        // A fork comes before both counts or after.
        let _cold = Cold::enter(thread::attached());
        // Release: the reclaimer, which loads with Acquire, sees all writes.
        if self.pins.fetch_sub(1, Ordering::Release) == 1 {
            self.count_idle(1);
        }
    }

    /// Charges the block to another client of the same memory.
    pub(super) fn change_owner(&self, client: &Client) -> Result<(), TransferError> {
        let (_locked, place) = self.settled();
        let old = self.client();
        let hold = client.held().ok_or(TransferError::Removed)?;
        if !client.shares_tree_with(&self.shared.tree) {
            return Err(TransferError::OtherMemory);
        }
        if matches!(place, Place::Resident) {
            let bytes = self.len as u64;
            grant::charge_block(client.slot(), bytes)
                .map_err(|refusal| admit::count_refusal(client.slot(), refusal))
                .map_err(|refusal| quota_exceeded(client.slot(), refusal))?;
            settle::refund_block(old.slot(), bytes, 1);
        } else {
            settle::pass_block(old.slot(), client.slot());
        }
        let idle = matches!(place, Place::Resident) && self.pins.load(Ordering::Acquire) == 0;
        if idle {
            self.count_idle(-1);
        }
        // The block's hold on the slot moves along.
        core::mem::forget(hold);
        *self.owner.lock() = client.clone();
        if idle {
            self.count_idle(1);
        }
        old.slot().release();
        Ok(())
    }

    pub(super) fn renew(&self) -> Result<(), PinError> {
        if matches!(self.settled().1, Place::Discarded) {
            self.charge(|| ())?;
            // The owner is here, and the reclaimer leaves it where it is.
            let mut whereabouts = self.whereabouts();
            self.count_idle(1);
            *whereabouts = Whereabouts::At(Place::Resident);
        }
        Ok(())
    }

    /// Takes the physical memory of the block if nobody has pinned it for
    /// `idle_after`, and gives its bytes back to the client's budget.
    pub(crate) fn reclaim(
        &self,
        now: Duration,
        idle_after: Duration,
        policy: ReclaimPolicy,
    ) -> Reclaimed {
        if policy == ReclaimPolicy::Keep || !self.pages.can_be_reclaimed() {
            return Reclaimed::Left;
        }
        let whereabouts = self.whereabouts();
        let busy = self.pins.load(Ordering::Acquire) > 0 || self.idle_for(now) < idle_after;
        if busy || !matches!(*whereabouts, Whereabouts::At(Place::Resident)) {
            return Reclaimed::Left;
        }
        let mut moving = self.start(whereabouts, Place::Resident);
        let (to, done) = if policy == ReclaimPolicy::Discard {
            (Place::Discarded, Reclaimed::Discarded)
        } else {
            // SAFETY: no pin lived, and none can be counted while the block
            // moves: nobody writes.
            let bytes = unsafe { self.pages.bytes() };
            match self.shared.spill().write(bytes) {
                Ok(extent) => (Place::Spilled(extent), Reclaimed::Spilled),
                Err(error) => {
                    drop(moving);
                    self.record_failure(&error);
                    return Reclaimed::Failed;
                }
            }
        };
        moving.pass(to, || {
            self.count_idle(-1);
            self.is_owed.store(true, Ordering::Relaxed);
            self.resident_bytes.store(0, Ordering::Relaxed);
        });
        done
    }

    fn record_failure(&self, error: &io::Error) {
        let spill = self.shared.spill();
        let figures = Refusal {
            node: BudgetNode::Memory,
            requested: self.len as u64,
            charged: spill.used_bytes(),
            limit: spill.limit_bytes(),
        };
        let os_error = error.raw_os_error().unwrap_or(0);
        self.client()
            .locked(|locked| locked.record_with(EventKind::SpillFailed, figures, os_error));
    }

    /// The end of the block: refunds what is charged, frees its place on disk.
    pub(super) fn end(&self) {
        let (mut whereabouts, place) = self.settled();
        *whereabouts = Whereabouts::At(Place::Discarded);
        drop(whereabouts);
        let charged = match place {
            Place::Resident => {
                // A pin that was leaked has taken it off already.
                if self.pins.load(Ordering::Acquire) == 0 {
                    self.count_idle(-1);
                }
                self.len as u64
            }
            Place::Spilled(extent) => {
                self.shared.spill().free(&extent);
                0
            }
            Place::Discarded => 0,
        };
        settle::refund_block(self.slot(), charged, 1);
        self.shared.forget(self);
        self.slot().release();
    }
}

/// A move under way. However it ends, the block is somewhere then.
struct Moving<'block> {
    block: &'block BlockState,
    at: Place,
    gate: Arc<Gate>,
}

impl Moving<'_> {
    /// From here on the block is at `to` when the move ends. A fork comes before
    /// that and `books`, or after both.
    fn pass(&mut self, to: Place, books: impl FnOnce()) {
        let mut whereabouts = self.block.whereabouts();
        if let Whereabouts::Moving { at, .. } = &mut *whereabouts {
            *at = to.clone();
        }
        self.at = to;
        books();
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        let at = core::mem::replace(&mut self.at, Place::Discarded);
        // SAFETY: the bytes are the mover's until the move has ended, and it
        // has no more use for them. Before the lock, since it may take a while.
        unsafe { self.block.give_up_bytes_unless(&at) };
        self.block.arrive(&mut self.block.whereabouts(), at);
        self.gate.open();
    }
}
