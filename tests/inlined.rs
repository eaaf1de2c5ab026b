//! Blocks whose whole life is one function: the compiler knows `__rust_alloc`
//! and `__rust_dealloc`, may inline them there, and must not conclude from the
//! size of a block that nothing lies behind it. Means something in optimised
//! builds only; see `src/owner/layout.rs`.

use tiered_allocator::{ClientOptions, Enforcement, Limit, Memory, TieredAllocator};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

#[inline(never)]
fn short_lives(seed: u64, rounds: u64) -> u64 {
    let mut random = seed;
    let mut kept = 0;
    for _ in 0..rounds {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
        let size = (random >> 40) as usize % 5000 + 1;
        let mut buffer: Vec<u8> = Vec::new();
        kept += u64::from(buffer.try_reserve_exact(size).is_ok());
        let boxed = Box::new(random);
        kept += *boxed & 1;
        if random.is_multiple_of(3) {
            buffer.resize(size / 2 + 1, 1);
            buffer.shrink_to_fit();
        }
    }
    kept
}

#[test]
fn short_lived_blocks_keep_their_owner() {
    let memory = Memory::new(1 << 30);
    let options = ClientOptions::new("Basic")
        .max(Limit::Bytes(1 << 20))
        .enforcement(Enforcement::Strict);
    let client = memory.register("inlined", options).unwrap();
    let (kept, short) = client
        .run(|| (short_lives(1, 200_000), [0_u8; 100].to_vec().len()))
        .unwrap();
    assert!(kept >= 200_000);
    assert_eq!(short, 100);
    // Elsewhere too, where the block is not the current client's.
    let theirs = client.run(|| vec![Box::new(7_u64); 50]).unwrap();
    assert_eq!(client.usage().live_allocations, 51);
    drop(theirs);
    assert_eq!(client.usage().live_bytes, 0);
    assert_eq!(client.usage().live_allocations, 0);
}
