//! Allocations that can change hands: see [`Client::adopt`](crate::Client::adopt).

use crate::TieredAllocator;
use crate::allocator::{peek_owner, record_owner, refund};
use crate::ledger::{grant, sampling};
use crate::owner::layout::launder;
use crate::registry::budget::Refusal;
use crate::registry::slot::Slot;
use crate::sync::{AtomicU8, Ordering};
use core::alloc::Layout;
use core::ptr::NonNull;

/// A value that owns one block of the global allocator.
///
/// # Safety
/// [`heap_block`](HeapBlock::heap_block) answers a block that the global
/// allocator returned, that lives, that the value owns alone, and the very
/// layout that it will be deallocated with; or `None`.
///
/// A global allocator that wraps a [`TieredAllocator`] must pass every size on
/// to it, pointers and layouts unchanged, if blocks of the process are to be
/// adopted.
pub unsafe trait HeapBlock {
    /// The block and its layout; `None` if the value has none at the moment.
    fn heap_block(&mut self) -> Option<(NonNull<u8>, Layout)>;
}

fn non_empty(block: NonNull<u8>, layout: Layout) -> Option<(NonNull<u8>, Layout)> {
    (layout.size() > 0).then_some((block, layout))
}

// SAFETY: a box owns one block with its value's layout, or none if the value
// has no size (documentation of `Box`, "Memory layout").
unsafe impl<T: ?Sized> HeapBlock for Box<T> {
    fn heap_block(&mut self) -> Option<(NonNull<u8>, Layout)> {
        non_empty(
            NonNull::from(&mut **self).cast(),
            Layout::for_value(&**self),
        )
    }
}

// SAFETY: a vector owns one block of `capacity` elements, or none if that has
// no size (documentation of `Vec`, "Guarantees").
unsafe impl<T> HeapBlock for Vec<T> {
    fn heap_block(&mut self) -> Option<(NonNull<u8>, Layout)> {
        let layout = Layout::array::<T>(self.capacity()).ok()?;
        non_empty(NonNull::new(self.as_mut_ptr())?.cast(), layout)
    }
}

// SAFETY: a string is a vector of bytes.
unsafe impl HeapBlock for String {
    fn heap_block(&mut self) -> Option<(NonNull<u8>, Layout)> {
        let layout = Layout::array::<u8>(self.capacity()).ok()?;
        non_empty(NonNull::new(self.as_mut_ptr())?, layout)
    }
}

/// Whether the global allocator is this crate's: 0 not asked yet, 1 no, 2 yes.
static INSTALLED: AtomicU8 = AtomicU8::new(0);

fn is_installed() -> bool {
    // Relaxed: everybody who asks gets the same answer.
    match INSTALLED.load(Ordering::Relaxed) {
        0 => {
            let installed = TieredAllocator::is_installed();
            INSTALLED.store(1 + u8::from(installed), Ordering::Relaxed);
            installed
        }
        answer => answer == 2,
    }
}

/// Charges a block to `slot` and refunds its owner.
///
/// # Safety
/// A live block of the global allocator with its layout, which nobody else
/// touches during the call.
pub(crate) unsafe fn change_owner(
    block: NonNull<u8>,
    layout: Layout,
    slot: &'static Slot,
) -> Result<(), Refusal> {
    if !is_installed() {
        return Ok(());
    }
    let size = layout.size();
    // The pointer comes from a reference to the value, behind which the tag is.
    let block = launder(block.as_ptr());
    // SAFETY: the block is live and came from a `TieredAllocator`, as the
    // global allocator is one.
    let tag = unsafe { peek_owner(block, size) };
    let old = sampling::plain(tag);
    if old == slot.tag() {
        return Ok(());
    }
    grant::charge_for(slot, size as u64)?;
    let tag = sampling::passed(tag, slot.tag());
    // SAFETY: as above, and nobody reads the tag meanwhile. A page-mapped
    // block has its leaf already, so this does not fail.
    unsafe { record_owner(block, size, tag) };
    refund(old, block, size);
    Ok(())
}
