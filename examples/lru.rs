//! A cache of the crate `lru` that gives back its oldest entries when memory
//! gets short, so that nobody has to be refused.
//!
//! ```sh
//! cargo run --release --features lru --example lru
//! ```
//!
//! `--example lru_cache` does the same for a cache of one's own.

use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use tiered_allocator::{
    ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator, integrations,
};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const MIB: u64 = 1 << 20;
const PAGES: u64 = 48;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    assert!(TieredAllocator::is_installed());
    // 80 MiB may be used. Above 72 it is short and reclaiming begins, at 64 it
    // ends. `tick` does here what the memory's own thread does otherwise.
    let memory = Memory::builder(100 * MIB).background(false).build()?;
    let own = ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(60 * MIB));
    let shop = memory.register("shop", own)?;
    let bank = memory.register("bank", SubscriptionTier::Enterprise)?;

    // The cache and its entries are allocated in the scope of their client.
    let capacity = NonZeroUsize::new(1000).ok_or("a cache of nothing")?;
    let cache = shop.run(|| Arc::new(Mutex::new(LruCache::new(capacity))))?;
    let bytes_of = |_: &u64, page: &Vec<u8>| page.capacity() as u64;
    let guard = integrations::lru::offer(&shop, &cache, bytes_of)?;
    let locked = || cache.lock().unwrap_or_else(PoisonError::into_inner);
    for number in 0..PAGES {
        shop.run(|| locked().put(number, vec![0_u8; MIB as usize]))?;
    }
    // Used again, so the first page is not the oldest any more.
    locked().get(&0);
    let figures = |when: &str| {
        let (charged, pages) = (memory.usage().charged_bytes, locked().len());
        println!("{when:<24} {pages} pages, {} MiB of 80", charged / MIB);
    };
    figures("the shop's cache is full");

    let work = bank.run(|| vec![0_u8; 30 * MIB as usize])?;
    figures("the bank needs 30 MiB");
    memory.tick();
    figures("after reclaiming");

    let kept = |number: u64| locked().contains(&number);
    let oldest_went = !kept(1) && kept(0) && kept(PAGES - 1);
    println!("page 1, the oldest: kept {}", kept(1));
    println!("page 0, used since: kept {}", kept(0));
    let usage = shop.usage();
    println!("the shop holds {} MiB now", usage.live_bytes / MIB);
    let below = memory.usage().charged_bytes <= 64 * MIB;
    let refused = usage.refusals + bank.usage().refusals;

    drop((guard, work, cache));
    if oldest_went && below && refused == 0 && shop.usage().live_bytes == 0 {
        return Ok(());
    }
    Err("the cache did not give back what it was asked for".into())
}
