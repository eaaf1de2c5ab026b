//! Giving free memory of mimalloc back to the system.

#[path = "support/purge.rs"]
mod purge;

use tiered_allocator::TieredAllocator;

#[global_allocator]
static HEAP: TieredAllocator<mimalloc::MiMalloc> = TieredAllocator::mimalloc();

#[test]
fn freed_memory_goes_back_to_the_system_when_it_is_asked_for() {
    purge::gives_freed_memory_back(&HEAP);
}
