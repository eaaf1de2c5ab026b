//! Tenants that want twice what there is, for 20 seeds: the lower tiers give
//! way, nobody above them notices, and afterwards everybody may grow again.

mod common;
#[path = "../examples/oversubscribed/scenario.rs"]
mod scenario;

use common::memory_backed;
use scenario::{MIB, Scenario};
use serial_test::serial;
use std::time::Duration;
use tiered_allocator::{Memory, Rung, SubscriptionTier, TieredAllocator};

use SubscriptionTier::{Basic, Enterprise, Premium};

fn memory() -> Memory {
    // A call that may wait for the reclaimer does so until it has what it can
    // get: how fast this machine is at the moment decides nothing.
    Memory::builder(64 * MIB)
        .usable(0.6)
        .patience(Duration::from_secs(60))
        .reclaim_every(Duration::from_millis(100))
        .spill_dir(memory_backed())
        .build()
        .unwrap()
}

fn passes(seed: u64) {
    let memory = memory();
    let total = memory.usage().total_bytes;
    let mut scenario = Scenario::new(memory.clone(), seed);
    for load in [0.3, 1.0, 0.5, 1.0] {
        scenario.set_load(load);
        let most = scenario.run(200);
        assert!(most <= total, "seed {seed}: {most} of {total} were charged");
        let wrong = scenario.disagreement();
        assert_eq!(wrong, None, "seed {seed}");
    }
    let [enterprise, premium, basic] =
        [Enterprise, Premium, Basic].map(|tier| scenario.outcome(tier));
    assert!(enterprise.requests > 1000, "seed {seed}: {enterprise:?}");
    // Lower tiers always hold what Enterprise wants here.
    assert_eq!(enterprise.refused, 0, "seed {seed}: {enterprise:?}");
    // Premium comes next: it may find what Basic has promised to Enterprise.
    assert_eq!(premium.unfair, 0, "seed {seed}: {premium:?}");
    // There was something to fight for, and Basic has lost it.
    let reclaim = memory.snapshot().reclaim;
    assert!(reclaim.rungs[Rung::BorrowerCaches as usize].reclaimed_bytes > 0);
    assert!(basic.cache_given > 0, "seed {seed}: {basic:?}");

    // The load falls: nobody is refused anything, or stopped.
    scenario.set_load(0.1);
    scenario.run(200);
    let before: u64 = [Enterprise, Premium, Basic]
        .map(|tier| scenario.outcome(tier).refused)
        .iter()
        .sum();
    memory.tick();
    scenario.set_load(0.3);
    scenario.run(200);
    let after: u64 = [Enterprise, Premium, Basic]
        .map(|tier| scenario.outcome(tier).refused)
        .iter()
        .sum();
    assert_eq!(before, after, "seed {seed}");
    assert_eq!(memory.usage().overdrawn_bytes, 0, "seed {seed}");
    assert_eq!(scenario.disagreement(), None, "seed {seed}");

    let clients: Vec<_> = scenario.tenants.iter().map(|t| t.client.clone()).collect();
    for client in &clients {
        assert!(client.checkpoint().is_ok(), "seed {seed}");
    }
    drop(scenario.tenants);
    // The caches are still there, offered to the reclaimer.
    for client in clients {
        let name = client.name().unwrap();
        memory.remove_client(&name).unwrap();
    }
    memory.tick();
    assert_eq!(memory.usage().spilled_bytes, 0, "seed {seed}");
    assert_eq!(memory.usage().overdrawn_bytes, 0, "seed {seed}");
}

#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "idle blocks are spilled")]
fn twenty_seeds_of_tenants_that_want_twice_what_there_is() {
    assert!(TieredAllocator::is_installed());
    (1..=20).for_each(passes);
}
