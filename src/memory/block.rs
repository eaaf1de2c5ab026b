//! The handle of a client's block.

mod state;

pub(crate) use state::{BlockState, Reclaimed};

use super::error::{PinError, TransferError};
use super::pin::{Pin, PinMut};
use crate::client::Client;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use std::sync::Arc;

/// A large buffer that belongs to a client, from
/// [`Memory::allocate_for_client`](crate::Memory::allocate_for_client).
///
/// Its bytes are reached through a pin, and may be taken while none lives: see
/// [`ReclaimPolicy`](crate::ReclaimPolicy). They start out zeroed, and their
/// address never changes. Dropping the block frees it, whatever has become of its
/// client and memory.
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
// `&mut MemoryBlock`. The reclaimer, and a pin that brings bytes back, touch them
// only while the block is `Moving`: that begins without a pin, under the lock that
// pins are counted under, and none is counted before it has ended.
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
        self.state.len()
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
