//! What a client may have: by its tier, by its own figures, and by what its
//! neighbours have; and what happens beyond.

mod common;
#[path = "support/until.rs"]
mod until;

use common::{Bytes, client, quiet};
use serial_test::serial;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use tiered_allocator::{
    AllocateError, BudgetNode, ClientOptions, Enforcement, Limit, Memory, QuotaExceeded,
    RegisterError, SubscriptionTier, TierPolicy, TieredAllocator,
};

use Enforcement::{Graceful, Observe, Strict};
use SubscriptionTier::{Basic, Enterprise, Premium};
use until::Stops;

/// A memory of `usable` bytes and a headroom of `headroom`.
fn memory_of(usable: u64, headroom: u64) -> Memory {
    let total = usable + headroom;
    Memory::builder(total)
        .background(false)
        .usable(usable as f64 / total as f64)
        .build()
        .unwrap()
}

fn refusal(error: AllocateError) -> QuotaExceeded {
    match error {
        AllocateError::QuotaExceeded(quota) => quota,
        other => panic!("not a quota: {other}"),
    }
}

#[test]
#[serial]
fn tiers_have_a_tenth_a_fifth_and_a_half_of_four_fifths() {
    assert!(TieredAllocator::is_installed());
    let memory = quiet(1_000_000);
    assert_eq!(memory.usage().total_bytes, 1_000_000);
    assert_eq!(memory.usage().usable_bytes, 800_000);
    for (tier, max) in [(Basic, 80_000), (Premium, 160_000), (Enterprise, 400_000)] {
        let client = memory.register(tier.name(), tier).unwrap();
        assert_eq!(client.limits(), (max, max, 0));
        assert_eq!(client.enforcement(), Graceful);
    }
}

#[test]
#[serial]
fn a_tier_may_be_of_the_hosts_own_making() {
    let gold = TierPolicy::new(Limit::Bytes(5000))
        .soft(Limit::Bytes(4000))
        .guarantee(Limit::Bytes(1000))
        .enforcement(Strict);
    let memory = Memory::builder(1_000_000)
        .background(false)
        .usable(1.0)
        .tier("gold", gold)
        .tier(Basic, TierPolicy::new(Limit::Share(0.25)))
        .build()
        .unwrap();
    let client = memory.register("a", "gold").unwrap();
    assert_eq!(client.limits(), (5000, 4000, 1000));
    assert_eq!(client.enforcement(), Strict);
    assert_eq!(client.tier().unwrap().to_string(), "gold");
    assert_eq!(memory.usage().charged_bytes, 1000, "the guarantee");
    let basic = memory.register("b", Basic).unwrap();
    assert_eq!(basic.limits().0, 250_000);
    let unknown = memory.register("c", "silver").unwrap_err();
    assert!(unknown.to_string().contains("`silver`"), "{unknown}");
    assert!(memory.client("c").is_err());
}

#[test]
#[serial]
fn a_clients_own_figures_go_before_its_tiers() {
    let memory = quiet(1_000_000);
    let own = ClientOptions::new(Basic)
        .max(Limit::Share(0.5))
        .soft(Limit::Bytes(9000))
        .guarantee(Limit::Bytes(3000))
        .enforcement(Observe);
    let client = memory.register("a", own.clone()).unwrap();
    assert_eq!(client.limits(), (400_000, 9000, 3000));
    assert_eq!(client.enforcement(), Observe);
    // They stay when the tier changes, until they are given anew.
    client.set_tier(Premium).unwrap();
    assert_eq!(client.limits(), (400_000, 9000, 3000));
    client.configure(Premium).unwrap();
    assert_eq!(client.limits(), (160_000, 160_000, 0));
    assert_eq!(client.enforcement(), Graceful);
    assert_eq!(memory.usage().charged_bytes, 0, "the guarantee went back");
    client.configure(own).unwrap();
    assert_eq!(client.tier().unwrap().name(), "Basic");
    assert_eq!(memory.usage().charged_bytes, 3000);
}

