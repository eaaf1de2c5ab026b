//! What tells of a client's breach is the host's to keep: it is not charged to
//! the client.

use serial_test::serial;
use tiered_allocator::{ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

#[test]
#[serial]
fn an_error_made_in_the_clients_scope_is_charged_to_nobody() {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::new(1 << 30);
    let options = ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(4096));
    let client = memory.register("over", options).unwrap();
    let (at_safe_point, refused) = {
        let _scope = client.enter();
        let hoard = vec![0_u8; 10_000];
        let at_safe_point = client.checkpoint().unwrap_err();
        let refused = memory.allocate_for_client("over", 2 << 30).unwrap_err();
        drop(hoard);
        (at_safe_point, refused)
    };
    assert_eq!(client.usage().live_bytes, 0);
    assert_eq!(
        (&*at_safe_point.client, &*at_safe_point.tier),
        ("over", "Basic")
    );
    drop(refused);
    assert_eq!(client.usage().live_bytes, 0);
}
