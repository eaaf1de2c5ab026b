//! Who gives way when memory is full: a higher tier is not refused what lower
//! tiers have borrowed, and gets it back from them, the lowest first.

mod common;
#[path = "support/shortage.rs"]
mod shortage;

use common::{Bytes, offer};
use serial_test::serial;
use shortage::{BLOCK, MIB, all_of, client, count, ladder, memory, refused, strict, take, timed};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tiered_allocator::{
    AllocateError, BudgetNode, ClientOptions, Enforcement, EventKind, Ladder, Limit, Memory, Rung,
    SubscriptionTier,
};

use SubscriptionTier::{Basic, Enterprise, Premium};

fn charged(memory: &Memory) -> u64 {
    let usage = memory.usage();
    usage.charged_bytes + usage.overdrawn_bytes
}

#[test]
#[serial]
fn a_higher_tier_is_not_refused_what_a_lower_one_has_borrowed() {
    let memory = memory();
    let basic = strict(&memory, "basic", Basic);
    let big = strict(&memory, "big", Enterprise);
    let cache = offer(&basic, all_of(&basic, 80 * MIB));
    let taken = all_of(&big, 15 * MIB);
    assert_eq!(big.usage().refusals, 0);
    assert!(memory.usage().overdrawn_bytes >= 15 * MIB);
    assert!(charged(&memory) <= 100 * MIB);
    // Nobody stops it for what others are to give back.
    big.checkpoint().unwrap();
    memory.tick();
    assert_eq!(memory.usage().overdrawn_bytes, 0);
    assert_eq!(big.usage().overdrawn_bytes, 0);
    let left = cache.lock().unwrap().len() as u64 * BLOCK;
    assert!(
        (64 * MIB..=65 * MIB).contains(&left),
        "{left} bytes are left"
    );
    let snapshot = memory.snapshot();
    let relief = snapshot.tiers[Enterprise as usize].relief;
    assert_eq!((relief.shortages, relief.reliefs), (1, 1));
    assert_eq!(snapshot.tiers[Basic as usize].relief.shortages, 0);
    assert_eq!(big.usage().live_bytes, 15 * MIB);
    drop(taken);
}

#[test]
#[serial]
fn its_own_max_binds_it_as_before() {
    let memory = memory();
    let basic = strict(&memory, "basic", Basic);
    let _held = all_of(&basic, 78 * MIB);
    let options = ClientOptions::new(Enterprise)
        .max(Limit::Bytes(5 * MIB))
        .enforcement(Enforcement::Strict);
    let big = memory.register("big", options).unwrap();
    let taken = take(&big, 10 * MIB);
    assert_eq!(taken.len() as u64 * BLOCK, 5 * MIB);
    let refused = memory.allocate_for_client("big", 1).unwrap_err();
    assert!(matches!(refused, AllocateError::QuotaExceeded(quota)
        if quota.node == BudgetNode::Client));
}

#[test]
#[serial]
fn equals_and_lower_tiers_are_refused_and_guarantees_are_not_borrowed() {
    let memory = memory();
    let options = ClientOptions::new(Basic)
        .max(Limit::Bytes(80 * MIB))
        .guarantee(Limit::Bytes(40 * MIB))
        .enforcement(Enforcement::Strict);
    let safe = memory.register("safe", options).unwrap();
    let _safe = all_of(&safe, 40 * MIB);
    let premium = strict(&memory, "premium", Premium);
    let _premium = all_of(&premium, 40 * MIB);
    // Basic holds no more than its guarantee: nothing to lend for.
    assert!(Bytes::of(&premium, BLOCK as usize).is_none());
    let other = strict(&memory, "other", Premium);
    assert!(Bytes::of(&other, BLOCK as usize).is_none());
    assert!(Bytes::of(&safe, BLOCK as usize).is_none());
    assert_eq!(memory.usage().overdrawn_bytes, 0);
    // Enterprise may have what Premium has borrowed.
    let big = strict(&memory, "big", Enterprise);
    assert!(Bytes::of(&big, BLOCK as usize).is_some());
}

#[test]
#[serial]
fn what_becomes_free_goes_to_the_higher_tier_first() {
    let memory = memory();
    let basic = strict(&memory, "basic", Basic);
    let mut held = all_of(&basic, 80 * MIB);
    let big = strict(&memory, "big", Enterprise);
    let _big = all_of(&big, 10 * MIB);
    held.truncate(held.len() - 5 * 16);
    // 5 MiB are free again, 10 are owed to Enterprise: Basic gets none of it.
    assert!(Bytes::of(&basic, BLOCK as usize).is_none());
    memory.tick();
    let owed = memory.usage().overdrawn_bytes;
    assert!((5 * MIB..6 * MIB).contains(&owed), "{owed}");
    held.truncate(held.len() - 8 * 16);
    memory.tick();
    assert_eq!(memory.usage().overdrawn_bytes, 0);
    // Nothing is owed any more: everybody may grow again.
    let again = all_of(&basic, 2 * MIB);
    assert_eq!(big.usage().refusals, 0);
    drop(again);
}

