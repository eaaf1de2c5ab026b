//! What is reported adds up: against an allocator around this one that counts
//! for itself, among the tiers, and at any moment while threads work.

use serial_test::serial;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use tiered_allocator::{
    AllocateError, BudgetNode, Client, ClientOptions, Enforcement, Limit, Memory, Snapshot,
    SubscriptionTier, TierPolicy, TieredAllocator,
};

use SubscriptionTier::{Basic, Enterprise, Premium};

/// Counts what goes through it, by the sizes of the layouts alone.
struct Audited {
    inner: TieredAllocator,
    live_bytes: AtomicI64,
    live_blocks: AtomicI64,
}

impl Audited {
    fn count(&self, bytes: i64, blocks: i64) {
        self.live_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.live_blocks.fetch_add(blocks, Ordering::Relaxed);
    }

    fn live(&self) -> (i64, i64) {
        let bytes = self.live_bytes.load(Ordering::Relaxed);
        (bytes, self.live_blocks.load(Ordering::Relaxed))
    }
}

// SAFETY: every call goes on as it came.
unsafe impl GlobalAlloc for Audited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        let block = unsafe { self.inner.alloc(layout) };
        if !block.is_null() {
            self.count(layout.size() as i64, 1);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.count(-(layout.size() as i64), -1);
        // SAFETY: the caller's contract is the same.
        unsafe { self.inner.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        let moved = unsafe { self.inner.realloc(block, layout, new_size) };
        if !moved.is_null() {
            self.count(new_size as i64 - layout.size() as i64, 0);
        }
        moved
    }
}

#[global_allocator]
static HEAP: Audited = Audited {
    inner: TieredAllocator::system(),
    live_bytes: AtomicI64::new(0),
    live_blocks: AtomicI64::new(0),
};

fn quiet(total_bytes: u64) -> Memory {
    let builder = Memory::builder(total_bytes).background(false);
    builder.build().unwrap()
}

/// Heap bytes and allocations of everybody, as a snapshot has them.
fn reported(snapshot: &Snapshot) -> (i64, i64) {
    let everybody = snapshot.clients.iter().chain(&snapshot.retired);
    let heap = everybody.map(|client| {
        let usage = &client.usage;
        assert_eq!(usage.block_bytes, 0);
        (usage.live_bytes as i64, usage.live_allocations as i64)
    });
    let nobody = (
        snapshot.unattributed_bytes as i64,
        snapshot.unattributed_allocations as i64,
    );
    heap.fold(nobody, |sum, own| (sum.0 + own.0, sum.1 + own.1))
}

