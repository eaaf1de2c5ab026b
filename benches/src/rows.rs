//! What is compared with what, and the goals.

use crate::heaps::{self, Batch, Heap};
use crate::runner::{Figure, Series, Stint, interleave, thread_cpu_ns, time};
use crate::trailer::{self, Trailer};
use cap::Cap;
use mimalloc::MiMalloc;
use stats_alloc::StatsAlloc;
use std::alloc::{GlobalAlloc as _, Layout, System};
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tiered_allocator::{
    Client, ClientOptions, Enforcement, Limit, Memory, SubscriptionTier, TieredAllocator,
};
use tikv_jemallocator::Jemalloc;
use tracking_allocator::Allocator as Tracking;

/// Measured for comparison only.
pub const NO_GOAL: f64 = f64::INFINITY;

/// A workload on one inner allocator: bare, tiered, and the peers.
pub struct Comparison {
    pub inner: &'static str,
    pub bare: Figure,
    pub tiered: Figure,
    pub ratio: Figure,
    pub goal: f64,
    /// Name and ratio to the bare allocator.
    pub peers: Vec<(&'static str, Figure)>,
}

/// Rows that compare allocators.
pub struct Row {
    pub name: &'static str,
    pub unit: &'static str,
    pub comparisons: Vec<Comparison>,
}

/// A figure of this crate alone.
pub struct Fact {
    pub name: String,
    pub figure: Figure,
    pub unit: &'static str,
    pub goal: f64,
    /// Whether more is better.
    pub at_least: bool,
}

impl Fact {
    fn new(name: impl Into<String>, figure: Figure, unit: &'static str, goal: f64) -> Fact {
        Fact {
            name: name.into(),
            figure,
            unit,
            goal,
            at_least: false,
        }
    }

    /// `None`: the noise does not tell.
    pub fn met(&self) -> Option<bool> {
        let below = self.figure.is_below(self.goal)?;
        Some(below != self.at_least)
    }
}

/// How long to measure: rounds of each comparison.
#[derive(Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
}

/// A client with a finite quota, as all of them are here.
fn client(memory: &Memory, name: &str) -> Client {
    let options = ClientOptions::new(SubscriptionTier::Enterprise).max(Limit::Bytes(1 << 30));
    memory.register(name, options).unwrap()
}

/// A workload, one stint of it on a heap: nanoseconds per operation.
trait Workload {
    fn stint<H: Heap>(&mut self) -> f64;
}

fn compare(
    name: &'static str,
    unit: &'static str,
    effort: Effort,
    goals: [f64; 3],
    workload: impl Workload + Clone,
) -> Row {
    eprintln!("{name}");
    fn candidate<'a, H: Heap>(workload: &(impl Workload + Clone + 'a)) -> Stint<'a> {
        let mut workload = workload.clone();
        Box::new(move || workload.stint::<H>())
    }
    fn on<B>(
        inner: &'static str,
        effort: Effort,
        goal: f64,
        workload: &(impl Workload + Clone),
        others: Vec<(&'static str, Stint<'_>)>,
    ) -> Comparison
    where
        B: Heap,
        TieredAllocator<B>: Heap,
        Trailer<B>: Heap,
    {
        let (mut names, mut stints) = (vec!["shared atomics"], Vec::new());
        stints.push(candidate::<B>(workload));
        stints.push(candidate::<TieredAllocator<B>>(workload));
        stints.push(candidate::<Trailer<B>>(workload));
        for (name, stint) in others {
            names.push(name);
            stints.push(stint);
        }
        let series = interleave(effort.rounds, stints);
        let peers = names.into_iter().zip(&series[2..]);
        Comparison {
            inner,
            bare: series[0].figure(),
            tiered: series[1].figure(),
            ratio: series[1].ratio_to(&series[0]),
            goal,
            peers: peers
                .map(|(name, peer)| (name, peer.ratio_to(&series[0])))
                .collect(),
        }
    }
    let others: Vec<(&'static str, Stint<'_>)> = vec![
        ("stats_alloc", candidate::<StatsAlloc<System>>(&workload)),
        ("cap", candidate::<Cap<System>>(&workload)),
        (
            "tracking-allocator",
            candidate::<Tracking<System>>(&workload),
        ),
    ];
    Row {
        name,
        unit,
        comparisons: vec![
            on::<System>("glibc", effort, goals[0], &workload, others),
            on::<MiMalloc>("mimalloc", effort, goals[1], &workload, Vec::new()),
            on::<Jemalloc>("jemalloc", effort, goals[2], &workload, Vec::new()),
        ],
    }
}

