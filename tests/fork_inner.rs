//! An inner allocator that keeps itself whole across `fork`, as many do: it takes
//! its lock in a handler that it registers when it is first used.
#![cfg(all(target_os = "linux", not(tiered_allocator_portable)))]

#[path = "support/forked.rs"]
mod forked;
#[path = "support/until.rs"]
mod until;

use forked::in_a_child;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};
use tiered_allocator::{Memory, SubscriptionTier, TieredAllocator};
use until::Stops;

static IS_LOCKED: AtomicBool = AtomicBool::new(false);
static IS_REGISTERED: AtomicBool = AtomicBool::new(false);

extern "C" fn lock() {
    while IS_LOCKED.swap(true, Ordering::Acquire) {
        std::thread::yield_now();
    }
}

extern "C" fn unlock() {
    IS_LOCKED.store(false, Ordering::Release);
}

unsafe extern "C" fn prepare() {
    lock();
}

unsafe extern "C" fn resume() {
    unlock();
}

struct Locking;

// SAFETY: `System` does the work.
unsafe impl GlobalAlloc for Locking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !IS_REGISTERED.swap(true, Ordering::Relaxed) {
            // SAFETY: the handlers live as long as the program.
            unsafe { libc::pthread_atfork(Some(prepare), Some(resume), Some(resume)) };
        }
        lock();
        // SAFETY: as the caller's.
        let at = unsafe { System.alloc(layout) };
        unlock();
        at
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        lock();
        // SAFETY: as the caller's.
        unsafe { System.dealloc(at, layout) };
        unlock();
    }
}

#[global_allocator]
static HEAP: TieredAllocator<Locking> = TieredAllocator::new(Locking);

#[test]
fn a_fork_does_not_wait_for_who_waits_for_the_inner_allocators_lock() {
    const FORKS: usize = 300;
    // What waits for itself waits for ever.
    // SAFETY: no handler is installed: the signal ends the process.
    unsafe { libc::alarm(300) };
    assert!(TieredAllocator::is_installed());
    let memory = Memory::new(1 << 30);
    let stop = AtomicBool::new(false);
    let change_clients = |name: &str| {
        memory.register(name, SubscriptionTier::Basic).unwrap();
        memory.remove_client(name).unwrap();
    };
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (stop, change_clients) = (&stop, &change_clients);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    change_clients(&format!("client of {thread}"));
                }
            });
        }
        let _stops = Stops(&stop);
        for _ in 0..FORKS {
            in_a_child(|| change_clients("child"));
        }
    });
    // SAFETY: takes the alarm back.
    unsafe { libc::alarm(0) };
}
