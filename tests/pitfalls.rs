//! Published failures of systems of this kind, as tests that name them. Where
//! the others are tested: `docs/VERIFICATION.md`.

mod common;

use common::{Bytes, client, timed};
use serial_test::serial;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;
use tiered_allocator::clock::Clock;
use tiered_allocator::pressure::{Figures, Pressure, PressureError, PressureSource, Urgency};
use tiered_allocator::purge::{Purge, Purged};
use tiered_allocator::{
    BudgetNode, Client, ClientOptions, Enforcement, EventKind, Ladder, Limit, Memory,
    SubscriptionTier, TierPolicy, TieredAllocator,
};

use Enforcement::{Graceful, Strict};

/// Pitfall 1: a panic out of `alloc` is undefined behaviour. A refusal is null
/// and nothing else.
#[test]
#[serial]
fn pitfall_1_a_refusal_is_null_and_never_unwinds() {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::new(1 << 30);
    let client = client(&memory, "a", 1000, Strict);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let refused = [1001, 5000, 1 << 20].map(|size| Bytes::of(&client, size).is_none());
        let growth = {
            let mut held = client.run(|| Vec::<u8>::with_capacity(900)).unwrap();
            held.try_reserve_exact(5000).is_err()
        };
        (refused, growth)
    }));
    assert_eq!(outcome.unwrap(), ([true; 3], true));
    assert_eq!(client.usage().live_bytes, 0);
}

/// Pitfall 2: on stable Rust a null ends the process of code that cannot fail.
/// A graceful client gets its memory, and an error at the next safe point.
#[test]
#[serial]
fn pitfall_2_code_that_cannot_fail_lives_and_is_stopped_at_a_safe_point() {
    let memory = Memory::new(1 << 20);
    let client = client(&memory, "a", 10_000, Graceful);
    let mut rounds = 0;
    let over = client.run(|| {
        let mut hoard = Vec::new();
        while client.checkpoint().is_ok() {
            hoard.push(vec![0_u8; 1000]);
            rounds += 1;
        }
        hoard.len()
    });
    // The hoard was dropped before the end of `run`, which is a safe point too.
    assert_eq!(over.unwrap(), rounds);
    assert!((9..=12).contains(&rounds), "{rounds}");
    assert_eq!(memory.usage().overdrawn_bytes, 0);
}

/// Pitfall 3: what was refused must not let others in.
#[test]
#[serial]
fn pitfall_3_refusals_under_fire_leave_the_limit_exact() {
    let memory = Memory::new(1 << 30);
    let client = client(&memory, "a", 100_000, Strict);
    std::thread::scope(|threads| {
        for size in [60_000, 70_000, 99_999, 100_001] {
            let client = &client;
            threads.spawn(move || {
                for _ in 0..2_000 {
                    drop(Bytes::of(client, size));
                    assert!(client.usage().charged_bytes <= 100_000);
                }
            });
        }
    });
    assert_eq!(client.usage().live_bytes, 0);
    assert!(Bytes::of(&client, 100_000).is_some());
}

/// Pitfall 4: a charge kept although a budget further up refused.
#[test]
#[serial]
fn pitfall_4_whoever_refuses_nothing_stays_charged() {
    let tight = TierPolicy::new(Limit::Bytes(1 << 20))
        .enforcement(Strict)
        .aggregate(Limit::Bytes(5_000));
    let memory = Memory::builder(100_000)
        .background(false)
        .usable(0.5)
        .tier("tight", tight)
        .tier(
            "wide",
            TierPolicy::new(Limit::Bytes(1 << 20)).enforcement(Strict),
        )
        .build()
        .unwrap();
    for (name, tier, node) in [
        ("by the tier", "tight", BudgetNode::Tier),
        ("by the memory", "wide", BudgetNode::Memory),
    ] {
        let client = memory.register(name, tier).unwrap();
        let error = memory.allocate_for_client(name, 60_000).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert!(Bytes::of(&client, 60_000).is_none());
        let budget = client.budget(70_000).unwrap();
        assert!(Bytes::of(&budget, 60_000).is_none());
        assert_eq!(client.usage().charged_bytes, 0);
        assert_eq!(budget.usage().charged_bytes, 0);
        assert_eq!(memory.usage().charged_bytes, 0);
        let events = memory.events(0).0;
        assert_eq!(events.last().unwrap().node, node);
    }
}