#[derive(Clone)]
struct Pairs;

impl Workload for Pairs {
    fn stint<H: Heap>(&mut self) -> f64 {
        time(40_000, || heaps::pairs::<H>(64, 40_000))
    }
}

#[derive(Clone)]
struct ConstantPairs;

impl Workload for ConstantPairs {
    fn stint<H: Heap>(&mut self) -> f64 {
        time(40_000, || heaps::constant_pairs::<H, 64>(40_000))
    }
}

#[derive(Clone)]
struct Batches(Batch, usize);

impl Workload for Batches {
    fn stint<H: Heap>(&mut self) -> f64 {
        let Batches(batch, times) = self;
        time(batch.len() * *times, || {
            for _ in 0..*times {
                batch.allocate::<H>();
                batch.free::<H>();
            }
        })
    }
}

#[derive(Clone)]
struct Growth;

impl Workload for Growth {
    fn stint<H: Heap>(&mut self) -> f64 {
        time(4, || (0..4).for_each(|_| heaps::growth::<H>(32, 1 << 20)))
    }
}

/// The rows that run on one thread in one scope.
pub fn allocators(effort: Effort) -> Vec<Row> {
    let memory = Memory::new(1 << 36);
    let client = client(&memory, "measured");
    let _scope = client.enter();
    let slow = Effort {
        rounds: effort.rounds / 3,
    };
    vec![
        compare(
            "alloc + free, 64 bytes",
            "ns a pair",
            effort,
            [1.15, 1.25, 1.25],
            Pairs,
        ),
        compare(
            "alloc + free, 64 bytes, size constant and inlined",
            "ns a pair",
            effort,
            [1.15, 1.25, 1.25],
            ConstantPairs,
        ),
        compare(
            "mixed sizes 8 to 1024, batches of 1,000 freed out of order",
            "ns a block",
            effort,
            [NO_GOAL, 1.10, 1.10],
            Batches(Batch::new(1000, 8, 1024), 10),
        ),
        compare(
            "the same, and each block written from end to end",
            "ns a block",
            effort,
            [NO_GOAL; 3],
            Batches(Batch::new(1000, 8, 1024).filled(), 10),
        ),
        compare(
            "Vec growth by realloc, 32 B to 1 MiB",
            "ns a vector",
            slow,
            [1.05; 3],
            Growth,
        ),
        compare(
            "buffers of 4 to 64 KiB, batches of 50 freed out of order",
            "ns a block",
            slow,
            [1.05; 3],
            Batches(Batch::new(50, 4096, 65536), 20),
        ),
    ]
}

/// Two threads, each in a client's scope, or both in the same one's: processor
/// time per block. Processor time, because contention burns it and a busy
/// machine does not.
fn two_threads<H: Heap>(clients: [&Client; 2], counters: [usize; 2]) -> f64 {
    let barrier = Barrier::new(2);
    let times: Vec<f64> = std::thread::scope(|scope| {
        let threads = [0, 1].map(|at| {
            let barrier = &barrier;
            scope.spawn(move || {
                trailer::enter(counters[at]);
                let _scope = clients[at].enter();
                let mut batch = Batch::new(1000, 8, 1024);
                batch.allocate::<H>();
                batch.free::<H>();
                barrier.wait();
                let start = thread_cpu_ns();
                for _ in 0..60 {
                    batch.allocate::<H>();
                    batch.free::<H>();
                }
                (thread_cpu_ns() - start) / 60_000.0
            })
        });
        threads.map(|thread| thread.join().unwrap()).to_vec()
    });
    (times[0] + times[1]) / 2.0
}

