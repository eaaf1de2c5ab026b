//! Misuse that the heap notices: it says what happened and ends the process.
//! Each case runs in a process of its own, this binary once more.

#![cfg(unix)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use tiered_allocator::{ClientOptions, Memory, SubscriptionTier, TieredAllocator};

/// Never uses memory again, so that what a misused block holds is known.
struct Hoarder;

// SAFETY: everything comes from `System`; nothing goes back.
unsafe impl GlobalAlloc for Hoarder {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

static HEAP: TieredAllocator<Hoarder> = TieredAllocator::new(Hoarder);

const CASE: &str = "TIERED_ALLOCATOR_TEST_CASE";

fn bytes(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// Ends the process, if the heap notices.
fn misuse(case: &str) {
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    let options = ClientOptions::new(SubscriptionTier::Basic);
    let client = memory.register("victim", options).unwrap();
    let scope = client.enter();
    let small = bytes(100);
    let large = bytes(8192);
    // SAFETY: none of what follows is sound; no block is used again, and what
    // is written lies within the bytes that the inner allocator gave.
    unsafe {
        match case {
            "overrun" => {
                let block = HEAP.alloc(small);
                block.write_bytes(0x41, 103);
                HEAP.dealloc(block, small);
            }
            "overrun with ones, freed by a fresh thread" => {
                let block = HEAP.alloc(small);
                block.write_bytes(0xFF, 104);
                let address = block as usize;
                std::thread::spawn(move || HEAP.dealloc(address as *mut u8, small))
                    .join()
                    .unwrap();
            }
            "overrun, then grown" => {
                let block = HEAP.alloc(small);
                block.write_bytes(0, 104);
                HEAP.realloc(block, small, 200);
            }
            "small double free" => {
                let block = HEAP.alloc(small);
                HEAP.dealloc(block, small);
                HEAP.dealloc(block, small);
            }
            "large double free" => {
                let block = HEAP.alloc(large);
                HEAP.dealloc(block, large);
                HEAP.dealloc(block, large);
            }
            "foreign block" => HEAP.dealloc(System.alloc(large), large),
            "foreign block, grown" => {
                HEAP.realloc(System.alloc(large), large, 16384);
            }
            "no block at all" => HEAP.dealloc(0x7000 as *mut u8, large),
            _ => unreachable!("{case}"),
        }
    }
    drop(scope);
}

#[test]
fn the_misuse_named_by_the_environment() {
    if let Ok(case) = std::env::var(CASE) {
        misuse(&case);
    }
}

fn is_noticed(case: &str, expected: &[&str]) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "the_misuse_named_by_the_environment",
            "--nocapture",
        ])
        .env(CASE, case)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{case}: {said}");
    assert!(said.contains("tiered_allocator: heap corruption"), "{said}");
    for part in expected {
        assert!(said.contains(part), "{case}: no `{part}` in: {said}");
    }
}

const OVERRUN: &[&str] = &[
    "the block of 100 bytes at 0x",
    "names no client",
    "wrote past the end",
    "Aborting.",
];
const FOREIGN: &[&str] = &[
    "the block of 8192 bytes at 0x",
    "is 0x0, which names no client",
    "freed twice, or does not come from this allocator",
    "Aborting.",
];

#[test]
fn a_write_past_the_end_of_a_small_block_ends_the_process_when_it_is_freed() {
    is_noticed("overrun", OVERRUN);
    is_noticed("overrun, then grown", OVERRUN);
}

#[test]
fn a_write_past_the_end_is_noticed_by_a_thread_without_accounts() {
    is_noticed("overrun with ones, freed by a fresh thread", OVERRUN);
}

#[test]
fn a_second_free_of_a_large_block_ends_the_process() {
    is_noticed("large double free", FOREIGN);
}

#[test]
fn a_block_of_another_allocator_ends_the_process() {
    is_noticed("foreign block", FOREIGN);
    is_noticed("foreign block, grown", FOREIGN);
    is_noticed("no block at all", FOREIGN);
}

#[cfg(debug_assertions)]
#[test]
fn a_second_free_of_a_small_block_ends_the_process_in_debug_builds() {
    is_noticed("small double free", OVERRUN);
}
