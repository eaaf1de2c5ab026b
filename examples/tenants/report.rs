//! What is told, and the books.

use crate::corpus::{Corpus, Reference};
use crate::view::{Colour, View, grouped, mib, mib_number};
use crate::{Ended, HEAP, Outcome, Tenant};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;
use tiered_allocator::{ClientUsage, Memory, Snapshot};

// --- before the work --------------------------------------------------------------

pub fn text(corpus: &Corpus, view: &mut View) {
    let skipped = &corpus.skipped;
    view.say(&format!(
        "Text       {}{}\n           {} files, {}; left out: {} not UTF-8, {} too large, {} unreadable",
        if corpus.is_cut { "the first of " } else { "" },
        corpus.root.display(),
        grouped(corpus.files.len() as u64),
        mib(corpus.text_bytes),
        skipped.not_text,
        skipped.too_large,
        skipped.unreadable,
    ));
}

pub fn reference(reference: &Reference, started: Instant, view: &mut View) {
    view.say(&format!(
        "Reference  {} words at {} places, {:.1} s",
        grouped(reference.words() as u64),
        grouped(reference.postings()),
        started.elapsed().as_secs_f64(),
    ));
}

pub fn sized(usage: &ClientUsage, started: Instant, view: &mut View) {
    view.say(&format!(
        "Sizing     one index takes {} in {} allocations, {:.1} s",
        mib(usage.live_bytes),
        grouped(usage.live_allocations),
        started.elapsed().as_secs_f64(),
    ));
}

pub fn limits(memory: &Memory, tenants: &[Tenant], basic_must_stop: bool, view: &mut View) {
    let usage = memory.usage();
    let limits: Vec<String> = tenants
        .iter()
        .map(|tenant| format!("{} {}", tenant.tier, mib(tenant.max_bytes())))
        .collect();
    view.say(&format!(
        "Memory     {}, {} usable\n           limits: {}",
        mib(usage.total_bytes),
        mib(usage.usable_bytes),
        limits.join(", "),
    ));
    if !basic_must_stop {
        view.say("           So little text that Basic has room for its index: it may finish.");
    }
}

// --- during the work --------------------------------------------------------------

/// One look at all tenants.
pub fn progress(
    memory: &Memory,
    tenants: &[Tenant],
    corpus: &Corpus,
    started: Instant,
    view: &mut View,
) {
    let seconds = started.elapsed().as_secs_f64();
    let looks: Vec<Look> = tenants
        .iter()
        .map(|tenant| Look::at(tenant, corpus))
        .collect();
    let mut frame = vec![String::new()];
    frame.extend(looks.iter().map(|look| look.line(view)));

    let usage = memory.usage();
    let charged = usage.charged_bytes + usage.overdrawn_bytes;
    let refusals: u64 = looks.iter().map(|look| look.usage.refusals).sum();
    frame.push(format!(
        "{:<10} {} {:>6} / {:>10}  {seconds:>4.1} s, {refusals} refusals",
        "together",
        view.bar(charged, charged, usage.total_bytes),
        mib_number(charged),
        mib(usage.total_bytes),
    ));
    view.show(&frame, || {
        let each: Vec<String> = looks.iter().map(Look::short).collect();
        format!("{seconds:>6.1} s   {}", each.join(" | "))
    });
}

struct Look<'a> {
    tenant: &'a Tenant,
    usage: ClientUsage,
    percent: u64,
    state: (Colour, &'static str),
}

