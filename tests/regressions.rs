//! Each test here failed once: the scenarios that broke a promise.

mod common;
#[path = "support/until.rs"]
mod until;

use common::{Bytes as Block, client};
use serial_test::serial;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tiered_allocator::{
    Client, ClientOptions, Enforcement, InClientExt, Limit, Memory, SubscriptionTier, TierPolicy,
    TieredAllocator,
};
use until::{Stops, until};

fn memory_of(total: u64) -> Memory {
    Memory::builder(total).usable(1.0).build().unwrap()
}

#[test]
#[serial]
fn a_request_beyond_any_address_space_is_refused_and_changes_nothing() {
    assert!(TieredAllocator::is_installed());
    let memory = memory_of(1 << 30);
    let observed = client(&memory, "observed", 1 << 20, Enforcement::Observe);
    for size in [
        isize::MAX as usize,
        1 << 62,
        (1 << 62) - 5000,
        1 << 61,
        1 << 50,
    ] {
        let mut bytes: Vec<u8> = vec![1];
        assert!(bytes.try_reserve_exact(size - 1).is_err());
        assert!(Vec::<u8>::new().try_reserve_exact(size).is_err());
        observed
            .run(|| {
                let mut bytes: Vec<u8> = vec![1];
                assert!(bytes.try_reserve_exact(size - 1).is_err());
                assert!(Vec::<u8>::new().try_reserve_exact(size).is_err());
            })
            .unwrap();
        std::thread::spawn(move || assert!(Vec::<u8>::new().try_reserve_exact(size).is_err()))
            .join()
            .unwrap();
        assert_eq!(observed.usage().live_bytes, 0);
        assert!(observed.usage().charged_bytes < 1 << 20);
    }
    for size in [usize::MAX, 1 << 63, isize::MAX as usize, 1 << 62] {
        assert!(memory.allocate_for_client("observed", size).is_err());
        assert_eq!(observed.usage().live_bytes, 0);
        assert!(memory.usage().charged_bytes < 1 << 20);
    }
    let before = memory.snapshot().unattributed_bytes;
    // The test harness' own threads may free a little meanwhile.
    let block = Block::new(1 << 20).unwrap();
    assert!(memory.snapshot().unattributed_bytes >= before + (1 << 20) - 50_000);
    drop(block);
}

/// A removed client's frees leave credit in its threads' accounts. It is in
/// nobody's use, so it must not stand in a neighbour's way.
#[test]
#[serial]
fn what_a_removed_client_freed_can_be_had_by_others() {
    const TOTAL: u64 = 8 << 20;
    let memory = memory_of(TOTAL);
    let gone = client(&memory, "gone", TOTAL, Enforcement::Strict);
    let other = client(&memory, "other", TOTAL, Enforcement::Strict);
    let scope = gone.enter();
    let kept = Block::new(10).unwrap();
    let freed = Block::new(20_000).unwrap();
    let also = Block::new(20_000).unwrap();
    drop(scope);
    memory.remove_client("gone").unwrap();
    drop((freed, also));
    let _scope = other.enter();
    assert!(Block::new(TOTAL as usize - 10).is_some());
    drop(kept);
}

/// Growing a removed client's block at its limit must not let open scopes
/// charge to it again.
#[test]
#[serial]
fn a_removed_client_stays_barred_when_its_blocks_grow() {
    const MAX: usize = 16 << 20;
    let memory = memory_of(64 << 20);
    let gone = client(&memory, "gone", MAX as u64, Enforcement::Graceful);
    let mut held = {
        let _scope = gone.enter();
        Block::new(1000).unwrap()
    };
    // Channels would allocate in the scope.
    let stage = AtomicU64::new(0);
    let reach = |next| stage.store(next, Ordering::SeqCst);
    let wait_for = |wanted| {
        until("the other thread's next stage", || {
            stage.load(Ordering::SeqCst) >= wanted
        });
    };
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let _scope = gone.enter();
            let first = Block::new(50_000);
            let second = Block::new(48_000);
            reach(1);
            wait_for(2);
            drop(first);
            reach(3);
            wait_for(4);
            drop(second);
            let _third = Block::new(10_000);
        });
        wait_for(1);
        memory.remove_client("gone").unwrap();
        reach(2);
        wait_for(3);
        let before = gone.usage().total_bytes;
        // 49,000 live, and some credit in the other thread's account.
        held.grow(MAX - 48_000);
        assert_eq!(gone.usage().total_bytes, before + (MAX - 49_000) as u64);
        reach(4);
    });
    // What the open scope allocated after the removal is not the client's.
    assert_eq!(gone.usage().total_bytes, 50_000 + MAX as u64);
}