fn shared_client(effort: Effort, facts: &mut Vec<Fact>) {
    let memory = Memory::new(1 << 36);
    let (a, b) = (client(&memory, "a"), client(&memory, "b"));
    let effort = effort.rounds / 2;
    fn on<H: Heap>(rounds: usize, a: &Client, b: &Client) -> Figure {
        let series = interleave(
            rounds,
            vec![
                Box::new(|| two_threads::<H>([a, b], [0, 1])),
                Box::new(|| two_threads::<H>([a, a], [0, 0])),
            ],
        );
        series[1].ratio_to(&series[0])
    }
    fn one_client<H: Heap>(a: &Client) -> Stint<'_> {
        Box::new(move || two_threads::<H>([a, a], [0, 0]))
    }
    let name = |what: &str| format!("two threads in one client against two clients: {what}");
    for (what, figure, goal) in [
        ("glibc", on::<TieredAllocator<System>>(effort, &a, &b), 1.03),
        (
            "mimalloc",
            on::<TieredAllocator<MiMalloc>>(effort, &a, &b),
            1.03,
        ),
        (
            "jemalloc",
            on::<TieredAllocator<Jemalloc>>(effort, &a, &b),
            1.03,
        ),
    ] {
        facts.push(Fact::new(name(what), figure, "times", goal));
    }
    let series = interleave(
        effort,
        vec![
            one_client::<MiMalloc>(&a),
            one_client::<TieredAllocator<MiMalloc>>(&a),
            one_client::<Trailer<MiMalloc>>(&a),
        ],
    );
    for (what, series_at) in [("tiered", 1), ("shared atomics", 2)] {
        facts.push(Fact::new(
            format!("two threads in one client, mixed sizes, against bare mimalloc: {what}"),
            series[series_at].ratio_to(&series[0]),
            "times",
            NO_GOAL,
        ));
    }
}

fn foreign_free(effort: Effort, facts: &mut Vec<Fact>) {
    fn on<H: Heap>(rounds: usize, owner: &Client, other: &Client) -> Figure {
        let free_as = |who: &Client, batch: &mut Batch| {
            let mut spent = 0.0;
            for _ in 0..20 {
                {
                    let _scope = owner.enter();
                    batch.allocate::<H>();
                }
                let _scope = who.enter();
                spent += time(batch.len(), || batch.free::<H>());
            }
            spent / 20.0
        };
        let (mut own, mut foreign) = (Batch::new(1000, 64, 64), Batch::new(1000, 64, 64));
        let series = interleave(
            rounds,
            vec![
                Box::new(|| free_as(owner, &mut own)),
                Box::new(|| free_as(other, &mut foreign)),
            ],
        );
        series[1].above(&series[0])
    }
    let memory = Memory::new(1 << 36);
    let (owner, other) = (client(&memory, "owner"), client(&memory, "other"));
    let rounds = effort.rounds;
    for (what, figure) in [
        (
            "glibc",
            on::<TieredAllocator<System>>(rounds, &owner, &other),
        ),
        (
            "mimalloc",
            on::<TieredAllocator<MiMalloc>>(rounds, &owner, &other),
        ),
        (
            "jemalloc",
            on::<TieredAllocator<Jemalloc>>(rounds, &owner, &other),
        ),
    ] {
        let name = format!("free of another client's block, added: {what}");
        facts.push(Fact::new(name, figure, "ns", 1.5));
    }
}

fn enter_all(clients: &[Client], times: usize) -> f64 {
    time(clients.len() * times, || {
        for _ in 0..times {
            for client in clients {
                let _scope = black_box(client).enter();
                // Somebody might look at whose scope it is.
                black_box(());
            }
        }
    })
}

