//! A million clients in one memory: what each costs, and that nothing slows
//! down with their number but what walks over all of them.

mod common;

use common::{Bytes, quiet};
use std::time::Instant;
use tiered_allocator::{Client, Memory, SubscriptionTier, TieredAllocator};

const CLIENTS: u32 = 1_000_000;
const NAME_BYTES: u64 = 14;
/// What the system's heap takes for a name: two reference counts before it,
/// the owner's tag and a chunk's head beside it, in steps of 16.
const NAME_HEAP_BYTES: u64 = (16 + NAME_BYTES + 4 + 8).next_multiple_of(16);

fn name(number: u32, buffer: &mut String) -> &str {
    use std::fmt::Write;
    buffer.clear();
    write!(buffer, "client-{number:07}").unwrap();
    buffer
}

fn resident_bytes(memory: &Memory) -> Option<u64> {
    memory.snapshot().resident_set_bytes
}

#[test]
fn a_million_clients_cost_256_bytes_each_and_come_and_go() {
    assert!(TieredAllocator::is_installed());
    let memory = quiet(1 << 40);
    let mut buffer = String::with_capacity(32);
    assert_eq!(name(0, &mut buffer).len() as u64, NAME_BYTES);

    let before = resident_bytes(&memory);
    let start = Instant::now();
    for number in 0..CLIENTS {
        let name = name(number, &mut buffer);
        memory.register(name, SubscriptionTier::Basic).unwrap();
    }
    let took = start.elapsed();
    assert_eq!(memory.client_count(), CLIENTS as usize);
    if let (Some(before), Some(after)) = (before, resident_bytes_cheaply()) {
        let each = (after - before) as f64 / f64::from(CLIENTS);
        let own = each - NAME_HEAP_BYTES as f64;
        println!(
            "{:.0} registrations a second; {each:.1} bytes each, {own:.1} without the name",
            f64::from(CLIENTS) / took.as_secs_f64(),
        );
        assert!(own <= 256.0, "{own:.1} bytes each");
    }

    for number in (0..CLIENTS).step_by(9973) {
        let client = memory.client(name(number, &mut buffer)).unwrap();
        assert_eq!(client.name().as_deref(), Some(buffer.as_str()));
    }
    let last = memory.client(name(CLIENTS - 1, &mut buffer)).unwrap();
    {
        let _scope = last.enter();
        assert_eq!(Client::current().as_ref(), Some(&last));
        let held = Bytes::new(1234).unwrap();
        assert_eq!(last.usage().live_bytes, 1234);
        drop(held);
    }
    let block = memory.allocate_for_client(&buffer, 4096).unwrap();
    assert_eq!(last.usage().live_bytes, 4096);
    drop(block);
    assert_eq!(memory.get_client_resource_usage(&buffer), Ok((0, 0)));

    // Some one by one, the rest together with their memory.
    const ONE_BY_ONE: u32 = CLIENTS / 10;
    let start = Instant::now();
    for number in 0..ONE_BY_ONE {
        memory.remove_client(name(number, &mut buffer)).unwrap();
    }
    println!(
        "{:.0} removals a second",
        f64::from(ONE_BY_ONE) / start.elapsed().as_secs_f64()
    );
    assert_eq!(memory.client_count(), (CLIENTS - ONE_BY_ONE) as usize);
    drop(memory);
    assert!(!last.is_active());

    // Ids are used again, not handed out for ever.
    let memory = quiet(1 << 30);
    for number in 0..ONE_BY_ONE {
        let client = memory
            .register(name(number, &mut buffer), SubscriptionTier::Basic)
            .unwrap();
        assert!(client.id().index() <= CLIENTS);
        assert_eq!(client.id().generation(), 2);
    }
    assert!(memory.snapshot().retired.is_empty());
}

/// A snapshot of a million clients would itself take memory.
fn resident_bytes_cheaply() -> Option<u64> {
    resident_bytes(&quiet(1 << 20))
}