#[test]
#[serial]
fn a_tiers_aggregate_binds_its_clients_together() {
    let shared = TierPolicy::new(Limit::Bytes(60_000))
        .aggregate(Limit::Bytes(100_000))
        .enforcement(Strict);
    let memory = Memory::builder(1 << 20)
        .background(false)
        .tier("shared", shared)
        .build()
        .unwrap();
    let a = memory.register("a", "shared").unwrap();
    let b = memory.register("b", "shared").unwrap();
    memory.register("elsewhere", Basic).unwrap();
    let held = memory.allocate_for_client("a", 60_000).unwrap();
    let refused = refusal(memory.allocate_for_client("b", 40_001).unwrap_err());
    assert_eq!(refused.node, BudgetNode::Tier);
    assert_eq!(
        (refused.requested, refused.charged, refused.limit),
        (40_001, 60_000, 100_000)
    );
    assert_eq!((&*refused.client, &*refused.tier), ("b", "shared"));
    let exact = memory.allocate_for_client("b", 40_000).unwrap();
    assert!(Bytes::of(&a, 1).is_none() && Bytes::of(&b, 1).is_none());
    assert!(memory.allocate_for_client("elsewhere", 50_000).is_ok());
    assert_eq!(memory.snapshot().tiers[3].charged_bytes, 100_000);
    assert_eq!(memory.snapshot().tiers[3].limit_bytes, Some(100_000));
    drop(held);
    assert!(Bytes::of(&b, 20_000).is_some());
    drop(exact);
}

#[test]
#[serial]
fn a_guarantee_is_there_when_others_have_borrowed_everything() {
    let memory = memory_of(1_000_000, 0);
    let options = ClientOptions::new(Enterprise)
        .guarantee(Limit::Bytes(200_000))
        .enforcement(Strict);
    let safe = memory.register("safe", options).unwrap();
    let greedy = client(&memory, "greedy", 1_000_000, Strict);
    assert_eq!(memory.usage().charged_bytes, 200_000);

    let borrowed = memory.allocate_for_client("greedy", 800_000).unwrap();
    let refused = refusal(memory.allocate_for_client("greedy", 1).unwrap_err());
    assert_eq!(refused.node, BudgetNode::Memory);
    assert!(Bytes::of(&greedy, 1).is_none());
    // To the byte, and no byte more: it is borrowed, and there is none.
    let own = memory.allocate_for_client("safe", 199_990).unwrap();
    let rest = Bytes::of(&safe, 10).unwrap();
    assert!(Bytes::of(&safe, 1).is_none());
    assert_eq!(memory.usage().charged_bytes, 1_000_000);
    drop(borrowed);
    assert!(Bytes::of(&safe, 100_000).is_some());
    drop((own, rest));
    assert_eq!(memory.usage().charged_bytes, 200_000);
    memory.remove_client("safe").unwrap();
    assert_eq!(memory.usage().charged_bytes, 0);
}

#[test]
#[serial]
fn a_guarantee_that_does_not_fit_is_refused_and_nothing_changes() {
    let memory = memory_of(1_000_000, 0);
    let with = |bytes| ClientOptions::new(Enterprise).guarantee(Limit::Bytes(bytes));
    let a = memory.register("a", with(300_000)).unwrap();
    memory.register("b", Enterprise).unwrap();
    let _block = memory.allocate_for_client("b", 400_000).unwrap();
    let before = (memory.usage(), memory.snapshot().clients);

    let refused = memory.register("c", with(300_001)).unwrap_err();
    assert_eq!(
        refused,
        RegisterError::GuaranteeDoesNotFit {
            requested: 300_001,
            charged: 700_000,
            limit: 1_000_000
        }
    );
    assert!(memory.client("c").is_err());
    assert!(matches!(
        a.configure(with(600_001).max(Limit::Bytes(700_000))),
        Err(RegisterError::GuaranteeDoesNotFit {
            requested: 300_001,
            ..
        })
    ));
    assert_eq!((memory.usage(), memory.snapshot().clients), before);
    // What fits to the byte is taken.
    memory.register("c", with(300_000)).unwrap();
    assert_eq!(memory.usage().charged_bytes, 1_000_000);
}

