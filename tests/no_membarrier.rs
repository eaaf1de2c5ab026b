//! Systems whose sandbox forbids `membarrier`: from the start, or all of a
//! sudden. The limit is exact all the same.
//!
//! A filter cannot be taken away again, so each case runs in a process of its
//! own, this binary once more.

// The other builds make no use of it.
#![cfg(all(
    target_os = "linux",
    not(any(tiered_allocator_fence, tiered_allocator_portable))
))]

#[path = "support/sandbox.rs"]
mod sandbox;
mod support;

use std::process::Command;
use std::sync::Barrier;
use support::Block;
use tiered_allocator::{
    Client, ClientOptions, Enforcement, Limit, Memory, SubscriptionTier, TieredAllocator,
};

static HEAP: TieredAllocator = TieredAllocator::system();

const CASE: &str = "TIERED_ALLOCATOR_TEST_CASE";
const THREADS: usize = 4;
const MAX: u64 = 1 << 20;

/// Makes `membarrier` fail in every thread of the process.
fn forbid_membarrier(errno: libc::c_int) {
    sandbox::refuse(libc::SYS_membarrier, errno);
    // SAFETY: a query, which the filter refuses.
    let answer = unsafe { libc::syscall(libc::SYS_membarrier, 0, 0, 0) };
    assert_eq!(answer, -1);
}

fn strict(memory: &Memory, name: &str) -> Client {
    let options = ClientOptions::new(SubscriptionTier::Enterprise)
        .max(Limit::Bytes(MAX))
        .enforcement(Enforcement::Strict);
    memory.register(name, options).unwrap()
}

/// Threads race for the last bytes; what they hold together never passes the
/// limit. Answers what was refused although it would have fitted.
fn race(client: &Client) -> u64 {
    let barrier = Barrier::new(THREADS);
    let held: Vec<Vec<Block>> = std::thread::scope(|scope| {
        let racers: Vec<_> = (1..=THREADS as u64)
            .map(|seed| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut random = seed;
                    let mut most = 0;
                    let mut held = Vec::with_capacity(4096);
                    barrier.wait();
                    let _scope = client.enter();
                    for _ in 0..20_000 {
                        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                        let pick = (random >> 33) as usize;
                        if pick % 5 < 2 || held.len() == held.capacity() {
                            drop(held.pop());
                        } else if let Some(block) = Block::bytes(&HEAP, pick % 5000 + 1) {
                            held.push(block);
                        }
                        if pick.is_multiple_of(64) {
                            most = most.max(client.usage().charged_bytes);
                        }
                    }
                    // Then all that is left, to the last byte.
                    for size in (0..13).rev().map(|shift| 1 << shift) {
                        while held.len() < held.capacity() {
                            match Block::bytes(&HEAP, size) {
                                Some(block) => held.push(block),
                                None => break,
                            }
                        }
                    }
                    // Credit ends with the thread: all stay until all are done.
                    barrier.wait();
                    assert!(most <= MAX, "{most} bytes charged of {MAX}");
                    held
                })
            })
            .collect();
        racers
            .into_iter()
            .map(|racer| racer.join().unwrap())
            .collect()
    });
    let bytes: u64 = held.iter().flatten().map(|block| block.size() as u64).sum();
    assert!(bytes <= MAX, "{bytes} bytes under a limit of {MAX}");
    assert_eq!(client.usage().live_bytes, bytes);
    MAX - bytes
}

/// After a race nothing is left, and the limit is there for one thread.
fn is_exact_at_rest(client: &Client) {
    assert_eq!(client.usage().live_bytes, 0);
    assert_eq!(client.usage().live_allocations, 0);
    let _scope = client.enter();
    let block = Block::bytes(&HEAP, MAX as usize).expect("it fits");
    assert!(Block::bytes(&HEAP, 1).is_none());
    drop(block);
    assert_eq!(client.usage().live_bytes, 0);
}

fn case(name: &str) {
    let memory = || Memory::builder(1 << 30).background(false).build().unwrap();
    match name {
        "from the start" | "never heard of" => {
            forbid_membarrier(match name {
                "from the start" => libc::EPERM,
                _ => libc::ENOSYS,
            });
            let memory = memory();
            let client = strict(&memory, "client");
            assert_eq!(race(&client), 0, "a false denial");
            is_exact_at_rest(&client);
        }
        "all of a sudden" => {
            let memory = memory();
            let client = strict(&memory, "client");
            assert_eq!(race(&client), 0, "a false denial");
            let bystander = Barrier::new(2);
            std::thread::scope(|scope| {
                // A thread that has credit from before and keeps it.
                let holder = scope.spawn(|| {
                    let open = client.enter();
                    drop(Block::bytes(&HEAP, 10));
                    bystander.wait();
                    bystander.wait();
                    // What it drew is its own still, and it can give it back.
                    drop(Block::bytes(&HEAP, 10).expect("out of its credit"));
                    drop(open);
                });
                bystander.wait();
                let stranded = client.usage().charged_bytes;
                assert!(stranded > 0 && stranded <= 128 << 10, "{stranded}");
                forbid_membarrier(libc::EPERM);
                // Refused by as much as cannot be taken back, and no more.
                let denied = race(&client);
                assert!(denied <= stranded, "{denied} of {stranded}");
                bystander.wait();
                // The end of a thread, exit hook and all, returns what it held.
                holder.join().unwrap();
            });
            assert_eq!(client.usage().charged_bytes, 0);
            assert_eq!(race(&client), 0, "a false denial");
            is_exact_at_rest(&client);
        }
        _ => unreachable!("{name}"),
    }
}

#[test]
fn the_case_named_by_the_environment() {
    if let Ok(name) = std::env::var(CASE) {
        case(&name);
        println!("{name}: done");
    }
}

fn passes(name: &str) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "the_case_named_by_the_environment",
            "--nocapture",
        ])
        .env(CASE, name)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{name}: {said} {errors}");
    assert!(said.contains(&format!("{name}: done")), "{name}: {said}");
}

#[test]
fn without_membarrier_the_limit_is_exact_and_nothing_is_stranded() {
    passes("from the start");
    passes("never heard of");
}

#[test]
fn when_membarrier_goes_away_nothing_passes_the_limit_and_denials_are_bounded() {
    passes("all of a sudden");
}
