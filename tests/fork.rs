//! `fork` while other threads are in the middle of everything: the child works
//! on, with exact books.

#![cfg(all(unix, not(tiered_allocator_portable)))]

#[path = "support/forked.rs"]
mod forked;
mod support;
#[path = "support/until.rs"]
mod until;

use forked::in_a_child;
use serial_test::serial;
use std::sync::atomic::{AtomicBool, Ordering};
use support::Block;
use tiered_allocator::{
    Client, ClientOptions, Enforcement, Limit, Memory, SubscriptionTier, TieredAllocator,
};
use until::Stops;

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

fn strict(memory: &Memory, name: &str, max: u64) -> Client {
    let options = ClientOptions::new(SubscriptionTier::Enterprise)
        .max(Limit::Bytes(max))
        .enforcement(Enforcement::Strict);
    memory.register(name, options).unwrap()
}

/// Uses up what `client` may have; answers how much that was.
fn fill_up(client: &Client) -> (Vec<Block>, u64) {
    let mut blocks = Vec::with_capacity(20_000);
    let mut bytes = 0;
    let _scope = client.enter();
    let mut size = 10_000;
    while size > 0 {
        match Block::bytes(&HEAP, size) {
            Some(block) if blocks.len() < blocks.capacity() => {
                bytes += size as u64;
                blocks.push(block);
            }
            _ => size /= 2,
        }
    }
    (blocks, bytes)
}

/// Where the feature is there, samples are taken in the parent's threads while
/// it forks, and in the child.
fn sampled() -> Memory {
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    #[cfg(feature = "profile")]
    memory
        .start_heap_profile(
            &tiered_allocator::profile::ProfileOptions::new()
                .sample_bytes(2000)
                .unattributed(true),
        )
        .unwrap();
    memory
}

#[test]
#[serial]
fn a_child_works_on_whatever_the_parents_threads_were_doing() {
    const FORKS: usize = 150;
    const MAX: u64 = 300_000;
    assert!(TieredAllocator::is_installed());
    let memory = sampled();
    let crowded = strict(&memory, "crowded", MAX);
    let own = strict(&memory, "own", MAX);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..4u64 {
            let (crowded, stop) = (&crowded, &stop);
            scope.spawn(move || {
                let mut random = seed;
                let mut held: Vec<Block> = Vec::with_capacity(256);
                while !stop.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                    let pick = (random >> 33) as usize;
                    let _scope = crowded.enter();
                    match Block::bytes(&HEAP, pick % 9000 + 1) {
                        Some(block) if held.len() < 256 => held.push(block),
                        _ => drop(held.pop()),
                    }
                    if pick.is_multiple_of(5) {
                        held.clear();
                    }
                }
            });
        }
        let _stops = Stops(&stop);
        for _ in 0..FORKS {
            in_a_child(|| {
                // What the parent's threads hold is charged still, and there
                // is no credit but the books' own.
                let usage = crowded.usage();
                assert!(usage.live_bytes <= MAX && usage.charged_bytes <= MAX);
                drop(fill_up(&crowded));
                let (blocks, bytes) = fill_up(&own);
                assert_eq!(bytes, MAX);
                drop(blocks);
                let worker = own.clone();
                let block = std::thread::spawn(move || {
                    let _scope = worker.enter();
                    Block::bytes(&HEAP, 5000)
                });
                let block = block.join().unwrap().expect("it fits");
                assert_eq!(own.usage().live_bytes, 5000);
                drop(block);
                assert_eq!(own.usage().live_bytes, 0);
                // A grandchild, too.
                in_a_child(|| assert_eq!(fill_up(&own).1, MAX));
            });
        }
    });
    assert_eq!(crowded.usage().live_bytes, 0);
    assert_eq!(fill_up(&crowded).1, MAX);
}

#[test]
#[serial]
fn threads_that_start_and_end_do_not_disturb_a_fork() {
    let memory = sampled();
    let client = strict(&memory, "client", 100_000);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (client, stop) = (&client, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let client = client.clone();
                    let short = std::thread::spawn(move || {
                        let _scope = client.enter();
                        drop(Block::bytes(&HEAP, 700));
                    });
                    // The end of a thread, exit hook and all.
                    short.join().unwrap();
                }
            });
        }
        let _stops = Stops(&stop);
        for _ in 0..100 {
            in_a_child(|| {
                drop(fill_up(&client));
                let worker = client.clone();
                let thread = std::thread::spawn(move || drop(fill_up(&worker)));
                thread.join().unwrap();
            });
        }
    });
    assert_eq!(client.usage().charged_bytes, 0);
}

#[test]
#[serial]
fn a_memory_whose_reclaimer_stayed_in_the_parent_can_be_used_and_dropped() {
    let memory = Memory::new(1 << 30);
    assert!(memory.has_reclaimer_thread());
    let client = strict(&memory, "client", 1 << 20);
    let block = memory.allocate_for_client("client", 50_000).unwrap();
    for _ in 0..20 {
        let (memory, client) = (memory.clone(), client.clone());
        in_a_child(|| {
            assert!(!memory.has_reclaimer_thread());
            memory.tick();
            memory.reclaim_unused_memory();
            assert_eq!(client.usage().live_bytes, 50_000);
            let _scope = client.enter();
            drop(Block::bytes(&HEAP, 10_000));
            drop(memory);
        });
    }
    // The last handle of the child's copy, too.
    in_a_child(move || {
        drop(block);
        drop(memory);
        assert!(!client.is_active());
    });
}