impl<'a> Look<'a> {
    fn at(tenant: &'a Tenant, corpus: &Corpus) -> Look<'a> {
        let usage = tenant.client.usage();
        let progress = &tenant.progress;
        let text_bytes = progress.text_bytes.load(Ordering::Relaxed) as u64;
        let state = if !tenant.client.is_active() {
            (Colour::Red, "stopped, removed")
        } else if usage.overdrawn_bytes > 0 {
            (Colour::Red, "over its quota")
        } else if progress.files.load(Ordering::Relaxed) == corpus.files.len() {
            (Colour::Green, "finished")
        } else {
            (Colour::Dim, "working")
        };
        Look {
            tenant,
            usage,
            percent: text_bytes * 100 / corpus.text_bytes,
            state,
        }
    }

    fn line(&self, view: &View) -> String {
        let max_bytes = self.tenant.max_bytes();
        let (colour, state) = self.state;
        format!(
            "{:<10} {} {:>6} / {:>10}  {:>3} %  {}",
            self.tenant.tier,
            view.bar(self.usage.live_bytes, self.usage.charged_bytes, max_bytes),
            mib_number(self.usage.charged_bytes),
            mib(max_bytes),
            self.percent,
            view.paint(colour, state),
        )
    }

    fn short(&self) -> String {
        let charged = mib(self.usage.charged_bytes);
        let (_, state) = self.state;
        format!("{} {} % {charged} {state}", self.tenant.tier, self.percent)
    }
}

// --- after the work ---------------------------------------------------------------

pub fn table(tenants: &[Tenant], outcomes: &[Outcome], view: &mut View) {
    view.say(&format!(
        "\n{:<7}{:<11}{:>7}{:>9}{:>12}{:>7}{:>7}{:>9}{:>10}  outcome",
        "tenant", "tier", "files", "words", "postings", "peak", "live", "charged", "refusals",
    ));
    for (tenant, outcome) in tenants.iter().zip(outcomes) {
        let now = tenant.client.usage();
        let ended = match outcome.ended {
            Ended::Stopped { .. } => view.paint(Colour::Yellow, "stopped, removed"),
            Ended::Finished { wrong_words: 0, .. } => view.paint(Colour::Green, "every word right"),
            Ended::Finished { wrong_words, .. } => {
                view.paint(Colour::Red, &format!("{wrong_words} words wrong"))
            }
        };
        view.say(&format!(
            "{:<7}{:<11}{:>7}{:>9}{:>12}{:>7}{:>7}{:>9}{:>10}  {ended}",
            tenant.name,
            tenant.tier,
            grouped(tenant.progress.files.load(Ordering::Relaxed) as u64),
            grouped(outcome.words as u64),
            grouped(outcome.postings),
            mib_number(outcome.usage.peak_bytes),
            mib_number(now.live_bytes),
            mib_number(now.charged_bytes),
            outcome.usage.refusals,
        ));
    }
    view.say("(peak, live and charged in MiB)");
    for outcome in outcomes {
        if let Ended::Stopped { quota, .. } = &outcome.ended {
            view.say(&format!("\nerror: {quota}"));
        }
    }
}

/// The heap bytes of every owner, and what the audit has counted.
pub struct Books {
    owners: Vec<(String, u64)>,
    audited_bytes: u64,
}

/// Reads the books; `None` if they do not agree. The memory's reclaimer thread
/// may allocate between the two readings: then they are taken again.
pub fn add_up(memory: &Memory) -> Option<Books> {
    // Blocks from `allocate_for_client` are not on the heap.
    let heap_bytes = |usage: &ClientUsage| usage.live_bytes - usage.block_bytes;
    for _ in 0..100 {
        let snapshot = memory.snapshot();
        let audited_bytes = HEAP.live_bytes();
        let clients = snapshot.clients.iter();
        let mut owners: Vec<(String, u64)> = clients
            .map(|client| (client.name.to_string(), heap_bytes(&client.usage)))
            .collect();
        let retired = snapshot.retired.iter();
        owners.push((
            "removed clients".into(),
            retired.map(|client| heap_bytes(&client.usage)).sum(),
        ));
        owners.push(("nobody (no scope)".into(), snapshot.unattributed_bytes));
        if owners.iter().map(|(_, bytes)| bytes).sum::<u64>() == audited_bytes {
            return Some(Books {
                owners,
                audited_bytes,
            });
        }
        thread::yield_now();
    }
    None
}

/// Shows whose bytes are on the heap, and whether these are all.
pub fn owners(memory: &Memory, view: &mut View) -> bool {
    view.say("\nbytes on the heap, by owner");
    let Some(books) = add_up(memory) else {
        view.say(&view.paint(Colour::Red, "  do not add up to what the process has"));
        return false;
    };
    let mut line = |what: &str, bytes: u64, note: &str| {
        view.say(&format!("  {what:<28}{:>14}  {note}", grouped(bytes)));
    };
    for (owner, bytes) in &books.owners {
        line(owner, *bytes, "");
    }
    let sum = books.owners.iter().map(|(_, bytes)| bytes).sum();
    line("together", sum, "");
    line("the process, as audited", books.audited_bytes, "equal");
    true
}

pub fn totals(rest: &Snapshot, most_charged: u64, view: &mut View) {
    let memory = rest.memory;
    let resident = rest.resident_set_bytes.map_or("unknown".into(), mib);
    view.say(&format!(
        "\nat most {} of {} were charged, overdrafts included\n\
         without tenants: {} B charged, {} B overdrawn, {} unattributed, resident set {resident}\n",
        mib(most_charged),
        mib(memory.total_bytes),
        memory.charged_bytes,
        memory.overdrawn_bytes,
        mib(rest.unattributed_bytes),
    ));
}

#[derive(Default)]
pub struct Promises {
    kept: usize,
    broken: Vec<String>,
}

impl Promises {
    pub fn check(&mut self, is_kept: bool, what: &str) {
        if is_kept {
            self.kept += 1;
        } else {
            self.broken.push(what.to_owned());
        }
    }

    /// Whether all were kept.
    pub fn conclude(&self, view: &mut View) -> bool {
        for what in &self.broken {
            view.say(&view.paint(Colour::Red, &format!("BROKEN: {what}")));
        }
        let all = self.kept + self.broken.len();
        let colour = if self.broken.is_empty() {
            Colour::Green
        } else {
            Colour::Red
        };
        view.say(&view.paint(colour, &format!("{} of {all} promises kept", self.kept)));
        self.broken.is_empty()
    }
}
