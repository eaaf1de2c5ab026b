//! The process' own heap has no memory at its n-th request, for every n until
//! the whole life of a memory passes untouched: once that request alone, once
//! all from there on. Nothing leaks, the books stay exact, and the process ends
//! only inside calls that cannot answer "no memory".
//!
//! Each n runs in a forked child, where an abort does no harm.

#![cfg(all(unix, not(tiered_allocator_portable)))]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::future::Future;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Waker};
use support::Block;
use tiered_allocator::{
    Client, ClientOptions, Enforcement, InClientExt, Limit, Memory, RegisterError,
    SubscriptionTier, TieredAllocator, untracked,
};

/// Fails the requests it is told to, and knows what it has given.
struct Failing {
    granting: AtomicU64,
    only_one: AtomicBool,
    refused: AtomicU64,
    live_bytes: AtomicI64,
    live_blocks: AtomicI64,
}

impl Failing {
    const NEVER: u64 = u64::MAX;

    const fn new() -> Failing {
        Failing {
            granting: AtomicU64::new(Failing::NEVER),
            only_one: AtomicBool::new(true),
            refused: AtomicU64::new(0),
            live_bytes: AtomicI64::new(0),
            live_blocks: AtomicI64::new(0),
        }
    }

    fn arm(&self, granted: u64, only_one: bool) {
        self.only_one.store(only_one, Relaxed);
        self.refused.store(0, Relaxed);
        self.granting.store(granted, Relaxed);
    }

    /// Lets everything through again; answers how many requests it refused.
    fn disarm(&self) -> u64 {
        self.granting.store(Failing::NEVER, Relaxed);
        self.refused.load(Relaxed)
    }

    fn refuses(&self) -> bool {
        match self.granting.load(Relaxed) {
            Failing::NEVER => false,
            0 => {
                if self.only_one.load(Relaxed) {
                    self.granting.store(Failing::NEVER, Relaxed);
                }
                self.refused.fetch_add(1, Relaxed);
                true
            }
            left => {
                self.granting.store(left - 1, Relaxed);
                false
            }
        }
    }

    fn give(&self, size: usize, give: impl FnOnce() -> *mut u8) -> *mut u8 {
        if self.refuses() {
            return null_mut();
        }
        let block = give();
        if !block.is_null() {
            self.live_bytes.fetch_add(size as i64, Relaxed);
            self.live_blocks.fetch_add(1, Relaxed);
        }
        block
    }

    fn live(&self) -> (i64, i64) {
        (
            self.live_bytes.load(Relaxed),
            self.live_blocks.load(Relaxed),
        )
    }
}

// SAFETY: null, or what `System` answers.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        self.give(layout.size(), || unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        self.give(layout.size(), || unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.live_bytes.fetch_sub(layout.size() as i64, Relaxed);
        self.live_blocks.fetch_sub(1, Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if self.refuses() {
            return null_mut();
        }
        // SAFETY: the caller's contract.
        let moved = unsafe { System.realloc(block, layout, new_size) };
        if !moved.is_null() {
            let growth = new_size as i64 - layout.size() as i64;
            self.live_bytes.fetch_add(growth, Relaxed);
        }
        moved
    }
}

#[global_allocator]
static HEAP: TieredAllocator<Failing> = TieredAllocator::new(Failing::new());

// --- what a child tells its parent ---------------------------------------------

/// Shared with the children.
#[derive(Debug)]
struct Report {
    /// Whether the call that runs may end the process for want of memory.
    may_abort: AtomicBool,
    /// Its place in [`STEPS`].
    step: AtomicU64,
    refused: AtomicU64,
}

fn report() -> &'static Report {
    static REPORT: std::sync::OnceLock<&Report> = std::sync::OnceLock::new();
    REPORT.get_or_init(|| {
        // SAFETY: a fresh mapping; all zero is a `Report`; never unmapped.
        unsafe {
            let at = libc::mmap(
                null_mut(),
                size_of::<Report>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(at, libc::MAP_FAILED);
            &*at.cast::<Report>()
        }
    })
}

