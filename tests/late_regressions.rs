//! Request budgets, overdrafts and limits that are lowered, from many threads:
//! when all is freed, every sum is zero again, and what was open ended.

use serial_test::serial;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tiered_allocator::{
    Budget, Client, ClientOptions, Enforcement, Limit, Memory, SubscriptionTier, TierPolicy,
    TieredAllocator, untracked,
};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }
}

/// A block that may be sent to, and freed on, another thread.
#[derive(Debug)]
struct Raw(*mut u8, Layout);

// SAFETY: a block has one owner, whichever thread that is on.
unsafe impl Send for Raw {}

impl Raw {
    fn new(size: usize) -> Option<Raw> {
        let layout = Layout::from_size_align(size, 1).unwrap();
        // SAFETY: callers ask for at least one byte.
        let block = unsafe { HEAP.alloc(layout) };
        (!block.is_null()).then(|| Raw(block, layout))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: from `new`, with its layout.
        unsafe { HEAP.dealloc(self.0, self.1) }
    }
}

/// Removes all clients, and with them the threads' unused credit.
fn assert_nothing_is_charged(memory: &Memory) {
    for client in memory.snapshot().clients {
        memory.remove_client(&client.name).unwrap();
    }
    let usage = memory.usage();
    assert_eq!((usage.charged_bytes, usage.overdrawn_bytes), (0, 0));
    for tier in memory.snapshot().tiers {
        assert_eq!(tier.charged_bytes, 0, "{}", tier.name);
    }
}

#[test]
#[serial]
fn limits_that_move_under_nested_budgets_and_overdrafts_leave_nothing_charged() {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::builder(16 << 20)
        .usable(0.75)
        .background(false)
        .tier(
            "wide",
            TierPolicy::new(Limit::Bytes(4 << 20)).guarantee(Limit::Bytes(50_000)),
        )
        .tier(
            "narrow",
            TierPolicy::new(Limit::Bytes(100_000)).aggregate(Limit::Bytes(300_000)),
        )
        .build()
        .unwrap();
    let names = ["a", "b", "c", "d"];
    let clients: Vec<Client> = names
        .iter()
        .map(|name| memory.register(name, "wide").unwrap())
        .collect();
    let done = AtomicBool::new(false);
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Raw>(64);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..6_usize)
            .map(|worker| {
                let (clients, sender) = (&clients, sender.clone());
                scope.spawn(move || {
                    let mut random = Random(0x9E37_79B9 + worker as u64);
                    let mut held: Vec<Raw> = untracked(|| Vec::with_capacity(256));
                    let mut open: Vec<Budget> = untracked(|| Vec::with_capacity(8));
                    for _ in 0..12_000 {
                        let client = &clients[random.below(clients.len())];
                        if open.len() == 8 {
                            drop(open.swap_remove(random.below(8)));
                        }
                        match random.below(12) {
                            0 => open.extend(client.budget(20_000).ok()),
                            1 if !open.is_empty() => {
                                let outer = random.below(open.len());
                                let inner = open[outer].budget(10_000).ok();
                                open.extend(inner);
                            }
                            2 => drop(open.pop()),
                            3 => held.truncate(random.below(held.len() + 1)),
                            _ => {
                                let within = match random.below(open.len() + 1) {
                                    0 => client,
                                    at => &*open[at - 1],
                                };
                                let _scope = within.enter();
                                let block = Raw::new(1 + random.below(9000));
                                if random.below(3) == 0 {
                                    drop(block.map(|block| sender.try_send(block)));
                                } else if held.len() < held.capacity() {
                                    held.extend(block);
                                }
                            }
                        }
                    }
                })
            })
            .collect();
        drop(sender);
        scope.spawn(move || receiver.into_iter().for_each(drop));
        let mover = {
            let (clients, done) = (&clients, &done);
            scope.spawn(move || {
                let mut random = Random(77);
                while !done.load(Ordering::Relaxed) {
                    let client = &clients[random.below(clients.len())];
                    let enforcement = [
                        Enforcement::Graceful,
                        Enforcement::Strict,
                        Enforcement::Observe,
                    ][random.below(3)];
                    let tier = ["wide", "narrow"][random.below(2)];
                    let options = ClientOptions::new(tier).enforcement(enforcement);
                    let options = match random.below(3) {
                        0 => options.max(Limit::Bytes(10_000 + random.below(500_000) as u64)),
                        _ => options,
                    };
                    // A guarantee above a low `max` is refused: as good.
                    drop(client.configure(options));
                    if random.below(4) == 0 {
                        drop(client.budget(1).map(|budget| budget.set_tier(tier)));
                    }
                }
            })
        };
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
        done.store(true, Ordering::Relaxed);
        mover.join().unwrap();
    });
    for client in &clients {
        let usage = client.usage();
        assert_eq!((usage.live_bytes, usage.live_allocations), (0, 0));
        assert_eq!(usage.overdrawn_bytes, 0);
    }
    names
        .iter()
        .for_each(|name| memory.remove_client(name).unwrap());
    for _ in 0..4 {
        memory.reclaim_unused_memory();
    }
    assert!(memory.snapshot().retired.is_empty());
    assert_nothing_is_charged(&memory);
}