/// A snapshot that says, itself included, what the heap gave out. The test
/// harness has threads of its own, which may come between the two readings: it
/// is tried more than once.
#[track_caller]
fn adds_up(memory: &Memory) -> Snapshot {
    for _ in 0..1000 {
        let snapshot = memory.snapshot();
        if reported(&snapshot) == HEAP.live() {
            return snapshot;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let snapshot = memory.snapshot();
    assert_eq!(reported(&snapshot), HEAP.live(), "bytes and blocks");
    snapshot
}

/// Work of every kind in the scopes of several clients: grows, shrinks, frees
/// what other threads allocated, and leaves some of it.
fn churn(clients: &[Client], seed: usize) -> Vec<Vec<u8>> {
    let mut random = seed;
    let mut held: Vec<Vec<u8>> = Vec::new();
    for _ in 0..3000 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
        let pick = random >> 33;
        let _scope = clients[pick % clients.len()].enter();
        match pick % 5 {
            0 | 1 => held.push(vec![1; pick % 9000 + 1]),
            2 if !held.is_empty() => drop(held.swap_remove(pick % held.len())),
            3 if !held.is_empty() => {
                let at = pick % held.len();
                held[at].resize(pick % 20_000 + 1, 2);
            }
            _ => {
                if let Some(last) = held.last_mut() {
                    last.truncate(last.len() / 2 + 1);
                    last.shrink_to_fit();
                }
            }
        }
    }
    held
}

#[test]
#[serial]
fn clients_retired_and_nobody_add_up_to_what_the_heap_gave_out() {
    assert!(TieredAllocator::is_installed());
    let memory = quiet(1 << 30);
    let clients: Arc<[Client]> = ["a", "b", "c", "d"]
        .map(|name| memory.register(name, Enterprise).unwrap())
        .into();
    let kept = clients[3].run(|| vec![0_u8; 333]).unwrap();
    memory.remove_client("d").unwrap();

    let mut held = Vec::new();
    for round in 0..3 {
        let (sender, receiver) = sync_channel(2);
        let threads: Vec<_> = (0..3)
            .map(|number| {
                let (clients, sender) = (Arc::clone(&clients), sender.clone());
                std::thread::spawn(move || {
                    let held = churn(&clients[..3], round * 3 + number + 1);
                    sender.send(held).unwrap();
                })
            })
            .collect();
        drop(sender);
        for blocks in receiver {
            // Half of it is freed here: on another thread, in another scope.
            let _scope = clients[round % 3].enter();
            held.extend(blocks.into_iter().step_by(2));
        }
        for thread in threads {
            thread.join().unwrap();
        }
        let after = adds_up(&memory);
        assert!(
            after
                .clients
                .iter()
                .any(|client| client.usage.live_bytes > 0)
        );
        assert_eq!(after.retired[0].usage.live_bytes, 333);
    }
    drop(held);
    let after = adds_up(&memory);
    assert!(after.clients.iter().all(|c| c.usage.live_bytes == 0));
    drop(kept);
}

#[test]
#[serial]
fn no_figure_is_negative_or_above_what_is_charged_while_threads_work() {
    const MAX: u64 = 4 << 20;
    let memory = quiet(1 << 30);
    let clients: Arc<[Client]> = ["a", "b", "c"]
        .map(|name| {
            let options = ClientOptions::new(Premium).max(Limit::Bytes(MAX));
            memory.register(name, options).unwrap()
        })
        .into();
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..3)
        .map(|number| {
            let (clients, stop) = (Arc::clone(&clients), Arc::clone(&stop));
            let memory = memory.clone();
            std::thread::spawn(move || {
                let mut seed = number;
                while !stop.load(Ordering::Relaxed) {
                    seed += 3;
                    let mut held = churn(&clients, seed);
                    held.truncate(50);
                    let block = memory.allocate_for_client("b", 10_000).unwrap();
                    drop((held, block));
                }
            })
        })
        .collect();
    for round in 0..200 {
        let snapshot = memory.snapshot();
        let removed = format!("removed-{round}");
        let removed = memory.register(&removed, Basic).unwrap();
        let left = removed.run(|| vec![0_u8; 100]).unwrap();
        memory.remove_client(&removed.name().unwrap()).unwrap();
        drop(left);
        for client in snapshot.clients.iter().chain(&snapshot.retired) {
            let usage = &client.usage;
            assert!(usage.live_bytes <= usage.charged_bytes, "{client:?}");
            assert!(usage.charged_bytes <= usage.peak_bytes, "{client:?}");
            assert!(usage.live_bytes <= usage.total_bytes, "{client:?}");
            assert!(usage.block_bytes <= usage.live_bytes, "{client:?}");
            assert!(usage.total_bytes < 1 << 50, "{client:?}");
            assert!(
                usage.live_allocations <= usage.total_allocations,
                "{client:?}"
            );
        }
        assert!(snapshot.memory.charged_bytes <= snapshot.memory.usable_bytes);
        assert!(
            snapshot
                .tiers
                .iter()
                .all(|tier| tier.charged_bytes < 1 << 30)
        );
        assert!(snapshot.unattributed_bytes < 1 << 30);
        let mut ids: Vec<_> = snapshot
            .clients
            .iter()
            .chain(&snapshot.retired)
            .map(|c| c.id)
            .collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), snapshot.clients.len() + snapshot.retired.len());
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    for client in clients.iter() {
        assert_eq!(
            (client.usage().live_bytes, client.usage().live_allocations),
            (0, 0)
        );
    }
}

