//! Fixed numbers of operations, for a tool that counts instructions.

use crate::heaps::{self, Heap};
use mimalloc::MiMalloc;
use std::alloc::System;
use tiered_allocator::{ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator};
use tikv_jemallocator::Jemalloc;

/// `<glibc|mimalloc|jemalloc> <bare|tiered> <workload> <operations>`
pub fn run(inner: &str, kind: &str, workload: &str, operations: &str) -> Option<()> {
    let operations = operations.parse().ok()?;
    let memory = Memory::new(1 << 32);
    let options = ClientOptions::new(SubscriptionTier::Enterprise).max(Limit::Bytes(64 << 20));
    let client = memory.register("counted", options).ok()?;
    let other = memory.register("other", SubscriptionTier::Basic).ok()?;
    let _scope = client.enter();
    if workload == "scope" {
        for _ in 0..operations {
            drop(std::hint::black_box(&other).enter());
        }
        return Some(());
    }
    match (inner, kind) {
        ("glibc", "bare") => perform::<System>(workload, operations),
        ("glibc", "tiered") => perform::<TieredAllocator<System>>(workload, operations),
        ("mimalloc", "bare") => perform::<MiMalloc>(workload, operations),
        ("mimalloc", "tiered") => perform::<TieredAllocator<MiMalloc>>(workload, operations),
        ("jemalloc", "bare") => perform::<Jemalloc>(workload, operations),
        ("jemalloc", "tiered") => perform::<TieredAllocator<Jemalloc>>(workload, operations),
        _ => None,
    }
}

fn perform<H: Heap>(workload: &str, operations: usize) -> Option<()> {
    match workload {
        "pair" => heaps::pairs::<H>(64, operations),
        "constant" => heaps::constant_pairs::<H, 64>(operations),
        _ => return None,
    }
    Some(())
}
