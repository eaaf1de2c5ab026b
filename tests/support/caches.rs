//! A memory in which caches are asked to give, and what every kind of cache
//! must do then.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::Arc;
use tiered_allocator::{
    Client, ClientOptions, Limit, Memory, MemoryBuilder, ReclaimerGuard, SubscriptionTier,
    TieredAllocator,
};

use SubscriptionTier::{Basic, Premium};

pub const MIB: u64 = 1 << 20;
/// Of an entry.
pub const PAGE: u64 = 64 * 1024;

/// 80 MiB usable, pressure above 72 MiB, wanting it down to 64.
pub fn memory(configure: impl FnOnce(MemoryBuilder) -> MemoryBuilder) -> Memory {
    assert!(TieredAllocator::is_installed());
    configure(Memory::builder(100 * MIB).background(false))
        .build()
        .unwrap()
}

pub fn client(memory: &Memory, name: &str, tier: SubscriptionTier, max_mib: u64) -> Client {
    let options = ClientOptions::new(tier).max(Limit::Bytes(max_mib * MIB));
    memory.register(name, options).unwrap()
}

pub fn live(client: &Client) -> u64 {
    client.usage().live_bytes
}

/// A cache that its client offers, with so many bytes of pages.
type Filled<C> = fn(&Client, u64) -> (Arc<C>, ReclaimerGuard);

pub fn of_the_lower_tier_give_first<C>(
    memory: &Memory,
    filled: Filled<C>,
    len: impl Fn(&C) -> usize,
) {
    let basic = client(memory, "basic", Basic, 80);
    let premium = client(memory, "premium", Premium, 80);
    let (rich, _rich_guard) = filled(&premium, 60 * MIB);
    let (poor, _poor_guard) = filled(&basic, 16 * MIB);
    memory.tick();
    assert_eq!(len(&rich), 960);
    assert!(len(&poor) < 100);
    // Again, with more than that has left.
    let _work = premium.run(|| vec![0u8; 12 * MIB as usize]);
    memory.tick();
    assert_eq!(len(&poor), 0);
    assert!(len(&rich) < 960);
}

pub fn that_were_dropped_are_freed_at_once_and_give_nothing<C>(memory: &Memory, filled: Filled<C>) {
    let a = client(memory, "a", Basic, 80);
    let (pages, guard) = filled(&a, 4 * MIB);
    let _work = a.run(|| vec![0u8; 73 * MIB as usize]);
    assert_eq!(Arc::strong_count(&pages), 1);
    let held = live(&a);
    drop(pages);
    assert!(held - live(&a) >= 4 * MIB);
    memory.tick();
    assert!(guard.is_registered());
    assert_eq!(memory.snapshot().reclaim.panicked_reclaimers, 0);
}
