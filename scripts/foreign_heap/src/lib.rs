//! The heap of a foreign test suite: `System`, or with the feature `tiered` a
//! `TieredAllocator` and every thread in the scope of one client with a finite
//! quota.
//!
//! A suite starts threads of its own, so a thread enters the scope at its first
//! allocation. Apart from that the calls go straight through.

#[cfg(not(feature = "tiered"))]
#[global_allocator]
static HEAP: std::alloc::System = std::alloc::System;

#[cfg(feature = "tiered")]
mod tiered {
    use std::alloc::{GlobalAlloc, Layout};
    use std::cell::Cell;
    use std::io::Write as _;
    use std::sync::OnceLock;
    use tiered_allocator::{Client, ClientOptions, Limit, Memory, SubscriptionTier};
    use tiered_allocator::{Enforcement, TieredAllocator};

    const TOTAL_BYTES: u64 = 64 << 30;
    const MAX_BYTES: u64 = 16 << 30;

    struct InClient(TieredAllocator);

    #[global_allocator]
    static HEAP: InClient = InClient(TieredAllocator::system());

    /// With its memory: a client ends with it.
    static SUITE: OnceLock<(Memory, Client)> = OnceLock::new();

    thread_local! {
        static ENTERED: Cell<bool> = const { Cell::new(false) };
    }

    #[inline]
    fn enter() {
        if !ENTERED.get() {
            enter_cold();
        }
    }

    #[cold]
    fn enter_cold() {
        // First, so that what the registration allocates does not come back here.
        ENTERED.set(true);
        // A scope of a thread that lasts as long as the thread.
        std::mem::forget(SUITE.get_or_init(suite).1.enter());
    }

    fn suite() -> (Memory, Client) {
        let memory = Memory::builder(TOTAL_BYTES)
            .background(false)
            .build()
            .unwrap();
        let options = ClientOptions::new(SubscriptionTier::Enterprise)
            .max(Limit::Bytes(MAX_BYTES))
            .enforcement(Enforcement::Strict);
        let client = memory.register("suite", options).unwrap();
        // SAFETY: `write_evidence` is a function of this program that never
        // unwinds into its caller: `extern "C"` aborts instead.
        assert_eq!(unsafe { libc::atexit(write_evidence) }, 0);
        (memory, client)
    }

    /// What a test binary allocated, for the script: proof that it ran on this
    /// heap and was charged.
    extern "C" fn write_evidence() {
        let (Ok(path), Some((_, client))) = (std::env::var("FOREIGN_EVIDENCE"), SUITE.get()) else {
            return;
        };
        assert!(TieredAllocator::is_installed() && client.is_active());
        let usage = client.usage();
        let mut file = std::fs::File::options().append(true).open(path).unwrap();
        let line = format!(
            "{} {} {}\n",
            usage.total_allocations, usage.peak_bytes, usage.refusals
        );
        file.write_all(line.as_bytes()).unwrap();
    }

    // SAFETY: every call goes to the one `TieredAllocator` as it came.
    unsafe impl GlobalAlloc for InClient {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            enter();
            // SAFETY: the caller's contract is the same.
            unsafe { self.0.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            enter();
            // SAFETY: the caller's contract is the same.
            unsafe { self.0.alloc_zeroed(layout) }
        }

        unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
            // SAFETY: the caller's contract is the same.
            unsafe { self.0.realloc(block, layout, new_size) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: the caller's contract is the same.
            unsafe { self.0.dealloc(block, layout) }
        }
    }
}
