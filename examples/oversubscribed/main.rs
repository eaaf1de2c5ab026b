//! Ten tenants of three tiers that together want twice what there is.
//!
//! ```text
//! cargo run --release --example oversubscribed [seed]
//! ```
//!
//! Every tenant allocates on the heap, keeps a cache that it offers to the
//! reclaimer, and holds blocks, busy and idle. Their load changes every second
//! or so. The example shows who gives way (Basic first), that nobody above is
//! refused what lower tiers have borrowed, and that everybody may grow again
//! when the load falls; it ends with an error if one of that does not hold.

mod scenario;

use scenario::{MIB, Outcome, Scenario};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tiered_allocator::{Memory, Rung, Snapshot, SubscriptionTier, TieredAllocator};

use SubscriptionTier::{Basic, Enterprise, Premium};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const TIERS: [SubscriptionTier; 3] = [Enterprise, Premium, Basic];

/// Load, and how many pieces of work each tenant does under it.
const PHASES: [(&str, f64, u64); 6] = [
    ("morning", 0.3, 4000),
    ("rush", 1.0, 8000),
    ("noon", 0.5, 4000),
    ("rush", 1.0, 8000),
    ("evening", 0.1, 4000),
    ("growing again", 0.3, 3000),
];

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

fn main() -> ExitCode {
    let seed = match std::env::args().nth(1).map(|seed| seed.parse()) {
        None => 1,
        Some(Ok(seed)) => seed,
        Some(Err(error)) => {
            eprintln!("the seed is a number: {error}");
            return ExitCode::FAILURE;
        }
    };
    assert!(TieredAllocator::is_installed());
    let memory = Memory::builder(256 * MIB)
        .reclaim_every(Duration::from_millis(500))
        .patience(Duration::from_secs(10))
        .purge(&HEAP)
        .build()
        .expect("the figures make sense");
    let mut scenario = Scenario::new(memory.clone(), seed);
    let usage = memory.usage();
    println!(
        "{:.0} MiB in all, {:.0} MiB of them usable; ten tenants that may have {:.0} MiB together",
        mib(usage.total_bytes),
        mib(usage.usable_bytes),
        2.1 * mib(usage.usable_bytes)
    );
    println!("seed {seed}\n");
    println!("phase            load    time   most charged   borrowed by Enterprise/Premium/Basic");
    let mut failed = Vec::new();
    for (name, load, steps) in PHASES {
        let began = Instant::now();
        let before = total(&scenario);
        scenario.set_load(load);
        let most = scenario.run(steps);
        let snapshot = memory.snapshot();
        let borrowed = TIERS.map(|tier| mib(snapshot.tiers[tier as usize].borrowed_bytes));
        println!(
            "{name:14} {:5.0} % {:5.1} s   {:5.1} of {:.0} MiB   {:6.1} {:6.1} {:6.1} MiB",
            load * 100.0,
            began.elapsed().as_secs_f64(),
            mib(most),
            mib(usage.total_bytes),
            borrowed[0],
            borrowed[1],
            borrowed[2],
        );
        if most > usage.total_bytes {
            failed.push(format!("{name}: {most} bytes were charged"));
        }
        if let Some(wrong) = scenario.disagreement() {
            failed.push(format!("{name}: {wrong}"));
        }
        let after = total(&scenario);
        if name == "growing again" && after.refused > before.refused {
            failed.push(format!("{} refusals when growing again", after.refused));
        }
    }
    report(&scenario, &memory.snapshot(), &mut failed);
    if failed.is_empty() {
        println!("\nWhat lower tiers had borrowed was never a reason to refuse a higher one.");
        return ExitCode::SUCCESS;
    }
    for failure in failed {
        println!("FAILED: {failure}");
    }
    ExitCode::FAILURE
}

fn total(scenario: &Scenario) -> Outcome {
    let mut all = Outcome::default();
    for tier in TIERS {
        all.add(&scenario.outcome(tier));
    }
    all
}

fn report(scenario: &Scenario, snapshot: &Snapshot, failed: &mut Vec<String>) {
    println!(
        "\ntier        requests  refused  of these unfairly  granted late  stopped  from caches  short of memory"
    );
    for tier in TIERS {
        let outcome = scenario.outcome(tier);
        let relief = snapshot.tiers[tier as usize].relief;
        let mean = relief.total.checked_div(relief.reliefs as u32);
        println!(
            "{tier:10} {:9} {:8} {:18} {:13} {:8} {:8.1} MiB  {} times, {:.1} ms until relief, at most {:.1}",
            outcome.requests,
            outcome.refused,
            outcome.unfair,
            outcome.late,
            outcome.stopped,
            mib(outcome.cache_given),
            relief.shortages,
            mean.unwrap_or_default().as_secs_f64() * 1e3,
            relief.longest.as_secs_f64() * 1e3,
        );
        if tier != Basic && outcome.unfair > 0 {
            failed.push(format!("{tier}: {} unfair refusals", outcome.unfair));
        }
    }
    println!("\nrung                  climbed   reclaimed");
    for totals in snapshot.reclaim.rungs {
        println!(
            "{:20} {:8} {:8.1} MiB",
            totals.rung.name(),
            totals.climbed,
            mib(totals.reclaimed_bytes)
        );
    }
    let reclaim = &snapshot.reclaim;
    println!(
        "\n{} blocks spilled, {} restored (longest {:.1} ms), {} could not be spilled",
        reclaim.spilled_blocks,
        reclaim.restored_blocks,
        reclaim.longest_restore.as_secs_f64() * 1e3,
        reclaim.failed_blocks
    );
    if reclaim.rungs[Rung::BorrowerCaches as usize].reclaimed_bytes == 0 {
        failed.push("there was nothing to fight for".to_owned());
    }
    if let Some(resident) = snapshot.resident_set_bytes {
        println!(
            "{:.1} MiB resident, {:.1} of them unattributed",
            mib(resident),
            mib(snapshot.unattributed_resident_bytes.unwrap_or(0))
        );
    }
}