fn scopes(effort: Effort, facts: &mut Vec<Fact>) {
    for (count, goal) in [(64, 2.0), (10_000, 12.0)] {
        let memory = Memory::new(1 << 36);
        let clients: Vec<Client> = (0..count)
            .map(|number| client(&memory, &format!("c{number}")))
            .collect();
        let times = 40_000 / count;
        let series = interleave(effort.rounds, vec![Box::new(|| enter_all(&clients, times))]);
        let name = format!("enter + leave a scope, {count} clients in turn");
        facts.push(Fact::new(name, series[0].figure(), "ns", goal));
    }
}

/// 64 threads hold unused credit; the request fits only once all of it is back.
fn revocation(effort: Effort, facts: &mut Vec<Fact>) {
    const THREADS: usize = 64;
    const MAX: u64 = 64 << 20;
    let memory = Memory::new(1 << 32);
    let options = ClientOptions::new(SubscriptionTier::Enterprise)
        .max(Limit::Bytes(MAX))
        .enforcement(Enforcement::Strict);
    let client = memory.register("tight", options).unwrap();
    let (ready, go) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    let stop = AtomicBool::new(false);
    let heap = TieredAllocator::<System>::heap();
    let rounds = effort.rounds / 4 + 1;
    // Under the strict limit nothing may grow.
    let mut spent = Vec::with_capacity(rounds);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let _scope = client.enter();
                let layout = Layout::new::<u64>();
                loop {
                    go.wait();
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // Draws credit, and leaves it unused.
                    // SAFETY: the size is not zero; the block goes back as it came.
                    unsafe { heap.dealloc(heap.alloc(layout), layout) };
                    ready.wait();
                }
            });
        }
        for _ in 0..rounds {
            go.wait();
            ready.wait();
            let stranded = client.usage().charged_bytes - client.usage().live_bytes;
            assert!(stranded > MAX / 64, "{stranded} bytes of credit");
            let layout = Layout::from_size_align(MAX as usize, 1).unwrap();
            let over = Layout::from_size_align(MAX as usize + 1, 1).unwrap();
            let _scope = client.enter();
            // SAFETY: the sizes are not zero; the block goes back as it came.
            unsafe {
                assert!(heap.alloc(over).is_null(), "one byte too many");
                let start = Instant::now();
                let block = black_box(heap.alloc(layout));
                spent.push(start.elapsed().as_nanos() as f64 / 1000.0);
                assert!(!block.is_null(), "all of it fits");
                heap.dealloc(block, layout);
            }
        }
        stop.store(true, Ordering::Relaxed);
        go.wait();
    });
    facts.push(Fact::new(
        "a request for all of the quota, credit stranded in 64 threads",
        Figure::of(&spent),
        "us",
        50.0,
    ));
}

fn many_clients(effort: Effort, facts: &mut Vec<Fact>) {
    const CLIENTS: usize = 1_000_000;
    let memory = Memory::new(1 << 40);
    let mut clients = Vec::with_capacity(CLIENTS);
    let start = Instant::now();
    for number in 0..CLIENTS {
        use std::io::Write;
        let mut name = [b' '; 16];
        write!(&mut name[..], "tenant-{number}").unwrap();
        let name = std::str::from_utf8(&name).unwrap().trim_end();
        clients.push(memory.register(name, SubscriptionTier::Basic).unwrap());
    }
    let rate = CLIENTS as f64 / start.elapsed().as_secs_f64();
    facts.push(Fact {
        at_least: true,
        ..Fact::new(
            "1,000,000 clients registered",
            Figure::of(&[rate]),
            "a second",
            500_000.0,
        )
    });
    let few = Memory::new(1 << 36);
    let ten: Vec<Client> = (0..10).map(|n| client(&few, &format!("c{n}"))).collect();
    let step = CLIENTS / 10;
    let spread: Vec<Client> = clients.iter().step_by(step).cloned().collect();
    let series = interleave(
        effort.rounds,
        vec![
            Box::new(|| enter_all(&ten, 4000)),
            Box::new(|| enter_all(&spread, 4000)),
        ],
    );
    facts.push(Fact::new(
        "enter + leave 10 of 1,000,000 clients against 10 of 10",
        series[1].ratio_to(&series[0]),
        "times",
        1.05,
    ));
}