#[test]
#[serial]
fn limits_move_with_the_tier_and_never_break_what_lives() {
    let memory = memory_of(1_000_000, 0);
    let options = ClientOptions::new(Enterprise).enforcement(Strict);
    let client = memory.register("a", options).unwrap();
    let held = memory.allocate_for_client("a", 300_000).unwrap();
    client.set_tier(Basic).unwrap();
    assert_eq!(client.limits().0, 100_000);
    assert_eq!(client.usage().live_bytes, 300_000);
    assert_eq!(&held.pin().unwrap()[..3], &[0, 0, 0]);
    assert!(Bytes::of(&client, 1).is_none());
    let refused = refusal(memory.allocate_for_client("a", 1).unwrap_err());
    assert_eq!((refused.charged, refused.limit), (300_000, 100_000));
    let tiers = memory.snapshot().tiers;
    assert_eq!(
        (tiers[0].charged_bytes, tiers[2].charged_bytes),
        (300_000, 0)
    );
    drop(held);
    let exact = memory.allocate_for_client("a", 100_000).unwrap();
    assert!(Bytes::of(&client, 1).is_none());
    client.set_tier(Premium).unwrap();
    assert!(Bytes::of(&client, 100_000).is_some());
    drop(exact);
    let tiers = memory.snapshot().tiers;
    assert!(
        tiers.iter().all(|tier| tier.charged_bytes == 0),
        "{tiers:?}"
    );
}

#[test]
#[serial]
fn tiers_change_under_load_without_a_byte_lost() {
    let memory = memory_of(10_000_000, 0);
    let options = ClientOptions::new(Enterprise).enforcement(Strict);
    let client = memory.register("a", options).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let _stops = Stops(&stop);
        for seed in 1..=3_usize {
            let (client, stop) = (&client, &stop);
            threads.spawn(move || {
                let mut held: Vec<Bytes> = Vec::with_capacity(512);
                let mut random = seed;
                let _scope = client.enter();
                while !stop.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                    let pick = random >> 33;
                    if pick % 3 == 0 || held.len() == held.capacity() {
                        held.truncate(held.len() / 2);
                    } else {
                        held.extend(Bytes::new(pick % 20_000 + 1));
                    }
                }
            });
        }
        for _ in 0..300 {
            for tier in [Basic, Premium, Enterprise] {
                client.set_tier(tier).unwrap();
                let usage = client.usage();
                assert!(usage.live_bytes <= usage.charged_bytes, "{usage:?}");
                assert!(usage.charged_bytes <= 5_000_000, "{usage:?}");
            }
        }
    });
    assert_eq!(client.usage().live_bytes, 0);
    client.set_tier(Basic).unwrap();
    assert_eq!(client.usage().charged_bytes, 0);
    assert_eq!(memory.usage().charged_bytes, 0);
    let tiers = memory.snapshot().tiers;
    assert!(
        tiers.iter().all(|tier| tier.charged_bytes == 0),
        "{tiers:?}"
    );
    let exact = memory.allocate_for_client("a", 1_000_000).unwrap();
    assert!(Bytes::of(&client, 1).is_none());
    drop(exact);
}

#[test]
#[serial]
fn a_policy_changes_live_and_reaches_clients_when_they_come_to_it() {
    let memory = memory_of(1_000_000, 0);
    let early = memory.register("early", Basic).unwrap();
    let policy = TierPolicy::new(Limit::Bytes(7000))
        .enforcement(Strict)
        .aggregate(Limit::Bytes(10_000));
    memory.set_tier_policy(Basic, policy).unwrap();
    let late = memory.register("late", Basic).unwrap();
    assert_eq!(late.limits().0, 7000);
    assert_eq!(early.limits().0, 100_000);
    // The aggregate holds for both from now on.
    let held = memory.allocate_for_client("early", 6000).unwrap();
    let refused = refusal(memory.allocate_for_client("late", 4001).unwrap_err());
    assert_eq!(refused.node, BudgetNode::Tier);
    assert!(memory.allocate_for_client("late", 4000).is_ok());
    early.set_tier(Basic).unwrap();
    assert_eq!(early.limits().0, 7000);
    drop(held);

    let before = memory.snapshot().tiers;
    assert!(
        memory
            .set_tier_policy(Basic, TierPolicy::new(Limit::Bytes(0)))
            .is_err()
    );
    let negative = TierPolicy::new(Limit::Bytes(1)).aggregate(Limit::Share(-1.0));
    assert!(memory.set_tier_policy("new", negative).is_err());
    assert_eq!(memory.snapshot().tiers, before);
    memory
        .set_tier_policy("new", TierPolicy::new(Limit::Bytes(1)))
        .unwrap();
    assert_eq!(memory.register("newcomer", "new").unwrap().limits().0, 1);
}

