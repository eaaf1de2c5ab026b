//! Whole programs, each built once with every heap and run in turn.

use crate::page;
use crate::runner::Figure;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

const PROGRAMS: [(&str, &str); 7] = [
    (
        "parse",
        "Rust source to syntax trees and back (syn, prettyplease)",
    ),
    (
        "json",
        "JSON records read, changed, sorted, written (serde_json)",
    ),
    ("search", "documents indexed and searched (tantivy)"),
    ("script", "scripts compiled and run (rhai)"),
    (
        "server",
        "HTTP requests over loopback, 2 workers (axum, tokio)",
    ),
    ("map", "a cache shared by 4 threads (dashmap)"),
    (
        "site",
        "Markdown through templates to HTML (pulldown-cmark, minijinja)",
    ),
];

const PACKAGE: &str = "tiered_allocator_programs";
/// Share of the work, in percent, when instructions are counted.
const COUNTED_PERCENT: &str = "10";

const CPU_GOAL: f64 = 1.05;
const CPU_MEAN_GOAL: f64 = 1.02;
const PEAK_GOAL: f64 = 1.03;

struct Heap {
    inner: &'static str,
    bare: &'static str,
    tiered: &'static str,
}

const HEAPS: [Heap; 2] = [
    Heap {
        inner: "glibc",
        bare: "",
        tiered: "tiered",
    },
    Heap {
        inner: "mimalloc",
        bare: "mimalloc",
        tiered: "mimalloc,tiered",
    },
];

/// What one run of a program took.
struct Run {
    cpu_seconds: f64,
    peak_mib: f64,
    /// Charged by the tiered heap; 0 on a bare one.
    allocations: f64,
    bytes: f64,
    result: String,
}

/// A program on an inner allocator: runs in pairs, bare and tiered.
struct Compared {
    program: usize,
    inner: &'static str,
    pairs: Vec<(Run, Run)>,
    instructions: Option<f64>,
}

impl Compared {
    fn of(&self, what: impl Fn(&(Run, Run)) -> f64) -> Figure {
        Figure::of(&self.pairs.iter().map(what).collect::<Vec<_>>())
    }

    fn cpu(&self) -> Figure {
        self.of(|(bare, tiered)| tiered.cpu_seconds / bare.cpu_seconds)
    }

    /// The fastest runs: what disturbs a run only makes it longer.
    fn fastest(&self) -> (f64, f64) {
        self.pairs
            .iter()
            .fold((f64::MAX, f64::MAX), |(bare, tiered), pair| {
                (bare.min(pair.0.cpu_seconds), tiered.min(pair.1.cpu_seconds))
            })
    }

    fn peak(&self) -> Figure {
        self.of(|(bare, tiered)| tiered.peak_mib / bare.peak_mib)
    }
}

/// Measures and puts the section into the page below `root`.
pub fn write(root: &Path, runs: usize) -> io::Result<()> {
    let load = page::load();
    let binaries = build(root)?;
    let mut all: Vec<Compared> = Vec::new();
    for program in 0..PROGRAMS.len() {
        for heap in &HEAPS {
            all.push(Compared {
                program,
                inner: heap.inner,
                pairs: Vec::new(),
                instructions: None,
            });
        }
    }
    for round in 0..runs {
        eprintln!("programs, round {} of {runs}", round + 1);
        for compared in &mut all {
            let (bare, tiered) = binaries_of(&binaries, compared.inner);
            let name = PROGRAMS[compared.program].0;
            // Each is the first as often as the second.
            let pair = if round % 2 == 0 {
                let bare = run(bare, name)?;
                (bare, run(tiered, name)?)
            } else {
                let tiered = run(tiered, name)?;
                (run(bare, name)?, tiered)
            };
            if pair.0.result != pair.1.result {
                return Err(io::Error::other(format!("{name}: the results differ")));
            }
            compared.pairs.push(pair);
        }
    }
    for compared in &mut all {
        let name = PROGRAMS[compared.program].0;
        eprintln!("instructions of {name} on {}", compared.inner);
        let (bare, tiered) = binaries_of(&binaries, compared.inner);
        compared.instructions = instructions(bare, name)
            .zip(instructions(tiered, name))
            .map(|(bare, tiered)| tiered / bare);
    }
    let text = markdown(
        &all,
        runs,
        &format!("{load} before, {} after", page::load()),
    );
    println!("{text}");
    page::replace(root, "programs", &text)?;
    crate::summary::write(root)
}

fn binaries_of<'a>(binaries: &'a [PathBuf], inner: &str) -> (&'a Path, &'a Path) {
    let at = HEAPS
        .iter()
        .position(|heap| heap.inner == inner)
        .unwrap_or(0);
    (&binaries[2 * at], &binaries[2 * at + 1])
}

/// One binary for each heap, bare and tiered in turn.
fn build(root: &Path) -> io::Result<Vec<PathBuf>> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let target = target.join("programs");
    let mut binaries = Vec::new();
    for features in HEAPS.iter().flat_map(|heap| [heap.bare, heap.tiered]) {
        eprintln!("building with features: {features}");
        let built = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(root)
            .args(["build", "--release", "--quiet", "-p", PACKAGE])
            .args(["--features", features, "--target-dir"])
            .arg(&target)
            .status()?;
        if !built.success() {
            return Err(io::Error::other("the programs do not build"));
        }
        let binary = target.join(format!("heap-{}", features.replace(',', "-")));
        fs::copy(target.join("release").join(PACKAGE), &binary)?;
        binaries.push(binary);
    }
    Ok(binaries)
}

