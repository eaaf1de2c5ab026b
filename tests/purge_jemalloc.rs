//! Giving free memory of jemalloc back to the system.

#[path = "support/purge.rs"]
mod purge;

use serial_test::serial;
use tiered_allocator::TieredAllocator;

#[global_allocator]
static HEAP: TieredAllocator<tikv_jemallocator::Jemalloc> = TieredAllocator::jemalloc();

#[test]
#[serial]
fn freed_memory_goes_back_to_the_system_when_it_is_asked_for() {
    purge::gives_freed_memory_back(&HEAP);
}

#[cfg(all(target_os = "linux", not(tiered_allocator_portable)))]
#[test]
#[serial]
fn a_child_that_is_forked_during_a_purge_has_a_working_heap() {
    purge::leaves_forked_children_a_working_heap(&HEAP);
}
