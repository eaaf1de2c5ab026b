//! Blocks across `fork`: a child must not touch what its parent has spilled.
#![cfg(all(target_os = "linux", not(tiered_allocator_portable)))]

#[path = "support/forked.rs"]
mod forked;

use forked::in_a_child;
use std::sync::Arc;
use std::time::Duration;
use tiered_allocator::clock::ManualClock;
use tiered_allocator::{Memory, SubscriptionTier, TieredAllocator};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

#[test]
fn what_the_parent_spilled_survives_a_child_that_drops_and_spills() {
    assert!(TieredAllocator::is_installed());
    let clock = Arc::new(ManualClock::default());
    let memory = Memory::builder(1 << 30)
        .background(false)
        .clock(Arc::clone(&clock))
        .build()
        .unwrap();
    memory.add_client("c", SubscriptionTier::Premium).unwrap();
    let mut blocks: Vec<_> = (1..=3u8)
        .map(|value| {
            let mut block = memory.allocate_for_client("c", 1 << 16).unwrap();
            block.pin_mut().unwrap().fill(value);
            block
        })
        .collect();
    clock.advance(Duration::from_secs(3600));
    assert_eq!(memory.reclaim_unused_memory().spilled_blocks, 3);
    let mut third = blocks.pop();
    in_a_child(|| {
        // One is dropped, one pinned: its bytes are the parent's business now,
        // so either they are right or the pin says that they are not at hand.
        drop(third.take());
        if let Ok(pin) = blocks[0].pin() {
            assert!(pin.iter().all(|&byte| byte == 1));
        }
        // The child can spill on its own account.
        let mut own = memory.allocate_for_client("c", 1 << 16).unwrap();
        own.pin_mut().unwrap().fill(9);
        clock.advance(Duration::from_secs(3600));
        assert!(memory.reclaim_unused_memory().spilled_blocks >= 1);
        assert!(own.pin().unwrap().iter().all(|&byte| byte == 9));
    });
    blocks.extend(third);
    for (block, value) in blocks.iter().zip(1u8..) {
        assert!(block.pin().unwrap().iter().all(|&byte| byte == value));
    }
}
