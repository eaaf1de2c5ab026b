//! The real code under `shuttle`: tasks instead of threads, and a scheduler
//! that chooses at every atomic access and every lock which of them goes on.
//!
//! What is checked is the whole way of a request, from `alloc` through the
//! ledger to the budgets, with the process-wide statics as they are; what an
//! execution opens it also closes, so that the next one starts from the same
//! state. Memory is sequentially consistent here (what weaker orderings allow
//! is for `model_weak`), and the asymmetric fence is a full fence on both
//! sides (that the real one is enough is for `litmus`).
//!
//! `scripts/model.sh` runs this; a failure prints the schedule that led to it.

mod accounts;
mod blocks;
mod budgets;
mod credit;
mod lives;
mod records;

use crate::registry::slot::State;
use crate::{
    Client, ClientOptions, Enforcement, Limit, Memory, SubscriptionTier, TierPolicy,
    TieredAllocator,
};
use core::alloc::{GlobalAlloc, Layout};
use core::time::Duration;
use shuttle::Config;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use std::time::Instant;

/// Not installed: the checker's own allocations are none of its business.
static HEAP: TieredAllocator = TieredAllocator::system();

/// Executions of one test, half of them by each scheduler, unless
/// `MODEL_EXECUTIONS` or `MODEL_SECONDS` say otherwise.
const EXECUTIONS: usize = 200;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs `body` as the first task of [`EXECUTIONS`], or as many as fit into
/// `MODEL_SECONDS`; from the seed `MODEL_SEED`, if there is one. Half
/// of them switch tasks at random, half at few points (PCT: a defect that
/// takes `d` of them is found with a probability that can be computed).
fn check(name: &str, body: impl Fn() + Send + Sync + 'static) {
    // The statics are one process's: one execution at a time.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let body = std::sync::Arc::new(body);
    let time = number("MODEL_SECONDS").map(Duration::from_secs);
    let most = match number("MODEL_EXECUTIONS") {
        Some(executions) => executions as usize,
        None => time.map_or(EXECUTIONS, |_| usize::MAX),
    };
    let seed = number("MODEL_SEED").unwrap_or(0);
    let run = |what: &str, scheduler: Box<dyn Scheduler + Send>, share: u32| {
        let started = Instant::now();
        let mut config = Config::new();
        config.stack_size = 1 << 18;
        config.max_time = time.map(|time| time / share);
        let body = std::sync::Arc::clone(&body);
        let executions = shuttle::Runner::new(scheduler, config).run(move || {
            crate::sync::real::begin_execution();
            let body = std::sync::Arc::clone(&body);
            // A task of its own, so that it has a thread's end.
            shuttle::thread::spawn(move || body()).join().unwrap();
        });
        let took = started.elapsed().as_secs_f64();
        println!("{name}: {executions} executions, {what}, in {took:.1} s");
    };
    run(
        "random",
        Box::new(RandomScheduler::new_from_seed(seed, most / 2)),
        2,
    );
    for depth in [2, 4] {
        run(
            &format!("PCT of depth {depth}"),
            Box::new(PctScheduler::new_from_seed(seed, depth, most / 4)),
            4,
        );
    }
}

/// A heap block, charged to whoever is current when it is made.
#[derive(Debug)]
struct Bytes(*mut u8, Layout);

// SAFETY: a `Bytes` owns its block, and the heap takes it back on any thread.
unsafe impl Send for Bytes {}

impl Bytes {
    fn new(size: usize) -> Option<Bytes> {
        let layout = Layout::from_size_align(size, 1).unwrap();
        assert!(size > 0);
        // SAFETY: the size is not zero.
        let at = unsafe { HEAP.alloc(layout) };
        (!at.is_null()).then(|| Bytes(at, layout))
    }

    fn of(client: &Client, size: usize) -> Option<Bytes> {
        let _scope = client.enter();
        Bytes::new(size)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { HEAP.dealloc(self.0, self.1) };
    }
}

