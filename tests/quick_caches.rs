//! quick_cache's caches that clients offer: the coldest entries go, and the
//! ledger sees them go.

#[path = "support/caches.rs"]
mod caches;
mod common;

use caches::{MIB, PAGE, client, live, memory};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter, Weighter};
use serial_test::serial;
use std::hash::RandomState;
use std::sync::Arc;
use tiered_allocator::SubscriptionTier::Basic;
use tiered_allocator::{Client, ReclaimerGuard, integrations};

type Page = Arc<Vec<u8>>;
type Pages<W> = Arc<Cache<u64, Page, W, RandomState>>;

#[derive(Clone)]
struct Bytes;

impl Weighter<u64, Page> for Bytes {
    fn weight(&self, _key: &u64, page: &Page) -> u64 {
        page.capacity() as u64
    }
}

fn insert<W: Weighter<u64, Page> + Clone>(
    client: &Client,
    pages: &Pages<W>,
    keys: std::ops::Range<u64>,
) {
    let _scope = client.enter();
    for key in keys {
        pages.insert(key, Arc::new(vec![1; PAGE as usize]));
    }
}

/// One shard: what goes does not depend on how keys are hashed.
fn filled<W>(
    client: &Client,
    weighter: W,
    capacity: u64,
    bytes: u64,
    weight_bytes: u64,
) -> (Pages<W>, ReclaimerGuard)
where
    W: Weighter<u64, Page> + Clone + Send + Sync + 'static,
{
    let options = OptionsBuilder::new()
        .shards(1)
        .estimated_items_capacity(2000)
        .weight_capacity(capacity)
        .build()
        .unwrap();
    let build = || {
        let hasher = RandomState::new();
        let lifecycle = DefaultLifecycle::default();
        Arc::new(Cache::with_options(options, weighter, hasher, lifecycle))
    };
    let pages = client.run(build).unwrap();
    insert(client, &pages, 0..bytes / PAGE);
    let guard = integrations::quick_cache::offer(client, &pages, weight_bytes).unwrap();
    (pages, guard)
}

fn weighed(client: &Client, bytes: u64) -> (Pages<Bytes>, ReclaimerGuard) {
    filled(client, Bytes, 90 * MIB, bytes, 1)
}

#[test]
#[serial]
fn the_coldest_entries_go_and_the_hottest_stay() {
    let memory = memory(|builder| builder);
    let a = client(&memory, "a", Basic, 80);
    let (pages, guard) = weighed(&a, 76 * MIB);
    for key in 0..8 {
        assert!(pages.get(&key).is_some());
    }
    let (before, weight) = (live(&a), pages.weight());
    memory.tick();
    let charged = memory.usage().charged_bytes;
    assert!((63 * MIB..=64 * MIB).contains(&charged), "{charged}");
    // Those just used are there, and as many others went as had to.
    assert!((0..8).all(|key| pages.contains_key(&key)));
    assert!((8..150).all(|key| !pages.contains_key(&key)));
    // Freed when the call returned.
    let freed = before - live(&a);
    let went = weight - pages.weight();
    assert!(
        freed >= went && freed < went + went / 100,
        "{freed}, {went}"
    );
    // It works as before, and up to the same capacity.
    assert_eq!(pages.capacity(), 90 * MIB);
    let len = pages.len();
    insert(&a, &pages, 5000..5100);
    assert_eq!(pages.len(), len + 100);
    drop((pages, guard));
    assert_eq!(live(&a), 0);
}

#[test]
#[serial]
fn a_cache_that_counts_entries_gives_as_many_as_the_bytes_are_worth() {
    let memory = memory(|builder| builder);
    let a = client(&memory, "a", Basic, 80);
    let (pages, _guard) = filled(&a, UnitWeighter, 2000, 76 * MIB, PAGE);
    memory.tick();
    let charged = memory.usage().charged_bytes;
    assert!((63 * MIB..=64 * MIB).contains(&charged), "{charged}");
    assert_eq!(pages.capacity(), 2000);
}

#[test]
#[serial]
fn the_cache_of_the_lower_tier_gives_first() {
    let memory = memory(|builder| builder);
    caches::of_the_lower_tier_give_first(&memory, weighed, |pages| pages.len());
}

#[test]
#[serial]
fn a_cache_that_was_dropped_is_freed_at_once_and_gives_nothing() {
    let memory = memory(|builder| builder);
    caches::that_were_dropped_are_freed_at_once_and_give_nothing(&memory, weighed);
}

/// With as many shards as the crate chooses: what goes is what is wanted, give
/// or take how evenly they are filled.
#[test]
#[serial]
fn a_cache_of_many_shards_gives_what_is_wanted() {
    let memory = memory(|builder| builder);
    let a = client(&memory, "a", Basic, 80);
    let build = || Arc::new(Cache::with_weighter(2000, 90 * MIB, Bytes));
    let pages = a.run(build).unwrap();
    for key in 0..1216 {
        let page = a.run(|| Arc::new(vec![1; PAGE as usize])).unwrap();
        a.run(|| pages.insert(key, page)).unwrap();
    }
    let _guard = integrations::quick_cache::offer(&a, &pages, 1).unwrap();
    let capacity = pages.capacity();
    memory.tick();
    let charged = memory.usage().charged_bytes;
    assert!((40 * MIB..=64 * MIB).contains(&charged), "{charged}");
    assert_eq!(pages.capacity(), capacity);
}
