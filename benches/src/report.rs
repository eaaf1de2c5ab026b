//! Writes `BENCHMARKS.md`, `docs/benchmarks.svg` and the README's summary. The
//! sections of the page that have commands of their own stay as they are.

use crate::instructions::{self, COUNTED, INNER};
use crate::page;
use crate::rows::{self, Effort, Fact, Row};
use crate::summary;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::{fs, io};

const NOTES: &str = include_str!("../NOTES.md");

struct Counted {
    inner: &'static str,
    what: &'static str,
    counts: Option<(f64, f64)>,
}

/// Measures everything and writes the three files below `root`.
pub fn write(root: &Path, effort: Effort) -> io::Result<()> {
    let load_before = page::load();
    let facts = rows::facts(effort, "");
    let rows = rows::allocators(effort);
    eprintln!("instructions");
    let counted: Vec<Counted> = INNER
        .into_iter()
        .flat_map(|inner| COUNTED.map(|(workload, what, _)| (inner, workload, what)))
        .map(|(inner, workload, what)| Counted {
            inner,
            what,
            counts: instructions::bare_and_tiered(inner, workload),
        })
        .collect();
    let machine = machine(&load_before, &page::load());
    let kept = ["programs", "growth"]
        .map(|name| page::kept(root, name))
        .join("\n");
    fs::create_dir_all(root.join("docs"))?;
    fs::write(root.join("docs/benchmarks.svg"), crate::plot::svg(&rows))?;
    fs::write(
        root.join("BENCHMARKS.md"),
        markdown(&machine, effort, &rows, &facts, &counted, &kept),
    )?;
    summary::write(root)
}

fn markdown(
    machine: &str,
    effort: Effort,
    rows: &[Row],
    facts: &[Fact],
    counted: &[Counted],
    kept: &str,
) -> String {
    let mut text = String::new();
    let rounds = effort.rounds;
    let _ = write!(
        text,
        "# Benchmarks\n\n\
         Written by `cargo run --release -p tiered_allocator_bench -- report`, which replaces \
         this page.\n\n{machine}\n\
         Every heap is called through functions that are not inlined, as compiled code calls a \
         global allocator, with sizes that the compiler does not know, in the scope of a client \
         with a finite quota. Candidates take turns in stints of a few hundred microseconds; a \
         ratio is formed within a turn, and what is shown is the median over up to {rounds} \
         turns ± the median absolute deviation; *within noise* means closer to the goal than two standard errors. Peers that work over any allocator are shown \
         for each, the others for glibc. *Shared atomics* is a model of the usual design: a \
         pointer to the owner's counters behind each block, two shared counters updated by every \
         call.\n\n![ratios](docs/benchmarks.svg)\n\n\
         ## Against the bare allocator\n\n\
         | workload | inner | bare | tiered | ratio | goal | met | peers, ratio to bare |\n\
         |---|---|---|---|---|---|---|---|\n"
    );
    for row in rows {
        for one in &row.comparisons {
            let peers: Vec<String> = one
                .peers
                .iter()
                .map(|(name, ratio)| format!("{name} {:.2}", ratio.median))
                .collect();
            let _ = writeln!(
                text,
                "| {} | {} | {:.2} {unit} | {:.2} {unit} | {:.3} ± {:.3} | {} | {} | {} |",
                row.name,
                one.inner,
                one.bare.median,
                one.tiered.median,
                one.ratio.median,
                one.ratio.mad,
                goal(one.goal, "≤"),
                verdict(one.goal, one.ratio.is_below(one.goal)),
                peers.join(", "),
                unit = row.unit,
            );
        }
    }
    text.push_str(
        "\n## Instructions\n\nCounted by callgrind, per alloc + free of 64 bytes in the own \
         scope. `benches/instructions.sh` fails when they become more.\n\n\
         | pair | inner | bare | tiered | added | goal | met |\n|---|---|---|---|---|---|---|\n",
    );
    for one in counted {
        let _ = match one.counts {
            Some((bare, tiered)) => writeln!(
                text,
                "| {} | {} | {bare:.1} | {tiered:.1} | {:.1} | ≤ 20 | {} |",
                one.what,
                one.inner,
                tiered - bare,
                verdict(20.0, Some(tiered - bare <= 20.0)),
            ),
            None => writeln!(
                text,
                "| {} | {} | not counted: no valgrind | | | ≤ 20 | |",
                one.what, one.inner
            ),
        };
    }
    text.push_str(
        "\n## Clients, scopes, limits\n\n| what | measured | goal | met |\n|---|---|---|---|\n",
    );
    for fact in facts {
        let sign = if fact.at_least { "≥" } else { "≤" };
        let digits = if fact.at_least { 0 } else { 2 };
        let _ = writeln!(
            text,
            "| {} | {:.digits$} ± {:.digits$} {} | {} | {} |",
            fact.name,
            fact.figure.median,
            fact.figure.mad,
            fact.unit,
            goal(fact.goal, sign),
            verdict(fact.goal, fact.met()),
        );
    }
    let _ = write!(text, "\n{kept}\n{NOTES}");
    text
}

fn goal(goal: f64, sign: &str) -> String {
    if goal.is_finite() {
        format!("{sign} {goal}")
    } else {
        String::new()
    }
}

fn verdict(goal: f64, met: Option<bool>) -> &'static str {
    if goal.is_finite() {
        page::verdict(met)
    } else {
        ""
    }
}

fn machine(load_before: &str, load_after: &str) -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let rustc = Command::new("rustc").arg("--version").output();
    let rustc = rustc.map_or_else(
        |_| "unknown rustc".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    );
    let virtual_machine = if cpus.contains(" hypervisor") {
        ", a virtual machine"
    } else {
        ""
    };
    format!(
        "Measured on {model}, {count} processors{virtual_machine}, Linux {}, {rustc}, profile \
         `release` without LTO; load average {load_before} before, {load_after} after. Absolute \
         times hold for that machine and its mood, ratios and instruction counts travel.\n\n",
        kernel.trim(),
    )
}
