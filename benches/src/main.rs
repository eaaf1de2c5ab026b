//! Measures `tiered_allocator` against the bare inner allocators and against
//! other accounting allocators. `report` writes `BENCHMARKS.md`, a plot and
//! the README's summary, `check` fails if an allocation takes more instructions than it did.

mod count;
mod growth;
mod heaps;
mod instructions;
mod page;
mod plot;
mod programs;
mod report;
mod rows;
mod runner;
mod summary;
mod trailer;

use rows::Effort;
use std::path::Path;
use std::process::ExitCode;
use tiered_allocator::TieredAllocator;
use tracking_allocator::{AllocationGroupId, AllocationRegistry, AllocationTracker};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const USAGE: &str = "\
tiered_allocator_bench report            measure everything but what follows, write BENCHMARKS.md
tiered_allocator_bench programs [RUNS]   measure whole programs, write their section of it
tiered_allocator_bench growth            measure growth and overhead, write their section
tiered_allocator_bench summary           write the README's summary again, from BENCHMARKS.md
tiered_allocator_bench rows              only the comparisons, to the terminal
tiered_allocator_bench facts [PART]      only the rest, or what PART names
tiered_allocator_bench check             compare instruction counts with their limits
tiered_allocator_bench count glibc|mimalloc|jemalloc bare|tiered pair|constant|scope COUNT
tiered_allocator_bench hold glibc|mimalloc|jemalloc bare|tiered|header SIZE COUNT";

/// What `tracking-allocator` calls: it leaves the counting to its user.
struct Count;

impl AllocationTracker for Count {
    fn allocated(&self, _: usize, size: usize, _: usize, _: AllocationGroupId) {
        trailer::CLIENTS[2].add(size as u64);
    }

    fn deallocated(
        &self,
        _: usize,
        size: usize,
        _: usize,
        _: AllocationGroupId,
        _: AllocationGroupId,
    ) {
        trailer::CLIENTS[2].subtract(size as u64);
    }
}

fn main() -> ExitCode {
    assert!(TieredAllocator::is_installed());
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let effort = Effort { rounds: 301 };
    match args[..] {
        ["report"] => {
            track();
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            if let Err(error) = report::write(&root, effort) {
                eprintln!("the report could not be written: {error}");
                return ExitCode::FAILURE;
            }
        }
        ["rows"] => {
            track();
            for row in rows::allocators(effort) {
                println!("{}", row.name);
                for one in row.comparisons {
                    println!(
                        "  {:9} {:9.2} -> {:9.2} {}, ratio {:.3} ± {:.3}",
                        one.inner,
                        one.bare.median,
                        one.tiered.median,
                        row.unit,
                        one.ratio.median,
                        one.ratio.mad,
                    );
                }
            }
        }
        ["facts", ref only @ ..] => {
            for fact in rows::facts(effort, only.first().copied().unwrap_or_default()) {
                println!(
                    "{}: {:.3} ± {:.3} {}",
                    fact.name, fact.figure.median, fact.figure.mad, fact.unit
                );
            }
        }
        ["programs", ref runs @ ..] => {
            let runs = runs.first().map_or(Ok(11), |runs| runs.parse());
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            match runs.map(|runs| programs::write(&root, runs)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    eprintln!("the programs could not be measured: {error}");
                    return ExitCode::FAILURE;
                }
                Err(_) => {
                    eprintln!("{USAGE}");
                    return ExitCode::FAILURE;
                }
            }
        }
        ["growth"] => {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            if let Err(error) = growth::write(&root) {
                eprintln!("the growth could not be measured: {error}");
                return ExitCode::FAILURE;
            }
        }
        ["summary"] => {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            if let Err(error) = summary::write(&root) {
                eprintln!("the summary could not be written: {error}");
                return ExitCode::FAILURE;
            }
        }
        ["hold", inner, kind, size, count] => {
            if growth::hold(inner, kind, size, count).is_none() {
                eprintln!("{USAGE}");
                return ExitCode::FAILURE;
            }
        }
        ["check"] => {
            if !instructions::check() {
                return ExitCode::FAILURE;
            }
        }
        ["count", inner, kind, workload, operations] => {
            if count::run(inner, kind, workload, operations).is_none() {
                eprintln!("{USAGE}");
                return ExitCode::FAILURE;
            }
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn track() {
    if AllocationRegistry::set_global_tracker(Count).is_ok() {
        AllocationRegistry::enable_tracking();
    }
}