/// Credit that idle threads hold is not a reason to refuse a guarantee.
#[test]
#[serial]
fn a_guarantee_that_fits_is_not_refused_because_of_unused_credit() {
    const TOTAL: u64 = 8 << 20;
    let memory = memory_of(TOTAL);
    let busy = client(&memory, "busy", TOTAL, Enforcement::Strict);
    let scope = busy.enter();
    let block = Block::new(1000).unwrap();
    drop(scope);
    assert!(busy.usage().charged_bytes > 1000, "credit was drawn ahead");
    let options = ClientOptions::new(SubscriptionTier::Enterprise)
        .max(Limit::Bytes(TOTAL))
        .guarantee(Limit::Bytes(TOTAL - 1000));
    let guaranteed = memory.register("guaranteed", options).unwrap();
    assert_eq!(memory.usage().charged_bytes, TOTAL);
    drop(block);
    guaranteed
        .configure(ClientOptions::new(SubscriptionTier::Enterprise))
        .unwrap();
}

/// An overdraft that has become unnecessary is not held against the client.
#[test]
#[serial]
fn a_client_within_its_limit_again_is_not_cancelled() {
    let memory = Memory::new(10 << 20);
    let graceful = client(&memory, "graceful", 100_000, Enforcement::Graceful);
    let scope = graceful.enter();
    let first = Block::new(90_000).unwrap();
    let second = Block::new(20_000).unwrap();
    drop(scope);
    assert!(graceful.checkpoint().is_err());
    let scope = graceful.enter();
    let third = Block::new(5_000).unwrap();
    drop(scope);
    drop((first, third));
    let usage = graceful.usage();
    assert_eq!(usage.live_bytes, 20_000);
    assert!(graceful.checkpoint().is_ok(), "{usage:?}");
    assert_eq!(memory.usage().overdrawn_bytes, 0);
    drop(second);
    let scope = graceful.enter();
    let first = Block::new(90_000).unwrap();
    let second = Block::new(20_000).unwrap();
    let small = Block::new(1_000).unwrap();
    drop(scope);
    drop(second);
    let usage = graceful.usage();
    assert_eq!(usage.live_bytes, 91_000);
    assert!(graceful.checkpoint().is_ok(), "{usage:?}");
    drop((first, small));
    assert_eq!(memory.usage().overdrawn_bytes, 0);
}

