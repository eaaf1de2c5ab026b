//! The allocator installed over mimalloc.

#[path = "support/collections.rs"]
mod collections;

use tiered_allocator::TieredAllocator;

#[global_allocator]
static HEAP: TieredAllocator<mimalloc::MiMalloc> = TieredAllocator::new(mimalloc::MiMalloc);

#[test]
fn collections_and_threads_over_mimalloc_are_charged_to_the_byte() {
    collections::are_charged_to_the_byte();
}
