//! The allocator installed over jemalloc.

#[path = "support/collections.rs"]
mod collections;

use tiered_allocator::TieredAllocator;

#[global_allocator]
static HEAP: TieredAllocator<tikv_jemallocator::Jemalloc> = TieredAllocator::jemalloc();

#[test]
fn collections_and_threads_over_jemalloc_are_charged_to_the_byte() {
    collections::are_charged_to_the_byte();
}
