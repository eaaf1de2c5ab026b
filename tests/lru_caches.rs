//! `LruCache`s that clients offer: the coldest entries go, and the ledger sees
//! them go.

mod common;

use lru::LruCache;
use serial_test::serial;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tiered_allocator::{
    Client, ClientOptions, Ladder, Limit, Memory, ReclaimerGuard, SubscriptionTier,
    TieredAllocator, integrations,
};

use SubscriptionTier::{Basic, Premium};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 64 * 1024;

type Pages = Arc<Mutex<LruCache<u64, Arc<Vec<u8>>>>>;

/// 80 MiB usable, pressure above 72 MiB, wanting it down to 64.
fn memory() -> Memory {
    assert!(TieredAllocator::is_installed());
    Memory::builder(100 * MIB)
        .background(false)
        .ladder(Ladder::default().call(Duration::from_millis(2)))
        .build()
        .unwrap()
}

fn client(memory: &Memory, name: &str, tier: SubscriptionTier) -> Client {
    let options = ClientOptions::new(tier).max(Limit::Bytes(80 * MIB));
    memory.register(name, options).unwrap()
}

fn put(client: &Client, pages: &Pages, keys: std::ops::Range<u64>) {
    let _scope = client.enter();
    for key in keys {
        let page = Arc::new(vec![1; PAGE as usize]);
        pages.lock().unwrap().put(key, page);
    }
}

fn filled(client: &Client, bytes: u64) -> (Pages, ReclaimerGuard) {
    let capacity = NonZeroUsize::new(2000).unwrap();
    let pages = client
        .run(|| Arc::new(Mutex::new(LruCache::new(capacity))))
        .unwrap();
    put(client, &pages, 0..bytes / PAGE);
    let weigh = |_: &u64, page: &Arc<Vec<u8>>| page.capacity() as u64;
    let guard = integrations::lru::offer(client, &pages, weigh).unwrap();
    (pages, guard)
}

fn keys(pages: &Pages) -> Vec<u64> {
    let pages = pages.lock().unwrap();
    let mut keys: Vec<u64> = pages.iter().map(|(key, _)| *key).collect();
    keys.sort_unstable();
    keys
}

fn live(client: &Client) -> u64 {
    client.usage().live_bytes
}

#[test]
#[serial]
fn the_coldest_entries_go_and_the_hottest_stay() {
    let memory = memory();
    let a = client(&memory, "a", Basic);
    let (pages, guard) = filled(&a, 76 * MIB);
    for key in 0..8 {
        assert!(pages.lock().unwrap().get(&key).is_some());
    }
    let before = live(&a);
    memory.tick();
    let charged = memory.usage().charged_bytes;
    assert!((63 * MIB..=64 * MIB).contains(&charged), "{charged}");
    let left = keys(&pages);
    // Those just used, then none of the oldest.
    assert_eq!(left[..8], [0, 1, 2, 3, 4, 5, 6, 7]);
    let went = 1216 - left.len() as u64;
    assert_eq!(left[8], 8 + went);
    // Freed when the call returned, with the cache's own nodes.
    let freed = before - live(&a);
    assert!(
        freed >= went * PAGE && freed < went * (PAGE + 256),
        "{freed}"
    );
    // It works as before, and up to the same capacity.
    put(&a, &pages, 5000..5100);
    assert_eq!(pages.lock().unwrap().len(), left.len() + 100);
    assert_eq!(pages.lock().unwrap().cap().get(), 2000);
    drop((pages, guard));
    assert_eq!(live(&a), 0);
}

#[test]
#[serial]
fn the_cache_of_the_lower_tier_gives_first() {
    let memory = memory();
    let basic = client(&memory, "basic", Basic);
    let premium = client(&memory, "premium", Premium);
    let (rich, _rich_guard) = filled(&premium, 60 * MIB);
    let (poor, _poor_guard) = filled(&basic, 16 * MIB);
    memory.tick();
    assert_eq!(keys(&rich).len(), 960);
    assert!(keys(&poor).len() < 100);
    // Again, with more than that has left.
    let _work = premium.run(|| vec![0u8; 12 * MIB as usize]);
    memory.tick();
    assert_eq!(keys(&poor).len(), 0);
    assert!(keys(&rich).len() < 960);
}

#[test]
#[serial]
fn a_cache_that_was_dropped_is_freed_at_once_and_gives_nothing() {
    let memory = memory();
    let a = client(&memory, "a", Basic);
    let (pages, guard) = filled(&a, 4 * MIB);
    let _work = a.run(|| vec![0u8; 73 * MIB as usize]);
    assert_eq!(Arc::strong_count(&pages), 1);
    let held = live(&a);
    drop(pages);
    assert!(held - live(&a) >= 4 * MIB);
    memory.tick();
    assert!(guard.is_registered());
    assert_eq!(memory.snapshot().reclaim.panicked_reclaimers, 0);
    drop(guard);
}

#[test]
#[serial]
fn a_cache_that_its_own_thread_keeps_locked_does_not_hang_the_tick() {
    let memory = memory();
    let a = client(&memory, "a", Basic);
    let (pages, guard) = filled(&a, 76 * MIB);
    let locked = pages.lock().unwrap();
    memory.tick();
    assert_eq!(locked.len(), 1216);
    drop(locked);
    // Left out of one round for having given nothing.
    memory.tick();
    memory.tick();
    assert!(keys(&pages).len() < 1100);
    assert!(guard.is_registered());
}

#[test]
#[serial]
fn a_poisoned_cache_is_left_alone() {
    let memory = memory();
    let a = client(&memory, "a", Basic);
    let (pages, guard) = filled(&a, 76 * MIB);
    let own = Arc::clone(&pages);
    let poisoner = std::thread::spawn(move || {
        let _lock = own.lock().unwrap();
        panic!("with the lock held");
    });
    assert!(poisoner.join().is_err());
    memory.tick();
    assert!(guard.is_registered());
    let pages = pages.lock().unwrap_err().into_inner();
    assert_eq!(pages.len(), 1216);
}

#[test]
#[serial]
fn what_somebody_else_holds_is_evicted_but_not_freed() {
    let memory = memory();
    let a = client(&memory, "a", Basic);
    let (pages, _guard) = filled(&a, 76 * MIB);
    let held: Vec<_> = (0..400)
        .filter_map(|key| pages.lock().unwrap().peek(&key).cloned())
        .collect();
    memory.tick();
    assert!(keys(&pages).len() < 1100);
    assert!(live(&a) >= 76 * MIB - MIB);
    drop(held);
    assert!(live(&a) < 65 * MIB);
}