#[test]
#[serial]
fn a_strict_client_sees_its_refusal_as_an_error() {
    let memory = memory_of(1 << 20, 0);
    let client = client(&memory, "a", 10_000, Strict);
    let mut kept: Vec<u8> = Vec::new();
    let scope = client.enter();
    let fits = kept.try_reserve_exact(9_000).is_ok();
    let beyond = kept.try_reserve_exact(10_001).is_err();
    let mut other: Vec<u8> = Vec::new();
    let beside = other.try_reserve_exact(1_001).is_err();
    let rest = other.try_reserve_exact(1_000).is_ok();
    // Nothing is left, not even for what an error says.
    let quota = memory.allocate_for_client("a", 1).is_err();
    let unknown = memory.allocate_for_client("nobody", 1).is_err();
    let renamed = memory.rename_client("nobody", "somebody").is_err();
    let taken = memory.add_client("a", Basic).is_err();
    let moved = client.set_tier("nowhere").is_err();
    drop(scope);
    assert!(fits && beyond && beside && rest);
    assert!(quota && unknown && renamed && taken && moved);
    assert_eq!(client.usage().live_bytes, 10_000);
    assert_eq!(client.usage().refusals, 3);
    assert_eq!(kept.capacity() + other.capacity(), 10_000);
}

#[test]
#[serial]
fn an_observed_client_is_granted_and_counted() {
    let memory = memory_of(1 << 20, 1 << 20);
    let client = client(&memory, "a", 10_000, Observe);
    let within = memory.allocate_for_client("a", 10_000).unwrap();
    assert_eq!(client.usage().observed_breaches, 0);
    let beyond = memory.allocate_for_client("a", 5_000_000).unwrap();
    let more = Bytes::of(&client, 100).unwrap();
    let usage = client.usage();
    assert_eq!(usage.observed_breaches, 2);
    assert_eq!(usage.live_bytes, 5_010_100);
    assert_eq!((usage.refusals, usage.overdrawn_bytes), (0, 0));
    assert_eq!(client.checkpoint(), Ok(()));
    drop((within, beyond, more));
    assert_eq!(client.usage().live_bytes, 0);
    assert_eq!(memory.usage().charged_bytes, client.usage().charged_bytes);
}

#[test]
#[serial]
fn what_no_process_can_address_is_granted_to_nobody_and_spoils_no_figure() {
    let memory = memory_of(1 << 20, 1 << 20);
    let free = TierPolicy::new(Limit::Unlimited);
    for (name, policy) in [
        ("observed", free.enforcement(Observe)),
        ("graceful", free.enforcement(Graceful)),
        ("strict", free.enforcement(Strict)),
    ] {
        memory.set_tier_policy(name, policy).unwrap();
        let client = memory.register(name, name).unwrap();
        let held = memory.allocate_for_client(name, 5000).unwrap();
        for size in [usize::MAX, usize::MAX - 4999, isize::MAX as usize + 1] {
            assert!(memory.allocate_for_client(name, size).is_err());
            assert!(memory.usage().charged_bytes <= 1 << 20);
        }
        assert_eq!(client.usage().live_bytes, 5000);
        assert_eq!(client.usage().peak_bytes, 5000);
        drop(held);
    }
    assert_eq!(memory.usage().charged_bytes, 0);
    assert_eq!(memory.usage().overdrawn_bytes, 0);
}

