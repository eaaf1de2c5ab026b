//! A cache of one's own, offered to the memory: when memory gets short, its
//! oldest entries go, and what it is asked for is printed.
//!
//! `cargo run --release --example lru_cache`

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use tiered_allocator::{
    Client, ClientOptions, Limit, Memory, ReclaimRequest, SubscriptionTier, TieredAllocator,
};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const MIB: u64 = 1 << 20;
const PAGE_BYTES: usize = 256 << 10;

/// Pages by number, and the order in which they were used.
#[derive(Default)]
struct Lru {
    pages: HashMap<u64, (u64, Vec<u8>)>,
    by_use: BTreeMap<u64, u64>,
    uses: u64,
}

impl Lru {
    /// Whether the page is there. It is the most recently used one then.
    fn touch(&mut self, number: u64) -> bool {
        let Some((used, _)) = self.pages.get_mut(&number) else {
            return false;
        };
        self.uses += 1;
        self.by_use.remove(used);
        self.by_use.insert(self.uses, number);
        *used = self.uses;
        true
    }

    fn put(&mut self, number: u64, page: Vec<u8>) {
        self.uses += 1;
        self.by_use.insert(self.uses, number);
        if let Some((used, _)) = self.pages.insert(number, (self.uses, page)) {
            self.by_use.remove(&used);
        }
    }

    fn pop_oldest(&mut self) -> Option<Vec<u8>> {
        let (_, number) = self.by_use.pop_first()?;
        self.pages.remove(&number).map(|(_, page)| page)
    }
}

/// Frees the oldest pages until as much is free as is wanted. Nothing is
/// allocated for it.
fn shrink(cache: &Mutex<Lru>, request: ReclaimRequest) -> u64 {
    let mut freed_bytes = 0;
    while freed_bytes < request.wanted_bytes {
        // A lock a page: whoever uses the cache need not wait for all of them.
        let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(page) = cache.pop_oldest() else {
            break;
        };
        freed_bytes += page.capacity() as u64;
    }
    freed_bytes
}

struct Tenant {
    client: Client,
    cache: Arc<Mutex<Lru>>,
}

impl Tenant {
    fn new(memory: &Memory, name: &'static str, tier: SubscriptionTier) -> Tenant {
        let options = ClientOptions::new(tier).max(Limit::Bytes(80 * MIB));
        let client = memory.register(name, options).expect("the name is free");
        let cache: Arc<Mutex<Lru>> = Arc::default();
        // By a `Weak`: the cache goes when the tenant does.
        let offered = Arc::downgrade(&cache);
        let shrink = move |request: ReclaimRequest| {
            let freed = offered.upgrade().map_or(0, |cache| shrink(&cache, request));
            let (wanted, urgency) = (request.wanted_bytes / MIB, request.urgency);
            println!(
                "  {name} is asked for {wanted} MiB ({urgency:?}): {} MiB",
                freed / MIB
            );
            freed
        };
        let guard = client.register_reclaimer(shrink);
        guard.expect("the client is there").keep();
        Tenant { client, cache }
    }

    /// Reads pages as a request would: what is not cached is made and kept.
    fn read(&self, pages: std::ops::Range<u64>) -> Result<(), Box<dyn Error>> {
        self.client.run(|| {
            for number in pages {
                let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
                if !cache.touch(number) {
                    cache.put(number, vec![number as u8; PAGE_BYTES]);
                }
            }
        })?;
        Ok(())
    }

    fn print(&self) {
        let name = self.client.name().unwrap_or_default();
        let used = self.client.usage().live_bytes / MIB;
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let (hot, all) = (0..8).fold((0, cache.pages.len()), |(hot, all), number| {
            (hot + usize::from(cache.pages.contains_key(&number)), all)
        });
        println!("  {name}: {used} MiB, {all} pages, {hot} of its 8 hottest");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // 80 MiB usable. Above 72 the caches are asked, until it is 64.
    let memory = Memory::builder(100 * MIB).background(false).build()?;
    let basic = Tenant::new(&memory, "basic", SubscriptionTier::Basic);
    let premium = Tenant::new(&memory, "premium", SubscriptionTier::Premium);
    for (step, pages) in [(1, 0..120), (2, 120..152), (3, 152..200), (4, 200..230)] {
        println!("step {step}: both read {} pages", pages.end - pages.start);
        for tenant in [&basic, &premium] {
            tenant.read(pages.clone())?;
            tenant.read(0..8)?;
        }
        memory.tick();
        basic.print();
        premium.print();
    }
    let reclaim = memory.snapshot().reclaim;
    println!("given back, rung by rung:");
    for rung in reclaim.rungs.iter().filter(|rung| rung.climbed > 0) {
        println!(
            "  {} MiB in {} rounds",
            rung.reclaimed_bytes / MIB,
            rung.climbed
        );
    }
    Ok(())
}
