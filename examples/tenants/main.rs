//! Three tenants of one process, one per subscription tier, each build an
//! index of the same text with several threads. Basic has too little room for
//! that: it is stopped with an error and cleaned up, and the others never
//! notice.
//!
//! ```text
//! cargo run --release --example tenants [-- DIR]
//! ```
//!
//! Ends with 0 if every promise was kept, 1 if one was broken, 2 if there was
//! nothing to index. How the crate is used stands on this page; `index.rs` is
//! the tenants' work, `corpus.rs` knows what a right index contains, `audit.rs`
//! checks the books from outside, `report.rs` and `view.rs` show it all.

mod audit;
mod corpus;
mod index;
mod report;
mod view;

use audit::Audit;
use corpus::{Corpus, Reference};
use index::Index;
use report::Promises;
use std::error::Error;
use std::panic::resume_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tiered_allocator::{
    Client, ClientUsage, Limit, Memory, QuotaExceeded, SubscriptionTier, TierPolicy,
    TieredAllocator,
};
use view::View;

/// Every allocation of the process goes through here. A program that does not
/// want to check up on the crate writes
/// `static HEAP: TieredAllocator = TieredAllocator::system();`.
#[global_allocator]
static HEAP: Audit<TieredAllocator> = Audit::new(TieredAllocator::system());

/// Threads that work for one tenant.
const WORKERS: usize = 3;
const FRAME: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("tenants: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether every promise was kept.
fn run() -> Result<bool, Box<dyn Error>> {
    let corpus = match std::env::args_os().nth(1) {
        Some(dir) => Corpus::under(dir.as_ref())?,
        None => Corpus::of_this_machine()?,
    };
    let mut view = View::new();
    report::text(&corpus, &mut view);

    // Outside any scope, so charged to nobody.
    let started = Instant::now();
    let reference = Reference::of(&corpus);
    report::reference(&reference, started, &mut view);

    let started = Instant::now();
    let sized = size_up(&corpus)?;
    report::sized(&sized, started, &mut view);

    let memory = Memory::new(total_bytes(&sized, &corpus));
    let tenants = [
        Tenant::register(&memory, "shop", SubscriptionTier::Basic)?,
        Tenant::register(&memory, "press", SubscriptionTier::Premium)?,
        Tenant::register(&memory, "bank", SubscriptionTier::Enterprise)?,
    ];
    // An index that does not fit cannot be finished. One that does is too
    // small to tell much: then Basic may finish, too.
    let basic_must_stop = tenants[0].max_bytes() < sized.live_bytes;
    report::limits(&memory, &tenants, basic_must_stop, &mut view);

    let (outcomes, most_charged) = work(&memory, &tenants, &corpus, &reference, &mut view);
    report::table(&tenants, &outcomes, &mut view);

    let mut promises = Promises::default();
    for (tenant, outcome) in tenants.iter().zip(&outcomes) {
        judge(tenant, outcome, &sized, basic_must_stop, &mut promises);
    }
    promises.check(
        most_charged <= memory.usage().total_bytes,
        "never more charged than there is",
    );
    promises.check(
        report::owners(&memory, &mut view),
        "all owners add up to what the process has, to the byte",
    );

    // The end of the other two: their indexes are freed, and they leave.
    drop(outcomes);
    for tenant in tenants.iter().filter(|tenant| tenant.client.is_active()) {
        memory.remove_client(tenant.name)?;
    }
    let rest = memory.snapshot();
    promises.check(
        (rest.memory.charged_bytes, rest.memory.overdrawn_bytes) == (0, 0)
            && rest.clients.is_empty()
            && rest.retired.is_empty(),
        "with all tenants gone nothing is charged",
    );
    promises.check(
        report::add_up(&memory).is_some(),
        "the books still agree after that",
    );
    report::totals(&rest, most_charged, &mut view);
    Ok(promises.conclude(&mut view))
}

/// What one index takes, as a client without limits finds out.
fn size_up(corpus: &Corpus) -> Result<ClientUsage, Box<dyn Error>> {
    let memory = Memory::builder(1 << 40)
        .tier("unlimited", TierPolicy::new(Limit::Unlimited))
        .build()?;
    let client = memory.register("sizing", "unlimited")?;
    let (_index, _) = build_index(&client, corpus, &Progress::default());
    Ok(client.usage())
}

/// How large the memory must be for Premium to have a quarter more than it
/// needs: the index, and a file in the hands of each thread. By default 80 % of
/// a memory are usable, and of these Premium may have a fifth, Enterprise half
/// and Basic a tenth, which is not enough.
fn total_bytes(sized: &ClientUsage, corpus: &Corpus) -> u64 {
    let needed_bytes = sized.live_bytes + WORKERS as u64 * corpus.largest_bytes;
    let usable_bytes = needed_bytes * 5 / 4 * 5;
    (usable_bytes * 5 / 4).next_multiple_of(1 << 16)
}

// --- one tenant -----------------------------------------------------------------

struct Tenant {
    name: &'static str,
    tier: SubscriptionTier,
    client: Client,
    progress: Progress,
}

#[derive(Default)]
struct Progress {
    files: AtomicUsize,
    text_bytes: AtomicUsize,
}

/// What became of a tenant's work.
struct Outcome {
    words: usize,
    postings: u64,
    /// When the work had ended, before anything was cleaned up.
    usage: ClientUsage,
    ended: Ended,
}

enum Ended {
    Finished {
        /// Held to the end, so that its bytes can be seen.
        _index: Index,
        wrong_words: usize,
    },
    Stopped {
        quota: QuotaExceeded,
        /// After the index was dropped.
        left: ClientUsage,
    },
}

impl Tenant {
    fn register(
        memory: &Memory,
        name: &'static str,
        tier: SubscriptionTier,
    ) -> Result<Tenant, Box<dyn Error>> {
        Ok(Tenant {
            name,
            tier,
            client: memory.register(name, tier)?,
            progress: Progress::default(),
        })
    }

    fn max_bytes(&self) -> u64 {
        let (max_bytes, _soft, _guarantee) = self.client.limits();
        max_bytes
    }

    /// Builds the index. A tenant over its quota loses what it has built and
    /// is removed.
    fn serve(&self, memory: &Memory, corpus: &Corpus, reference: &Reference) -> Outcome {
        let (index, stopped) = build_index(&self.client, corpus, &self.progress);
        let usage = self.client.usage();
        let (words, postings) = (index.words(), index.postings());
        let ended = match stopped {
            None => Ended::Finished {
                wrong_words: index.wrong_words(reference),
                _index: index,
            },
            Some(quota) => {
                // No scope is needed to free: the bytes go back to whom they
                // were charged to, whoever frees them.
                drop(index);
                let left = self.client.usage();
                let removed = memory.remove_client(self.name);
                removed.expect("it was registered, and nobody else removes it");
                Ended::Stopped { quota, left }
            }
        };
        Outcome {
            words,
            postings,
            usage,
            ended,
        }
    }
}

/// Indexes all files with several threads, for `client`. What there is of the
/// index comes back with the reason why it is not complete, if it is not.
fn build_index(
    client: &Client,
    corpus: &Corpus,
    progress: &Progress,
) -> (Index, Option<QuotaExceeded>) {
    // A scope: until the guard is dropped, this thread allocates for `client`.
    let scope = client.enter();
    let index = Index::new();
    drop(scope);

    let next = AtomicUsize::new(0);
    let index_files = || -> Result<(), QuotaExceeded> {
        loop {
            let file = next.fetch_add(1, Ordering::Relaxed);
            if file >= corpus.files.len() {
                return Ok(());
            }
            let text = corpus.text(file);
            let text_bytes = text.len();
            index.add_file(file as u32, text);
            progress.files.fetch_add(1, Ordering::Relaxed);
            progress.text_bytes.fetch_add(text_bytes, Ordering::Relaxed);
            // A safe point: nothing is half done, so a tenant that has more
            // than it may have can be stopped here.
            client.checkpoint()?;
        }
    };
    let stopped = thread::scope(|threads| {
        // Scopes belong to threads: each worker enters its own, with `run`. The
        // end of `run` is a safe point, too.
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                threads.spawn(|| {
                    let ended = client.run(index_files);
                    ended.unwrap_or_else(|over| Err(over.quota))
                })
            })
            .collect();
        let mut stopped = None;
        for worker in workers {
            let ended = worker.join().unwrap_or_else(|panic| resume_unwind(panic));
            stopped = ended.err().or(stopped);
        }
        stopped
    });
    (index, stopped)
}