const STEPS: [&str; 20] = [
    "build",
    "register",
    "heap",
    "collections",
    "adopt",
    "budget",
    "nested scopes",
    "block",
    "pin",
    "transfer",
    "future",
    "configure",
    "tier",
    "figures",
    "snapshot",
    "reclaim",
    "remove",
    "late free",
    "spawn",
    "end",
];

fn step<R>(name: &str, may_abort: bool, work: impl FnOnce() -> R) -> R {
    let number = STEPS.iter().position(|step| *step == name).unwrap();
    report().step.store(number as u64, Relaxed);
    report().may_abort.store(may_abort, Relaxed);
    let answer = work();
    report().may_abort.store(false, Relaxed);
    answer
}

/// A call that answers "no memory", or needs none.
fn answers<R>(name: &str, work: impl FnOnce() -> R) -> R {
    step(name, false, work)
}

/// A call that needs memory and has no way to say that there is none.
fn infallible<R>(name: &str, work: impl FnOnce() -> R) -> R {
    step(name, true, work)
}

// --- the life of a memory --------------------------------------------------------

/// What a client has, by the test's own account.
struct Held<'a> {
    client: &'a Client,
    bytes: u64,
    blocks: u64,
}

impl Held<'_> {
    fn of(client: &Client) -> Held<'_> {
        let usage = client.usage();
        Held {
            client,
            bytes: usage.live_bytes,
            blocks: usage.live_allocations,
        }
    }

    fn is_right(&self) -> bool {
        let usage = self.client.usage();
        (usage.live_bytes, usage.live_allocations) == (self.bytes, self.blocks)
            && (usage.refusals, usage.overdrawn_bytes) == (0, 0)
            && usage.charged_bytes >= usage.live_bytes
    }

    #[track_caller]
    fn check(&self) {
        assert!(
            self.is_right(),
            "{} bytes in {} blocks: {:?}",
            self.bytes,
            self.blocks,
            self.client.usage()
        );
    }
}

const SIZES: [usize; 6] = [1, 4095, 4096, 24, 9000, 200_000];

fn heap(client: &Client) {
    let mut held = Held::of(client);
    for (number, size) in SIZES.into_iter().enumerate() {
        let layout = Layout::from_size_align(size, 1 << (2 * number)).unwrap();
        let scope = client.enter();
        let block = match number % 2 {
            0 => Block::new(&HEAP, layout, 7),
            _ => Block::zeroed(&HEAP, layout, 7),
        };
        drop(scope);
        let Some(mut block) = block else {
            held.check();
            continue;
        };
        held.bytes += size as u64;
        held.blocks += 1;
        held.check();
        for new_size in SIZES {
            let old = block.size();
            if block.resize(new_size) {
                held.bytes = held.bytes - old as u64 + new_size as u64;
            }
            held.check();
        }
        held.bytes -= block.size() as u64;
        held.blocks -= 1;
        drop(block);
        held.check();
    }
}

fn collections(client: &Client) {
    let held = Held::of(client);
    let _scope = client.enter();
    let mut bytes: Vec<u8> = Vec::new();
    for wanted in [10, 5000, 60, 200_000] {
        let before = (bytes.len(), bytes.capacity());
        match bytes.try_reserve(wanted) {
            Ok(()) => bytes.resize(bytes.len() + wanted, 3),
            Err(_) => assert_eq!((bytes.len(), bytes.capacity()), before),
        }
        assert!(bytes.iter().all(|&byte| byte == 3));
        assert_eq!(
            client.usage().live_bytes,
            held.bytes + bytes.capacity() as u64
        );
    }
    let mut map = std::collections::HashMap::<u32, u32>::default();
    for key in 0..100 {
        if map.try_reserve(1).is_ok() {
            map.insert(key, key);
        }
    }
    drop((bytes, map));
    held.check();
}