#[test]
#[serial]
fn tiers_add_up_to_the_memory() {
    let memory = quiet(100 << 20);
    let with = |tier, guarantee| ClientOptions::new(tier).guarantee(Limit::Bytes(guarantee));
    let options = [
        ("a", with(Basic, 1000)),
        ("b", with(Basic, 0)),
        ("c", with(Premium, 500_000)),
        ("d", with(Enterprise, 0)),
    ];
    for (name, options) in options {
        memory.register(name, options).unwrap();
    }
    let blocks = [("a", 10_000), ("b", 20_000), ("c", 30_000), ("d", 40_000)]
        .map(|(name, size)| memory.allocate_for_client(name, size).unwrap());
    let borrower = memory.client("b").unwrap();
    let overdraft = borrower.run(|| vec![0_u8; 9 << 20]).unwrap_err().output;
    memory.remove_client("d").unwrap();
    let snapshot = memory.snapshot();
    let names: Vec<&str> = snapshot
        .clients
        .iter()
        .map(|client| &*client.name)
        .collect();
    assert_eq!(names, ["a", "b", "c"]);
    let everybody = || snapshot.clients.iter().chain(&snapshot.retired);
    for tier in &snapshot.tiers {
        let own = everybody().filter(|client| client.tier == tier.name);
        let held: u64 = own
            .map(|client| {
                let usage = client.usage;
                client
                    .guarantee_bytes
                    .max(usage.charged_bytes - usage.overdrawn_bytes)
            })
            .sum();
        assert_eq!(tier.charged_bytes, held, "{tier:?}");
        assert_eq!(tier.limit_bytes, None);
    }
    let counts: Vec<usize> = snapshot.tiers.iter().map(|tier| tier.clients).collect();
    assert_eq!(counts, [2, 1, 0]);
    let charged: u64 = snapshot.tiers.iter().map(|tier| tier.charged_bytes).sum();
    assert_eq!(charged, snapshot.memory.charged_bytes);
    let overdrawn: u64 = everybody().map(|client| client.usage.overdrawn_bytes).sum();
    assert!(overdrawn > 0);
    assert_eq!(overdrawn, snapshot.memory.overdrawn_bytes);
    assert_eq!(snapshot.memory, memory.usage());
    drop((blocks, overdraft));
    // Takes the thread's credit along.
    memory.remove_client("b").unwrap();
    let guarantees = memory.usage().charged_bytes;
    assert_eq!((guarantees, memory.usage().overdrawn_bytes), (501_000, 0));
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

#[test]
#[serial]
fn errors_say_who_how_much_and_what_to_do() {
    let memory = quiet(1_000_000);
    let policy = TierPolicy::new(Limit::Bytes(9000))
        .aggregate(Limit::Bytes(10_000))
        .enforcement(Enforcement::Strict);
    memory.set_tier_policy("trial", policy).unwrap();
    memory.register("first", "trial").unwrap();
    memory.register("second", "trial").unwrap();
    let _block = memory.allocate_for_client("first", 8000).unwrap();

    let says = |error: AllocateError, node, parts: &[&str]| {
        has(&error.to_string(), parts);
        match error {
            AllocateError::QuotaExceeded(quota) => assert_eq!(quota.node, node),
            other => panic!("{other}"),
        }
    };
    let own = memory.allocate_for_client("first", 1001).unwrap_err();
    let advice = "free memory, raise the limit or move it to a higher tier";
    says(
        own,
        BudgetNode::Client,
        &["`first`", "trial", "1001", "8000", "9000", advice],
    );
    let tier = memory.allocate_for_client("second", 2001).unwrap_err();
    says(
        tier,
        BudgetNode::Tier,
        &["`second`", "2001", "8000", "10000", "tier", advice],
    );

    let guarantee = ClientOptions::new(Enterprise)
        .max(Limit::Bytes(900_000))
        .guarantee(Limit::Bytes(795_000));
    let error = memory.register("third", guarantee).unwrap_err();
    has(
        &error.to_string(),
        &["795000", "8000", "800000", "reserved"],
    );
    let error = memory.register("first", Basic).unwrap_err();
    has(&error.to_string(), &["`first`", "unique"]);
    let error = memory.client("nobody").unwrap_err();
    has(&error.to_string(), &["`nobody`", "add_client"]);
    let error = memory.register("x", "gold").unwrap_err();
    has(&error.to_string(), &["`gold`", "MemoryBuilder::tier"]);

    let graceful = memory.register("graceful", Basic).unwrap();
    let over = graceful.run(|| vec![0_u8; 90_000]).unwrap_err();
    has(
        &over.to_string(),
        &["`graceful`", "Basic", "90000", "80000", advice],
    );
    drop(over);
    let zero = memory.allocate_for_client("first", 0).unwrap_err();
    has(&zero.to_string(), &["at least 1 byte"]);
}
