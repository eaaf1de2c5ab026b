//! A memory that gets full, and who fills it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use crate::common::{self, Bytes, HEAP};
use std::alloc::{GlobalAlloc, Layout};
use std::sync::Arc;
use tiered_allocator::clock::ManualClock;
use tiered_allocator::pressure::Watermarks;
use tiered_allocator::{
    Client, ClientOptions, Enforcement, EventKind, Ladder, Limit, Memory, MemoryBuilder,
    SubscriptionTier, TieredAllocator,
};

pub const MIB: u64 = 1 << 20;
pub const BLOCK: u64 = 64 * 1024;

/// 80 MiB usable, 20 MiB headroom, no watermarks in the way.
pub fn timed(configure: impl FnOnce(MemoryBuilder) -> MemoryBuilder) -> (Memory, Arc<ManualClock>) {
    assert!(TieredAllocator::is_installed());
    common::timed(100 * MIB, |builder| configure(builder.ladder(ladder())))
}

/// Watermarks that are never in the way.
pub fn ladder() -> Ladder {
    Ladder::default().watermarks(Watermarks::new(1.0, 0.999).unwrap())
}

pub fn memory() -> Memory {
    timed(|builder| builder).0
}

pub fn client(memory: &Memory, name: &str, tier: SubscriptionTier, how: Enforcement) -> Client {
    let options = ClientOptions::new(tier)
        .max(Limit::Bytes(80 * MIB))
        .enforcement(how);
    memory.register(name, options).unwrap()
}

pub fn strict(memory: &Memory, name: &str, tier: SubscriptionTier) -> Client {
    client(memory, name, tier, Enforcement::Strict)
}

/// As much of `bytes` as the client gets, in blocks.
pub fn take(client: &Client, bytes: u64) -> Vec<Bytes> {
    let block = || Bytes::of(client, BLOCK as usize);
    (0..bytes / BLOCK).map_while(|_| block()).collect()
}

pub fn all_of(client: &Client, bytes: u64) -> Vec<Bytes> {
    let taken = take(client, bytes);
    assert_eq!(taken.len() as u64, bytes / BLOCK, "all of it fits");
    taken
}

/// The client asks for so much at once, and does not get it.
pub fn refused(client: &Client, bytes: usize) {
    let layout = Layout::from_size_align(bytes, 1).unwrap();
    let at = {
        let _scope = client.enter();
        // SAFETY: the size is not zero.
        unsafe { HEAP.alloc(layout) }
    };
    assert!(at.is_null());
}

pub fn count(memory: &Memory, kind: EventKind) -> usize {
    let (events, _) = memory.events(0);
    events.iter().filter(|event| event.kind == kind).count()
}
