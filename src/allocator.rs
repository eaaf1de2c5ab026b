//! The global allocator: the whole way of an allocation, on one page.
//!
//! ```text
//! alloc:    charge the current account -> inner allocator -> write the owner tag
//! dealloc:  read the owner tag -> refund its account -> inner allocator
//! realloc:  charge the growth to the owner -> inner allocator -> move the tag
//! ```
//!
//! Fast paths are `#[inline]` and touch nothing that another thread writes:
//! the charge is one addition, one store and one comparison with the account's
//! ceiling, the refund one subtraction. Whatever else there is to do lies
//! behind the ceiling and the floor, in [`crate::ledger::grant`] and
//! [`crate::ledger::settle`].
//!
//! Nothing here panics, blocks, formats, or runs code of the user but for the
//! inner allocator. A refusal is a null pointer, and it changes nothing.

use crate::ledger::account::Account;
use crate::ledger::{grant, sampling, settle, thread};
use crate::owner::layout::{self, is_page_mapped, read_tag, write_tag};
use crate::owner::{Tag, page_map};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr;
use std::alloc::System;

/// Routes every allocation of the process through the accounts of clients and
/// on to the inner allocator `A`.
///
/// ```
/// use tiered_allocator::TieredAllocator;
///
/// #[global_allocator]
/// static HEAP: TieredAllocator = TieredAllocator::system();
///
/// fn main() {
///     assert!(TieredAllocator::is_installed());
/// }
/// ```
///
/// The accounts belong to the process, not to the value: a second
/// `TieredAllocator` (over another inner allocator, say) charges the same
/// clients. Memory must go back through an allocator with the same inner one.
///
/// Every block of less than 4096 bytes takes four bytes more of the inner
/// allocator; larger blocks take none. Clients are charged what was asked for.
#[derive(Debug, Default)]
pub struct TieredAllocator<A = System> {
    inner: A,
}

impl TieredAllocator {
    /// Over the system's allocator.
    pub const fn system() -> Self {
        Self::new(System)
    }

    /// Whether the process' heap runs through a `TieredAllocator`, found out
    /// by allocating. A benchmark or a test should ask first: an allocator that
    /// is not installed accounts for nothing.
    pub fn is_installed() -> bool {
        let entered = thread::enter_unattributed();
        let allocations = || crate::ledger::reading::of_calling_thread();
        let before = allocations();
        let block = core::hint::black_box(Box::new(0xA5_u8));
        let after = allocations();
        drop(core::hint::black_box(block));
        thread::leave(&entered);
        after != before
    }
}

impl<A> TieredAllocator<A> {
    /// Over `inner`, which must be a correct [`GlobalAlloc`].
    pub const fn new(inner: A) -> Self {
        TieredAllocator { inner }
    }

    /// The inner allocator.
    pub const fn inner(&self) -> &A {
        &self.inner
    }
}

#[cfg(feature = "mimalloc")]
impl TieredAllocator<mimalloc::MiMalloc> {
    /// Over mimalloc.
    pub const fn mimalloc() -> Self {
        Self::new(mimalloc::MiMalloc)
    }
}

#[cfg(feature = "jemalloc")]
impl TieredAllocator<tikv_jemallocator::Jemalloc> {
    /// Over jemalloc.
    pub const fn jemalloc() -> Self {
        Self::new(tikv_jemallocator::Jemalloc)
    }
}

// SAFETY: blocks come from the inner allocator with the user's layout or, if
// small, four more bytes of the same alignment; they go back to it with the
// same layout (`layout::inner` depends on size and alignment alone). No method
// unwinds: arithmetic wraps or saturates, and a refusal is null.
unsafe impl<A: GlobalAlloc> GlobalAlloc for TieredAllocator<A> {
    /// About 12 instructions beyond the inner allocator's.
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is `alloc`'s own; `inner` is valid.
        unsafe { self.allocate(layout, |inner, layout| inner.alloc(layout)) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe { self.allocate(layout, |inner, layout| inner.alloc_zeroed(layout)) }
    }