fn adopt(from: &Client, to: &Client) {
    let (giving, mut taking) = (Held::of(from), Held::of(to));
    let scope = from.enter();
    let mut bytes: Vec<u8> = Vec::new();
    let there = bytes.try_reserve_exact(6000).is_ok();
    drop(scope);
    to.adopt(&mut bytes).unwrap();
    giving.check();
    taking.bytes += 6000 * u64::from(there);
    taking.blocks += u64::from(there);
    taking.check();
}

fn budget(client: &Client) {
    let held = Held::of(client);
    let outer = client.budget(50_000).unwrap();
    let inner = outer.budget(20_000).unwrap();
    let scope = inner.enter();
    let block = Block::bytes(&HEAP, 10_000);
    let charged = block.as_ref().map_or(0, |block| block.size() as u64);
    assert_eq!(inner.usage().live_bytes, charged);
    assert_eq!(outer.usage().live_bytes, charged);
    drop(scope);
    drop(inner);
    drop(outer);
    assert_eq!(client.usage().live_bytes, held.bytes + charged);
    drop(block);
    held.check();
}

fn nested(clients: [&Client; 2]) {
    let held = clients.map(Held::of);
    let mut blocks = [const { None::<Block> }; 40];
    let mut bytes = [0; 2];
    fn nest(clients: [&Client; 2], blocks: &mut [Option<Block>], bytes: &mut [u64; 2]) {
        let Some((block, rest)) = blocks.split_first_mut() else {
            return;
        };
        let which = rest.len() % 2;
        let _scope = clients[which].enter();
        *block = Block::bytes(&HEAP, 100 + rest.len());
        bytes[which] += block.as_ref().map_or(0, |block| block.size() as u64);
        nest(clients, rest, bytes);
    }
    nest(clients, &mut blocks, &mut bytes);
    for (which, client) in clients.into_iter().enumerate() {
        assert_eq!(client.usage().live_bytes, held[which].bytes + bytes[which]);
    }
    drop(blocks);
    held.iter().for_each(Held::check);
}

fn poll(client: &Client) {
    let held = Held::of(client);
    let future = async { Block::bytes(&HEAP, 300).is_some() }.in_client(client);
    let mut future = pin!(future);
    let polled = future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_ready());
    held.check();
}

/// Only what answers "no memory": must pass whatever is refused.
fn fallible_part(clients: [&Client; 2]) {
    for client in clients {
        answers("heap", || heap(client));
    }
    answers("collections", || collections(clients[0]));
    answers("adopt", || adopt(clients[0], clients[1]));
    answers("nested scopes", || nested(clients));
    answers("future", || poll(clients[0]));
    answers("budget", || budget(clients[0]));
}

fn options(max: u64, enforcement: Enforcement) -> ClientOptions {
    ClientOptions::new(SubscriptionTier::Enterprise)
        .max(Limit::Bytes(max))
        .enforcement(enforcement)
}

/// Two clients: one with room to draw ahead, one that asks its budget each time.
fn clients(memory: &Memory) -> Result<[Client; 2], RegisterError> {
    let tight = options(3 << 20, Enforcement::Strict).guarantee(Limit::Bytes(1 << 20));
    let tight = memory.register("tight", tight)?;
    let wide = memory.register("wide", options(64 << 20, Enforcement::Graceful))?;
    Ok([wide, tight])
}

fn memory() -> Memory {
    Memory::builder(1 << 30).background(false).build().unwrap()
}

