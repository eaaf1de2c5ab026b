//! Caches that clients offer: asked under pressure, measured by the ledger,
//! never trusted, never waited for too long.

#[path = "support/caches.rs"]
mod caches;
mod common;

use caches::{MIB, PAGE, client, memory};
use common::{Bytes, give, quiet};
use serial_test::serial;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tiered_allocator::pressure::{Urgency, Watermarks};
use tiered_allocator::{
    Client, ClientOptions, EventKind, Ladder, Limit, Memory, ReclaimRequest, ReclaimerGuard, Rung,
    SubscriptionTier,
};

use SubscriptionTier::{Basic, Enterprise, Premium};

/// A cache of a client: blocks of 64 KiB of the heap.
#[derive(Clone)]
struct Cache {
    blocks: Arc<Mutex<Vec<Bytes>>>,
    client: Client,
}

impl Cache {
    fn filled(client: &Client, bytes: u64) -> Cache {
        let cache = Cache {
            blocks: Arc::default(),
            client: client.clone(),
        };
        cache.fill(bytes);
        cache
    }

    fn fill(&self, bytes: u64) {
        for _ in 0..bytes / PAGE {
            let block = Bytes::of(&self.client, PAGE as usize).expect("it fits");
            self.blocks.lock().unwrap().push(block);
        }
    }

    fn bytes(&self) -> u64 {
        self.blocks.lock().unwrap().len() as u64 * PAGE
    }

    /// Registers a reclaimer that gives what it is asked for.
    fn offer(&self) -> ReclaimerGuard {
        let own = self.clone();
        let give = move |request| own.give(request);
        self.client.register_reclaimer(give).unwrap()
    }

    /// What a well-behaved reclaimer does.
    fn give(&self, request: ReclaimRequest) -> u64 {
        give(&self.blocks, request)
    }
}

fn kinds(memory: &Memory) -> Vec<EventKind> {
    memory.events(0).0.iter().map(|event| event.kind).collect()
}

#[test]
#[serial]
fn below_the_high_watermark_nobody_is_asked() {
    let memory = memory(|builder| builder);
    let a = client(&memory, "a", Basic, 80);
    let cache = Cache::filled(&a, 71 * MIB);
    let asked = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&asked);
    let _guard = a
        .register_reclaimer(move |_| counter.fetch_add(1, Ordering::Relaxed))
        .unwrap();
    memory.tick();
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    assert!(!memory.snapshot().reclaim.under_pressure);
    drop(cache);
}

#[test]
#[serial]
fn above_it_caches_give_until_the_low_watermark_lowest_tier_first() {
    let memory = memory(|builder| builder);
    let caches: Vec<Cache> = [(Enterprise, 30), (Premium, 20), (Basic, 6), (Basic, 20)]
        .into_iter()
        .enumerate()
        .map(|(at, (tier, mib))| {
            let client = client(&memory, &format!("c{at}"), tier, 40);
            Cache::filled(&client, mib * MIB)
        })
        .collect();
    let guards: Vec<_> = caches.iter().map(Cache::offer).collect();
    // 76 MiB: 12 above the low mark. The worst of the lowest tier has 20.
    memory.tick();
    let left: Vec<u64> = caches.iter().map(Cache::bytes).collect();
    assert_eq!(left, [30 * MIB, 20 * MIB, 6 * MIB, 8 * MIB]);
    let snapshot = memory.snapshot();
    let rung = snapshot.reclaim.rungs[Rung::BorrowerCaches as usize];
    assert_eq!((rung.climbed, rung.reclaimed_bytes), (1, 12 * MIB));
    assert_eq!(snapshot.clients[3].usage.live_bytes, 8 * MIB);
    memory.tick();
    assert!(!memory.snapshot().reclaim.under_pressure);
    let kinds = kinds(&memory);
    for kind in [
        EventKind::PressureBegan,
        EventKind::Reclaimed,
        EventKind::PressureEnded,
    ] {
        assert!(kinds.contains(&kind), "{kind:?} is missing in {kinds:?}");
    }
    drop(guards);
}