/// A large request that fits beside busy neighbours, at the limit that they
/// share.
#[test]
#[serial]
fn busy_neighbours_never_cause_a_refusal_at_a_shared_limit() {
    const LARGE: usize = 1_000_000;
    const SHARE: usize = 20_000;
    const NEIGHBOURS: usize = 5;
    const TOTAL: u64 = (LARGE + NEIGHBOURS * SHARE) as u64;
    let policy = TierPolicy::new(Limit::Bytes(TOTAL)).enforcement(Enforcement::Strict);
    let memory = Memory::builder(TOTAL)
        .usable(1.0)
        .tier("tight", policy)
        .build()
        .unwrap();
    let large = memory.register("large", "tight").unwrap();
    let stop = AtomicBool::new(false);
    let refused = AtomicU64::new(0);
    let busy = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for number in 0..NEIGHBOURS {
            let client = memory.register(&format!("n{number}"), "tight").unwrap();
            let (stop, refused, busy) = (&stop, &refused, &busy);
            scope.spawn(move || {
                let mut random = number as u64 + 1;
                let mut held: Vec<Block> = Vec::with_capacity(4096);
                let mut bytes = 0;
                let _scope = client.enter();
                while !stop.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                    let size = (random >> 33) as usize % 3000 + 1;
                    while bytes + size > SHARE {
                        bytes -= held.swap_remove(size % held.len()).size();
                    }
                    match Block::new(size) {
                        Some(block) => {
                            held.push(block);
                            bytes += size;
                            busy.fetch_add(1, Ordering::Relaxed);
                        }
                        None => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        // However this ends, the neighbours do, too.
        let _stops = Stops(&stop);
        until("a million blocks of the neighbours", || {
            let _scope = large.enter();
            for _ in 0..100 {
                if Block::new(LARGE).is_none() {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            busy.load(Ordering::Relaxed) >= 1_000_000
        });
    });
    assert_eq!(refused.load(Ordering::Relaxed), 0);
}

/// Scopes may be left in any order. However deep they nest, what is current is
/// a scope that is open: an account that no scope points to may become another
/// client's.
#[test]
#[serial]
fn a_scope_that_was_left_never_becomes_current_again() {
    let memory = memory_of(64 << 20);
    let outer = client(&memory, "outer", 1 << 20, Enforcement::Graceful);
    let inner = client(&memory, "inner", 1 << 20, Enforcement::Graceful);
    for deep in [1, 10, 31, 32, 33, 34, 50] {
        let mut scopes: Vec<_> = Vec::with_capacity(100);
        scopes.extend((0..deep).map(|_| outer.enter()));
        let early = inner.enter();
        let late = inner.enter();
        drop(early);
        drop(late);
        assert_eq!(Client::current(), Some(outer.clone()), "{deep}");
        while let Some(scope) = scopes.pop() {
            drop(scope);
            assert_eq!(Client::current().is_some(), !scopes.is_empty(), "{deep}");
        }
    }
}

/// "Never" is an interval, too.
#[test]
#[serial]
fn the_longest_interval_does_not_end_the_reclaimer() {
    let memory = Memory::builder(1 << 30)
        .reclaim_every(std::time::Duration::MAX)
        .sample_every(std::time::Duration::MAX)
        .build()
        .unwrap();
    memory.tick();
    memory.tick();
    assert!(memory.has_reclaimer_thread());
}

#[test]
#[serial]
fn work_that_outlives_its_request_budget_cannot_escape_its_client() {
    let memory = memory_of(1 << 30);
    let client = client(&memory, "detached", 1 << 20, Enforcement::Graceful);
    let budget = client.budget(1 << 19).unwrap();
    let left = budget.clone();
    let kept = left.bind(|| vec![0_u8; 100])();
    drop(budget);
    // Budgets made later close ended ones, but not one that holds something.
    for _ in 0..100 {
        drop(client.budget(1 << 19).unwrap());
    }
    // A thread that has never worked for the budget.
    let work = left.bind(|| Block::new(10_000).unwrap());
    let made = std::thread::spawn(work).join().unwrap();
    assert_eq!(client.usage().live_bytes, 10_100);
    drop((kept, made));
    assert_eq!(client.usage().live_bytes, 0);
}

#[test]
#[serial]
fn work_kept_for_later_keeps_its_request_budget_although_nothing_else_does() {
    let memory = memory_of(1 << 30);
    let client = client(&memory, "later", 1 << 20, Enforcement::Graceful);
    let budget = client.budget(1 << 19).unwrap();
    let bound = budget.bind(|| Block::new(1_000).unwrap());
    let future = async { Block::new(2_000).unwrap() }.in_client(&budget);
    drop(budget);
    let others: Vec<_> = (0..100).map(|_| client.budget(1 << 19).unwrap()).collect();
    let made = bound();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut future = Box::pin(future);
    let polled = future.as_mut().poll(&mut context);
    assert_eq!(client.usage().live_bytes, 3_000);
    assert!(others.iter().all(|other| other.usage().live_bytes == 0));
    drop((made, polled, future, others));
    assert_eq!(client.usage().live_bytes, 0);
    // Nothing keeps it any more: the slots go round again.
    let index = (0..200)
        .map(|_| client.budget(1).unwrap().id().index())
        .max();
    assert!(index.unwrap() < 500, "{index:?}");
}

/// Credit that was drawn, or freed, under a limit that was lowered since.
#[test]
#[serial]
fn a_lowered_limit_binds_what_is_freed_under_it() {
    let memory = memory_of(1 << 30);
    let client = client(&memory, "lowered", 4 << 20, Enforcement::Strict);
    let scope = client.enter();
    let mut blocks: Vec<Block> = tiered_allocator::untracked(|| Vec::with_capacity(100));
    blocks.extend((0..100).map(|_| Block::new(100).unwrap()));
    drop(scope);
    client
        .configure(
            tiered_allocator::ClientOptions::new("Basic")
                .max(tiered_allocator::Limit::Bytes(5000))
                .enforcement(Enforcement::Strict),
        )
        .unwrap();
    let _scope = client.enter();
    blocks.truncate(40);
    assert_eq!(client.usage().live_bytes, 4000);
    assert!(Block::new(3000).is_none());
    assert!(Block::new(1000).is_some());
}