fn whole_life() {
    let memory = infallible("build", memory);
    let [wide, tight] = match infallible("register", || clients(&memory)) {
        Ok(clients) => clients,
        Err(error) => {
            assert_eq!(error, RegisterError::OutOfMemory);
            let reserved = memory.client_count() as u64 * (1 << 20);
            assert_eq!(memory.usage().charged_bytes, reserved);
            infallible("end", || drop(memory));
            return;
        }
    };
    fallible_part([&wide, &tight]);

    let mut block = infallible("block", || {
        memory.allocate_for_client("wide", 20_000).unwrap()
    });
    assert_eq!(wide.usage().block_bytes, 20_000);
    answers("pin", || block.pin_mut().unwrap().fill(9));
    answers("transfer", || block.charge_to(&tight).unwrap());
    assert_eq!(wide.usage().block_bytes, 0);
    assert_eq!(tight.usage().block_bytes, 20_000);
    answers("pin", || {
        assert!(block.pin().unwrap().iter().all(|&byte| byte == 9));
    });

    infallible("configure", || {
        wide.configure(options(32 << 20, Enforcement::Strict))
            .unwrap();
        wide.set_tier(SubscriptionTier::Premium).unwrap();
    });
    infallible("tier", || {
        let policy = tiered_allocator::TierPolicy::new(Limit::Share(0.5));
        memory.set_tier_policy("extra", policy).unwrap();
    });
    answers("figures", || {
        assert_eq!(memory.usage().overdrawn_bytes, 0);
        wide.checkpoint().unwrap();
    });
    infallible("snapshot", || {
        assert_eq!(memory.snapshot().clients.len(), 2);
        assert!(memory.events(0).0.is_empty());
        let (allocated, _) = memory.get_client_resource_usage("tight").unwrap();
        assert_eq!(allocated, 20_000);
    });
    infallible("reclaim", || {
        memory.reclaim_unused_memory();
        memory.tick();
    });
    let worker = wide.clone();
    infallible("spawn", || {
        let spawned = worker.spawn(|| Block::bytes(&HEAP, 5000)).unwrap();
        let block = spawned.join().unwrap().unwrap();
        // What stood in the way of the thread's own start is gone with it.
        assert_eq!(worker.usage().live_allocations, u64::from(block.is_some()));
    });
    let late = answers("late free", || {
        let _scope = wide.enter();
        Block::bytes(&HEAP, 4000)
    });
    infallible("remove", || memory.remove_client("wide").unwrap());
    answers("late free", || {
        let bytes = late.as_ref().map_or(0, |late| late.size() as u64);
        assert_eq!(wide.usage().live_bytes, bytes);
        drop(late);
        assert_eq!(wide.usage().live_bytes, 0);
    });
    infallible("end", || {
        drop(memory);
        drop(block);
    });
    assert_eq!(tight.usage().live_bytes, 0);
}

// --- every n ---------------------------------------------------------------------

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for both; they are owned from here on.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

/// What the heap holds when nothing is left of memories that have ended: their
/// last clients are closed when the next one is registered somewhere.
fn live() -> (i64, i64) {
    let memory = memory();
    memory.register("last", SubscriptionTier::Basic).unwrap();
    drop(memory);
    // Std keeps the names of the parent's threads until their stacks, which the
    // child has inherited, are used again.
    std::thread::spawn(|| ()).join().unwrap();
    HEAP.inner().live()
}

fn say(message: &str) {
    // SAFETY: writes bytes that live.
    unsafe { libc::write(2, message.as_ptr().cast(), message.len()) };
}

/// Runs `life` in a child whose heap refuses; answers its status and what it
/// said on standard error.
fn in_a_child(granted: u64, only_one: bool, life: fn()) -> (i32, String) {
    use std::os::fd::AsRawFd;
    let (from, to) = pipe();
    // SAFETY: the child runs `life` and `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: ends this process if it hangs; its errors go to the parent.
        unsafe {
            libc::alarm(60);
            libc::dup2(to.as_raw_fd(), 2);
        }
        let before = live();
        HEAP.inner().arm(granted, only_one);
        let lived = catch_unwind(AssertUnwindSafe(life));
        report().refused.store(HEAP.inner().disarm(), Relaxed);
        let failed = match lived {
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                say(&text.unwrap_or_else(|| "a panic".to_owned()));
                true
            }
            Ok(()) => {
                let after = live();
                if after != before {
                    say(&format!("leaked: {before:?} {after:?}"));
                }
                after != before
            }
        };
        // SAFETY: no destructors, no handlers of the parent.
        unsafe { libc::_exit(i32::from(failed)) };
    }
    drop(to);
    let mut said = String::new();
    std::fs::File::from(from).read_to_string(&mut said).unwrap();
    let mut status = 0;
    // SAFETY: waits for the child just made.
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(waited, child);
    (status, said)
}