    /// About 8 instructions beyond the inner allocator's. All that is rare is
    /// a tail call with the arguments in the order in which they came, so
    /// nothing is saved or moved.
    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let size = layout.size();
        if is_page_mapped(size) {
            // SAFETY: the caller's contract; the size is page-mapped.
            return unsafe { Self::free_mapped(block, size, layout.align(), self) };
        }
        // Here, so that the inner allocator may touch the tag's bytes, too.
        let block = layout::launder(block);
        // SAFETY: a live small block of this allocator.
        let tag = unsafe { take_tag(block, size) };
        let account = thread::current();
        // SAFETY: the current account is this thread's own.
        if unsafe { account.own_tag() } != tag {
            // SAFETY: the caller's contract; the block's own tag.
            return unsafe { Self::free_elsewhere(block, size, layout.align(), self, tag) };
        }
        if !account.refund(size as u64) {
            // SAFETY: as above; the refund is booked.
            return unsafe { Self::free_below(block, size, layout.align(), self, tag) };
        }
        // SAFETY: the block came from the inner allocator with this layout.
        unsafe { self.inner.dealloc(block, layout::inner(layout)) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let size = layout.size();
        if is_page_mapped(size) || is_page_mapped(new_size) {
            // SAFETY: the caller's contract is the same.
            return unsafe { self.realloc_mapped(block, layout, new_size) };
        }
        let block = layout::launder(block);
        // SAFETY: a live small block of this allocator.
        let tag = unsafe { read_tag(block, size) };
        if new_size > size && !raise(tag, new_size - size) {
            // SAFETY: the caller's contract; both sizes are small.
            return unsafe { self.realloc_cold(block, layout, new_size, tag) };
        }
        // SAFETY: the caller's contract; both sizes are small, and the growth
        // is charged.
        unsafe { self.realloc_charged(block, layout, new_size, tag) }
    }
}

impl<A: GlobalAlloc> TieredAllocator<A> {
    /// The growth of a small block has met its account's ceiling, or there is
    /// no account at hand.
    ///
    /// # Safety
    /// As [`GlobalAlloc::realloc`]; both sizes are small, `tag` is the block's.
    #[cold]
    #[inline(never)]
    unsafe fn realloc_cold(
        &self,
        block: *mut u8,
        layout: Layout,
        new_size: usize,
        tag: Tag,
    ) -> *mut u8 {
        let size = layout.size();
        match grow_cold(tag, block, size, new_size - size) {
            // SAFETY: the caller's contract, and the growth is charged.
            Some(tag) => unsafe { self.realloc_charged(block, layout, new_size, tag) },
            None => ptr::null_mut(),
        }
    }

    /// Moves a small block whose growth, if any, is charged, and gives it `tag`.
    ///
    /// # Safety
    /// As for `realloc_cold`.
    #[inline(always)]
    unsafe fn realloc_charged(
        &self,
        block: *mut u8,
        layout: Layout,
        new_size: usize,
        tag: Tag,
    ) -> *mut u8 {
        let size = layout.size();
        // SAFETY: the block came from the inner allocator with this layout;
        // the new size is small, so four bytes more do not overflow.
        let moved = unsafe {
            self.inner
                .realloc(block, layout::inner(layout), layout::inner_size(new_size))
        };
        if moved.is_null() {
            ungrow(tag, size, new_size.saturating_sub(size));
            return moved;
        }
        // SAFETY: `moved` has `inner_size(new_size)` bytes.
        unsafe { write_tag(moved, new_size, tag) };
        if new_size < size {
            shrink(tag, moved, new_size, size - new_size);
        }
        moved
    }