#[test]
#[serial]
fn a_graceful_client_overdraws_the_headroom_is_marked_and_cleared() {
    let memory = memory_of(1_000_000, 50_000);
    let client = client(&memory, "a", 100_000, Graceful);
    let within = memory.allocate_for_client("a", 90_000).unwrap();
    assert_eq!(client.checkpoint(), Ok(()));
    let beyond = Bytes::of(&client, 20_000).unwrap();
    assert_eq!(
        client.usage().overdrawn_bytes,
        10_000,
        "what is beyond, no more"
    );
    assert_eq!(memory.usage().overdrawn_bytes, 10_000);
    assert_eq!(memory.usage().charged_bytes, 100_000);
    let marked = client.checkpoint().unwrap_err();
    assert_eq!(
        (marked.requested, marked.charged, marked.limit),
        (0, 110_000, 100_000)
    );
    let over = client.run(|| 7).unwrap_err();
    assert_eq!((over.output, over.quota.charged), (Some(7), 110_000));

    // Within its max again, though not all that was lent is freed.
    let less = Bytes::of(&client, 5_000).unwrap();
    drop(within);
    assert_eq!(client.checkpoint(), Ok(()));
    assert_eq!(client.usage().overdrawn_bytes, 0);
    assert_eq!(memory.usage().overdrawn_bytes, 0);
    assert_eq!(memory.usage().charged_bytes, 25_000);
    drop((beyond, less));
    assert_eq!(client.run(|| 7), Ok(7));
    assert_eq!(client.usage().live_bytes, 0);
}

#[test]
#[serial]
fn a_client_that_frees_down_to_its_max_is_within_it() {
    let memory = memory_of(1_000_000, 50_000);
    let client = client(&memory, "a", 100_000, Graceful);
    let first = Bytes::of(&client, 70_000).unwrap();
    let small = Bytes::of(&client, 15_000).unwrap();
    let beyond = Bytes::of(&client, 20_000).unwrap();
    assert!(client.checkpoint().is_err());
    drop(small);
    assert_eq!(client.usage().live_bytes, 90_000);
    assert_eq!(client.checkpoint(), Ok(()));
    assert_eq!(memory.usage().overdrawn_bytes, 0);
    drop((first, beyond));
}

#[test]
#[serial]
fn a_higher_tier_or_a_freed_memory_ends_the_overdraft() {
    let memory = memory_of(1_000_000, 200_000);
    let client = memory.register("a", Basic).unwrap();
    let held = Bytes::of(&client, 150_000).unwrap();
    assert!(client.checkpoint().is_err());
    client.set_tier(Premium).unwrap();
    assert_eq!(client.checkpoint(), Ok(()));
    assert_eq!(memory.usage().overdrawn_bytes, 0);
    assert_eq!(memory.usage().charged_bytes, 150_000);
    client.set_tier(Basic).unwrap();
    drop(held);

    // The memory itself is full: both overdraw it, and one frees.
    let big = TierPolicy::new(Limit::Share(0.6));
    memory.set_tier_policy("big", big).unwrap();
    let clients = ["b", "c"].map(|name| memory.register(name, "big").unwrap());
    let first = Bytes::of(&clients[0], 600_000).unwrap();
    let second = Bytes::of(&clients[1], 500_000).unwrap();
    assert_eq!(clients[0].checkpoint(), Ok(()));
    assert!(clients[1].checkpoint().is_err());
    drop(first);
    assert_eq!(clients[1].checkpoint(), Ok(()));
    assert_eq!(memory.usage().overdrawn_bytes, 0);
    assert_eq!(memory.usage().charged_bytes, 500_000);
    drop(second);
    assert_eq!(clients[1].usage().live_bytes, 0);
}

/// Runs `work` while another thread has an account, full of unused credit,
/// with `client`.
fn beside_unused_credit(client: &tiered_allocator::Client, work: impl FnOnce()) {
    let (ready, is_ready) = channel();
    let (end, ends) = channel::<()>();
    std::thread::scope(|threads| {
        threads.spawn(move || {
            drop(Bytes::of(client, 1));
            ready.send(()).unwrap();
            let _ = ends.recv();
        });
        is_ready.recv().unwrap();
        // Dropped also when `work` panics.
        let _end = end;
        work();
    });
}

