//! A system that has no more memory, maps no more pages, replaces the process
//! or runs code before and after `main`. Each case runs in a process of its
//! own, this binary once more.

#![cfg(all(target_os = "linux", not(tiered_allocator_portable)))]

#[path = "support/sandbox.rs"]
mod sandbox;
mod support;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use support::Block;
use tiered_allocator::{
    AllocateError, Client, ClientOptions, Enforcement, Limit, Memory, SubscriptionTier,
    TieredAllocator, untracked,
};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const CASE: &str = "TIERED_ALLOCATOR_TEST_CASE";

fn memory() -> Memory {
    Memory::builder(1 << 40).background(false).build().unwrap()
}

fn strict(memory: &Memory, name: &str, max: u64) -> Client {
    let options = ClientOptions::new(SubscriptionTier::Enterprise)
        .max(Limit::Bytes(max))
        .enforcement(Enforcement::Strict);
    memory.register(name, options).unwrap()
}

fn figures(client: &Client) -> (u64, u64, u64) {
    let usage = client.usage();
    (usage.live_bytes, usage.live_allocations, usage.refusals)
}

// --- before and after main ------------------------------------------------------

/// Made by a constructor: the first allocations of the process.
static EARLY: OnceLock<(Memory, Client, Block, bool)> = OnceLock::new();

extern "C" fn before_main() {
    let installed = TieredAllocator::is_installed();
    let memory = memory();
    let client = strict(&memory, "early", 10_000);
    let block = {
        let _scope = client.enter();
        let mut block = Block::bytes(&HEAP, 100).unwrap();
        assert!(block.resize(6000));
        assert!(!block.resize(10_001));
        assert!(Block::bytes(&HEAP, 4001).is_none());
        block
    };
    let _ = EARLY.set((memory, client, block, installed));
}

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

#[test]
fn a_memory_made_before_main_has_exact_books() {
    let (memory, client, block, installed) = EARLY.get().unwrap();
    assert!(installed);
    assert_eq!(block.size(), 6000);
    assert_eq!(figures(client), (6000, 1, 2));
    assert_eq!(memory.client_count(), 1);
    let _scope = client.enter();
    assert!(Block::bytes(&HEAP, 4000).is_some());
}

extern "C" fn after_main() {
    let (_, client, _, _) = EARLY.get().unwrap();
    let scope = client.enter();
    let mut block = Block::bytes(&HEAP, 10).unwrap();
    assert!(block.resize(4000));
    assert_eq!(figures(client), (10_000, 2, 2));
    assert!(!block.resize(4001));
    drop(block);
    drop(scope);
    assert_eq!(figures(client), (6000, 1, 3));
    println!("after main: exact");
}

// --- no more memory --------------------------------------------------------------

fn mapped_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    pages * 4096
}

/// `ulimit -v`: the inner allocator and the system say no, not the budgets.
fn address_space_is_used_up() {
    const MIB: usize = 1 << 20;
    let memory = memory();
    let client = strict(&memory, "client", 1 << 38);
    let mut blocks = Vec::with_capacity(1000);
    let limit = mapped_bytes() + (100 << 20);
    let limit = libc::rlimit {
        rlim_cur: limit,
        rlim_max: limit,
    };
    // SAFETY: lowers a limit of this process.
    assert_eq!(0, unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) });
    for _ in 0..3 {
        let scope = client.enter();
        while blocks.len() < blocks.capacity() {
            match Block::bytes(&HEAP, MIB) {
                Some(block) => blocks.push(block),
                None => break,
            }
        }
        drop(scope);
        let count = blocks.len() as u64;
        assert!((50..1000).contains(&count), "{count}");
        assert_eq!(figures(&client), (count << 20, count, 0));
        assert!(!blocks[0].resize(60 * MIB));
        assert_eq!(figures(&client), (count << 20, count, 0));
        match memory.allocate_for_client("client", 50 * MIB) {
            Err(AllocateError::OutOfMemory { requested }) => assert_eq!(requested, 50 * MIB),
            other => panic!("{other:?}"),
        }
        assert_eq!(figures(&client), (count << 20, count, 0));
        blocks.clear();
        assert_eq!(figures(&client), (0, 0, 0));
        // With room again, all works again.
        drop(memory.allocate_for_client("client", 50 * MIB).unwrap());
    }
}

/// What a bare thread does once nothing can be mapped any more.
struct Bare {
    client: Client,
    ready: AtomicBool,
    go: AtomicBool,
}