#[test]
#[serial]
fn the_worst_borrower_of_the_lowest_tier_is_stopped_last_and_goes_on_afterwards() {
    let memory = memory();
    let worst = client(&memory, "worst", Basic, Enforcement::Graceful);
    let other = client(&memory, "other", Basic, Enforcement::Graceful);
    let premium = client(&memory, "premium", Premium, Enforcement::Graceful);
    let mut hog = all_of(&worst, 40 * MIB);
    let _rest = (all_of(&other, 10 * MIB), all_of(&premium, 30 * MIB));
    let big = strict(&memory, "big", Enterprise);
    let _big = all_of(&big, 10 * MIB);
    assert!(worst.checkpoint().is_ok(), "nobody has asked it yet");
    memory.tick();
    let stopped = worst.checkpoint().unwrap_err();
    assert_eq!(stopped.node, BudgetNode::Memory);
    assert!(stopped.to_string().contains("the memory"), "{stopped}");
    assert!(other.checkpoint().is_ok() && premium.checkpoint().is_ok());
    assert!(big.checkpoint().is_ok());
    assert_eq!(count(&memory, EventKind::AskedToStop), 1);
    // Its work ends and what it held is freed.
    hog.truncate(hog.len() - 11 * 16);
    memory.tick();
    assert_eq!(memory.usage().overdrawn_bytes, 0);
    memory.tick();
    assert!(worst.checkpoint().is_ok());
    let reclaim = memory.snapshot().reclaim;
    assert_eq!(reclaim.stopped_clients, 1);
    assert!(reclaim.rungs[Rung::Cancel as usize].reclaimed_bytes >= 10 * MIB);
    assert!(!reclaim.under_pressure);
}

#[test]
#[serial]
fn one_that_does_not_stop_in_time_is_let_go_and_the_next_is_asked() {
    let (memory, clock) = timed(|builder| builder);
    let deaf = strict(&memory, "deaf", Basic);
    let next = strict(&memory, "next", Basic);
    let _held = (all_of(&deaf, 50 * MIB), all_of(&next, 30 * MIB));
    let big = strict(&memory, "big", Enterprise);
    let _big = all_of(&big, 10 * MIB);
    memory.tick();
    assert!(deaf.checkpoint().is_err() && next.checkpoint().is_ok());
    clock.advance(Duration::from_millis(900));
    memory.tick();
    assert!(deaf.checkpoint().is_err() && next.checkpoint().is_ok());
    clock.advance(Duration::from_millis(200));
    memory.tick();
    assert!(deaf.checkpoint().is_ok() && next.checkpoint().is_err());
}

#[test]
#[serial]
fn cancellation_can_be_switched_off_and_does_not_touch_observed_clients() {
    let (memory, _) = timed(|builder| builder.ladder(ladder().cancel(None)));
    let basic = strict(&memory, "basic", Basic);
    let _held = all_of(&basic, 80 * MIB);
    let big = strict(&memory, "big", Enterprise);
    let _big = all_of(&big, MIB);
    memory.tick();
    assert!(basic.checkpoint().is_ok());
    assert_eq!(memory.snapshot().reclaim.stopped_clients, 0);

    let memory = shortage::memory();
    let watched = client(&memory, "watched", Basic, Enforcement::Observe);
    let _held = all_of(&watched, 80 * MIB);
    let big = strict(&memory, "big", Enterprise);
    let _big = all_of(&big, MIB);
    memory.tick();
    assert!(watched.checkpoint().is_ok());
}

/// A client within its own max that is lent to because the memory is full is
/// told that, not that it is over a limit that it keeps.
#[test]
#[serial]
fn who_is_stopped_for_a_full_memory_is_told_so() {
    let memory = memory();
    let _others = all_of(&strict(&memory, "other", Enterprise), 80 * MIB);
    let basic = client(&memory, "basic", Basic, Enforcement::Graceful);
    let _lent = all_of(&basic, MIB);
    let stopped = basic.checkpoint().unwrap_err();
    assert_eq!(stopped.node, BudgetNode::Memory);
    assert!(stopped.charged > stopped.limit, "{stopped}");
    assert_eq!(stopped.limit, 80 * MIB);
}

