//! Two tenants' work on one rayon pool: whichever worker takes a piece, the
//! piece is charged to the tenant whose work it is.
//!
//! ```sh
//! cargo run --release --features rayon --example rayon
//! ```

use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use tiered_allocator::integrations::rayon::{self as tenant, ParInClientExt};
use tiered_allocator::{Client, ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const PAGES: usize = 10_000;
const PAGE_BYTES: usize = 100;

fn page(number: usize) -> String {
    let mut page = String::with_capacity(PAGE_BYTES);
    page.push_str(&number.to_string());
    page
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::new(1 << 30);
    let bank = memory.register("bank", SubscriptionTier::Enterprise)?;
    let small = ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(256 << 10));
    let shop = memory.register("shop", small)?;
    let pool = ThreadPoolBuilder::new().num_threads(4).build()?;
    let live = |client: &Client| client.usage().live_bytes as usize;

    // A scope of the calling thread does not reach the workers.
    let lost: Vec<String> = {
        let _scope = bank.enter();
        pool.install(|| (0..PAGES).into_par_iter().map(page).collect())
    };
    println!("a scope around the call: bank pays {} bytes", live(&bank));
    let not_charged = live(&bank) < PAGES * PAGE_BYTES / 100;
    drop(lost);

    // `install` takes the client to the pool, `in_client` to whoever steals.
    let pages: Vec<String> = tenant::install(&bank, &pool, || {
        let numbers = (0..PAGES).into_par_iter().in_client(&bank);
        numbers.map(page).collect()
    })?;
    let held = PAGES * PAGE_BYTES + pages.capacity() * size_of::<String>();
    println!("in_client: bank pays {} bytes of {held}", live(&bank));
    let exact = live(&bank) == held;

    // Halves that two workers may take, for two tenants.
    let half = |client: &Client| client.bind(|| (0..500).map(page).collect::<Vec<_>>());
    let halves = pool.install(|| rayon::join(half(&bank), half(&shop)));
    println!("join and bind: shop pays {} bytes", live(&shop));
    let bound = live(&shop) == 500 * (PAGE_BYTES + size_of::<String>());
    drop(halves);

    // The end of `install` is a safe point: too much is an error with figures.
    let over = tenant::install(&shop, &pool, || vec![0_u8; 300 << 10]);
    let stopped = over.is_err_and(|over| {
        println!("too much: {over}");
        over.quota.limit == 256 << 10
    });

    drop(pages);
    let nobody_is_left = pool.broadcast(|_| Client::current().is_none());
    println!("left: bank {} bytes, shop {}", live(&bank), live(&shop));
    let clean = live(&bank) + live(&shop) == 0 && nobody_is_left.iter().all(|&none| none);
    if not_charged && exact && bound && stopped && clean {
        return Ok(());
    }
    Err("the figures are not what this example says".into())
}
