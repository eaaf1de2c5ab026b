//! A memory with tenants whose limits are in nobody's way.

use tiered_allocator::{Client, Memory, SubscriptionTier, TieredAllocator};

pub fn memory() -> Memory {
    assert!(TieredAllocator::is_installed());
    Memory::new(1 << 30)
}

pub fn client(memory: &Memory, name: &str) -> Client {
    memory.register(name, SubscriptionTier::Premium).unwrap()
}

pub fn live(client: &Client) -> usize {
    client.usage().live_bytes as usize
}

pub fn is_current(client: &Client) -> bool {
    Client::current().as_ref() == Some(client)
}