    /// Charge, allocate, tag.
    ///
    /// # Safety
    /// As [`GlobalAlloc::alloc`]; `allocate` is one of its allocating methods.
    #[inline(always)]
    unsafe fn allocate(&self, layout: Layout, allocate: impl Fn(&A, Layout) -> *mut u8) -> *mut u8 {
        let size = layout.size();
        if is_page_mapped(size) {
            // SAFETY: the caller's contract.
            return unsafe { self.allocate_mapped(layout, allocate) };
        }
        let account = thread::current();
        if !account.charge(size as u64) {
            // SAFETY: the caller's contract; the charge is to be withdrawn.
            return unsafe { self.allocate_cold(layout, allocate) };
        }
        let tag = account.tag();
        let block = allocate(&self.inner, layout::inner(layout));
        if block.is_null() {
            return uncharge(size);
        }
        // SAFETY: a non-null block has the bytes of `layout::inner(layout)`.
        unsafe { write_tag(block, size, tag) };
        block
    }

    /// The charge has met the account's ceiling.
    ///
    /// # Safety
    /// As for `allocate`.
    #[cold]
    #[inline(never)]
    unsafe fn allocate_cold(
        &self,
        layout: Layout,
        allocate: impl Fn(&A, Layout) -> *mut u8,
    ) -> *mut u8 {
        thread::current().withdraw(layout.size() as u64);
        match grant::charge_cold(layout.size() as u64) {
            // SAFETY: the caller's contract; the block is charged to `tag`.
            Some(tag) => unsafe { self.allocate_for(layout, tag, allocate) },
            None => ptr::null_mut(),
        }
    }

    /// A block of a page or more.
    ///
    /// # Safety
    /// As for `allocate`.
    #[inline(never)]
    unsafe fn allocate_mapped(
        &self,
        layout: Layout,
        allocate: impl Fn(&A, Layout) -> *mut u8,
    ) -> *mut u8 {
        let size = layout.size() as u64;
        let account = thread::current();
        if !account.charge(size) {
            // SAFETY: the caller's contract; the charge is to be withdrawn.
            return unsafe { self.allocate_cold(layout, allocate) };
        }
        let tag = account.tag();
        // A page-mapped block has no tag behind it.
        let block = allocate(&self.inner, layout);
        if !block.is_null() && page_map::set_in_known_leaf(block as usize, tag) {
            return block;
        }
        // SAFETY: `block` is null or came from `allocate` just now.
        unsafe { self.map_leaf(block, layout, tag) }
    }

    /// Records the owner of a block that came to a new range of addresses.
    ///
    /// # Safety
    /// As for `give_up`; the size is page-mapped.
    #[cold]
    #[inline(never)]
    unsafe fn map_leaf(&self, block: *mut u8, layout: Layout, tag: Tag) -> *mut u8 {
        if !block.is_null() && page_map::set(block as usize, tag) {
            return block;
        }
        // SAFETY: the caller's contract is the same.
        unsafe { self.give_up(block, layout, tag) }
    }

    /// Allocates and tags what has been charged to `tag`.
    ///
    /// # Safety
    /// As for `allocate`.
    #[inline(always)]
    unsafe fn allocate_for(
        &self,
        layout: Layout,
        tag: Tag,
        allocate: impl Fn(&A, Layout) -> *mut u8,
    ) -> *mut u8 {
        let block = allocate(&self.inner, layout::inner(layout));
        // SAFETY: a non-null block has the bytes of `layout::inner(layout)`.
        if block.is_null() || !unsafe { record_owner(block, layout.size(), tag) } {
            // SAFETY: `block` is null or came from `allocate` just now.
            return unsafe { self.give_up(block, layout, tag) };
        }
        block
    }

    /// The inner allocator had no memory, or the page map none for a leaf.
    ///
    /// # Safety
    /// `block` is null or a block of the inner allocator with this layout.
    #[cold]
    #[inline(never)]
    unsafe fn give_up(&self, block: *mut u8, layout: Layout, tag: Tag) -> *mut u8 {
        if !block.is_null() {
            // SAFETY: see above.
            unsafe { self.inner.dealloc(block, layout::inner(layout)) };
        }
        settle::undo(tag, layout.size() as u64, 1);
        ptr::null_mut()
    }

