//! The edges of a shortage: limits of tiers, several tiers short at once,
//! breaches of others, and what is left behind.

mod common;
#[path = "support/shortage.rs"]
mod shortage;

use serial_test::serial;
use shortage::{BLOCK, MIB, all_of, client, count, memory, refused, strict, take, timed};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tiered_allocator::clock::Clock;
use tiered_allocator::{
    ClientOptions, Enforcement, EventKind, Limit, Memory, SubscriptionTier, TierPolicy,
};

use SubscriptionTier::{Basic, Enterprise, Premium};

/// Premium may have 10 MiB altogether.
fn limit_premium(memory: &Memory) {
    let policy = TierPolicy::new(Limit::Bytes(80 * MIB))
        .precedence(20)
        .aggregate(Limit::Bytes(10 * MIB));
    memory.set_tier_policy(Premium, policy).unwrap();
}

#[test]
#[serial]
fn a_tiers_aggregate_limit_binds_what_is_lent() {
    let memory = memory();
    limit_premium(&memory);
    let basic = strict(&memory, "basic", Basic);
    let one = strict(&memory, "one", Premium);
    let _one = all_of(&one, 9 * MIB);
    let _basic = take(&basic, 71 * MIB);
    let taken = take(&one, 15 * MIB);
    let live = one.usage().live_bytes;
    assert!(live <= 10 * MIB, "{live} of 10 MiB, {} lent", taken.len());
}

#[test]
#[serial]
fn an_overdraft_at_a_tiers_limit_is_stopped_whatever_lower_tiers_hold() {
    let memory = memory();
    limit_premium(&memory);
    let basic = strict(&memory, "basic", Basic);
    let _basic = all_of(&basic, 40 * MIB);
    let one = client(&memory, "one", Premium, Enforcement::Graceful);
    let _one = all_of(&one, 15 * MIB);
    assert!(one.usage().overdrawn_bytes >= 4 * MIB);
    assert!(one.checkpoint().is_err());
}

#[test]
#[serial]
fn the_lower_of_two_tiers_that_are_short_is_covered_by_what_was_freed_for_it() {
    let memory = memory();
    let basic = strict(&memory, "basic", Basic);
    let premium = strict(&memory, "premium", Premium);
    let big = strict(&memory, "big", Enterprise);
    let mut held = all_of(&basic, 80 * MIB);
    let _taken = (all_of(&premium, 5 * MIB), all_of(&big, 5 * MIB));
    let owed = memory.usage().overdrawn_bytes;
    held.truncate(held.len() - (owed.div_ceil(BLOCK)) as usize);
    memory.tick();
    assert_eq!(memory.usage().overdrawn_bytes, 0);
    assert_eq!(count(&memory, EventKind::AskedToStop), 0);
}

#[test]
#[serial]
fn a_lower_tiers_own_breach_does_not_stop_a_client_that_was_lent_to() {
    let memory = memory();
    let options = ClientOptions::new(Basic)
        .max(Limit::Bytes(6 * MIB))
        .enforcement(Enforcement::Graceful);
    let basic = memory.register("basic", options).unwrap();
    let mut held = all_of(&basic, 6 * MIB);
    let other = strict(&memory, "other", Enterprise);
    let _other = all_of(&other, 74 * MIB);
    let big = strict(&memory, "big", Enterprise);
    let _big = all_of(&big, 3 * MIB);
    assert!(big.checkpoint().is_ok());
    // Basic goes beyond its own max: its matter, and it is stopped for it.
    held.append(&mut take(&basic, 4 * MIB));
    assert!(basic.checkpoint().is_err());
    assert!(big.checkpoint().is_ok());
    assert_eq!(big.usage().refusals, 0);
}

#[test]
#[serial]
fn equals_do_not_give_way_for_a_refusal_while_a_higher_tier_is_short() {
    let memory = memory();
    let basic = strict(&memory, "basic", Basic);
    let equal = strict(&memory, "equal", Premium);
    let premium = strict(&memory, "premium", Premium);
    let big = strict(&memory, "big", Enterprise);
    let mut held = all_of(&basic, 30 * MIB);
    let _equal = all_of(&equal, 50 * MIB);
    let _big = all_of(&big, MIB);
    // More than the headroom has: refused, though Basic has borrowed it.
    refused(&premium, 25 << 20);
    // By now Basic has not.
    held.truncate(held.len() - 10 * 16);
    let _more = take(&big, 9 * MIB);
    memory.tick();
    assert!(equal.checkpoint().is_ok());
    let asked = memory.events(0).0;
    let asked = asked
        .iter()
        .filter(|event| event.kind == EventKind::AskedToStop);
    assert!(
        asked
            .clone()
            .all(|event| event.name.as_deref() == Some("basic"))
    );
}

