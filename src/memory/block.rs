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
//! Whether bytes are there (`place`) and whether a pin lives (`pins`) is
//! decided under one lock: a pin is counted under it, the reclaimer looks at
//! the count under it. So a pinned block is never touched, and a block that is
//! being reclaimed is pinned only afterwards.

use super::error::{PinError, TransferError};
use super::pages::Pages;
use super::pin::{Pin, PinMut};
use super::relief;
use super::shared::Shared;
use super::spill::Extent;
use crate::client::{Client, quota_exceeded};
use crate::ledger::{admit, grant, settle};
use crate::registry::ReclaimPolicy;
use crate::registry::budget::{BudgetNode, Refusal};
use crate::registry::events::EventKind;
use crate::registry::slot::Slot;
use crate::sync::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering, PoisonError};
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::time::Duration;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Where a block's bytes are.
#[derive(Debug)]
enum Place {
    Resident,
    Spilled(Extent),
    Discarded,
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
    place: Mutex<Place>,
    /// Changed under the lock of `place` only.
    owner: Mutex<Client>,
    pins: AtomicU32,
    /// The memory's clock at the end of the last pin, in nanoseconds.
    idle_since: AtomicU64,
    resident_bytes: AtomicU64,
}

impl BlockState {
    /// Allocates the bytes of a block that has been charged already. Holds the
    /// client's slot for as long as the block lives.
    pub(super) fn allocate(
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
            place: Mutex::new(Place::Resident),
            owner: Mutex::new(client),
            pins: AtomicU32::new(0),
            idle_since: AtomicU64::new(now.as_nanos() as u64),
            resident_bytes: AtomicU64::new(0),
        };
        state.count_idle(1);
        Some(Arc::new(state))
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn client(&self) -> Client {
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        owner.clone()
    }

