//! Blocks whose whole life is one function: the compiler knows `__rust_alloc`
//! and `__rust_dealloc`, may inline them there, and must not conclude from the
//! size of a block that nothing lies behind it. Means something in optimised
//! builds only; see `src/owner/layout.rs`.

use tiered_allocator::{ClientOptions, Enforcement, Limit, Memory, TieredAllocator};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

#[test]
fn short_lived_blocks_keep_their_owner() {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::new(1 << 30);
    let options = ClientOptions::new("Basic")
        .max(Limit::Bytes(1 << 20))
        .enforcement(Enforcement::Strict);
    let client = memory.register("inlined", options).unwrap();
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Vec<u8>>(16);
    std::thread::scope(|scope| {
        for seed in 1..=2u64 {
            let (client, sender) = (&client, sender.clone());
            scope.spawn(move || {
                let mut random = seed;
                for _ in 0..500 {
                    let scope = client.enter();
                    for _ in 0..20 {
                        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                        let size = (random >> 40) as usize % 5000 + 1;
                        let mut buffer = Vec::new();
                        // Most buffers are freed in the function that reserved
                        // them, a few elsewhere.
                        if buffer.try_reserve_exact(size).is_ok() && random.is_multiple_of(8) {
                            drop(sender.try_send(buffer));
                        }
                    }
                    drop(scope);
                }
            });
        }
        drop(sender);
        scope.spawn(move || receiver.into_iter().for_each(drop));
    });
    assert_eq!(client.usage().live_bytes, 0);
    assert_eq!(client.usage().live_allocations, 0);
}