#[test]
#[serial]
fn nobody_is_asked_for_what_it_is_guaranteed() {
    let memory = memory(|builder| builder);
    let options = ClientOptions::new(Basic)
        .max(Limit::Bytes(60 * MIB))
        .guarantee(Limit::Bytes(35 * MIB));
    let safe = memory.register("safe", options).unwrap();
    let other = client(&memory, "other", Premium, 60);
    let cache = Cache::filled(&safe, 40 * MIB);
    let _rest = Cache::filled(&other, 36 * MIB);
    let (sender, wanted) = mpsc::channel();
    let own = cache.clone();
    let _guard = safe
        .register_reclaimer(move |request| {
            sender.send(request.wanted_bytes).unwrap();
            own.give(request)
        })
        .unwrap();
    memory.tick();
    memory.tick();
    let wanted: Vec<u64> = wanted.try_iter().collect();
    assert_eq!(wanted, [5 * MIB]);
    assert_eq!(cache.bytes(), 35 * MIB);
}

#[test]
#[serial]
fn a_liar_is_found_out_by_the_ledger_and_asked_less_and_less() {
    let memory = memory(|builder| builder);
    let liar = client(&memory, "liar", Basic, 80);
    let _held = Cache::filled(&liar, 76 * MIB);
    let asked = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&asked);
    let _guard = liar
        .register_reclaimer(move |request| {
            counter.fetch_add(1, Ordering::Relaxed);
            request.wanted_bytes
        })
        .unwrap();
    for _ in 0..64 {
        memory.tick();
    }
    // Left out 1, 2, 4, 8, 16, then 32 rounds.
    assert_eq!(asked.load(Ordering::Relaxed), 6);
    let rung = memory.snapshot().reclaim.rungs[Rung::BorrowerCaches as usize];
    assert_eq!((rung.climbed, rung.reclaimed_bytes), (6, 0));
}

#[test]
#[serial]
fn one_that_panics_is_unregistered_and_the_rest_go_on() {
    let memory = memory(|builder| builder);
    let bad = client(&memory, "bad", Basic, 60);
    let good = client(&memory, "good", Premium, 60);
    let _held = Cache::filled(&bad, 40 * MIB);
    let cache = Cache::filled(&good, 36 * MIB);
    let bad_guard = bad.register_reclaimer(|_| panic!("broken cache")).unwrap();
    let good_guard = cache.offer();
    memory.tick();
    assert_eq!(cache.bytes(), 24 * MIB);
    assert!(!bad_guard.is_registered());
    assert!(good_guard.is_registered());
    assert_eq!(memory.snapshot().reclaim.panicked_reclaimers, 1);
    assert!(kinds(&memory).contains(&EventKind::ReclaimerPanicked));
    cache.fill(12 * MIB);
    memory.tick();
    assert_eq!(cache.bytes(), 24 * MIB);
    assert_eq!(memory.snapshot().reclaim.panicked_reclaimers, 1);
}

/// A callback that hangs until the test lets it go: the ladder must not.
#[test]
#[serial]
fn one_that_hangs_does_not_hold_up_the_rest_and_is_not_called_twice() {
    let ladder = Ladder::default().call(Duration::from_millis(1));
    let memory = memory(|builder| builder.background(true).ladder(ladder));
    let slow = client(&memory, "slow", Basic, 60);
    let good = client(&memory, "good", Premium, 60);
    let held = Cache::filled(&slow, 34 * MIB);
    let (let_go, gate) = mpsc::channel::<()>();
    let running = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&running);
    let own = held.clone();
    let slow_guard = slow
        .register_reclaimer(move |request| {
            counter.fetch_add(1, Ordering::SeqCst);
            let _ = gate.recv();
            own.give(request)
        })
        .unwrap();
    let cache = Cache::filled(&good, 36 * MIB);
    // The first call of a callback may be late on a slow machine; it is asked
    // again then.
    let _good_guard = cache.offer();
    held.fill(6 * MIB);
    while cache.bytes() > 24 * MIB || running.load(Ordering::SeqCst) == 0 {
        memory.tick();
        std::thread::yield_now();
    }
    memory.tick();
    assert_eq!(running.load(Ordering::SeqCst), 1);
    assert!(memory.snapshot().reclaim.late_reclaimers >= 1);
    assert!(kinds(&memory).contains(&EventKind::ReclaimerLate));
    // It ends after all, and what it gave counts.
    assert!(slow_guard.is_registered());
    drop(let_go);
    while held.bytes() == 40 * MIB {
        std::thread::yield_now();
    }
    assert!(slow_guard.is_registered());
}

