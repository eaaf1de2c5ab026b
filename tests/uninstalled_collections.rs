//! Collections of a client in a process whose heap is another.

use allocator_api2::vec::Vec as ClientVec;
use tiered_allocator::{ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator};

#[test]
fn without_the_allocator_collections_work_and_nobody_is_charged() {
    assert!(!TieredAllocator::is_installed());
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    let options = ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(100));
    let client = memory.register("acme", options).unwrap();
    let mut bytes: ClientVec<u8, _> = ClientVec::new_in(client.clone());
    for size in [50, 200, 20_000] {
        bytes.try_reserve_exact(size).unwrap();
        bytes.resize(size, 7);
    }
    bytes.truncate(10);
    bytes.shrink_to_fit();
    assert_eq!(bytes, [7; 10]);
    assert_eq!(client.usage().total_allocations, 0);
}
