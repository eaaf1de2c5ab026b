//! The edges of a shortage: limits of tiers, several tiers short at once,
//! breaches of others, and what is left behind.

mod common;

use common::Bytes;
use serial_test::serial;
use tiered_allocator::pressure::Watermarks;
use tiered_allocator::{
    Client, ClientOptions, Enforcement, EventKind, Ladder, Limit, Memory, SubscriptionTier,
    TierPolicy, TieredAllocator,
};

use SubscriptionTier::{Basic, Enterprise, Premium};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 64 * 1024;

/// 80 MiB usable, 20 MiB headroom, no watermarks in the way.
fn memory() -> Memory {
    assert!(TieredAllocator::is_installed());
    Memory::builder(100 * MIB)
        .background(false)
        .ladder(Ladder::default().watermarks(Watermarks::new(1.0, 0.999).unwrap()))
        .build()
        .unwrap()
}

fn client(memory: &Memory, name: &str, tier: SubscriptionTier, how: Enforcement) -> Client {
    let options = ClientOptions::new(tier)
        .max(Limit::Bytes(80 * MIB))
        .enforcement(how);
    memory.register(name, options).unwrap()
}

fn strict(memory: &Memory, name: &str, tier: SubscriptionTier) -> Client {
    client(memory, name, tier, Enforcement::Strict)
}

fn take(client: &Client, bytes: u64) -> Vec<Bytes> {
    let block = || Bytes::of(client, BLOCK as usize);
    (0..bytes / BLOCK).map_while(|_| block()).collect()
}

fn all_of(client: &Client, bytes: u64) -> Vec<Bytes> {
    let taken = take(client, bytes);
    assert_eq!(taken.len() as u64, bytes / BLOCK, "all of it fits");
    taken
}

fn count(memory: &Memory, kind: EventKind) -> usize {
    let (events, _) = memory.events(0);
    events.iter().filter(|event| event.kind == kind).count()
}

#[test]
#[serial]
fn a_tiers_aggregate_limit_binds_what_is_lent() {
    let memory = memory();
    let policy = TierPolicy::new(Limit::Bytes(80 * MIB))
        .precedence(20)
        .aggregate(Limit::Bytes(10 * MIB));
    memory.set_tier_policy(Premium, policy).unwrap();
    let basic = strict(&memory, "basic", Basic);
    let one = strict(&memory, "one", Premium);
    let _one = all_of(&one, 9 * MIB);
    let _basic = take(&basic, 71 * MIB);
    let taken = take(&one, 15 * MIB);
    let live = one.usage().live_bytes;
    assert!(live <= 10 * MIB, "{live} of 10 MiB, {} lent", taken.len());
}

#[test]
#[serial]
fn an_overdraft_at_a_tiers_limit_is_stopped_whatever_lower_tiers_hold() {
    let memory = memory();
    let policy = TierPolicy::new(Limit::Bytes(80 * MIB))
        .precedence(20)
        .aggregate(Limit::Bytes(10 * MIB));
    memory.set_tier_policy(Premium, policy).unwrap();
    let basic = strict(&memory, "basic", Basic);
    let _basic = all_of(&basic, 40 * MIB);
    let one = client(&memory, "one", Premium, Enforcement::Graceful);
    let _one = all_of(&one, 15 * MIB);
    assert!(one.usage().overdrawn_bytes >= 4 * MIB);
    assert!(one.checkpoint().is_err());
}

#[test]
#[serial]
fn the_lower_of_two_tiers_that_are_short_is_covered_by_what_was_freed_for_it() {
    let memory = memory();
    let basic = strict(&memory, "basic", Basic);
    let premium = strict(&memory, "premium", Premium);
    let big = strict(&memory, "big", Enterprise);
    let mut held = all_of(&basic, 80 * MIB);
    let _taken = (all_of(&premium, 5 * MIB), all_of(&big, 5 * MIB));
    let owed = memory.usage().overdrawn_bytes;
    held.truncate(held.len() - (owed.div_ceil(BLOCK)) as usize);
    memory.tick();
    assert_eq!(memory.usage().overdrawn_bytes, 0);
    assert_eq!(count(&memory, EventKind::AskedToStop), 0);
}

#[test]
#[serial]
fn a_lower_tiers_own_breach_does_not_stop_a_client_that_was_lent_to() {
    let memory = memory();
    let options = ClientOptions::new(Basic)
        .max(Limit::Bytes(6 * MIB))
        .enforcement(Enforcement::Graceful);
    let basic = memory.register("basic", options).unwrap();
    let mut held = all_of(&basic, 6 * MIB);
    let other = strict(&memory, "other", Enterprise);
    let _other = all_of(&other, 74 * MIB);
    let big = strict(&memory, "big", Enterprise);
    let _big = all_of(&big, 3 * MIB);
    assert!(big.checkpoint().is_ok());
    // Basic goes beyond its own max: its matter, and it is stopped for it.
    held.append(&mut take(&basic, 4 * MIB));
    assert!(basic.checkpoint().is_err());
    assert!(big.checkpoint().is_ok());
    assert_eq!(big.usage().refusals, 0);
}
