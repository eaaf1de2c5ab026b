//! [`Audit`]: a second pair of eyes, outside the allocator that it watches.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

const SHARDS: usize = 16;

#[repr(align(128))]
struct Shard(AtomicI64);

/// Passes everything on to `A`, and counts the bytes that the process has
/// allocated and not freed. It knows nothing of clients, so what it says can
/// be held against what they are charged.
pub struct Audit<A> {
    inner: A,
    shards: [Shard; SHARDS],
}

impl<A> Audit<A> {
    pub const fn new(inner: A) -> Audit<A> {
        Audit {
            inner,
            shards: [const { Shard(AtomicI64::new(0)) }; SHARDS],
        }
    }

    /// Live bytes of the whole process; exact while no other thread allocates.
    pub fn live_bytes(&self) -> u64 {
        let sum: i64 = self
            .shards
            .iter()
            .map(|s| s.0.load(Ordering::Relaxed))
            .sum();
        u64::try_from(sum).expect("nobody frees what was never allocated")
    }

    /// A block allocated here may be freed there, so one shard alone may well
    /// be negative; only the sum means something.
    fn count(&self, bytes: i64) {
        self.shards[shard()].0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The calling thread's shard. Constant-initialised and without a destructor,
/// as everything thread-local inside an allocator has to be.
fn shard() -> usize {
    const UNASSIGNED: usize = usize::MAX;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static SHARD: Cell<usize> = const { Cell::new(UNASSIGNED) });
    SHARD.with(|shard| {
        if shard.get() == UNASSIGNED {
            shard.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        }
        shard.get()
    })
}

// SAFETY: every call goes to `A` as it came, and its answer back; counting
// neither allocates nor unwinds. A `Layout` is at most `isize::MAX` bytes, so
// sizes fit `i64`.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Audit<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        let block = unsafe { self.inner.alloc(layout) };
        if !block.is_null() {
            self.count(layout.size() as i64);
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        let block = unsafe { self.inner.alloc_zeroed(layout) };
        if !block.is_null() {
            self.count(layout.size() as i64);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.count(-(layout.size() as i64));
        // SAFETY: the caller's contract is the same.
        unsafe { self.inner.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        let moved = unsafe { self.inner.realloc(block, layout, new_size) };
        if !moved.is_null() {
            self.count(new_size as i64 - layout.size() as i64);
        }
        moved
    }
}