    /// Frees a block of a page or more.
    ///
    /// # Safety
    /// As [`GlobalAlloc::dealloc`] with the layout of `size` and `align`; the
    /// size is page-mapped.
    #[inline(never)]
    unsafe fn free_mapped(block: *mut u8, size: usize, align: usize, heap: &Self) {
        // The owner is forgotten before the inner allocator can hand the page
        // to somebody else; a second free finds none and ends the process.
        let tag = page_map::take(block as usize);
        let account = thread::current();
        // SAFETY: the current account is this thread's own.
        if unsafe { account.own_tag() } != tag {
            // SAFETY: the caller's contract; the block's own tag.
            return unsafe { Self::free_elsewhere(block, size, align, heap, tag) };
        }
        if !account.refund(size as u64) {
            // SAFETY: as above; the refund is booked.
            return unsafe { Self::free_below(block, size, align, heap, tag) };
        }
        // SAFETY: size and alignment are a layout's (caller).
        let layout = unsafe { Layout::from_size_align_unchecked(size, align) };
        // SAFETY: a page-mapped block came from the inner allocator with the
        // user's own layout.
        unsafe { heap.inner.dealloc(block, layout) }
    }

    /// Frees a block of a client that is not the current one.
    ///
    /// # Safety
    /// As [`GlobalAlloc::dealloc`] with the layout of `size` and `align`; `tag`
    /// is the block's, and the page map does not know the block any more.
    #[inline(never)]
    unsafe fn free_elsewhere(block: *mut u8, size: usize, align: usize, heap: &Self, tag: Tag) {
        let Some(account) = thread::guess(tag) else {
            // SAFETY: the caller's contract is the same.
            return unsafe { Self::free_of_unknown(block, size, align, heap, tag) };
        };
        if !account.refund(size as u64) {
            // SAFETY: as above; the refund is booked.
            return unsafe { Self::free_below(block, size, align, heap, tag) };
        }
        // SAFETY: the block came from the inner allocator with this layout.
        unsafe { heap.inner.dealloc(block, layout::inner_of(size, align)) }
    }

    /// Frees a block for whose owner no account is at hand.
    ///
    /// # Safety
    /// As for `free_elsewhere`.
    #[cold]
    #[inline(never)]
    unsafe fn free_of_unknown(block: *mut u8, size: usize, align: usize, heap: &Self, tag: Tag) {
        refund_cold(None, tag, block, size);
        // SAFETY: the block came from the inner allocator with this layout.
        unsafe { heap.inner.dealloc(block, layout::inner_of(size, align)) }
    }

    /// Frees a block whose refund, booked already, took the account at hand
    /// below its floor.
    ///
    /// # Safety
    /// As for `free_elsewhere`.
    #[cold]
    #[inline(never)]
    unsafe fn free_below(block: *mut u8, size: usize, align: usize, heap: &Self, tag: Tag) {
        if let Some(account) = at_hand(tag) {
            settle::refund_cold(account, size as u64);
        }
        // SAFETY: the block came from the inner allocator with this layout.
        unsafe { heap.inner.dealloc(block, layout::inner_of(size, align)) }
    }

