//! What is charged to the clients and what is charged to nobody adds up to
//! what the process has, and reading the books changes nothing in them.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serial_test::serial;
use tiered_allocator::{Limit, Memory, SubscriptionTier, TierPolicy, TieredAllocator};

/// Counts from outside what the process has allocated and not freed.
struct Counting(TieredAllocator, AtomicU64);

// SAFETY: every call goes to the `TieredAllocator` as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.1.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.1.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { self.0.dealloc(block, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting(TieredAllocator::system(), AtomicU64::new(0));

fn books_agree(memory: &Memory) -> bool {
    let snapshot = memory.snapshot();
    let process_bytes = HEAP.1.load(Ordering::Relaxed);
    let clients = snapshot.clients.iter().chain(&snapshot.retired);
    let heap = clients.map(|client| client.usage.live_bytes - client.usage.block_bytes);
    heap.sum::<u64>() + snapshot.unattributed_bytes == process_bytes
}

/// The test harness has threads of its own, which may come between the two
/// readings: it is tried more than once.
fn books_agree_at_rest(memory: &Memory) -> bool {
    (0..1000).any(|_| {
        let agree = books_agree(memory);
        if !agree {
            std::thread::sleep(Duration::from_millis(1));
        }
        agree
    })
}

#[test]
#[serial]
fn a_snapshot_at_rest_adds_up_to_what_the_process_has_itself_included() {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    let mut held = Vec::new();
    for number in 0..20 {
        let name = format!("client {number}");
        let client = memory.register(&name, SubscriptionTier::Premium).unwrap();
        held.push(client.run(|| vec![number; 1000]).unwrap());
        let _block = memory.allocate_for_client(&name, 10_000).unwrap();
        if number % 3 == 0 {
            memory.remove_client(&name).unwrap();
        }

        assert!(books_agree_at_rest(&memory), "client {number}");
    }
}

#[test]
#[serial]
fn the_error_of_a_client_over_its_quota_is_not_charged_to_it() {
    let memory = Memory::builder(1 << 30)
        .tier("tiny", TierPolicy::new(Limit::Bytes(1000)))
        .build()
        .unwrap();
    let client = memory.register("greedy", "tiny").unwrap();
    let _scope = client.enter();
    let greed = vec![1_u8; 2000];
    let error = client.checkpoint().unwrap_err();
    assert_eq!(client.usage().live_bytes, 2000);
    drop(greed);
    assert_eq!(client.usage().live_bytes, 0);
    assert_eq!((&*error.client, &*error.tier), ("greedy", "tiny"));
}
