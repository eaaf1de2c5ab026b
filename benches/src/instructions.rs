//! Instruction counts, by valgrind's callgrind: the same on every machine of
//! one architecture, however busy it is.

use std::process::Command;

/// What is counted: workload, what it is, and the most that may be added
/// before [`check`] fails. The limits are what is reached, rounded up.
pub const COUNTED: [(&str, &str, f64); 2] = [
    ("constant", "size constant and inlined", 22.0),
    ("pair", "size unknown, called like a global allocator", 39.0),
];

/// The most that entering and leaving a scope may take.
const SCOPE_LIMIT: f64 = 45.0;

pub const INNER: [&str; 3] = ["glibc", "mimalloc", "jemalloc"];

fn total(arguments: [&str; 3], operations: u64) -> Option<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().ok()?)
        .arg("count")
        .args(arguments)
        .arg(operations.to_string())
        .output()
        .ok()?;
    let report = String::from_utf8(output.stderr).ok()?;
    let line = report.lines().find(|line| line.contains("Collected :"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// Instructions per operation: the difference between a long run and a short
/// one, so that starting and ending cancel out.
fn per_operation(arguments: [&str; 3]) -> Option<f64> {
    const SHORT: u64 = 10_000;
    const LONG: u64 = 60_000;
    Some((total(arguments, LONG)? - total(arguments, SHORT)?) / (LONG - SHORT) as f64)
}

/// Instructions of the bare and of the tiered allocator for one operation;
/// `None` without valgrind.
pub fn bare_and_tiered(inner: &str, workload: &str) -> Option<(f64, f64)> {
    Some((
        per_operation([inner, "bare", workload])?,
        per_operation([inner, "tiered", workload])?,
    ))
}

/// Instructions to enter and leave a scope.
pub fn scope() -> Option<f64> {
    per_operation(["glibc", "tiered", "scope"])
}

/// Prints what is added; `false` if it is more than it was, or unknown.
pub fn check() -> bool {
    let mut passed = true;
    let mut judge = |what: String, count: Option<f64>, limit: f64| {
        let within = count.is_some_and(|count| count <= limit);
        let verdict = if within { "ok" } else { "TOO MANY" };
        let count = count.map_or("?".to_owned(), |count| format!("{count:.1}"));
        println!("{what}: {count} instructions, at most {limit}: {verdict}");
        passed &= within;
    };
    for inner in INNER {
        for (workload, what, limit) in COUNTED {
            let counts = bare_and_tiered(inner, workload);
            let added = counts.map(|(bare, tiered)| tiered - bare);
            judge(
                format!("{inner}, alloc + free of 64 bytes, {what}: added"),
                added,
                limit,
            );
        }
    }
    judge("enter + leave a scope".to_owned(), scope(), SCOPE_LIMIT);
    passed
}