/// Code of the host, wherever a memory knows any: counts who calls it.
#[derive(Clone, Default)]
struct Counting(Arc<AtomicU64>);

impl Counting {
    fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Clock for Counting {
    fn now(&self) -> Duration {
        self.count();
        Duration::ZERO
    }
}

impl PressureSource for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn read(&mut self, _: &Figures) -> Result<Pressure, PressureError> {
        self.count();
        Ok(Pressure::NONE)
    }
}

impl Purge for Counting {
    fn purge(&self) -> std::io::Result<Purged> {
        self.count();
        Ok(Purged::Asked)
    }
}

/// Pitfall 14: callbacks, logs and sleeps inside `alloc`. The clock, a source of
/// pressure, a purge and a cache's reclaimer are all of the host's code that a
/// memory knows; no allocation calls any of it, whatever comes of the allocation.
#[test]
#[serial]
fn pitfall_14_no_code_of_the_host_runs_inside_an_allocation() {
    let calls = Counting::default();
    let memory = Memory::builder(1 << 20)
        .background(false)
        .clock(Arc::new(calls.clone()))
        .pressure_source(calls.clone())
        .purge(calls.clone())
        .build()
        .unwrap();
    let graceful = client(&memory, "graceful", 10_000, Graceful);
    let strict = client(&memory, "strict", 10_000, Strict);
    let asked = calls.clone();
    let reclaimer = strict.register_reclaimer(move |_| {
        asked.count();
        0
    });
    let before = calls.0.load(Ordering::Relaxed);
    for client in [&graceful, &strict] {
        for size in [100, 5_000, 20_000, 2 << 20] {
            drop(Bytes::of(client, size));
        }
    }
    assert!(strict.usage().refusals >= 2);
    let kinds: Vec<_> = memory.events(0).0.iter().map(|event| event.kind).collect();
    assert!(kinds.contains(&EventKind::Overdraft), "{kinds:?}");
    assert!(kinds.contains(&EventKind::Refused), "{kinds:?}");
    assert_eq!(calls.0.load(Ordering::Relaxed), before);
    // A tick does call it.
    memory.tick();
    assert!(calls.0.load(Ordering::Relaxed) > before);
    drop(reclaimer.unwrap());
}

/// Pitfall 15: a panic caught further out leaves the thread in the wrong client.
#[test]
#[serial]
fn pitfall_15_unwinding_ends_the_scope() {
    let memory = Memory::new(1 << 30);
    let outer = client(&memory, "outer", 1 << 20, Graceful);
    let inner = client(&memory, "inner", 1 << 20, Graceful);
    let _scope = outer.enter();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        inner.run(|| std::panic::resume_unwind(Box::new(())))
    }));
    assert!(caught.is_err());
    assert_eq!(Client::current(), Some(outer.clone()));
}

/// Pitfall 16: whoever allocates last is blamed while the offender goes on, or
/// others are harmed for a request that can never fit.
#[test]
#[serial]
fn pitfall_16_the_offender_is_marked_and_nobody_else() {
    let memory = Memory::builder(1_000_000)
        .background(false)
        .build()
        .unwrap();
    let offender = client(&memory, "offender", 100_000, Graceful);
    let neighbour = client(&memory, "neighbour", 300_000, Graceful);
    let hoard = Bytes::of(&offender, 250_000).unwrap();
    // The neighbour allocates last, and within its limit.
    let held: Vec<Bytes> = (0..10)
        .map(|_| Bytes::of(&neighbour, 25_000).unwrap())
        .collect();
    assert!(offender.checkpoint().is_err());
    assert!(neighbour.checkpoint().is_ok());
    drop(hoard);
    assert!(offender.checkpoint().is_ok());

    // More than it could ever have: refused at once, its neighbour keeps the
    // credit it has drawn and hears nothing of it.
    let options = ClientOptions::new("Basic")
        .max(Limit::Bytes(100_000))
        .enforcement(Strict);
    let absurd = memory.register("absurd", options).unwrap();
    let before = neighbour.usage();
    assert!(Bytes::of(&absurd, 100_001).is_none());
    assert_eq!(neighbour.usage(), before);
    let blamed = memory.events(0).0;
    assert!(blamed.iter().all(|event| event.client != neighbour.id()));
    drop(held);
}