    /// A reallocation from, to or across the size where owners move from tags
    /// to the page map.
    ///
    /// # Safety
    /// As [`GlobalAlloc::realloc`].
    #[inline(never)]
    unsafe fn realloc_mapped(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let block = layout::launder(block);
        let size = layout.size();
        // The page map must have a leaf for wherever the block goes.
        let mut spare = None;
        if is_page_mapped(new_size) {
            match thread::attached().map(|table| (table, table.take_spare_leaf())) {
                Some((table, Some(leaf))) => spare = Some((table, leaf)),
                // No memory for a leaf, or no place to keep one: the block
                // moves by hand, where each step can still be undone.
                // SAFETY: the caller's contract is the same.
                _ => return unsafe { self.realloc_by_copy(block, layout, new_size) },
            }
        }
        // SAFETY: a live block of this allocator, of this size.
        let mut tag = unsafe { peek_owner(block, size) };
        let growth = new_size.saturating_sub(size);
        let mut grown = true;
        if growth > 0 {
            match grow(tag, block, size, growth) {
                Some(tag_grown) => tag = tag_grown,
                None => grown = false,
            }
        }
        let mut moved = ptr::null_mut();
        if grown {
            if is_page_mapped(size) {
                // Before the call: afterwards the page may be another's.
                page_map::clear(block as usize);
            }
            // SAFETY: the block came from the inner allocator with this layout,
            // and the caller vouches for the new size.
            moved = unsafe {
                self.inner
                    .realloc(block, layout::inner(layout), layout::inner_size(new_size))
            };
        }
        if moved.is_null() {
            if grown {
                let tag = ungrow(tag, size, growth);
                if is_page_mapped(size) {
                    // The leaf is there: the cell was in use a moment ago.
                    page_map::set(block as usize, tag);
                }
            }
        } else if !is_page_mapped(new_size) {
            // SAFETY: `moved` has `inner_size(new_size)` bytes.
            unsafe { write_tag(moved, new_size, tag) };
        } else if let Some((table, leaf)) = spare.take() {
            spare = page_map::set_with(moved as usize, tag, leaf).map(|leaf| (table, leaf));
        }
        if let Some((table, leaf)) = spare {
            table.keep_spare_leaf(leaf);
        }
        if !moved.is_null() && new_size < size {
            shrink(tag, moved, new_size, size - new_size);
        }
        moved
    }

    /// Allocate, copy, free, for the block's owner.
    ///
    /// # Safety
    /// As [`GlobalAlloc::realloc`].
    #[cold]
    #[inline(never)]
    unsafe fn realloc_by_copy(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let block = layout::launder(block);
        let size = layout.size();
        // SAFETY: a live block of this allocator, of this size.
        let mut tag = unsafe { peek_owner(block, size) };
        let growth = new_size.saturating_sub(size);
        if growth > 0 {
            match grow(tag, block, size, growth) {
                Some(grown) => tag = grown,
                None => return ptr::null_mut(),
            }
        }
        // SAFETY: the caller vouches that size and alignment are a layout.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: `inner` is valid and not empty.
        let moved = unsafe { self.inner.alloc(layout::inner(new)) };
        // SAFETY: a non-null `moved` has the bytes of `layout::inner(new)`.
        if moved.is_null() || !unsafe { record_owner(moved, new_size, tag) } {
            if !moved.is_null() {
                // SAFETY: allocated just above.
                unsafe { self.inner.dealloc(moved, layout::inner(new)) };
            }
            ungrow(tag, size, growth);
            return ptr::null_mut();
        }
        // SAFETY: both blocks are live, distinct and have the bytes copied;
        // the old one then goes back as it came.
        unsafe {
            ptr::copy_nonoverlapping(block, moved, size.min(new_size));
            if is_page_mapped(size) {
                page_map::clear(block as usize);
            }
            self.inner.dealloc(block, layout::inner(layout));
        }
        if new_size < size {
            shrink(tag, moved, new_size, size - new_size);
        }
        moved
    }
}

/// Takes back a charge to the current account for which the inner allocator
/// had no memory.
#[cold]
#[inline(never)]
fn uncharge(size: usize) -> *mut u8 {
    settle::undo(thread::current().tag(), size as u64, 1);
    ptr::null_mut()
}

/// The calling thread's account for `tag`, if it is the current one or at its
/// home place.
#[inline(always)]
fn at_hand<'a>(tag: Tag) -> Option<&'a Account> {
    let account = thread::current();
    if account.tag() == tag {
        Some(account)
    } else {
        thread::guess(tag)
    }
}

/// Refunds a block to its owner.
#[inline(always)]
pub(crate) fn refund(tag: Tag, block: *mut u8, size: usize) {
    match at_hand(tag) {
        Some(account) if account.refund(size as u64) => {}
        account => refund_cold(account, tag, block, size),
    }
}

/// The rest of a refund: `account` is below its floor, or there is none at hand.
#[cold]
#[inline(never)]
fn refund_cold(account: Option<&Account>, tag: Tag, block: *mut u8, size: usize) {
    match account {
        Some(account) => settle::refund_cold(account, size as u64),
        None => {
            let slot = grant::owner(tag, block as usize, size);
            sampling::freed(tag);
            settle::refund_elsewhere(slot, size as u64, 1);
        }
    }
}

