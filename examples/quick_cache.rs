//! Two tenants' caches of the crate `quick_cache`: when memory gets short, the
//! one of the lower tier gives, and the other keeps all it has.
//!
//! ```sh
//! cargo run --release --features quick_cache --example quick_cache
//! ```

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::sync::Arc;
use tiered_allocator::{
    Client, ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator, integrations,
};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const MIB: u64 = 1 << 20;
const PAGE_BYTES: usize = 64 << 10;

/// The cache's weight is counted in bytes.
#[derive(Clone)]
struct Bytes;

impl Weighter<u64, Arc<Vec<u8>>> for Bytes {
    fn weight(&self, _: &u64, page: &Arc<Vec<u8>>) -> u64 {
        page.capacity() as u64
    }
}

type Pages = Arc<Cache<u64, Arc<Vec<u8>>, Bytes>>;

/// A cache with so many pages, made in the scope of its client.
fn filled(client: &Client, pages: u64) -> Pages {
    let _scope = client.enter();
    let cache = Arc::new(Cache::with_weighter(10_000, 200 * MIB, Bytes));
    for number in 0..pages {
        cache.insert(number, Arc::new(vec![0; PAGE_BYTES]));
    }
    cache
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    assert!(TieredAllocator::is_installed());
    // 80 MiB may be used. Above 72 it is short and reclaiming begins, at 64 it
    // ends. `tick` does here what the memory's own thread does otherwise.
    let memory = Memory::builder(100 * MIB).background(false).build()?;
    let options = |tier| ClientOptions::new(tier).max(Limit::Bytes(80 * MIB));
    let shop = memory.register("shop", options(SubscriptionTier::Basic))?;
    let press = memory.register("press", options(SubscriptionTier::Premium))?;
    let (low, high) = (filled(&shop, 480), filled(&press, 480));
    // One unit of weight is one byte. The guards belong beside the caches.
    let guards = [
        integrations::quick_cache::offer(&shop, &low, 1)?,
        integrations::quick_cache::offer(&press, &high, 1)?,
    ];
    let figures = |when: &str| {
        let charged = memory.usage().charged_bytes / MIB;
        let (low, high) = (low.len(), high.len());
        println!("{when:<18} shop (Basic) {low} pages, press (Premium) {high}, {charged} MiB");
    };
    figures("two caches");
    let (before, capacity) = ((low.len(), high.len()), low.capacity());

    let work = press.run(|| vec![0_u8; 16 * MIB as usize])?;
    figures("press needs 16 MiB");
    memory.tick();
    figures("after reclaiming");

    let gave = low.len() < before.0 && high.len() == before.1;
    let below = memory.usage().charged_bytes <= 64 * MIB;
    let as_large = low.capacity() == capacity;
    println!("the shop's cache may fill again: {as_large}");
    drop((guards, work, low, high));
    let left = shop.usage().live_bytes + press.usage().live_bytes;
    if gave && below && as_large && left == 0 {
        return Ok(());
    }
    Err("the caches did not give what they were asked for".into())
}