/// Says that the system is at its limit, whatever was freed.
struct Latched;

impl PressureSource for Latched {
    fn name(&self) -> &'static str {
        "latched"
    }

    fn read(&mut self, _: &Figures) -> Result<Pressure, PressureError> {
        Ok(Pressure::new(Urgency::Critical, u64::MAX))
    }
}

/// Pitfall 17: a resident set that stays high after everything was freed has
/// everything refused. Only what is charged decides about that.
#[test]
#[serial]
fn pitfall_17_pressure_that_never_ends_refuses_nobody() {
    const MIB: u64 = 1 << 20;
    let (memory, clock) = timed(100 * MIB, |builder| builder.pressure_source(Latched));
    let strict = client(&memory, "strict", 10 * MIB, Strict);
    let options = ClientOptions::new("Basic")
        .max(Limit::Bytes(5 * MIB))
        .guarantee(Limit::Bytes(5 * MIB));
    let guaranteed = memory.register("guaranteed", options).unwrap();
    for _ in 0..3 {
        let mut held = Bytes::of(&strict, 10 << 20).unwrap();
        let within = Bytes::of(&guaranteed, 5 << 20).unwrap();
        clock.advance(Duration::from_secs(60));
        memory.tick();
        assert!(memory.snapshot().reclaim.under_pressure);
        assert!(Bytes::of(&strict, 1).is_none());
        held.grow(6 << 20);
        held.grow(10 << 20);
        // What is guaranteed is not borrowed: nobody is stopped for it.
        assert!(guaranteed.checkpoint().is_ok());
        drop((held, within));
    }
    assert_eq!(guaranteed.usage().refusals, 0);
    assert_eq!(strict.usage().live_bytes, 0);
}

/// Pitfall 25: what fits waits behind what does not. A block waits for memory
/// that others are to give back, and what fits is had meanwhile, on the heap
/// and as a block.
#[test]
#[serial]
fn pitfall_25_what_fits_is_not_held_up_by_what_waits() {
    const MIB: usize = 1 << 20;
    let hour = Duration::from_secs(3600);
    let memory = Memory::builder(100 << 20)
        .ladder(Ladder::default().call(hour))
        .patience(hour)
        .build()
        .unwrap();
    let own = |name: &str, tier: SubscriptionTier| {
        let options = ClientOptions::new(tier)
            .max(Limit::Bytes(80 << 20))
            .enforcement(Strict);
        memory.register(name, options).unwrap()
    };
    let basic = own("basic", SubscriptionTier::Basic);
    own("large", SubscriptionTier::Enterprise);
    let small = own("small", SubscriptionTier::Enterprise);
    let cache: Vec<Bytes> = (0..70).map(|_| Bytes::of(&basic, MIB).unwrap()).collect();
    let cache = Mutex::new(cache);
    let (hangs, hanging) = mpsc::channel();
    let (let_go, gate) = mpsc::channel::<()>();
    let has_ended = AtomicBool::new(false);
    basic
        .register_reclaimer(move |_| {
            let _ = hangs.send(());
            let _ = gate.recv();
            cache.lock().unwrap().clear();
            70 << 20
        })
        .unwrap()
        .keep();
    std::thread::scope(|threads| {
        let large = threads.spawn(|| {
            let block = memory.allocate_for_client("large", 60 * MIB);
            has_ended.store(true, Ordering::SeqCst);
            block
        });
        hanging.recv().unwrap();
        for _ in 0..100 {
            let held = Bytes::of(&small, MIB);
            assert!(held.is_some());
            drop(memory.allocate_for_client("small", MIB).unwrap());
        }
        assert!(!has_ended.load(Ordering::SeqCst));
        let_go.send(()).unwrap();
        assert_eq!(large.join().unwrap().unwrap().len(), 60 * MIB);
    });
    assert_eq!(small.usage().refusals, 0);
}