#[test]
#[serial]
fn what_is_free_by_now_is_not_taken_from_anybody_for_a_refused_request() {
    let memory = memory();
    let basic = strict(&memory, "basic", Basic);
    let big = strict(&memory, "big", Enterprise);
    let mut held = all_of(&basic, 80 * MIB);
    refused(&big, 30 << 20);
    held.truncate(held.len() - 31 * 16);
    memory.tick();
    assert_eq!(count(&memory, EventKind::AskedToStop), 0);
}

#[test]
#[serial]
fn who_is_stopped_for_a_refused_request_stays_so_until_it_had_its_time() {
    let (memory, clock) = timed(|builder| builder);
    let basic = strict(&memory, "basic", Basic);
    let big = strict(&memory, "big", Enterprise);
    let mut held = all_of(&basic, 80 * MIB);
    refused(&big, 40 << 20);
    memory.tick();
    memory.tick();
    assert_eq!(count(&memory, EventKind::AskedToStop), 1);
    assert!(basic.checkpoint().is_err());
    clock.advance(Duration::from_millis(1100));
    memory.tick();
    assert!(basic.checkpoint().is_ok());
    refused(&big, 40 << 20);
    memory.tick();
    assert!(basic.checkpoint().is_err());
    held.truncate(held.len() - 41 * 16);
    memory.tick();
    assert!(basic.checkpoint().is_ok());
    let _big = all_of(&big, 40 * MIB);
}

#[test]
#[serial]
fn nobody_is_asked_to_stop_for_a_memory_that_is_gone() {
    let memory = memory();
    let basic = strict(&memory, "basic", Basic);
    let big = strict(&memory, "big", Enterprise);
    let _held = all_of(&basic, 80 * MIB);
    let _big = all_of(&big, 10 * MIB);
    memory.tick();
    assert!(basic.checkpoint().is_err());
    drop(memory);
    assert!(basic.checkpoint().is_ok());
}

/// A clock that panics once, so many calls from now.
struct FailingClock(Arc<AtomicU32>);

impl Clock for FailingClock {
    fn now(&self) -> Duration {
        let left = |left: u32| left.checked_sub(1);
        let before = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        if before == Ok(1) {
            resume_unwind(Box::new(()));
        }
        Duration::ZERO
    }
}

#[test]
#[serial]
fn a_clock_that_panics_in_the_middle_of_it_all_does_not_end_relief() {
    for calls in 1.. {
        let fuse = Arc::new(AtomicU32::new(0));
        let memory = Memory::builder(100 * MIB)
            .background(false)
            .clock(FailingClock(Arc::clone(&fuse)))
            .build()
            .unwrap();
        let basic = strict(&memory, "basic", Basic);
        let big = strict(&memory, "big", Enterprise);
        let held = all_of(&basic, 80 * MIB);
        let _big = all_of(&big, 10 * MIB);
        fuse.store(calls, Ordering::Relaxed);
        let panicked = catch_unwind(AssertUnwindSafe(|| memory.tick())).is_err();
        fuse.store(0, Ordering::Relaxed);
        drop(held);
        // The alarm that the refund has left, or that of another loan.
        memory.tick();
        assert_eq!(memory.usage().overdrawn_bytes, 0, "{calls} calls");
        if !panicked {
            assert!(calls > 2);
            return;
        }
    }
}

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        resume_unwind(Box::new(()));
    }
}

#[test]
#[serial]
fn a_cache_that_panics_when_it_is_let_go_harms_nobody() {
    let memory = memory();
    let basic = strict(&memory, "basic", Basic);
    let big = strict(&memory, "big", Enterprise);
    let gone = strict(&memory, "gone", Basic);
    let bomb = PanicsOnDrop;
    let reclaim = move |_| {
        let _bomb = &bomb;
        0
    };
    gone.register_reclaimer(reclaim).unwrap().keep();
    memory.remove_client("gone").unwrap();
    let _held = all_of(&basic, 80 * MIB);
    let _big = all_of(&big, 10 * MIB);
    memory.tick();
    assert!(basic.checkpoint().is_err());
}
