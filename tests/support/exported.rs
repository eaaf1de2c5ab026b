//! Clients for the tests of what a memory's figures are exported as.

use crate::common::{Bytes, client};
use tiered_allocator::{Client, Enforcement, Memory};

pub const PREFIX: &str = "tiered_allocator_";

pub fn enterprise(memory: &Memory, name: &str) -> Client {
    client(memory, name, 1 << 20, Enforcement::Strict)
}

/// `client 00` to `client 29`, each with 10,000 bytes more than the one before.
pub fn thirty_that_hold_more_and_more(memory: &Memory) -> Vec<(Client, Bytes)> {
    let holding = |n: usize| {
        let client = enterprise(memory, &format!("client {n:02}"));
        let held = Bytes::of(&client, 10_000 * (n + 1)).unwrap();
        (client, held)
    };
    (0..30).map(holding).collect()
}