/// Charges the growth of a block of `size` bytes to its owner. Answers the tag
/// that the block has from now on, or `None` if its owner may not have so much.
#[inline(always)]
fn grow(tag: Tag, block: *mut u8, size: usize, growth: usize) -> Option<Tag> {
    if raise(tag, growth) {
        Some(tag)
    } else {
        grow_cold(tag, block, size, growth)
    }
}

/// The common case of [`grow`]; `false`: nothing has changed.
#[inline(always)]
fn raise(tag: Tag, growth: usize) -> bool {
    at_hand(tag).is_some_and(|account| {
        let raised = account.raise(growth as u64);
        if !raised {
            account.withdraw(growth as u64);
        }
        raised
    })
}

/// The rest of [`grow`]: there is no account at hand, or it met its ceiling.
#[cold]
#[inline(never)]
fn grow_cold(tag: Tag, block: *mut u8, size: usize, growth: usize) -> Option<Tag> {
    let slot = grant::owner(tag, block as usize, size);
    grant::grow_cold(slot, growth as u64)
        .then(|| sampling::grown(slot, tag, size as u64, growth as u64))
}

/// Takes the growth of a block of `size` bytes back: the inner allocator had no
/// memory. Answers the tag that the block has, as before [`grow`].
#[cold]
#[inline(never)]
fn ungrow(tag: Tag, size: usize, growth: usize) -> Tag {
    settle::undo(tag, growth as u64, 0);
    if growth > 0 {
        sampling::shrunk(tag, size as u64)
    } else {
        tag
    }
}

/// Refunds the bytes by which a block has shrunk to `size`.
#[inline(always)]
fn shrink(tag: Tag, block: *mut u8, size: usize, bytes: usize) {
    match at_hand(tag) {
        Some(account) => {
            if !account.lower(bytes as u64) {
                settle::refund_cold(account, bytes as u64);
            }
        }
        None => {
            let slot = grant::owner(tag, block as usize, size);
            let left = sampling::shrunk(tag, size as u64);
            if left != tag {
                // SAFETY: the block has the layout of a block of `size`, and
                // its place in the page map, if that is where its tag is.
                unsafe { record_owner(block, size, left) };
            }
            settle::refund_elsewhere(slot, bytes as u64, 0);
        }
    }
}

/// Writes the owner where its size says; `false` if the page map has no place.
///
/// # Safety
/// `block` has the bytes that [`layout::inner`] asks for a block of `size`.
#[inline(always)]
pub(crate) unsafe fn record_owner(block: *mut u8, size: usize, tag: Tag) -> bool {
    if is_page_mapped(size) {
        return page_map::set(block as usize, tag);
    }
    // SAFETY: the caller's block has room for the tag.
    unsafe { write_tag(block, size, tag) };
    true
}

/// Reads the owner of a live block.
///
/// # Safety
/// `block` is a live block of this allocator with this `size`, and has passed
/// through [`layout::launder`].
#[inline(always)]
pub(crate) unsafe fn peek_owner(block: *mut u8, size: usize) -> Tag {
    if is_page_mapped(size) {
        page_map::get(block as usize)
    } else {
        // SAFETY: the caller's block carries a tag.
        unsafe { read_tag(block, size) }
    }
}

/// Reads the tag of a block that is about to be freed. In debug builds it is
/// forgotten, so that a second free ends the process with a message.
///
/// # Safety
/// `block` is a live block of this allocator with this small `size`.
#[inline(always)]
unsafe fn take_tag(block: *mut u8, size: usize) -> Tag {
    // SAFETY: the caller's block carries a tag.
    let tag = unsafe { read_tag(block, size) };
    if cfg!(debug_assertions) {
        // SAFETY: the block is still ours.
        unsafe { write_tag(block, size, Tag::NONE) };
    }
    tag
}
