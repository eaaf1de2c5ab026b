//! allocator-api2: collections that belong to a client and can fail.
//!
//! With the feature `allocator-api2` a [`Client`] is an
//! [`Allocator`]: hashbrown's maps and
//! allocator-api2's `Vec` and `Box` take it, and so do other crates that
//! allow allocators on stable Rust.
//!
//! ```
//! use allocator_api2::vec::Vec;
//! use tiered_allocator::{ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator};
//!
//! #[global_allocator]
//! static HEAP: TieredAllocator = TieredAllocator::system();
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let memory = Memory::new(1 << 30);
//!     let options = ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(1000));
//!     let client = memory.register("acme", options)?;
//!
//!     let mut rows: Vec<u8, _> = Vec::new_in(client.clone());
//!     assert!(rows.try_reserve_exact(600).is_ok());
//!     assert_eq!(client.usage().live_bytes, 600); // no scope is entered
//!
//!     assert!(rows.try_reserve_exact(1001).is_err());
//!     let refused = client.last_refusal().expect("it was refused");
//!     assert_eq!((refused.requested, refused.limit), (401, 1000));
//!     assert_eq!(client.usage().overdrawn_bytes, 0);
//!     Ok(())
//! }
//! ```
//!
//! - **Who pays**: the client that the collection was made with, whatever
//!   scope is current. What the elements allocate by themselves (the bytes of
//!   a `String`) is charged as ever, to the current scope.
//! - **The limit**: a request beyond `max` is an `AllocError`, also for a
//!   `Graceful` client: code that can fail draws on no overdraft. (An
//!   `Observe` client is granted everything.) Methods that cannot fail, `push`
//!   say, end the process then; use `try_reserve` first, or, with the feature
//!   `unwind`, a [`run`](Client::run) of the same client. [`Client::last_refusal`]
//!   has the figures.
//! - **No waiting**: unlike `allocate_for_client`, a collection never waits for
//!   the reclaimer; a client of a higher tier is lent what lower ones have
//!   borrowed, as ordinary code is.
//! - **Who gets it back**: the client, whoever drops the collection, wherever.
//! - **A removed client** is refused new blocks and growth; shrinking and
//!   dropping go on.
//! - **Over capacity**: collections round up, so the figures may exceed what
//!   was asked for.
//! - **A value that moves** to another client with
//!   [`adopt`](Client::adopt) has its growth charged to its new owner.
//!
//! Where no [`TieredAllocator`](crate::TieredAllocator) is installed the blocks
//! come from the global allocator, and nobody is charged.

use crate::client::Client;
use crate::ledger::thread;
use ::allocator_api2::alloc::{AllocError, Allocator};
use core::alloc::Layout;
use core::ptr::{self, NonNull};

/// The block of `layout.size()` bytes at `start`, if there is one.
fn block(start: *mut u8, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
    let start = NonNull::new(start).ok_or(AllocError)?;
    Ok(NonNull::slice_from_raw_parts(start, layout.size()))
}

/// A block of no bytes: aligned, never read, charged to nobody.
fn empty(layout: Layout) -> NonNull<[u8]> {
    let aligned = ptr::without_provenance_mut(layout.align());
    // An alignment is not zero.
    let start = NonNull::new(aligned).unwrap_or(NonNull::dangling());
    NonNull::slice_from_raw_parts(start, 0)
}

impl Client {
    /// Calls the global allocator in the client's scope; `None` if the client
    /// was removed.
    #[inline]
    fn fallibly<R>(&self, call: impl FnOnce() -> R) -> Option<R> {
        let scope = self.enter();
        let answer = scope.is_of(self).then(|| thread::fallibly(call));
        drop(scope);
        answer
    }

    fn allocate_with(
        &self,
        layout: Layout,
        allocate: unsafe fn(Layout) -> *mut u8,
    ) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(empty(layout));
        }
        // SAFETY: the size is not zero.
        let start = self.fallibly(|| unsafe { allocate(layout) });
        block(start.ok_or(AllocError)?, layout)
    }

    /// Another block with as many of the bytes as fit into both, and the old
    /// one freed.
    ///
    /// # Safety
    /// `start` is a block with this `old` layout from a client; `new` is not
    /// larger, or as `allocate` has it.
    unsafe fn replace(
        &self,
        start: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        let moved = self.allocate_with(new, std::alloc::alloc)?;
        // SAFETY: both have that many bytes (none, if one of them is empty),
        // and a new block overlaps with no live one.
        unsafe {
            let bytes = old.size().min(new.size());
            ptr::copy_nonoverlapping(start.as_ptr(), moved.cast().as_ptr(), bytes);
        }
        // SAFETY: the caller's contract.
        unsafe { self.deallocate(start, old) };
        Ok(moved)
    }
}

// SAFETY: blocks come from the global allocator with the layout asked for, or
// have no bytes; they live until they go back to it, whatever becomes of the
// client or its handles, and a clone frees them as well as the original. No
// method unwinds.
unsafe impl Allocator for Client {
    #[inline]
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        self.allocate_with(layout, std::alloc::alloc)
    }

    #[inline]
    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        self.allocate_with(layout, std::alloc::alloc_zeroed)
    }

    #[inline]
    unsafe fn deallocate(&self, start: NonNull<u8>, layout: Layout) {
        if layout.size() > 0 {
            // SAFETY: the caller's contract: a block of this layout, which has
            // bytes and so came from the global allocator.
            unsafe { std::alloc::dealloc(start.as_ptr(), layout) };
        }
    }

    unsafe fn grow(
        &self,
        start: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        if old.size() == 0 || old.align() != new.align() {
            // SAFETY: the caller's contract.
            return unsafe { self.replace(start, old, new) };
        }
        if !self.may_be_entered() {
            return Err(AllocError);
        }
        // SAFETY: a block of the global allocator with this layout; the new
        // size is at least as large, so not zero, and of a valid layout.
        let grow = || unsafe { std::alloc::realloc(start.as_ptr(), old, new.size()) };
        block(thread::fallibly(grow), new)
    }

    unsafe fn grow_zeroed(
        &self,
        start: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's contract is the same.
        let grown = unsafe { self.grow(start, old, new) }?;
        // SAFETY: the block has `new.size()` bytes, at least `old.size()`.
        unsafe {
            let end = grown.cast::<u8>().as_ptr().add(old.size());
            end.write_bytes(0, new.size() - old.size());
        }
        Ok(grown)
    }

    unsafe fn shrink(
        &self,
        start: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        if new.size() == 0 || old.align() != new.align() {
            // SAFETY: the caller's contract.
            return unsafe { self.replace(start, old, new) };
        }
        // SAFETY: a block of the global allocator with this layout (the old
        // size is not below the new one, which is not zero).
        let shrunk = unsafe { std::alloc::realloc(start.as_ptr(), old, new.size()) };
        block(shrunk, new)
    }
}