/// Runs `life` with every n; answers how many n there were, and how many of
/// them ended in an abort.
fn every_n(only_one: bool, life: fn()) -> (u64, u64) {
    assert!(TieredAllocator::is_installed());
    // What is made once for the whole process is made now.
    life();
    let mut aborts = 0;
    for granted in 0.. {
        report().refused.store(0, Relaxed);
        let (status, said) = in_a_child(granted, only_one, life);
        let place = STEPS[report().step.load(Relaxed) as usize];
        let place = format!("n = {granted}, step {place}: {said}");
        if libc::WIFEXITED(status) {
            assert_eq!(libc::WEXITSTATUS(status), 0, "{place}");
            if report().refused.load(Relaxed) == 0 {
                return (granted, aborts);
            }
            continue;
        }
        assert_eq!(libc::WTERMSIG(status), libc::SIGABRT, "{place}");
        assert!(report().may_abort.load(Relaxed), "{place}");
        assert!(said.contains("memory allocation of"), "{place}");
        aborts += 1;
    }
    unreachable!()
}

#[test]
#[serial_test::serial]
fn a_memory_survives_any_one_refusal_or_ends_in_a_call_that_cannot_fail() {
    let (reached, aborts) = every_n(true, whole_life);
    assert!(reached > 100 && aborts < reached, "{reached} {aborts}");
    println!("n = {reached}, of which {aborts} ended the process");
}

#[test]
#[serial_test::serial]
fn a_memory_survives_a_heap_that_ran_dry_until_a_call_that_cannot_fail() {
    let (reached, aborts) = every_n(false, whole_life);
    assert!(reached > 100 && aborts <= reached, "{reached} {aborts}");
    println!("n = {reached}, of which {aborts} ended the process");
}

static READY: std::sync::OnceLock<(Memory, [Client; 2])> = std::sync::OnceLock::new();

fn fallible_life() {
    let (_, [wide, tight]) = READY.get().unwrap();
    fallible_part([wide, tight]);
}

#[test]
#[serial_test::serial]
fn calls_that_can_answer_never_end_the_process() {
    untracked(|| {
        READY.get_or_init(|| {
            let memory = memory();
            let clients = clients(&memory).unwrap();
            (memory, clients)
        })
    });
    for only_one in [true, false] {
        let (reached, aborts) = every_n(only_one, fallible_life);
        assert!(reached > 50, "{reached}");
        assert_eq!(aborts, 0);
        println!("n = {reached}");
    }
}

/// The checks above must be able to fail.
#[test]
#[serial_test::serial]
fn a_leak_and_a_drift_are_noticed() {
    let (status, said) = in_a_child(Failing::NEVER, true, || {
        std::mem::forget(Block::bytes(&HEAP, 10));
    });
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1);
    assert!(said.contains("leaked"), "{said}");
    let (status, said) = in_a_child(Failing::NEVER, true, || {
        let memory = memory();
        let [wide, _] = clients(&memory).unwrap();
        let held = Held::of(&wide);
        let scope = wide.enter();
        let block = NonNull::from(Box::leak(Box::new(5_u64)));
        drop(scope);
        assert!(!held.is_right());
        // SAFETY: leaked just above.
        drop(unsafe { Box::from_raw(block.as_ptr()) });
        held.check();
    });
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "{said}"
    );
}