fn snapshots(effort: Effort, facts: &mut Vec<Fact>) {
    let memory = Memory::new(1 << 36);
    let clients: Vec<Client> = (0..10_000)
        .map(|number| client(&memory, &format!("c{number:05}")))
        .collect();
    let (stop, watching) = (AtomicBool::new(false), AtomicBool::new(false));
    let (blocks, spent): ([_; 2], [_; 2]) = (
        [const { AtomicU64::new(0) }; 2],
        [const { AtomicU64::new(0) }; 2],
    );
    let mut times = Vec::new();
    let mut cpu_times = Vec::new();
    let mut loss = Vec::new();
    std::thread::scope(|scope| {
        for at in 0..2 {
            let (clients, stop, blocks, spent) = (&clients, &stop, &blocks, &spent);
            scope.spawn(move || {
                let mut batch = Batch::new(1000, 8, 1024);
                for turn in (at..).step_by(2) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let _scope = clients[turn % clients.len()].enter();
                    let start = thread_cpu_ns();
                    batch.allocate::<TieredAllocator<MiMalloc>>();
                    batch.free::<TieredAllocator<MiMalloc>>();
                    let ns = (thread_cpu_ns() - start) as u64;
                    blocks[at].fetch_add(1000, Ordering::Relaxed);
                    spent[at].fetch_add(ns, Ordering::Relaxed);
                }
            });
        }
        // A third thread that takes a snapshot every 20 ms, or spins as long
        // as one takes: what the allocating threads pay for a block, by the
        // time of their processor.
        let mut cost = |take: bool, times: &mut Vec<f64>| {
            let total = |of: &[AtomicU64; 2]| {
                of.iter().map(|n| n.load(Ordering::Relaxed)).sum::<u64>() as f64
            };
            watching.store(take, Ordering::Relaxed);
            let (before, ns) = (total(&blocks), total(&spent));
            for _ in 0..5 {
                let (start, cpu) = (Instant::now(), thread_cpu_ns());
                if take {
                    assert_eq!(black_box(memory.snapshot()).clients.len(), 10_000);
                    times.push(start.elapsed().as_nanos() as f64 / 1e6);
                    cpu_times.push((thread_cpu_ns() - cpu) / 1e6);
                } else {
                    while start.elapsed() < Duration::from_millis(3) {
                        std::hint::spin_loop();
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            (total(&spent) - ns) / (total(&blocks) - before)
        };
        let mut base = Series(Vec::new());
        let mut with = Series(Vec::new());
        for _ in 0..effort.rounds / 8 + 1 {
            base.0.push(cost(false, &mut times));
            with.0.push(cost(true, &mut times));
        }
        let ratio = with.ratio_to(&base);
        loss.push(Figure {
            median: (ratio.median - 1.0) * 100.0,
            mad: ratio.mad * 100.0,
            count: ratio.count,
        });
        stop.store(true, Ordering::Relaxed);
    });
    facts.push(Fact::new(
        "snapshot of 10,000 clients while 2 threads allocate",
        Figure::of(&times),
        "ms",
        5.0,
    ));
    facts.push(Fact::new(
        "the same, processor time",
        Figure::of(&cpu_times),
        "ms",
        5.0,
    ));
    facts.push(Fact::new(
        "what the 2 threads lose, a snapshot every 20 ms",
        loss[0],
        "%",
        1.0,
    ));
}

/// The rows without a bare allocator to compare with.
pub fn facts(effort: Effort, only: &str) -> Vec<Fact> {
    let mut facts = Vec::new();
    for (name, measure) in [
        ("snapshots", snapshots as fn(Effort, &mut Vec<Fact>)),
        ("two threads", shared_client),
        ("foreign frees", foreign_free),
        ("scopes", scopes),
        ("revocation", revocation),
        ("many clients", many_clients),
    ] {
        if !name.contains(only) {
            continue;
        }
        eprintln!("{name}");
        measure(effort, &mut facts);
    }
    facts
}
