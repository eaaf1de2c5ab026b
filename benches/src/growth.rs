//! How cost grows with threads, clients and live objects, and what an object
//! takes of the machine's memory.
//!
//! What is read from the resident set is measured in a process of its own.

use crate::heaps::{self, Heap};
use crate::page;
use crate::runner::{Figure, thread_cpu_ns};
use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::{env, fs, io, ptr};
use tiered_allocator::{Client, ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator};
use tikv_jemallocator::Jemalloc;

const INNER: [&str; 3] = ["glibc", "mimalloc", "jemalloc"];
const KINDS: [&str; 3] = ["bare", "tiered", "header"];

const THREADS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const PAIRS: usize = 400_000;
const CLIENTS: [usize; 7] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000];
const VISITS: usize = 2_000_000;
const OBJECTS: [usize; 4] = [1_000_000, 5_000_000, 20_000_000, 50_000_000];
const OBJECT_BYTES: usize = 24;
const SIZES: [usize; 18] = [
    8, 16, 24, 32, 40, 48, 64, 96, 128, 192, 256, 512, 1000, 1024, 2048, 4000, 4096, 16384,
];
/// User bytes held while the resident set is read.
const HELD_BYTES: usize = 64 << 20;
const REPETITIONS: usize = 5;

/// The other usual place for an owner: 16 bytes in front, so that what follows
/// is aligned for anything.
pub struct Header<A>(A);

impl<A> Header<A> {
    pub const fn new(inner: A) -> Header<A> {
        Header(inner)
    }
}

const HEADER: usize = 16;

fn with_header(layout: Layout) -> Layout {
    let whole = Layout::from_size_align(layout.size() + HEADER, layout.align().max(HEADER));
    whole.unwrap_or(layout)
}

// SAFETY: every block comes from `A` with the layout of `with_header` and goes
// back with it; the measurement's alignments are at most `HEADER`.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Header<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        debug_assert!(layout.align() <= HEADER);
        // SAFETY: the layout is not empty.
        let block = unsafe { self.0.alloc(with_header(layout)) };
        if block.is_null() {
            return ptr::null_mut();
        }
        // SAFETY: the block begins with 16 aligned bytes.
        unsafe {
            block.cast::<u64>().write(1);
            block.add(HEADER)
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `alloc` moved the pointer by as much.
        unsafe { self.0.dealloc(block.sub(HEADER), with_header(layout)) }
    }
}

fn client(memory: &Memory, name: &str) -> Client {
    let options = ClientOptions::new(SubscriptionTier::Enterprise).max(Limit::Bytes(16 << 30));
    memory.register(name, options).unwrap()
}

// --- in a process of its own ------------------------------------------------------

/// `<inner> <kind> <size> <count>`: prints nanoseconds of processor time for an
/// allocation and for a free, and resident bytes for an object.
pub fn hold(inner: &str, kind: &str, size: &str, count: &str) -> Option<()> {
    let (size, count) = (size.parse().ok()?, count.parse().ok()?);
    let memory = Memory::builder(64 << 30).background(false).build().ok()?;
    let client = client(&memory, "holder");
    let _scope = client.enter();
    match (inner, kind) {
        ("glibc", "bare") => objects::<System>(size, count),
        ("glibc", "tiered") => objects::<TieredAllocator<System>>(size, count),
        ("glibc", "header") => objects::<Header<System>>(size, count),
        ("mimalloc", "bare") => objects::<MiMalloc>(size, count),
        ("mimalloc", "tiered") => objects::<TieredAllocator<MiMalloc>>(size, count),
        ("mimalloc", "header") => objects::<Header<MiMalloc>>(size, count),
        ("jemalloc", "bare") => objects::<Jemalloc>(size, count),
        ("jemalloc", "tiered") => objects::<TieredAllocator<Jemalloc>>(size, count),
        ("jemalloc", "header") => objects::<Header<Jemalloc>>(size, count),
        _ => return None,
    }
    Some(())
}

fn resident_bytes() -> f64 {
    // Of /proc/self/statm: in pages, the second figure.
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<f64>().ok());
    pages.unwrap_or(0.0) * 4096.0
}

