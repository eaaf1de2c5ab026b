//! Promise 1 at the limit: not a byte over, not a byte refused that fits,
//! whoever races for it.

mod common;

use common::{Bytes as Block, client};
use serial_test::serial;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tiered_allocator::{Client, Enforcement, Limit, Memory, TieredAllocator};

const MAX: u64 = 1 << 20;

/// Runs a test on memories as they are and, where the feature is there, once
/// more on profiled ones, whose charges never take the fast path.
fn each_way(test: impl Fn(fn(Memory) -> Memory)) {
    test(|memory| memory);
    #[cfg(feature = "profile")]
    test(common::profiled);
}

fn strict(memory: &Memory, name: &str, max: u64) -> Client {
    client(memory, name, max, Enforcement::Strict)
}

/// Takes byte-sized blocks until nothing is left, and answers how many bytes.
fn fill_up(client: &Client, mut size: usize) -> (Vec<Block>, u64) {
    let mut blocks = Vec::with_capacity(1 << 16);
    let mut bytes = 0;
    let _scope = client.enter();
    while size > 0 {
        match Block::new(size) {
            Some(block) if blocks.len() < blocks.capacity() => {
                blocks.push(block);
                bytes += size as u64;
            }
            _ => size /= 2,
        }
    }
    (blocks, bytes)
}

#[test]
#[serial]
fn the_last_byte_is_handed_out_and_the_next_refused() {
    each_way(|profiled| {
        assert!(TieredAllocator::is_installed());
        let memory = profiled(Memory::new(1 << 30));
        let client = strict(&memory, "one", MAX);
        let (blocks, bytes) = fill_up(&client, 1000);
        assert_eq!(bytes, MAX);
        assert_eq!(client.usage().live_bytes, MAX);
        assert_eq!(client.usage().charged_bytes, MAX);
        drop(blocks);
        assert_eq!(client.usage().live_bytes, 0);
        let (_blocks, bytes) = fill_up(&client, 5000);
        assert_eq!(bytes, MAX);
    });
}

/// Every batch of credit ends at a block that would take one byte too many.
#[test]
#[serial]
fn byte_by_byte_the_limit_is_the_same() {
    each_way(|profiled| {
        let memory = profiled(Memory::new(1 << 30));
        let client = strict(&memory, "bytes", MAX / 32);
        let (blocks, bytes) = fill_up(&client, 1);
        assert_eq!(bytes, MAX / 32);
        assert_eq!(client.usage().live_bytes, MAX / 32);
        assert_eq!(client.usage().charged_bytes, MAX / 32);
        drop(blocks);
        assert_eq!(client.usage().live_bytes, 0);
    });
}

#[test]
#[serial]
fn racing_threads_never_pass_the_limit_and_leave_the_exact_rest() {
    each_way(|profiled| {
        let memory = profiled(Memory::new(1 << 30));
        let client = strict(&memory, "raced", MAX);
        let stop = AtomicBool::new(false);
        let operations = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for seed in 1..=6u64 {
                let (client, operations) = (&client, &operations);
                scope.spawn(move || {
                    let mut random = seed;
                    let mut held: Vec<Block> = Vec::with_capacity(1024);
                    let _scope = client.enter();
                    for _ in 0..200_000 {
                        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                        let pick = (random >> 33) as usize;
                        if pick.is_multiple_of(2) || held.len() == held.capacity() {
                            if !held.is_empty() {
                                held.swap_remove(pick % held.len());
                            }
                        } else if let Some(block) = Block::new(pick % 6000 + 1) {
                            held.push(block);
                        }
                    }
                    operations.fetch_add(200_000, Ordering::Relaxed);
                });
            }
            let (client, stop) = (&client, &stop);
            let watcher = scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let usage = client.usage();
                    assert!(usage.charged_bytes <= MAX, "{usage:?}");
                    assert!(usage.live_bytes <= MAX, "{usage:?}");
                }
            });
            while operations.load(Ordering::Relaxed) < 6 * 200_000 {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
            watcher.join().unwrap();
        });
        assert_eq!(client.usage().live_bytes, 0);
        assert_eq!(client.usage().live_allocations, 0);
        let (_blocks, bytes) = fill_up(&client, 1000);
        assert_eq!(bytes, MAX);
    });
}

/// Each thread's share of the limit is its own: any refusal is a false one.
#[test]
#[serial]
fn what_fits_is_never_refused_whoever_sits_on_unused_credit() {
    each_way(|profiled| {
        const THREADS: usize = 6;
        const SHARE: usize = 100_000;
        let memory = profiled(Memory::new(1 << 30));
        let client = strict(&memory, "shared", (THREADS * SHARE) as u64);
        let barrier = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for seed in 1..=THREADS as u64 {
                let (client, barrier) = (&client, &barrier);
                scope.spawn(move || {
                    let mut random = seed;
                    let mut held: Vec<Block> = Vec::with_capacity(4096);
                    let mut bytes = 0;
                    barrier.wait();
                    let _scope = client.enter();
                    for _ in 0..100_000 {
                        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                        let size = (random >> 33) as usize % 3000 + 1;
                        while bytes + size > SHARE {
                            let at = size % held.len();
                            bytes -= held.swap_remove(at).size();
                        }
                        held.push(Block::new(size).expect("it fits: the share is this thread's"));
                        bytes += size;
                    }
                });
            }
        });
        assert_eq!(client.usage().refusals, 0);
        assert_eq!(client.usage().live_bytes, 0);
    });
}