#[test]
#[serial]
fn a_guard_that_is_dropped_unregisters_also_from_inside_its_own_call() {
    let memory = memory(|builder| builder);
    let a = client(&memory, "a", Basic, 80);
    let _held = Cache::filled(&a, 76 * MIB);
    let asked = Arc::new(AtomicU64::new(0));
    let own_guard = Arc::new(Mutex::new(None));
    let (counter, slot) = (Arc::clone(&asked), Arc::clone(&own_guard));
    let guard = a
        .register_reclaimer(move |_| {
            drop(slot.lock().unwrap().take());
            counter.fetch_add(1, Ordering::Relaxed)
        })
        .unwrap();
    *own_guard.lock().unwrap() = Some(guard);
    for _ in 0..8 {
        memory.tick();
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // The callback is gone with all that it held.
    assert_eq!(Arc::strong_count(&asked), 1);
}

#[test]
#[serial]
fn a_removed_client_is_told_so_and_a_kept_reclaimer_ends_with_its_client() {
    let memory = quiet(100 * MIB);
    let a = client(&memory, "a", Basic, 80);
    let held = Arc::new(());
    let own = Arc::clone(&held);
    a.register_reclaimer(move |_| Arc::strong_count(&own) as u64)
        .unwrap()
        .keep();
    memory.remove_client("a").unwrap();
    assert!(a.register_reclaimer(|_| 0).is_err());
    drop(memory);
    assert_eq!(Arc::strong_count(&held), 1);
}

#[test]
#[serial]
fn a_callback_may_use_the_memory_that_calls_it() {
    let memory = memory(|builder| builder);
    let a = client(&memory, "a", Basic, 80);
    let cache = Cache::filled(&a, 76 * MIB);
    let (own, weak) = (cache.clone(), memory.clone());
    let worked = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&worked);
    let guard = a
        .register_reclaimer(move |request| {
            // Everything that an application might do in there.
            weak.tick();
            weak.reclaim_unused_memory();
            let _ = weak.snapshot();
            let block = weak.allocate_for_client("a", 4096);
            done.store(block.is_ok(), Ordering::Relaxed);
            assert_eq!(request.urgency, Urgency::High);
            own.give(request)
        })
        .unwrap();
    memory.tick();
    assert!(worked.load(Ordering::Relaxed));
    assert!(cache.bytes() <= 65 * MIB);
    drop(guard);
}

#[test]
#[serial]
fn a_client_above_its_soft_limit_has_its_caches_asked_at_a_safe_point() {
    // However slow the machine is, the call is waited for.
    let ladder = Ladder::default().call(Duration::from_secs(3600));
    let memory = memory(|builder| builder.background(true).ladder(ladder));
    let options = ClientOptions::new(Basic)
        .max(Limit::Bytes(20 * MIB))
        .soft(Limit::Bytes(10 * MIB));
    let a = memory.register("a", options).unwrap();
    let cache = Cache::filled(&a, 16 * MIB);
    let _guard = cache.offer();
    a.checkpoint().unwrap();
    // Done already, unless the machine was slow: a tick comes after it.
    memory.tick();
    assert_eq!(cache.bytes(), 10 * MIB);
    let rung = memory.snapshot().reclaim.rungs[Rung::SoftLimitCaches as usize];
    assert_eq!(rung.reclaimed_bytes, 6 * MIB);
    // Below it nothing is asked for.
    a.checkpoint().unwrap();
    memory.tick();
    assert_eq!(cache.bytes(), 10 * MIB);
}

#[test]
#[serial]
fn watermarks_are_the_hosts_to_choose() {
    let ladder = Ladder::default().watermarks(Watermarks::new(0.5, 0.25).unwrap());
    let memory = memory(|builder| builder.ladder(ladder));
    let a = client(&memory, "a", Basic, 80);
    let cache = Cache::filled(&a, 41 * MIB);
    let _guard = cache.offer();
    memory.tick();
    assert_eq!(cache.bytes(), 20 * MIB);
}