/// Idle blocks come before caches, caches before cancellation, and each only
/// as far as needed.
#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "spills")]
fn the_rungs_are_climbed_one_after_the_other() {
    let (memory, clock) = timed(|builder| builder);
    let basic = client(&memory, "basic", Basic, Enforcement::Graceful);
    let idle = memory
        .allocate_for_client("basic", 10 << 20)
        .expect("it fits");
    let cache = offer(&basic, all_of(&basic, 20 * MIB));
    let _work = all_of(&basic, 50 * MIB);
    // An eighth of the tier's idle time is enough when somebody is short.
    clock.advance(Duration::from_secs(38));
    let big = strict(&memory, "big", Enterprise);
    let rungs = |memory: &Memory| {
        let rungs = memory.snapshot().reclaim.rungs;
        [Rung::IdleBlocks, Rung::BorrowerCaches, Rung::Cancel]
            .map(|rung| rungs[rung as usize].reclaimed_bytes / MIB)
    };
    let mut held = all_of(&big, 8 * MIB);
    memory.tick();
    assert_eq!(rungs(&memory), [10, 0, 0]);
    held.append(&mut all_of(&big, 10 * MIB));
    memory.tick();
    assert_eq!(rungs(&memory)[0], 10);
    assert!((7..=9).contains(&rungs(&memory)[1]), "{:?}", rungs(&memory));
    assert!(basic.checkpoint().is_ok());
    held.append(&mut all_of(&big, 17 * MIB));
    memory.tick();
    assert_eq!(cache.lock().unwrap().len(), 0);
    assert!(basic.checkpoint().is_err());
    assert_eq!(big.usage().refusals, 0);
    assert!(charged(&memory) <= 100 * MIB);
    // Nothing of the block is lost; it comes back when there is room.
    drop((held, big));
    memory.tick();
    assert!(idle.pin().unwrap().iter().all(|&byte| byte == 0));
}

/// What was lent can be got back, what was refused on top of it cannot:
/// nobody gives for the latter.
#[test]
#[serial]
fn nobody_is_harmed_for_what_cannot_be_reached() {
    let memory = memory();
    let basic = strict(&memory, "basic", Basic);
    let other = strict(&memory, "other", Enterprise);
    let cache = offer(&basic, all_of(&basic, 8 * MIB));
    let _most = all_of(&other, 72 * MIB);
    let big = strict(&memory, "big", Enterprise);
    let _lent = all_of(&big, 5 * MIB);
    refused(&big, 4 << 20);
    assert_eq!(big.usage().refusals, 1);
    memory.tick();
    let left = cache.lock().unwrap().len() as u64 * BLOCK;
    assert!((2 * MIB..=3 * MIB).contains(&left), "{left} bytes are left");
    assert!(basic.checkpoint().is_ok());
    assert_eq!(count(&memory, EventKind::Infeasible), 1);
    assert_eq!(memory.usage().overdrawn_bytes, 0);
}

/// A block is not the heap: the call may wait, and does as long as the
/// reclaimer may still get what is missing.
#[test]
#[serial]
fn a_block_waits_for_the_reclaimer_and_the_heap_never_does() {
    let memory = Memory::builder(100 * MIB)
        .patience(Duration::from_secs(60))
        .build()
        .unwrap();
    let basic = strict(&memory, "basic", Basic);
    let cache = offer(&basic, all_of(&basic, 78 * MIB));
    strict(&memory, "big", Enterprise);
    // More than the headroom has: only the cache can make room for the rest.
    let block = memory.allocate_for_client("big", 40 << 20).unwrap();
    assert!(cache.lock().unwrap().len() as u64 * BLOCK <= 60 * MIB);
    let big = memory.client("big").unwrap();
    assert_eq!(big.usage().refusals, 0);
    assert!(charged(&memory) <= 100 * MIB);
    // Nobody has borrowed anything for the one of the lowest tier: no wait,
    // one refusal.
    let refused = memory.allocate_for_client("basic", 70 << 20).unwrap_err();
    assert!(matches!(refused, AllocateError::QuotaExceeded(_)));
    assert_eq!(basic.usage().refusals, 1);
    drop(block);
}

/// The reclaimer hangs in a callback that it would wait for for a minute: the
/// test could not end if any allocation waited for it.
#[test]
#[serial]
fn no_allocation_waits_for_a_reclaimer_that_hangs() {
    let ladder = Ladder::default().call(Duration::from_secs(3600));
    let memory = Memory::builder(100 * MIB).ladder(ladder).build().unwrap();
    let basic = strict(&memory, "basic", Basic);
    let _held = all_of(&basic, 79 * MIB);
    let (let_go, gate) = mpsc::channel::<()>();
    let (hangs, hanging) = mpsc::channel();
    let done = Arc::new(AtomicBool::new(false));
    let returned = Arc::clone(&done);
    basic
        .register_reclaimer(move |_| {
            let _ = hangs.send(());
            let _ = gate.recv();
            returned.store(true, Ordering::SeqCst);
            0
        })
        .unwrap()
        .keep();
    let big = strict(&memory, "big", Enterprise);
    let mut taken = all_of(&big, 4 * MIB);
    hanging.recv().unwrap();
    taken.append(&mut all_of(&big, 8 * MIB));
    // Refusals do not wait either.
    assert!(take(&basic, 2 * MIB).len() <= 16);
    drop(taken);
    big.checkpoint().unwrap();
    assert!(!done.load(Ordering::SeqCst));
    drop(let_go);
}
