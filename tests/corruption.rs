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

/// The bytes behind a small block of the client with this index.
fn tag_of(index: u32) -> u32 {
    let check = (index.wrapping_mul(0x9E37_79B1) >> 23 ^ 0x0A5) & 0x1FF;
    check << 22 | index
}

/// # Safety
/// A block of 100 bytes of the heap.
unsafe fn read_tag(block: *mut u8) -> u32 {
    // SAFETY: the caller's block has four bytes more.
    unsafe { block.add(100).cast::<u32>().read_unaligned() }
}

/// # Safety
/// As for [`read_tag`].
unsafe fn write_tag(block: *mut u8, tag: u32) {
    // SAFETY: the caller's block has four bytes more.
    unsafe { block.add(100).cast::<u32>().write_unaligned(tag) }
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
            "overrun by a terminating zero" => {
                let block = HEAP.alloc(small);
                block.add(100).write(0);
                HEAP.dealloc(block, small);
            }
            "overrun with the tag of a client that never was" => {
                let block = HEAP.alloc(small);
                write_tag(block, tag_of(1 << 20));
                HEAP.dealloc(block, small);
            }
            "overrun, then grown into the page map" => {
                let block = HEAP.alloc(small);
                block.write_bytes(0x41, 104);
                HEAP.realloc(block, small, 5000);
            }
            "freed with a smaller size" => {
                let block = HEAP.alloc(small);
                block.write_bytes(0x41, 100);
                HEAP.dealloc(block, bytes(90));
            }
            "a small block freed as a large one" => {
                HEAP.dealloc(HEAP.alloc(small), large);
            }
            "a large block freed as a small one" => {
                let block = HEAP.alloc(large);
                block.write_bytes(0x41, 8192);
                HEAP.dealloc(block, small);
            }
            "large double free by another thread" => {
                let block = HEAP.alloc(large);
                HEAP.dealloc(block, large);
                let address = block as usize;
                std::thread::spawn(move || HEAP.dealloc(address as *mut u8, large))
                    .join()
                    .unwrap();
            }
            "large block grown after it was freed" => {
                let block = HEAP.alloc(large);
                HEAP.dealloc(block, large);
                HEAP.realloc(block, large, 16384);
            }
            "middle of a large block" => {
                let block = HEAP.alloc(bytes(1 << 20));
                HEAP.dealloc(block.add(8192), large);
            }
            "small foreign block" => {
                let block = System.alloc_zeroed(bytes(104));
                HEAP.dealloc(block, small);
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
    is_noticed("overrun, then grown into the page map", OVERRUN);
    is_noticed("overrun by a terminating zero", OVERRUN);
    is_noticed("overrun with the tag of a client that never was", OVERRUN);
}

/// What `docs::limitations` says cannot be detected: the tag is some other
/// client's, and that client's books are wrong.
#[test]
fn a_tag_overwritten_with_another_clients_is_not_noticed_and_refunds_that_client() {
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    let [one, other] = ["one", "other"].map(|name| {
        let client = memory.register(name, SubscriptionTier::Basic).unwrap();
        let scope = client.enter();
        // SAFETY: the size is not zero.
        let block = unsafe { HEAP.alloc(bytes(100)) };
        drop(scope);
        (client, block)
    });
    // SAFETY: blocks of 100 bytes; each is freed once, with its layout.
    unsafe {
        let own = read_tag(one.1);
        assert_eq!(own, tag_of(one.0.id().index()), "the layout of a tag");
        write_tag(one.1, read_tag(other.1));
        HEAP.dealloc(one.1, bytes(100));
        assert_eq!(one.0.usage().live_bytes, 100);
        assert_eq!(other.0.usage().live_bytes, 0);
        // Never negative, whatever was written.
        write_tag(other.1, own);
        HEAP.dealloc(other.1, bytes(100));
    }
    assert_eq!(one.0.usage().live_bytes, 0);
    assert_eq!(memory.usage().overdrawn_bytes, 0);
}

#[test]
fn a_block_freed_with_another_size_ends_the_process() {
    is_noticed(
        "freed with a smaller size",
        &[
            "the block of 90 bytes at 0x",
            "names no client",
            "Aborting.",
        ],
    );
    is_noticed("a small block freed as a large one", FOREIGN);
    is_noticed("a large block freed as a small one", OVERRUN);
}

#[test]
fn a_write_past_the_end_is_noticed_by_a_thread_without_accounts() {
    is_noticed("overrun with ones, freed by a fresh thread", OVERRUN);
}

#[test]
fn a_second_free_of_a_large_block_ends_the_process() {
    is_noticed("large double free", FOREIGN);
    is_noticed("large double free by another thread", FOREIGN);
    is_noticed("large block grown after it was freed", FOREIGN);
}

#[test]
fn a_block_of_another_allocator_ends_the_process() {
    is_noticed("foreign block", FOREIGN);
    is_noticed("foreign block, grown", FOREIGN);
    is_noticed("no block at all", FOREIGN);
    is_noticed("middle of a large block", FOREIGN);
    is_noticed("small foreign block", OVERRUN);
}

#[cfg(debug_assertions)]
#[test]
fn a_second_free_of_a_small_block_ends_the_process_in_debug_builds() {
    is_noticed("small double free", OVERRUN);
}
