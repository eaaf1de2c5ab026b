//! Whole programs, each an ordinary user of a heap: `tiered_allocator_bench
//! programs` builds this with one heap after the other and compares processor
//! time and memory.
//!
//! ```text
//! tiered_allocator_programs NAME [SCALE]
//! ```
//!
//! Prints what the program computed, which is the same on every heap, then what
//! it took. `SCALE` is a share of the work in percent.

mod heap;
mod json;
mod map;
mod parse;
mod random;
mod script;
mod search;
mod server;
mod site;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (name, scale) = (args.next().unwrap_or_default(), args.next());
    let Ok(percent) = scale.as_deref().unwrap_or("100").parse::<usize>() else {
        eprintln!("the scale is a whole number of percent");
        return ExitCode::FAILURE;
    };
    heap::check();
    let scope = heap::enter();
    let times = |full: usize| (full * percent / 100).max(1);
    let result = match name.as_str() {
        "parse" => parse::run(times(8)),
        "json" => json::run(times(12)),
        "search" => search::run(times(30_000)),
        "script" => script::run(times(24)),
        "server" => server::run(times(60_000)),
        "map" => map::run(times(1_500_000)),
        "site" => site::run(times(200)),
        _ => {
            eprintln!("there is no program {name:?}");
            return ExitCode::FAILURE;
        }
    };
    drop(scope);
    println!("result {result}");
    heap::report();
    ExitCode::SUCCESS
}