#[test]
#[serial]
fn unused_credit_of_other_threads_is_no_reason_to_overdraw() {
    let memory = memory_of(100 << 20, 100_000);
    let client = client(&memory, "a", 10 << 20, Graceful);
    beside_unused_credit(&client, || {
        assert!(
            client.usage().charged_bytes > 0,
            "the other thread has credit"
        );
        let held = memory.allocate_for_client("a", 10 << 20).unwrap();
        assert_eq!(client.usage().overdrawn_bytes, 0);
        assert_eq!(client.checkpoint(), Ok(()));
        drop(held);
    });
    // Beyond the max by the whole headroom: all of it is there.
    beside_unused_credit(&client, || {
        let held = Bytes::of(&client, (10 << 20) + 100_000).unwrap();
        assert_eq!(client.usage().overdrawn_bytes, 100_000);
        assert_eq!(memory.usage().charged_bytes, 10 << 20);
        drop(held);
    });
    assert_eq!(client.checkpoint(), Ok(()));
    assert_eq!(memory.usage().overdrawn_bytes, 0);
}

/// Whoever gets an error can do without: nothing is lent to it.
#[test]
#[serial]
fn a_caller_that_can_fail_is_refused_at_the_limit() {
    let memory = memory_of(1_000_000, 200_000);
    let client = client(&memory, "a", 100_000, Graceful);
    let refused = refusal(memory.allocate_for_client("a", 100_001).unwrap_err());
    assert_eq!((refused.node, refused.limit), (BudgetNode::Client, 100_000));
    let block = memory.allocate_for_client("a", 100_000).unwrap();
    assert!(memory.allocate_for_client("a", 1).is_err());
    let mut others = vec![0_u8; 10];
    assert!(client.adopt(&mut others).is_err());
    assert_eq!(memory.usage().overdrawn_bytes, 0);
    assert_eq!(client.checkpoint(), Ok(()));
    drop(block);
}

#[test]
#[serial]
fn one_client_may_overdraw_as_much_as_its_tier_says() {
    let memory = memory_of(1_000_000, 100_000);
    let policy = TierPolicy::new(Limit::Bytes(50_000)).overdraft(Limit::Share(0.3));
    memory.set_tier_policy("some", policy).unwrap();
    let clients = ["a", "b", "c", "d"].map(|name| memory.register(name, "some").unwrap());
    assert!(Bytes::of(&clients[0], 80_001).is_none());
    let held = Bytes::of(&clients[0], 80_000).unwrap();
    assert!(Bytes::of(&clients[0], 1).is_none());
    // Each has an overdraft of its own, and all draw on one headroom.
    let blocks = [1, 2].map(|at| Bytes::of(&clients[at], 80_000).unwrap());
    assert_eq!(memory.usage().overdrawn_bytes, 90_000);
    let last = Bytes::of(&clients[3], 60_000).unwrap();
    assert_eq!(memory.usage().overdrawn_bytes, 100_000);
    drop((held, blocks, last));
    assert_eq!(memory.usage().overdrawn_bytes, 0);
}

#[test]
#[serial]
fn a_client_in_overdraft_refuses_and_marks_no_neighbour() {
    let memory = memory_of(1_000_000, 30_000);
    let bounded = TierPolicy::new(Limit::Bytes(100_000)).overdraft(Limit::Bytes(30_000));
    memory.set_tier_policy("bounded", bounded).unwrap();
    let offender = memory.register("offender", "bounded").unwrap();
    let neighbour = client(&memory, "neighbour", 500_000, Graceful);
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let _stops = Stops(&stop);
        for _ in 0..2 {
            threads.spawn(|| {
                let mut held = Vec::with_capacity(100);
                let scope = neighbour.enter();
                let mut good = true;
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..100 {
                        let block = Bytes::new(2_000);
                        good &= block.is_some() && neighbour.checkpoint().is_ok();
                        held.extend(block);
                    }
                    held.clear();
                }
                drop(scope);
                assert!(good, "within its max, never refused nor marked");
            });
        }
        for _ in 0..100 {
            let mut held = Vec::new();
            while let Some(block) = Bytes::of(&offender, 9_999) {
                held.push(block);
                assert!(held.len() <= 13);
            }
            assert_eq!(held.len(), 13, "130,000 and no byte beyond");
            assert!(offender.checkpoint().is_err());
            drop(held);
            assert_eq!(offender.checkpoint(), Ok(()));
        }
    });
    assert_eq!(neighbour.usage().refusals, 0);
    assert_eq!(neighbour.usage().overdrawn_bytes, 0);
    assert_eq!(memory.usage().overdrawn_bytes, 0);
}
