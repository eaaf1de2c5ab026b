//! A fork handler of another library may allocate, whenever it runs.
#![cfg(all(target_os = "linux", not(tiered_allocator_portable)))]

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicU32, Ordering};
use tiered_allocator::{Memory, SubscriptionTier, TieredAllocator};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

static CALLS: AtomicU32 = AtomicU32::new(0);

/// More than a thread has credit for, so that the cold path is taken.
unsafe extern "C" fn allocate() {
    let layout = Layout::from_size_align(1 << 20, 1).unwrap();
    // SAFETY: the size is not zero; the block is freed with its layout.
    unsafe {
        let block = HEAP.alloc(layout);
        assert!(!block.is_null());
        HEAP.dealloc(block, layout);
    }
    CALLS.fetch_add(1, Ordering::Relaxed);
}

/// Handlers that are there before the heap is first used run inside the heap's
/// own: last before the fork, first after it.
extern "C" fn register() {
    // SAFETY: the handlers live as long as the program.
    unsafe { libc::pthread_atfork(Some(allocate), Some(allocate), Some(allocate)) };
}

// SAFETY: the loader calls the functions in this section before `main`.
#[unsafe(link_section = ".init_array")]
#[used]
static REGISTER: extern "C" fn() = register;

#[test]
fn a_handler_that_allocates_does_not_wait_for_its_own_fork() {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::new(1 << 30);
    let client = memory.register("forks", SubscriptionTier::Premium).unwrap();
    // What waits for itself waits for ever.
    // SAFETY: no handler is installed: the signal ends the process.
    unsafe { libc::alarm(60) };
    let scope = client.enter();
    // SAFETY: the child allocates nothing but what the handlers do, and exits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = i32::from(CALLS.load(Ordering::Relaxed) != 2);
        // SAFETY: ends the child without running anything else.
        unsafe { libc::_exit(code) };
    }
    drop(scope);
    let mut status = -1;
    // SAFETY: `child` is ours and `status` is ours to write.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(CALLS.load(Ordering::Relaxed), 2);
    assert_eq!(client.usage().live_bytes, 0);
    // SAFETY: as above.
    unsafe { libc::alarm(0) };
}