fn objects<H: Heap>(size: usize, count: usize) {
    let layout = Layout::from_size_align(size, 8).unwrap();
    let mut blocks = vec![ptr::dangling_mut::<u8>(); count];
    // SAFETY: not empty; goes back as it came. The first use of the heap.
    unsafe { heaps::free::<H>(heaps::allocate::<H>(layout), layout) };
    let before = resident_bytes();
    let began = thread_cpu_ns();
    for block in &mut blocks {
        // SAFETY: the size is not zero, the block has as many bytes.
        unsafe {
            *block = heaps::allocate::<H>(layout);
            assert!(!block.is_null());
            block.write_bytes(1, size);
        }
    }
    let allocated = thread_cpu_ns();
    let resident = resident_bytes() - before;
    let free_began = thread_cpu_ns();
    for &block in &blocks {
        // SAFETY: allocated above with this layout.
        unsafe { heaps::free::<H>(block, layout) };
    }
    let each = |ns: f64| ns / count as f64;
    println!(
        "{} {} {}",
        each(allocated - began),
        each(thread_cpu_ns() - free_began),
        each(resident),
    );
}

struct Held {
    allocate_ns: f64,
    free_ns: f64,
    resident_bytes: f64,
}

fn held(inner: &str, kind: &str, size: usize, count: usize) -> io::Result<Held> {
    let output = Command::new(env::current_exe()?)
        .args(["hold", inner, kind, &size.to_string(), &count.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<f64> = text
        .split_whitespace()
        .filter_map(|figure| figure.parse().ok())
        .collect();
    match figures[..] {
        [allocate_ns, free_ns, resident_bytes] if output.status.success() => Ok(Held {
            allocate_ns,
            free_ns,
            resident_bytes,
        }),
        _ => Err(io::Error::other(format!(
            "{count} objects of {size} bytes: {}",
            output.status
        ))),
    }
}

// --- here -----------------------------------------------------------------------

/// Nanoseconds of processor time for a pair, with so many threads at work.
fn pairs_by_threads<H: Heap>(client: &Client, threads: usize) -> f64 {
    let barrier = Barrier::new(threads);
    let pairs = PAIRS.div_ceil(threads);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let _scope = client.enter();
                    heaps::pairs::<H>(64, 1000);
                    barrier.wait();
                    let began = thread_cpu_ns();
                    heaps::pairs::<H>(64, pairs);
                    thread_cpu_ns() - began
                })
            })
            .collect();
        let count = threads.len() * pairs;
        let total: f64 = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum();
        total / count as f64
    })
}

/// Nanoseconds to enter a client's scope, allocate, free and leave, for one
/// client after the other.
fn visit(clients: &[Client]) -> f64 {
    let round = |visits: usize| {
        for client in clients.iter().cycle().take(visits) {
            let _scope = black_box(client).enter();
            heaps::pairs::<TieredAllocator<MiMalloc>>(64, 1);
        }
    };
    // Accounts are opened.
    round(clients.len());
    let visits = VISITS.max(clients.len());
    let began = thread_cpu_ns();
    round(visits);
    (thread_cpu_ns() - began) / visits as f64
}

fn repeated(mut measure: impl FnMut() -> f64) -> Figure {
    let values: Vec<f64> = (0..REPETITIONS).map(|_| measure()).collect();
    Figure::of(&values)
}

