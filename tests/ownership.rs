//! Allocations and blocks that change hands: the owner pays, not whoever
//! happened to build (pitfall 18).

use serial_test::serial;
use tiered_allocator::{
    Client, ClientOptions, Enforcement, Limit, Memory, SubscriptionTier, TieredAllocator,
    TransferError, untracked,
};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

fn client(memory: &Memory, name: &str, max: u64) -> Client {
    let options = ClientOptions::new(SubscriptionTier::Enterprise)
        .max(Limit::Bytes(max))
        .enforcement(Enforcement::Strict);
    memory.register(name, options).unwrap()
}

fn figures(client: &Client) -> (u64, u64) {
    let usage = client.usage();
    (usage.live_bytes, usage.live_allocations)
}

#[test]
#[serial]
fn what_a_request_built_can_become_the_caches() {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::new(1 << 30);
    let request = client(&memory, "request", 1 << 20);
    let cache = client(&memory, "cache", 1 << 20);
    for bytes in [1, 100, 4095, 4096, 4097, 100_000] {
        let mut built = request.run(|| vec![7_u8; bytes]).unwrap();
        assert_eq!(figures(&request), (bytes as u64, 1));
        cache.adopt(&mut built).unwrap();
        assert_eq!(figures(&request), (0, 0));
        assert_eq!(figures(&cache), (bytes as u64, 1));
        // Again, to itself: nothing happens.
        cache.adopt(&mut built).unwrap();
        assert_eq!(figures(&cache), (bytes as u64, 1));
        // It grows for its new owner, wherever that happens.
        request
            .run(|| built.extend_from_slice(&vec![7; 10_000]))
            .unwrap();
        assert_eq!(figures(&request), (0, 0));
        assert_eq!(figures(&cache).0, built.capacity() as u64);
        assert!(built.iter().all(|&byte| byte == 7));
        drop(built);
        assert_eq!(figures(&cache), (0, 0));
    }
}

#[test]
#[serial]
fn boxes_and_strings_move_and_empty_values_have_nothing_to_move() {
    let memory = Memory::new(1 << 30);
    let request = client(&memory, "request", 1 << 20);
    let cache = client(&memory, "cache", 1 << 20);
    let mut boxed: Box<[u64]> = request.run(|| vec![1_u64; 10].into()).unwrap();
    let mut text = request.run(|| "text".repeat(10)).unwrap();
    let mut dynamic: Box<dyn std::any::Any> = request.run(|| Box::new(5_u16) as _).unwrap();
    cache.adopt(&mut boxed).unwrap();
    cache.adopt(&mut text).unwrap();
    cache.adopt(&mut dynamic).unwrap();
    cache.adopt(&mut Vec::<u8>::new()).unwrap();
    cache.adopt(&mut Box::new(())).unwrap();
    assert_eq!(figures(&request), (0, 0));
    assert_eq!(figures(&cache), (80 + text.capacity() as u64 + 2, 3));
    drop((boxed, text, dynamic));
    assert_eq!(figures(&cache), (0, 0));
}

#[test]
#[serial]
fn a_refused_adoption_changes_nothing() {
    let memory = Memory::new(1 << 30);
    let request = client(&memory, "request", 1 << 20);
    let small = client(&memory, "small", 1000);
    let mut built = request.run(|| vec![0_u8; 1001]).unwrap();
    let refused = small.adopt(&mut built).unwrap_err();
    assert_eq!(
        (refused.requested, refused.charged, refused.limit),
        (1001, 0, 1000)
    );
    assert_eq!(figures(&request), (1001, 1));
    assert_eq!(figures(&small), (0, 0));
    memory.remove_client("small").unwrap();
    assert!(small.adopt(&mut built).is_err());
    assert_eq!(figures(&request), (1001, 1));
}

#[test]
#[serial]
fn blocks_move_between_clients_of_one_memory_only() {
    let memory = Memory::new(1 << 30);
    let first = client(&memory, "first", 1 << 20);
    let second = client(&memory, "second", 1 << 20);
    let mut block = memory.allocate_for_client("first", 10_000).unwrap();
    block.pin_mut().unwrap().fill(3);
    block.charge_to(&second).unwrap();
    assert_eq!(figures(&first), (0, 0));
    assert_eq!(figures(&second), (10_000, 1));
    assert_eq!(block.client(), second);
    assert!(block.pin().unwrap().iter().all(|&byte| byte == 3));

    let elsewhere = Memory::new(1 << 30);
    let stranger = client(&elsewhere, "first", 1 << 20);
    assert_eq!(
        block.charge_to(&stranger).unwrap_err(),
        TransferError::OtherMemory
    );
    let small = client(&memory, "small", 100);
    assert!(matches!(
        block.charge_to(&small),
        Err(TransferError::QuotaExceeded(_))
    ));
    assert_eq!(figures(&second), (10_000, 1));

    // The old owner is wrong now, the new one right.
    let back = memory.deallocate_for_client("first", block).unwrap_err();
    memory.deallocate_for_client("second", back.block).unwrap();
    assert_eq!(figures(&second), (0, 0));
}

#[test]
#[serial]
fn untracked_memory_is_nobodys() {
    let memory = Memory::new(1 << 30);
    let client = client(&memory, "client", 1 << 20);
    let kept = client.run(|| untracked(|| vec![0_u8; 50_000])).unwrap();
    assert_eq!(figures(&client), (0, 0));
    drop(kept);
}