/// As above, across clients: the aggregate limit of a tier and the memory.
#[test]
#[serial]
fn credit_of_other_clients_never_causes_a_refusal() {
    each_way(|profiled| {
        const CLIENTS: usize = 4;
        const SHARE: u64 = 200_000;
        let policy = tiered_allocator::TierPolicy::new(Limit::Bytes(SHARE))
            .enforcement(Enforcement::Strict)
            .aggregate(Limit::Bytes(SHARE * CLIENTS as u64));
        for total in [SHARE * CLIENTS as u64, 1 << 30] {
            let memory = Memory::builder(total)
                .usable(1.0)
                .tier("tight", policy)
                .build();
            let memory = profiled(memory.unwrap());
            std::thread::scope(|scope| {
                for number in 0..CLIENTS {
                    let client = memory.register(&format!("c{number}"), "tight").unwrap();
                    for half in 0..2 {
                        let client = client.clone();
                        scope.spawn(move || {
                            let mut random = (number * 2 + half) as u64 + 1;
                            let mut held: Vec<Block> = Vec::with_capacity(4096);
                            let mut bytes = 0;
                            let _scope = client.enter();
                            for _ in 0..30_000 {
                                random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                                let size = (random >> 33) as usize % 3000 + 1;
                                while bytes + size > SHARE as usize / 2 {
                                    bytes -= held.swap_remove(size % held.len()).size();
                                }
                                held.push(Block::new(size).expect("it fits"));
                                bytes += size;
                            }
                        });
                    }
                }
            });
            let usage = memory.usage();
            assert!(usage.charged_bytes <= total);
        }
    });
}

#[test]
#[serial]
fn drift_after_ten_million_cross_thread_operations_is_zero() {
    each_way(|profiled| {
        let memory = profiled(Memory::new(1 << 30));
        let clients = ["a", "b", "c"].map(|name| strict(&memory, name, 64 << 20));
        let (sender, receiver) = std::sync::mpsc::sync_channel::<Vec<Block>>(64);
        std::thread::scope(|scope| {
            for seed in 0..2u64 {
                let sender = sender.clone();
                let clients = &clients;
                scope.spawn(move || {
                    let mut random = seed + 1;
                    for round in 0..2_500usize {
                        let mut batch = Vec::with_capacity(1000);
                        let scope = clients[round % 3].enter();
                        for _ in 0..1000 {
                            random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                            let size = (random >> 40) as usize % 300 + 1;
                            batch.push(Block::new(size).unwrap());
                        }
                        // The channel allocates what outlives the thread's part.
                        drop(scope);
                        sender.send(batch).unwrap();
                    }
                });
            }
            drop(sender);
            let clients = &clients;
            scope.spawn(move || {
                for (round, batch) in receiver.into_iter().enumerate() {
                    let _scope = clients[round % 2].enter();
                    drop(batch);
                }
            });
        });
        for client in &clients {
            let usage = client.usage();
            assert_eq!((usage.live_bytes, usage.live_allocations), (0, 0));
            let (_blocks, bytes) = fill_up(client, 1 << 20);
            assert_eq!(bytes, 64 << 20);
        }
        let made: u64 = clients.iter().map(|c| c.usage().total_allocations).sum();
        assert!(made >= 5_000_000, "{made}");
    });
}

/// Credit follows what a thread moves: little for one that does little, and for
/// one that allocates much at most as much again.
#[test]
#[serial]
fn a_thread_holds_no_more_unused_than_it_has_moved() {
    const FIRST: u64 = 64 << 10;
    each_way(|profiled| {
        let memory = profiled(Memory::new(16 << 30));
        let client = strict(&memory, "moves", 1 << 30);
        let mut blocks: Vec<Block> = Vec::with_capacity(10_000);
        let unused = || {
            let usage = client.usage();
            usage.charged_bytes - usage.live_bytes
        };
        let mut most = 0;
        for _ in 0..10_000 {
            blocks.extend(Block::of(&client, 1000));
            let moved = client.usage().live_bytes;
            assert!(unused() <= FIRST + moved, "{} of {moved}", unused());
            most = most.max(unused());
        }
        // Where nobody can be made to return it, nobody holds any.
        assert!(most == 0 || most >= 512 << 10, "{most}");
        // The way back: what it keeps is bound as well.
        for _ in 0..10_000 {
            blocks.pop();
            assert!(unused() <= 2 << 20, "{}", unused());
        }
        let once = client.run(|| Block::new(1)).unwrap();
        assert!(once.is_some() && unused() <= 2 << 20);
    });
}