/// Measures, writes `docs/growth.svg` and the section of the page.
pub fn write(root: &Path) -> io::Result<()> {
    let load = page::load();
    let mut text = String::from("## Growth and overhead\n\n");
    let memory = Memory::builder(64 << 30)
        .background(false)
        .build()
        .map_err(io::Error::other)?;

    eprintln!("threads");
    let one = client(&memory, "threads");
    let mut threads = Vec::new();
    for count in THREADS {
        let bare = repeated(|| pairs_by_threads::<MiMalloc>(&one, count));
        let tiered = repeated(|| pairs_by_threads::<TieredAllocator<MiMalloc>>(&one, count));
        threads.push((count, bare, tiered));
    }

    eprintln!("live objects");
    let mut live = Vec::new();
    for count in OBJECTS {
        for inner in INNER {
            let bare = held(inner, "bare", OBJECT_BYTES, count)?;
            live.push((
                count,
                inner,
                bare,
                held(inner, "tiered", OBJECT_BYTES, count)?,
            ));
        }
    }

    eprintln!("sizes");
    let mut sizes = Vec::new();
    for size in SIZES {
        let mut of_size = Vec::new();
        for inner in INNER {
            let mut of_inner = [0.0; KINDS.len()];
            for (kind, bytes) in KINDS.into_iter().zip(&mut of_inner) {
                *bytes = held(inner, kind, size, HELD_BYTES / size)?.resident_bytes;
            }
            of_size.push(of_inner);
        }
        sizes.push((size, of_size));
    }

    eprintln!("clients");
    let mut all: Vec<Client> = Vec::new();
    let mut clients = Vec::new();
    for count in CLIENTS {
        while all.len() < count {
            all.push(client(&memory, &format!("client-{}", all.len())));
        }
        clients.push((count, repeated(|| visit(&all))));
    }

    let _ = write!(
        text,
        "Written by `cargo run --release -p tiered_allocator_bench -- growth`, which replaces \
         this section. Processor time, medians of {REPETITIONS} ± the median absolute deviation; \
         load average {load} before, {} after. *Header* is a model of the usual place for an \
         owner, 16 bytes in front of each block.\n\n![growth](docs/growth.svg)\n\n\
         Alloc + free of 64 bytes on mimalloc, all threads in one client's scope:\n\n\
         | threads | bare | tiered | ratio |\n|---|---|---|---|\n",
        page::load(),
    );
    for (count, bare, tiered) in &threads {
        let _ = writeln!(
            text,
            "| {count} | {:.2} ± {:.2} ns | {:.2} ± {:.2} ns | {:.2} |",
            bare.median,
            bare.mad,
            tiered.median,
            tiered.mad,
            tiered.median / bare.median,
        );
    }
    text.push_str(
        "\nEnter a scope, alloc + free of 64 bytes on mimalloc, leave; one thread, one client \
         after the other:\n\n| clients | a visit |\n|---|---|\n",
    );
    for (count, visit) in &clients {
        let _ = writeln!(
            text,
            "| {count} | {:.1} ± {:.1} ns |",
            visit.median, visit.mad
        );
    }
    let _ = write!(
        text,
        "\nLive objects of {OBJECT_BYTES} bytes, allocated and written one after the other, \
         then freed in the same order; one run in a process of its own each:\n\n\
         | objects | inner | allocate: bare | tiered | free: bare | tiered | resident bytes each: \
         bare | tiered |\n|---|---|---|---|---|---|---|---|\n"
    );
    for (count, inner, bare, tiered) in &live {
        let _ = writeln!(
            text,
            "| {count} | {inner} | {:.1} ns | {:.1} ns | {:.1} ns | {:.1} ns | {:.1} | {:.1} |",
            bare.allocate_ns,
            tiered.allocate_ns,
            bare.free_ns,
            tiered.free_ns,
            bare.resident_bytes,
            tiered.resident_bytes,
        );
    }
    let _ = write!(
        text,
        "\nResident bytes for an object, {} MiB of objects of one size:\n\n\
         | size |{}\n|---|{}\n",
        HELD_BYTES >> 20,
        INNER
            .map(|inner| KINDS.map(|kind| format!(" {inner} {kind} |")).concat())
            .concat(),
        "---|".repeat(INNER.len() * KINDS.len()),
    );
    for (size, of_size) in &sizes {
        let row: String = of_size
            .iter()
            .flatten()
            .map(|bytes| format!(" {bytes:.1} |"))
            .collect();
        let _ = writeln!(text, "| {size} |{row}");
    }
    println!("{text}");
    let lines: Vec<_> = INNER
        .into_iter()
        .enumerate()
        .map(|(inner, name)| {
            let of = |kind: usize| {
                let points = sizes
                    .iter()
                    .map(|(size, of_size)| (*size as f64, of_size[inner][kind] / *size as f64));
                points.collect::<Vec<_>>()
            };
            let series = KINDS.iter().enumerate().map(|(at, kind)| (*kind, of(at)));
            (
                format!("Resident bytes over bytes asked for, by object size: {name}"),
                series.collect::<Vec<_>>(),
            )
        })
        .chain([
            (
                "Nanoseconds of alloc + free, by threads in one client: mimalloc".to_owned(),
                vec![
                    (
                        "bare",
                        threads.iter().map(|t| (t.0 as f64, t.1.median)).collect(),
                    ),
                    (
                        "tiered",
                        threads.iter().map(|t| (t.0 as f64, t.2.median)).collect(),
                    ),
                ],
            ),
            (
                "Nanoseconds of a visit, by clients in turn: mimalloc".to_owned(),
                vec![(
                    "tiered",
                    clients.iter().map(|c| (c.0 as f64, c.1.median)).collect(),
                )],
            ),
        ])
        .collect();
    fs::write(root.join("docs/growth.svg"), crate::plot::lines(&lines))?;
    page::replace(root, "growth", &text)
}