fn run(binary: &Path, program: &str) -> io::Result<Run> {
    let mut child = Command::new(binary)
        .arg(program)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut output)?;
    }
    let mut status = 0;
    // SAFETY: all zeros is a `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the child is ours and was not waited for; both places are valid.
    let waited = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    if waited != child.id() as i32 || status != 0 {
        return Err(io::Error::other(format!(
            "{program} on {} failed",
            binary.display()
        )));
    }
    let line = |name: &str| {
        let mut lines = output.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or("0").to_owned()
    };
    let number = |name| line(name).parse::<f64>().unwrap_or(0.0);
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok(Run {
        cpu_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        peak_mib: number("peak-kib") / 1024.0,
        allocations: number("allocations"),
        bytes: number("bytes"),
        result: line("result"),
    })
}

/// Instructions of a smaller run; `None` without valgrind.
fn instructions(binary: &Path, program: &str) -> Option<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no"])
        .arg("--cachegrind-out-file=/dev/null")
        .args([
            binary.as_os_str(),
            OsStr::new(program),
            OsStr::new(COUNTED_PERCENT),
        ])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    // `==1234== I refs:      1,234,567`; how many blanks depends on the version.
    let count = text
        .lines()
        .find_map(|line| line.split_once("refs:").map(|(_, count)| count))?;
    let digits = count.trim().replace(',', "");
    digits.parse().ok()
}

fn geometric_mean(values: impl Iterator<Item = f64>) -> f64 {
    let logarithms: Vec<f64> = values.map(f64::ln).collect();
    (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp()
}

fn markdown(all: &[Compared], runs: usize, load: &str) -> String {
    let mut text = format!(
        "## Whole programs\n\n\
         Written by `cargo run --release -p tiered_allocator_bench -- programs`, which replaces \
         this section. Each program is built once for each heap and runs in the scope of a client \
         with a finite quota. {runs} runs of each in turn, a bare one and a tiered one next to \
         each other; ratios are formed within such a pair, and the median is shown ± the median \
         absolute deviation. Time is the process' user and system time, its fastest run and the \
         ratio of the fastest runs beside the median of the pairs; peak is its highest \
         resident set. Instructions are those of one run at {COUNTED_PERCENT} % of the size, \
         counted by cachegrind. Load average {load}.\n\n\
         | program | inner | bare | tiered | fastest, ratio | time, ratio | goal | met | instructions, ratio \
         | peak, bare | tiered | peak, ratio | goal | met | allocations, mean size |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
    );
    for one in all {
        let (cpu, peak) = (one.cpu(), one.peak());
        let allocations = one.of(|(_, tiered)| tiered.allocations).median;
        let bytes = one.of(|(_, tiered)| tiered.bytes).median;
        let counted = one
            .instructions
            .map_or("not counted".into(), |ratio| format!("{ratio:.3}"));
        let _ = writeln!(
            text,
            "| {}: {} | {} | {:.2} s | {:.2} s | {:.3} | {:.3} ± {:.3} | ≤ {CPU_GOAL} | {} | {counted} \
             | {:.1} MiB | {:.1} MiB | {:.3} ± {:.3} | ≤ {PEAK_GOAL} | {} | {:.1} million of {:.0} B |",
            PROGRAMS[one.program].0,
            PROGRAMS[one.program].1,
            one.inner,
            one.fastest().0,
            one.fastest().1,
            one.fastest().1 / one.fastest().0,
            cpu.median,
            cpu.mad,
            page::verdict(cpu.is_below(CPU_GOAL)),
            one.of(|(bare, _)| bare.peak_mib).median,
            one.of(|(_, tiered)| tiered.peak_mib).median,
            peak.median,
            peak.mad,
            page::verdict(Some(peak.median <= PEAK_GOAL)),
            allocations / 1e6,
            bytes / allocations.max(1.0),
        );
    }
    for heap in &HEAPS {
        let of_heap = || all.iter().filter(|one| one.inner == heap.inner);
        let cpu = geometric_mean(of_heap().map(|one| one.cpu().median));
        let fastest = geometric_mean(of_heap().map(|one| one.fastest().1 / one.fastest().0));
        let peak = geometric_mean(of_heap().map(|one| one.peak().median));
        let counted: Option<Vec<f64>> = of_heap().map(|one| one.instructions).collect();
        let counted = counted.map_or(String::new(), |ratios| {
            format!("{:.3}", geometric_mean(ratios.into_iter()))
        });
        let _ = writeln!(
            text,
            "| **geometric mean** | {} | | | {fastest:.3} | {cpu:.3} | ≤ {CPU_MEAN_GOAL} | {} | {counted} | | \
             | {peak:.3} | ≤ {PEAK_GOAL} | {} | |",
            heap.inner,
            page::verdict(Some(cpu <= CPU_MEAN_GOAL)),
            page::verdict(Some(peak <= PEAK_GOAL)),
        );
    }
    text
}
