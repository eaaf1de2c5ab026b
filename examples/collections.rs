//! A map and a vector that belong to a client: growth beyond the quota is an
//! error that says how much and why, on stable Rust.
//!
//! ```sh
//! cargo run --release --features allocator-api2 --example collections
//! ```

use allocator_api2::vec::Vec;
use hashbrown::{DefaultHashBuilder, HashMap};
use tiered_allocator::{
    Client, ClientOptions, Limit, Memory, QuotaExceeded, SubscriptionTier, TieredAllocator,
};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

/// Counts words by their length, in the client's own memory.
struct Lengths {
    client: Client,
    counts: HashMap<u64, u64, DefaultHashBuilder, Client>,
    seen: Vec<u64, Client>,
}

impl Lengths {
    fn new(client: &Client) -> Lengths {
        Lengths {
            counts: HashMap::with_hasher_in(DefaultHashBuilder::default(), client.clone()),
            seen: Vec::new_in(client.clone()),
            client: client.clone(),
        }
    }

    /// Nothing is counted if there is no room for it.
    fn count(&mut self, number: u64) -> Result<(), QuotaExceeded> {
        let room = self.seen.try_reserve(1).is_ok() && self.counts.try_reserve(1).is_ok();
        if !room {
            let refusal = self.client.last_refusal();
            return Err(refusal.expect("its last request was refused"));
        }
        self.seen.push(number);
        *self.counts.entry(number).or_insert(0) += 1;
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = Memory::new(1 << 30);
    let options = ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(1 << 20));
    let client = memory.register("acme", options)?;

    let mut lengths = Lengths::new(&client);
    let refused = (0..).find_map(|number| lengths.count(number).err());
    println!("{}", refused.ok_or("the quota ends at some time")?);

    let usage = client.usage();
    println!(
        "{} numbers are counted; {} bytes of acme's in {} allocations, {} beyond its limit",
        lengths.seen.len(),
        usage.live_bytes,
        usage.live_allocations,
        usage.overdrawn_bytes,
    );
    drop(lengths);
    println!("after the drop: {} bytes", client.usage().live_bytes);
    Ok(())
}
