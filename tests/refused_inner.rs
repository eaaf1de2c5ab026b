//! An inner allocator that has no memory at its n-th request, for every n: null
//! comes back, nothing is charged, nothing is lost.

mod support;

use serial_test::serial;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use support::Block;
use tiered_allocator::{
    Client, ClientOptions, Enforcement, Limit, Memory, SubscriptionTier, TieredAllocator,
};

/// Fails the requests that [`Failing::after`] says.
struct Failing {
    until: AtomicU64,
    only_that_one: AtomicBool,
    refused: AtomicU64,
}

impl Failing {
    /// Lets `granted` requests through, then refuses one, or all.
    fn after(&self, granted: u64, only_that_one: bool) {
        self.until.store(granted, Ordering::Relaxed);
        self.only_that_one.store(only_that_one, Ordering::Relaxed);
        self.refused.store(0, Ordering::Relaxed);
    }

    fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn refuses(&self) -> bool {
        match self.until.load(Ordering::Relaxed) {
            u64::MAX => false,
            0 => {
                if self.only_that_one.load(Ordering::Relaxed) {
                    self.until.store(u64::MAX, Ordering::Relaxed);
                }
                self.refused.fetch_add(1, Ordering::Relaxed);
                true
            }
            left => {
                self.until.store(left - 1, Ordering::Relaxed);
                false
            }
        }
    }
}

// SAFETY: null, or what `System` answers.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.refuses() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if self.refuses() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if self.refuses() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's contract.
        unsafe { System.realloc(block, layout, new_size) }
    }
}

static HEAP: TieredAllocator<Failing> = TieredAllocator::new(Failing {
    until: AtomicU64::new(u64::MAX),
    only_that_one: AtomicBool::new(true),
    refused: AtomicU64::new(0),
});

/// What the scenario holds by its own account.
#[derive(Default, Debug, PartialEq, Eq)]
struct Held {
    bytes: u64,
    blocks: u64,
    total_bytes: u64,
    total_blocks: u64,
}

impl Held {
    fn check(&self, client: &Client) {
        let usage = client.usage();
        let seen = Held {
            bytes: usage.live_bytes,
            blocks: usage.live_allocations,
            total_bytes: usage.total_bytes,
            total_blocks: usage.total_allocations,
        };
        assert_eq!(seen, *self);
        // The tenant was not refused; there was no memory.
        assert_eq!(usage.refusals, 0);
        assert_eq!(usage.overdrawn_bytes, 0);
    }

    fn take(&mut self, client: &Client, block: Option<Block>) -> Option<Block> {
        if let Some(block) = &block {
            self.bytes += block.size() as u64;
            self.blocks += 1;
            self.total_bytes += block.size() as u64;
            self.total_blocks += 1;
        }
        self.check(client);
        block
    }

    fn resize(&mut self, client: &Client, block: &mut Block, size: usize) {
        let old = block.size();
        if block.resize(size) {
            self.bytes = self.bytes - old as u64 + size as u64;
            self.total_bytes += size.saturating_sub(old) as u64;
        } else {
            assert_eq!(block.size(), old);
        }
        self.check(client);
    }

    fn give(&mut self, client: &Client, block: Block) {
        self.bytes -= block.size() as u64;
        self.blocks -= 1;
        drop(block);
        self.check(client);
    }
}

const SIZES: [usize; 8] = [1, 100, 4091, 4095, 4096, 5000, 70_000, 2 << 20];

/// Every method at every size, in the client's scope and outside it.
fn scenario(client: &Client) {
    let mut held = Held::default();
    for (at, size) in SIZES.into_iter().enumerate() {
        let layout = Layout::from_size_align(size, 1 << (at % 13)).unwrap();
        let scope = client.enter();
        let plain = Block::new(&HEAP, layout, 1);
        let plain = held.take(client, plain);
        let zeroed = Block::zeroed(&HEAP, layout, 2);
        let zeroed = held.take(client, zeroed);
        if at % 2 == 0 {
            drop(scope);
        }
        for mut block in plain.into_iter().chain(zeroed) {
            for new_size in SIZES {
                held.resize(client, &mut block, new_size);
            }
            held.give(client, block);
        }
    }
    assert_eq!((held.bytes, held.blocks), (0, 0));
}

fn memory() -> Memory {
    Memory::builder(1 << 30).background(false).build().unwrap()
}

fn survives_every_failure(only_that_one: bool, make: impl Fn(&Memory) -> Client) {
    for granted in 0.. {
        let memory = memory();
        let client = make(&memory);
        let nobody = memory.snapshot().unattributed_bytes;
        HEAP.inner().after(granted, only_that_one);
        scenario(&client);
        let untouched = HEAP.inner().refused() == 0;
        HEAP.inner().after(u64::MAX, true);
        assert_eq!(memory.snapshot().unattributed_bytes, nobody);
        // All that is charged now is the thread's credit.
        let usage = client.usage();
        assert!(usage.charged_bytes <= 2 << 20, "{usage:?}");
        memory.remove_client("client").unwrap();
        assert_eq!(memory.usage().charged_bytes, 0);
        if untouched {
            assert!(granted > 100, "the scenario asks for more than {granted}");
            return;
        }
    }
}

fn generous(memory: &Memory) -> Client {
    memory
        .register("client", SubscriptionTier::Enterprise)
        .unwrap()
}

/// Without room to draw ahead, every request goes through the cold path.
fn tight(memory: &Memory) -> Client {
    let options = ClientOptions::new(SubscriptionTier::Enterprise)
        .max(Limit::Bytes(4 << 20))
        .enforcement(Enforcement::Strict);
    memory.register("client", options).unwrap()
}

#[test]
#[serial]
fn one_refusal_by_the_inner_allocator_changes_nothing() {
    survives_every_failure(true, generous);
    survives_every_failure(true, tight);
}

#[test]
#[serial]
fn an_inner_allocator_that_has_run_dry_changes_nothing() {
    survives_every_failure(false, generous);
    survives_every_failure(false, tight);
}

#[test]
#[serial]
fn a_refused_request_outside_any_scope_is_charged_to_nobody() {
    let memory = memory();
    let before = memory.snapshot();
    let mut block = Block::bytes(&HEAP, 3000).unwrap();
    for granted in [0, 1] {
        HEAP.inner().after(granted, false);
        for size in SIZES {
            let _ = block.resize(size);
            drop(Block::bytes(&HEAP, size));
        }
        HEAP.inner().after(u64::MAX, true);
        let now = memory.snapshot();
        assert_eq!(
            now.unattributed_bytes,
            before.unattributed_bytes + block.size() as u64
        );
        assert_eq!(
            now.unattributed_allocations,
            before.unattributed_allocations + 1
        );
    }
}

#[test]
#[serial]
fn growth_of_another_threads_block_is_undone_where_it_was_charged() {
    let memory = memory();
    let client = tight(&memory);
    let mut block = client.run(|| Block::bytes(&HEAP, 2000).unwrap()).unwrap();
    let seen = std::thread::scope(|scope| {
        let client = &client;
        let attempt = scope.spawn(move || {
            HEAP.inner().after(0, false);
            for size in [2001, 4095, 4096, 1 << 20] {
                assert!(!block.resize(size));
                assert_eq!(client.usage().live_bytes, 2000);
            }
            HEAP.inner().after(u64::MAX, true);
            assert!(block.resize(1 << 20));
            block
        });
        attempt.join().unwrap()
    });
    assert_eq!(client.usage().live_bytes, 1 << 20);
    drop(seen);
    assert_eq!(client.usage().live_bytes, 0);
}