/// A memory of `usable` bytes without headroom and without a thread.
fn memory(usable: u64) -> Memory {
    let every = TierPolicy::new(Limit::Bytes(usable));
    Memory::builder(usable)
        .usable(1.0)
        .background(false)
        .tier(
            SubscriptionTier::Basic,
            every.enforcement(Enforcement::Strict),
        )
        .build()
        .unwrap()
}

/// A strict client of this `max`.
fn strict(memory: &Memory, name: &str, max: u64) -> Client {
    let options = ClientOptions::new(SubscriptionTier::Basic)
        .max(Limit::Bytes(max))
        .enforcement(Enforcement::Strict);
    memory.register(name, options).unwrap()
}

/// All tasks are done: nothing of the client is left, it can have all of
/// `max` to the last byte and not one more, and removed it is closed at once.
fn settle(memory: &Memory, client: Client, name: &str, max: u64) {
    let usage = client.usage();
    assert_eq!((usage.live_bytes, usage.live_allocations), (0, 0));
    let all = Bytes::of(&client, max as usize).expect("all of it is free");
    assert!(Bytes::of(&client, 1).is_none(), "one byte more");
    assert_eq!(client.usage().live_bytes, max);
    drop(all);
    assert_eq!(client.usage().live_bytes, 0);
    close(memory, &client, name);
}

/// Removes a client of which nothing is left: its slot is free at once.
fn close(memory: &Memory, client: &Client, name: &str) {
    memory.remove_client(name).unwrap();
    memory.reclaim_unused_memory();
    assert_eq!(client.slot().state(), State::Free, "nothing keeps it");
    assert_eq!(client.slot().charged(), 0);
}

/// What requests may expect, kept apart from the code under test. A request
/// counts as a claim from before it asks until it was refused or freed, and as
/// live from when it was granted until before it is freed.
struct Oracle {
    limit: u64,
    books: std::sync::Mutex<Claims>,
}

#[derive(Default)]
struct Claims {
    claimed: u64,
    live: u64,
    /// For each request that is asking: its number, and the most that was
    /// claimed since it began.
    asking: Vec<(usize, u64)>,
    begun: usize,
}

impl Oracle {
    fn new(limit: u64) -> std::sync::Arc<Oracle> {
        std::sync::Arc::new(Oracle {
            limit,
            books: std::sync::Mutex::default(),
        })
    }

    /// Never held across a point of the scheduler.
    fn books(&self) -> std::sync::MutexGuard<'_, Claims> {
        self.books
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Asks for a block of the client in whose scope the task is. Whatever the
    /// others do: granted, all that lives is within the limit; refused, all
    /// that was claimed at some moment meanwhile was not.
    fn ask(self: &std::sync::Arc<Oracle>, size: usize) -> Option<Claimed> {
        let bytes = size as u64;
        let number = {
            let mut books = self.books();
            books.claimed += bytes;
            books.begun += 1;
            let number = books.begun;
            books.asking.push((number, 0));
            let claimed = books.claimed;
            for (_, most) in &mut books.asking {
                *most = claimed.max(*most);
            }
            number
        };
        let block = Bytes::new(size);
        let mut books = self.books();
        let at = books
            .asking
            .iter()
            .position(|&(asking, _)| asking == number);
        let (_, most) = books.asking.swap_remove(at.unwrap());
        let Some(block) = block else {
            assert!(
                most > self.limit,
                "{size} refused, {most} of {} claimed",
                self.limit
            );
            books.claimed -= bytes;
            return None;
        };
        books.live += bytes;
        assert!(books.live <= self.limit, "{} of {}", books.live, self.limit);
        drop(books);
        Some(Claimed {
            oracle: std::sync::Arc::clone(self),
            bytes,
            block: Some(block),
        })
    }
}

/// A block that an [`Oracle`] knows of.
struct Claimed {
    oracle: std::sync::Arc<Oracle>,
    bytes: u64,
    block: Option<Bytes>,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // A block lives for a while: others may be granted theirs meanwhile.
        for _ in 0..40 {
            crate::sync::fence(core::sync::atomic::Ordering::SeqCst);
        }
        self.oracle.books().live -= self.bytes;
        drop(self.block.take());
        self.oracle.books().claimed -= self.bytes;
    }
}