/// Somebody taking the last of the headroom is no reason to refuse the rest.
#[test]
#[serial]
fn overdrafts_that_race_for_the_headroom_are_all_lent() {
    const THREADS: usize = 8;
    let memory = Memory::builder(64 << 20)
        .usable(0.999)
        .tier("tiny", TierPolicy::new(Limit::Bytes(1000)))
        .build()
        .unwrap();
    let refused = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let client = memory.register(&thread.to_string(), "tiny").unwrap();
            let refused = &refused;
            scope.spawn(move || {
                let mut random = Random(thread as u64 + 1);
                let mut held: Vec<Raw> = Vec::with_capacity(64);
                let _scope = client.enter();
                for _ in 0..30_000 {
                    if held.len() == held.capacity() {
                        held.truncate(random.below(64));
                    }
                    match Raw::new(1 + random.below(3000)) {
                        Some(block) => held.push(block),
                        None => drop(refused.fetch_add(1, Ordering::Relaxed)),
                    }
                }
            });
        }
    });
    assert_eq!(refused.into_inner(), 0);
    assert_nothing_is_charged(&memory);
}

/// An observed client beyond the usable part leaves the headroom to others.
#[test]
#[serial]
fn what_is_observed_beyond_the_usable_part_takes_no_headroom() {
    let memory = Memory::builder(1 << 20)
        .usable(0.5)
        .tier("any", TierPolicy::new(Limit::Share(1.0)))
        .build()
        .unwrap();
    let options = ClientOptions::new("any").enforcement(Enforcement::Observe);
    let observed = memory.register("observed", options).unwrap();
    let graceful = memory.register("graceful", "any").unwrap();
    let hoard = observed.run(|| Raw::new(600_000)).unwrap();
    let scope = graceful.enter();
    let lent = Raw::new(1000);
    drop(scope);
    assert!(lent.is_some());
    drop((hoard, lent));
    assert_nothing_is_charged(&memory);
}

#[test]
#[serial]
fn a_budget_within_a_budget_stops_for_the_outer_one() {
    let memory = Memory::new(1 << 30);
    let client = memory.register("acme", SubscriptionTier::Basic).unwrap();
    let outer = client.budget(10_000).unwrap();
    let inner = outer.budget(50_000).unwrap();
    let error = inner.run(|| vec![0_u8; 20_000]).unwrap_err();
    assert_eq!(error.quota.limit, 10_000);
}

#[test]
#[serial]
fn an_observed_clients_budget_stops_nobody() {
    let memory = Memory::new(1 << 30);
    let options = ClientOptions::new(SubscriptionTier::Basic).enforcement(Enforcement::Observe);
    let client = memory.register("acme", options).unwrap();
    let budget = client.budget(10_000).unwrap();
    assert_eq!(budget.run(|| vec![0_u8; 20_000]).unwrap().len(), 20_000);
    assert_eq!(
        client.usage().observed_breaches + budget.usage().observed_breaches,
        1
    );
}

#[test]
#[serial]
fn a_tier_set_through_a_budget_is_the_clients() {
    let memory = Memory::new(1 << 30);
    let client = memory.register("acme", SubscriptionTier::Basic).unwrap();
    let budget = client.budget(1 << 20).unwrap();
    let kept = budget.run(|| vec![0_u8; 5000]).unwrap();
    budget.set_tier(SubscriptionTier::Premium).unwrap();
    assert_eq!(client.tier(), budget.tier());
    assert_eq!(client.limits().0, memory.usage().usable_bytes / 5);
    drop((kept, budget));
    memory.remove_client("acme").unwrap();
    memory.reclaim_unused_memory();
    assert_nothing_is_charged(&memory);
}

#[test]
#[serial]
fn a_budget_that_outlives_its_memory_gives_its_id_back() {
    let memory = Memory::new(1 << 30);
    let client = memory.register("acme", SubscriptionTier::Basic).unwrap();
    let budget = client.budget(1 << 20).unwrap();
    drop(memory);
    assert!(budget.name().is_some());
    drop(budget);
    let memory = Memory::new(1 << 30);
    for name in 0..4 {
        memory
            .register(&name.to_string(), SubscriptionTier::Basic)
            .unwrap();
    }
    assert!(client.name().is_none());
}

#[test]
#[serial]
fn a_budget_is_enforced_as_its_client_is_by_now() {
    let memory = Memory::new(1 << 30);
    let client = memory.register("acme", SubscriptionTier::Basic).unwrap();
    let budget = client.budget(10_000).unwrap();
    client
        .configure(ClientOptions::new(SubscriptionTier::Basic).enforcement(Enforcement::Strict))
        .unwrap();
    let scope = budget.enter();
    let block = Raw::new(20_000);
    drop(scope);
    assert!(block.is_none());
}