// --- all of them ----------------------------------------------------------------

/// Lets all tenants work at once and watches. Also answers the most that was
/// charged at any look.
fn work(
    memory: &Memory,
    tenants: &[Tenant],
    corpus: &Corpus,
    reference: &Reference,
    view: &mut View,
) -> (Vec<Outcome>, u64) {
    let started = Instant::now();
    let mut most_charged = 0;
    let outcomes = thread::scope(|threads| {
        let working: Vec<_> = tenants
            .iter()
            .map(|tenant| threads.spawn(|| tenant.serve(memory, corpus, reference)))
            .collect();
        loop {
            let is_over = working.iter().all(|tenant| tenant.is_finished());
            let usage = memory.usage();
            most_charged = most_charged.max(usage.charged_bytes + usage.overdrawn_bytes);
            report::progress(memory, tenants, corpus, started, view);
            if is_over {
                break;
            }
            thread::sleep(FRAME);
        }
        working
            .into_iter()
            .map(|tenant| tenant.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    (outcomes, most_charged)
}

/// Holds what a tenant got against what it was promised.
fn judge(
    tenant: &Tenant,
    outcome: &Outcome,
    sized: &ClientUsage,
    basic_must_stop: bool,
    promises: &mut Promises,
) {
    let name = tenant.name;
    let is_basic = tenant.tier == SubscriptionTier::Basic;
    match &outcome.ended {
        Ended::Finished { wrong_words, .. } => {
            promises.check(
                *wrong_words == 0 && !(is_basic && basic_must_stop),
                &format!("{name}: finished, and every word is right"),
            );
            promises.check(
                tenant.client.usage().live_bytes == sized.live_bytes,
                &format!("{name}: charged what its index takes, to the byte"),
            );
        }
        Ended::Stopped { left, .. } => {
            promises.check(
                is_basic && (left.live_bytes, left.live_allocations) == (0, 0),
                &format!("{name}: stopped, and nothing of it is left"),
            );
            promises.check(!tenant.client.is_active(), &format!("{name}: removed"));
        }
    }
    promises.check(
        outcome.usage.refusals == 0,
        &format!("{name}: no allocation was refused"),
    );
    promises.check(
        is_basic || outcome.usage.peak_bytes <= tenant.max_bytes(),
        &format!("{name}: within its limit, or stopped for it"),
    );
}