    fn slot(&self) -> &'static Slot {
        self.client().slot()
    }

    pub(super) fn pages(&self) -> &Pages {
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
            && self
                .place
                .try_lock()
                .is_ok_and(|place| matches!(*place, Place::Resident))
    }

    /// Measures the physical bytes in use, and remembers the answer.
    pub(crate) fn measure(&self) -> u64 {
        let place = self.place();
        let resident = match *place {
            Place::Resident => self.pages.resident_bytes() as u64,
            Place::Spilled(_) | Place::Discarded => 0,
        };
        self.resident_bytes.store(resident, Ordering::Relaxed);
        resident
    }

    /// What [`BlockState::measure`] found last.
    pub(crate) fn last_measured(&self) -> u64 {
        self.resident_bytes.load(Ordering::Relaxed)
    }

    /// Counts a pin, bringing the bytes back first if need be.
    fn pin(&self) -> Result<(), PinError> {
        let mut place = self.place();
        match &*place {
            Place::Resident => {}
            Place::Discarded => return Err(PinError::Reclaimed { bytes: self.len }),
            Place::Spilled(extent) => {
                self.charge()?;
                let began = Instant::now();
                // SAFETY: the block is spilled, so no pin lives and none can
                // be counted while we hold the lock: the bytes are ours.
                let bytes = unsafe { self.pages.bytes_mut() };
                if let Err(error) = self.shared.spill().read(extent, bytes) {
                    // SAFETY: as above.
                    unsafe { self.pages.discard() };
                    settle::refund_block(self.slot(), self.len as u64, 0);
                    return Err(error.into());
                }
                self.shared.spill().free(extent);
                self.shared
                    .counts
                    .restored(self.len as u64, began.elapsed());
                self.count_idle(1);
                *place = Place::Resident;
            }
        }
        if self.pins.fetch_add(1, Ordering::Relaxed) == 0 {
            self.count_idle(-1);
        }
        Ok(())
    }

    /// Adds the block to, or takes it from, what its owner could give back.
    fn count_idle(&self, sign: i64) {
        if self.pages.can_be_reclaimed() {
            self.slot().add_idle_block_bytes(sign * self.len as i64);
        }
    }

    fn charge(&self) -> Result<(), PinError> {
        let (slot, bytes) = (self.slot(), self.len as u64);
        relief::charge(&self.shared, slot, bytes, || {
            grant::restore_block(slot, bytes)
        })
        .map_err(|refusal| quota_exceeded(slot, refusal).into())
    }

    pub(super) fn unpin(&self) {
        let now = self.shared.now().as_nanos() as u64;
        self.idle_since.store(now, Ordering::Relaxed);
        // Release: the reclaimer, which loads with Acquire, sees all writes.
        if self.pins.fetch_sub(1, Ordering::Release) == 1 {
            self.count_idle(1);
        }
    }

    /// Charges the block to another client of the same memory.
    fn change_owner(&self, client: &Client) -> Result<(), TransferError> {
        let place = self.place();
        let old = self.client();
        let hold = client.held().ok_or(TransferError::Removed)?;
        if !client.shares_tree_with(&self.shared.tree) {
            return Err(TransferError::OtherMemory);
        }
        if matches!(*place, Place::Resident) {
            let bytes = self.len as u64;
            grant::charge_block(client.slot(), bytes)
                .map_err(|refusal| admit::count_refusal(client.slot(), refusal))
                .map_err(|refusal| quota_exceeded(client.slot(), refusal))?;
            settle::refund_block(old.slot(), bytes, 1);
        } else {
            settle::pass_block(old.slot(), client.slot());
        }
        let idle = matches!(*place, Place::Resident) && self.pins.load(Ordering::Acquire) == 0;
        if idle {
            self.count_idle(-1);
        }
        // The block's hold on the slot moves along.
        core::mem::forget(hold);
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = client.clone();
        if idle {
            self.count_idle(1);
        }
        old.slot().release();
        Ok(())
    }

    fn renew(&self) -> Result<(), PinError> {
        let mut place = self.place();
        if matches!(*place, Place::Discarded) {
            self.charge()?;
            self.count_idle(1);
            *place = Place::Resident;
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
        let mut place = self.place();
        let busy = self.pins.load(Ordering::Acquire) > 0 || self.idle_for(now) < idle_after;
        if busy || !matches!(*place, Place::Resident) {
            return Reclaimed::Left;
        }
        let done = match policy {
            ReclaimPolicy::Discard => {
                *place = Place::Discarded;
                Reclaimed::Discarded
            }
            _ => {
                // SAFETY: no pin lives, and none can be counted while we hold
                // the lock: nobody writes.
                let bytes = unsafe { self.pages.bytes() };
                match self.shared.spill().write(bytes) {
                    Ok(extent) => *place = Place::Spilled(extent),
                    Err(error) => {
                        self.record_failure(&error);
                        return Reclaimed::Failed;
                    }
                }
                Reclaimed::Spilled
            }
        };
        // SAFETY: as above; the next pin reads the bytes back first, or fails.
        unsafe { self.pages.discard() };
        self.count_idle(-1);
        settle::refund_block(self.slot(), self.len as u64, 0);
        self.resident_bytes.store(0, Ordering::Relaxed);
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
    fn end(&self) {
        let place = core::mem::replace(&mut *self.place(), Place::Discarded);
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

/// A large buffer that belongs to a client, from
/// [`Memory::allocate_for_client`](crate::Memory::allocate_for_client).
///
/// Its bytes are reached through a pin, and may be taken while none lives: see
/// [`ReclaimPolicy`]. They start out zeroed, and their address never changes.
/// Dropping the block frees it, whatever has become of its client and memory.
///
/// ```
/// # use tiered_allocator::{Memory, SubscriptionTier};
/// # let memory = Memory::new(1 << 30);
/// # memory.add_client("acme", SubscriptionTier::Basic);
/// let mut block = memory.allocate_for_client("acme", 1 << 20)?;
/// block.pin_mut()?[..5].copy_from_slice(b"hello");
/// assert_eq!(&block.pin()?[..5], b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Many threads may pin it at once to read, since `pin` borrows it shared;
/// `pin_mut` borrows it exclusively, so no two threads write, or one writes
/// what another reads.
pub struct MemoryBlock {
    base: NonNull<u8>,
    state: Arc<BlockState>,
    /// The block owns its bytes, as a boxed slice would.
    _owns: PhantomData<Box<[u8]>>,
}

// SAFETY: the block owns the bytes behind `base` (`_owns`), which belong to no
// thread; `BlockState` is `Send + Sync`.
unsafe impl Send for MemoryBlock {}
// SAFETY: `&MemoryBlock` gives `&[u8]` only (through `pin`); `&mut [u8]` takes
// `&mut MemoryBlock`. The reclaimer writes to unpinned blocks alone, under the
// lock that pins are counted under.
unsafe impl Sync for MemoryBlock {}

impl MemoryBlock {
    pub(super) fn new(state: Arc<BlockState>) -> MemoryBlock {
        MemoryBlock {
            base: state.pages().as_ptr(),
            state,
            _owns: PhantomData,
        }
    }

    /// Bytes asked for.
    #[expect(clippy::len_without_is_empty, reason = "a block has at least one byte")]
    pub fn len(&self) -> usize {
        self.state.len
    }

    /// The address of the first byte. Valid to read or write only as a pin
    /// allows.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.base
    }

    /// The client that the block is charged to.
    pub fn client(&self) -> Client {
        self.state.client()
    }

    /// Charges the block to another client of the same memory, and refunds the
    /// one that had it. A block that is spilled or discarded moves without a
    /// charge.
    ///
    /// # Errors
    /// That client may not have so much, was removed, or is another memory's.
    /// Nothing is changed then.
    pub fn charge_to(&mut self, client: &Client) -> Result<(), TransferError> {
        self.state.change_owner(client)
    }

    /// Access to read. While the pin lives, the bytes stay where they are.
    ///
    /// # Errors
    /// The block was reclaimed and its bytes are lost (by policy), or cannot
    /// come back.
    pub fn pin(&self) -> Result<Pin<'_>, PinError> {
        self.state.pin()?;
        Ok(Pin::new(&self.state))
    }

    /// Access to write.
    ///
    /// # Errors
    /// As [`MemoryBlock::pin`].
    pub fn pin_mut(&mut self) -> Result<PinMut<'_>, PinError> {
        self.state.pin()?;
        Ok(PinMut::new(&self.state))
    }

    /// Gives a discarded block fresh, zeroed bytes, charged anew. Does nothing
    /// to a block that was not discarded.
    ///
    /// # Errors
    /// The client may not have them.
    pub fn renew(&mut self) -> Result<(), PinError> {
        self.state.renew()
    }

    /// Physical bytes in use, measured now.
    pub fn resident_bytes(&self) -> u64 {
        self.state.measure()
    }

    pub(super) fn belongs_to(&self, client: &Client) -> bool {
        self.state.client() == *client
    }
}

impl Drop for MemoryBlock {
    fn drop(&mut self) {
        self.state.end();
    }
}

impl fmt::Debug for MemoryBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBlock")
            .field("len", &self.len())
            .field("client", &self.client())
            .finish_non_exhaustive()
    }
}