extern "C" fn bare_thread(bare: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: the spawner keeps it until the thread has been joined.
    let bare = unsafe { &*bare.cast::<Bare>() };
    // The C library maps an arena for each thread; this one has it in time.
    // SAFETY: given back at once. Optimised code would leave out a pair that
    // nobody looks at.
    unsafe { libc::free(std::hint::black_box(libc::malloc(1))) };
    bare.ready.store(true, Ordering::Release);
    while !bare.go.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    let client = &bare.client;
    let mut blocks = [const { None }; 100];
    // A failed assertion would need memory that the client may not have.
    let mut draws_credit = false;
    let scope = client.enter();
    for block in &mut blocks {
        *block = Block::bytes(&HEAP, 1000);
        let usage = client.usage();
        draws_credit |= usage.charged_bytes != usage.live_bytes;
    }
    let full = figures(client);
    blocks[3] = None;
    let exact = [1000, 1].map(|size| Block::bytes(&HEAP, size).is_some());
    drop(scope);
    assert!(!draws_credit, "it has an account after all");
    assert_eq!(full, (20_000, 20, 80));
    assert_eq!(exact, [true, true]);
    // Across the size where owners move to the page map, which may have no
    // place for them; and back.
    let mut block = blocks[0].take().unwrap();
    let scope = client.enter();
    blocks[4..].fill_with(|| None);
    let resized = block.resize(9000);
    assert_eq!(figures(client).0, 2000 + block.size() as u64);
    assert_eq!(block.size(), if resized { 9000 } else { 1000 });
    assert!(block.resize(500));
    drop(scope);
    drop(block);
    drop(blocks);
    let (bytes, count, _) = figures(client);
    assert_eq!((bytes, count), (0, 0));
    assert_eq!(client.usage().charged_bytes, 0);
    std::ptr::null_mut()
}

/// As with `vm.overcommit_memory = 2`: `mmap` says no. The heap itself can
/// still grow by `brk`.
fn nothing_can_be_mapped() {
    let memory = memory();
    let client = strict(&memory, "client", 20_000);
    let wide = strict(&memory, "wide", 1 << 30);
    let bare = Bare {
        client,
        ready: AtomicBool::new(false),
        go: AtomicBool::new(false),
    };
    let mut thread = 0;
    // SAFETY: `bare` lives until the thread has been joined below. A bare
    // thread, since std's allocates before it can be held up.
    let started = unsafe {
        libc::pthread_create(
            &mut thread,
            std::ptr::null(),
            bare_thread,
            (&raw const bare).cast_mut().cast(),
        )
    };
    assert_eq!(started, 0);
    while !bare.ready.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    sandbox::refuse(libc::SYS_mmap, libc::ENOMEM);
    bare.go.store(true, Ordering::Release);
    // SAFETY: the thread just made.
    let joined = unsafe { libc::pthread_join(thread, std::ptr::null_mut()) };
    assert_eq!(joined, 0);

    // A thread that has a table works as ever, within the heap it has.
    for size in [1, 4095, 4096, 100_000, 1 << 20] {
        let scope = wide.enter();
        let block = Block::bytes(&HEAP, size);
        drop(scope);
        let held = u64::from(block.is_some());
        assert_eq!(figures(&wide), (held * size as u64, held, 0));
    }
    assert_eq!(figures(&wide), (0, 0, 0));
    let refused = memory.allocate_for_client("wide", 1 << 20);
    assert!(matches!(refused, Err(AllocateError::OutOfMemory { .. })));
    assert_eq!(figures(&wide), (0, 0, 0));
    // New clients: as long as there are slots.
    let registered = (0..100_000)
        .take_while(|number| memory.add_client(&format!("c{number}"), "Basic").is_ok())
        .count();
    assert_eq!(memory.client_count(), 2 + registered);
    memory.remove_client("wide").unwrap();
    assert!(memory.add_client("again", "Basic").is_ok());
}

// --- another image ------------------------------------------------------------------

/// Inside a scope, in the middle of a client's work.
fn replaces_itself() -> ! {
    let memory = memory();
    let client = strict(&memory, "client", 1 << 30);
    let _kept = untracked(|| memory.allocate_for_client("client", 10_000).unwrap());
    let _scope = client.enter();
    let _held = vec![0_u8; 100_000];
    let error = again("after exec").exec();
    panic!("{error}");
}

// --- the cases --------------------------------------------------------------------------

#[test]
fn the_case_named_by_the_environment() {
    let Ok(case) = std::env::var(CASE) else {
        return;
    };
    match &*case {
        "address space" => address_space_is_used_up(),
        "mmap" => nothing_can_be_mapped(),
        "exec" => replaces_itself(),
        "after exec" => {
            assert!(Client::current().is_none());
            a_memory_made_before_main_has_exact_books();
        }
        // SAFETY: a handler without a context.
        "after main" => assert_eq!(0, unsafe { libc::atexit(after_main) }),
        _ => unreachable!("{case}"),
    }
    println!("{case}: done");
}

fn again(case: &str) -> Command {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again
        .args(["--exact", "the_case_named_by_the_environment"])
        .args(["--nocapture", "--test-threads=1"])
        .env(CASE, case);
    again
}

fn ends_with(case: &str, expected: &str) {
    let child = again(case).output().unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{case}: {said} {errors}");
    assert!(said.contains(expected), "{case}: {said}");
}

#[test]
fn with_the_address_space_used_up_requests_are_null_and_nothing_is_charged() {
    ends_with("address space", "address space: done");
}

#[test]
fn where_nothing_can_be_mapped_a_thread_without_accounts_is_exact() {
    ends_with("mmap", "mmap: done");
}

#[test]
fn exec_from_a_scope_starts_a_process_without_one() {
    ends_with("exec", "after exec: done");
}

#[test]
fn handlers_that_run_after_main_find_exact_books() {
    ends_with("after main", "after main: exact");
}
