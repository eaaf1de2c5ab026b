//! quick_cache's caches that clients offer: the coldest entries go, and the
//! ledger sees them go.

mod common;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter, Weighter};
use serial_test::serial;
use std::hash::RandomState;
use std::sync::Arc;
use tiered_allocator::{
    Client, ClientOptions, Limit, Memory, ReclaimerGuard, SubscriptionTier, TieredAllocator,
    integrations,
};

use SubscriptionTier::{Basic, Premium};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 64 * 1024;

type Page = Arc<Vec<u8>>;
type Pages<W> = Arc<Cache<u64, Page, W, RandomState>>;

#[derive(Clone)]
struct Bytes;

impl Weighter<u64, Page> for Bytes {
    fn weight(&self, _key: &u64, page: &Page) -> u64 {
        page.capacity() as u64
    }
}

/// 80 MiB usable, pressure above 72 MiB, wanting it down to 64.
fn memory() -> Memory {
    assert!(TieredAllocator::is_installed());
    Memory::builder(100 * MIB)
        .background(false)
        .build()
        .unwrap()
}

fn client(memory: &Memory, name: &str, tier: SubscriptionTier) -> Client {
    let options = ClientOptions::new(tier).max(Limit::Bytes(80 * MIB));
    memory.register(name, options).unwrap()
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

fn live(client: &Client) -> u64 {
    client.usage().live_bytes
}

#[test]
#[serial]
fn the_coldest_entries_go_and_the_hottest_stay() {
    let memory = memory();
    let a = client(&memory, "a", Basic);
    let (pages, guard) = filled(&a, Bytes, 90 * MIB, 76 * MIB, 1);
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
    let memory = memory();
    let a = client(&memory, "a", Basic);
    let (pages, _guard) = filled(&a, UnitWeighter, 2000, 76 * MIB, PAGE);
    memory.tick();
    let charged = memory.usage().charged_bytes;
    assert!((63 * MIB..=64 * MIB).contains(&charged), "{charged}");
    assert_eq!(pages.capacity(), 2000);
}

#[test]
#[serial]
fn the_cache_of_the_lower_tier_gives_first() {
    let memory = memory();
    let basic = client(&memory, "basic", Basic);
    let premium = client(&memory, "premium", Premium);
    let (rich, _rich_guard) = filled(&premium, Bytes, 90 * MIB, 60 * MIB, 1);
    let (poor, _poor_guard) = filled(&basic, Bytes, 90 * MIB, 16 * MIB, 1);
    memory.tick();
    assert_eq!(rich.len(), 960);
    assert!(poor.len() < 100);
    // Again, with more than that has left.
    let _work = premium.run(|| vec![0u8; 12 * MIB as usize]);
    memory.tick();
    assert_eq!(poor.len(), 0);
    assert!(rich.len() < 960);
}

#[test]
#[serial]
fn a_cache_that_was_dropped_is_freed_at_once_and_gives_nothing() {
    let memory = memory();
    let a = client(&memory, "a", Basic);
    let (pages, guard) = filled(&a, Bytes, 90 * MIB, 4 * MIB, 1);
    let _work = a.run(|| vec![0u8; 73 * MIB as usize]);
    assert_eq!(Arc::strong_count(&pages), 1);
    let held = live(&a);
    drop(pages);
    assert!(held - live(&a) >= 4 * MIB);
    memory.tick();
    assert!(guard.is_registered());
    assert_eq!(memory.snapshot().reclaim.panicked_reclaimers, 0);
}

/// With as many shards as the crate chooses: what goes is what is wanted, give
/// or take how evenly they are filled.
#[test]
#[serial]
fn a_cache_of_many_shards_gives_what_is_wanted() {
    let memory = memory();
    let a = client(&memory, "a", Basic);
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
