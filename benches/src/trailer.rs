//! The usual design, as small as it can be: a pointer to the owner's counters
//! behind each block, and shared atomics that every call updates.
//!
//! A client's counters have a parent, as they need one for a total; a charge is
//! added first and taken back if it does not fit.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

#[repr(align(128))]
pub struct Counters {
    used: AtomicU64,
    limit: u64,
    parent: Option<&'static Counters>,
}

static TOTAL: Counters = Counters::new(1 << 32, None);
/// Two clients, and what threads charge outside of both.
pub static CLIENTS: [Counters; 3] = [const { Counters::new(1 << 30, Some(&TOTAL)) }; 3];

thread_local! {
    static CURRENT: Cell<&'static Counters> = const { Cell::new(&CLIENTS[2]) };
}

/// Charges what the calling thread allocates to this client from now on.
pub fn enter(client: usize) {
    CURRENT.set(&CLIENTS[client]);
}

impl Counters {
    const fn new(limit: u64, parent: Option<&'static Counters>) -> Counters {
        Counters {
            used: AtomicU64::new(0),
            limit,
            parent,
        }
    }

    pub fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn subtract(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    #[inline]
    fn charge(&self, bytes: u64) -> bool {
        let fits = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.limit;
        if fits && self.parent.is_none_or(|parent| parent.charge(bytes)) {
            return true;
        }
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        false
    }

    #[inline]
    fn refund(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(parent) = self.parent {
            parent.refund(bytes);
        }
    }
}

pub struct Trailer<A>(pub A);

fn with_trailer(layout: Layout) -> (Layout, usize) {
    let pointer = Layout::new::<&Counters>();
    layout.extend(pointer).unwrap_or((layout, 0))
}

// SAFETY: every block comes from `A` with the layout of `with_trailer`, and
// goes back with it.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Trailer<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let owner = CURRENT.get();
        if !owner.charge(layout.size() as u64) {
            return ptr::null_mut();
        }
        let (outer, offset) = with_trailer(layout);
        // SAFETY: `outer` is not empty.
        let block = unsafe { self.0.alloc(outer) };
        if block.is_null() {
            owner.refund(layout.size() as u64);
        } else {
            // SAFETY: `outer` has room for an aligned pointer at `offset`.
            unsafe { block.add(offset).cast::<&Counters>().write(owner) };
        }
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let (outer, offset) = with_trailer(layout);
        // SAFETY: `alloc` wrote the pointer there.
        let owner = unsafe { block.add(offset).cast::<&Counters>().read() };
        owner.refund(layout.size() as u64);
        // SAFETY: the block came from `A` with this layout.
        unsafe { self.0.dealloc(block, outer) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let (outer, offset) = with_trailer(layout);
        // SAFETY: the caller vouches for the new size.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        let (new_outer, new_offset) = with_trailer(new);
        // SAFETY: `alloc` wrote the pointer there.
        let owner = unsafe { block.add(offset).cast::<&Counters>().read() };
        if !owner.charge(new_size as u64) {
            return ptr::null_mut();
        }
        // SAFETY: the block came from `A` with this layout.
        let moved = unsafe { self.0.realloc(block, outer, new_outer.size()) };
        if moved.is_null() {
            owner.refund(new_size as u64);
        } else {
            owner.refund(layout.size() as u64);
            // SAFETY: as in `alloc`.
            unsafe { moved.add(new_offset).cast::<&Counters>().write(owner) };
        }
        moved
    }
}
