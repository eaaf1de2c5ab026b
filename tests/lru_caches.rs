//! `LruCache`s that clients offer: the coldest entries go, and the ledger sees
//! them go.

#[path = "support/caches.rs"]
mod caches;
mod common;

use caches::{MIB, PAGE, client, live};
use lru::LruCache;
use serial_test::serial;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tiered_allocator::SubscriptionTier::Basic;
use tiered_allocator::{Client, Ladder, Memory, ReclaimerGuard, integrations};

type Pages = Arc<Mutex<LruCache<u64, Arc<Vec<u8>>>>>;

fn memory() -> Memory {
    caches::memory(|builder| builder.ladder(Ladder::default().call(Duration::from_millis(2))))
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

#[test]
#[serial]
fn the_coldest_entries_go_and_the_hottest_stay() {
    let memory = memory();
    let a = client(&memory, "a", Basic, 80);
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
    caches::of_the_lower_tier_give_first(&memory(), filled, |pages| pages.lock().unwrap().len());
}

#[test]
#[serial]
fn a_cache_that_was_dropped_is_freed_at_once_and_gives_nothing() {
    caches::that_were_dropped_are_freed_at_once_and_give_nothing(&memory(), filled);
}

#[test]
#[serial]
fn a_cache_that_its_own_thread_keeps_locked_does_not_hang_the_tick() {
    let memory = memory();
    let a = client(&memory, "a", Basic, 80);
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
    let a = client(&memory, "a", Basic, 80);
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
    let a = client(&memory, "a", Basic, 80);
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
