//! The usage that the crate promises, word for word, without and with the
//! allocator being the process' own.

#[path = "support/huge_pages.rs"]
mod huge_pages;

use huge_pages::resident_at_most;
use serial_test::serial;
use tiered_allocator::{Memory, SubscriptionTier, TieredAllocator};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

#[test]
#[serial]
fn the_promised_usage_works_as_written() {
    assert!(TieredAllocator::is_installed());

    let mem = Memory::new(1_000_000_000);
    mem.add_client("client_1", SubscriptionTier::Premium);
    let block = mem.allocate_for_client("client_1", 50_000_000).unwrap();
    mem.deallocate_for_client("client_1", block).unwrap();
    let (allocated, used) = mem.get_client_resource_usage("client_1").unwrap();
    let (total_allocated, total_used) = mem.get_resource_usage();

    assert_eq!((allocated, used), (0, 0));
    assert_eq!((total_allocated, total_used), (0, 0));
}

/// Whether this platform can tell which pages of a block are in memory. Where
/// it cannot, all of them count.
const KNOWS_RESIDENT: bool = cfg!(all(unix, not(tiered_allocator_portable)));

#[test]
#[serial]
fn figures_follow_the_block() {
    let mem = Memory::new(1_000_000_000);
    mem.add_client("client_1", SubscriptionTier::Premium);
    let mut block = mem.allocate_for_client("client_1", 50_000_000).unwrap();
    // Charged at once; in physical memory only when written to.
    let (allocated, used) = mem.get_client_resource_usage("client_1").unwrap();
    assert_eq!(allocated, 50_000_000);
    if KNOWS_RESIDENT {
        assert!(used <= resident_at_most(0), "{used}");
    } else {
        assert_eq!(used, 50_000_000);
    }
    block.pin_mut().unwrap()[..10_000_000].fill(1);
    let (allocated, used) = mem.get_client_resource_usage("client_1").unwrap();
    assert_eq!(allocated, 50_000_000);
    if KNOWS_RESIDENT {
        let most = resident_at_most(11_000_000);
        assert!((10_000_000..most).contains(&used), "{used}");
    }
    assert_eq!(mem.get_resource_usage(), (allocated, used));
    drop(block);
    assert_eq!(mem.get_client_resource_usage("client_1").unwrap(), (0, 0));
}
