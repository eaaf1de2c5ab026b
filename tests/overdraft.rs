//! When an overdraft ends: as soon as what the client holds fits its limits.

use serial_test::serial;
use tiered_allocator::{BudgetNode, Limit, Memory, TierPolicy, TieredAllocator};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

fn memory() -> Memory {
    assert!(TieredAllocator::is_installed());
    Memory::builder(1 << 30)
        .tier("small", TierPolicy::new(Limit::Bytes(1000)))
        .tier("large", TierPolicy::new(Limit::Bytes(10_000)))
        .build()
        .unwrap()
}

#[test]
#[serial]
fn what_is_freed_below_the_limit_ends_it_whatever_was_overdrawn() {
    let memory = memory();
    let client = memory.register("acme", "small").unwrap();
    let _scope = client.enter();
    let first = vec![1_u8; 450];
    let second = vec![2_u8; 450];
    let third = vec![3_u8; 500];
    let error = client.checkpoint().unwrap_err();
    assert_eq!((error.charged, error.limit), (1400, 1000));
    drop(first);
    assert_eq!(client.checkpoint(), Ok(()));
    assert_eq!(client.usage().live_bytes, 950);
    assert_eq!(client.usage().overdrawn_bytes, 0);
    drop((second, third));
    let usage = memory.usage();
    assert_eq!(usage.overdrawn_bytes, 0);
    assert_eq!(usage.charged_bytes, client.usage().charged_bytes);
}

#[test]
#[serial]
fn a_raised_limit_ends_it() {
    let memory = memory();
    let client = memory.register("acme", "small").unwrap();
    let _scope = client.enter();
    let _held = vec![1_u8; 2000];
    assert!(client.checkpoint().is_err());
    client.set_tier("large").unwrap();
    assert_eq!(client.checkpoint(), Ok(()));
    let usage = memory.usage();
    assert_eq!((usage.charged_bytes, usage.overdrawn_bytes), (2000, 0));
}

#[test]
#[serial]
fn a_full_memory_does_not_end_it_and_room_in_it_does() {
    let memory = Memory::builder(10_000)
        .usable(0.5)
        .tier("any", TierPolicy::new(Limit::Bytes(5000)))
        .build()
        .unwrap();
    let first = memory.register("first", "any").unwrap();
    let second = memory.register("second", "any").unwrap();
    let held = first.run(|| vec![1_u8; 4990]).unwrap();
    let over = second.run(|| vec![2_u8; 1000]).unwrap_err();
    // It keeps its own limit: the memory is what is full.
    assert_eq!(over.quota.node, BudgetNode::Memory);
    assert_eq!((over.quota.charged, over.quota.limit), (5990, 5000));
    drop(held);
    assert_eq!(second.checkpoint(), Ok(()));
    assert_eq!(memory.usage().overdrawn_bytes, 0);
}
