//! The reclaimer's thread: it works when its time has come, and ends with the
//! last handle of its memory.

#[path = "support/until.rs"]
mod until;

use serial_test::serial;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tiered_allocator::clock::{Clock, ManualClock};
use tiered_allocator::{Memory, SubscriptionTier, TieredAllocator};
use until::until;

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const IDLE: Duration = Duration::from_secs(300);

/// Threads of this process that bear the reclaimer's name, where the system
/// tells it.
fn reclaimers() -> Option<usize> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    // The system cuts names at 15 characters.
    Some(
        names
            .filter(|name| name.starts_with("tiered-reclaim"))
            .count(),
    )
}

/// Waits until there are so many: a thread gives itself its name, and a joined
/// one may still be listed for a moment.
#[track_caller]
fn assert_reclaimers(expected: usize) {
    until(&format!("{expected} reclaimers"), || {
        reclaimers().is_none_or(|count| count == expected)
    });
}

fn with_clock() -> (Memory, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let builder = Memory::builder(100 << 20).clock(Arc::clone(&clock));
    (builder.build().unwrap(), clock)
}

#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "spills or measures pages")]
fn the_thread_does_what_is_due_and_nothing_before() {
    assert!(TieredAllocator::is_installed());
    let (memory, clock) = with_clock();
    assert!(memory.has_reclaimer_thread());
    memory.add_client("a", SubscriptionTier::Enterprise);
    let mut block = memory.allocate_for_client("a", 1 << 20).unwrap();
    block.pin_mut().unwrap().fill(7);
    let used = || memory.snapshot().clients[0].used_bytes;

    // Sampling is due every 10 s, reclaiming every 60 s, spilling after 300 s.
    memory.tick();
    assert_eq!((used(), memory.snapshot().reclaim.passes), (0, 0));
    clock.advance(Duration::from_secs(10));
    memory.tick();
    assert_eq!((used(), memory.snapshot().reclaim.passes), (1 << 20, 0));
    clock.advance(Duration::from_secs(50));
    memory.tick();
    assert_eq!(memory.snapshot().reclaim.passes, 1);
    assert_eq!(memory.snapshot().reclaim.spilled_bytes, 0);
    memory.tick();
    assert_eq!(memory.snapshot().reclaim.passes, 1);
    clock.advance(IDLE);
    memory.tick();
    assert_eq!(memory.snapshot().reclaim.passes, 2);
    assert_eq!(memory.snapshot().reclaim.spilled_bytes, 1 << 20);
    assert_eq!(used(), 0);
    assert!(block.pin().unwrap().iter().all(|&byte| byte == 7));
}

#[test]
#[serial]
fn the_thread_lives_as_long_as_the_last_handle() {
    assert_reclaimers(0);
    let (memory, _clock) = with_clock();
    let clones: Vec<Memory> = (0..3).map(|_| memory.clone()).collect();
    assert_reclaimers(1);
    let other = Memory::new(1 << 30);
    assert_reclaimers(2);
    drop(memory);
    assert!(clones[2].has_reclaimer_thread());
    clones[2].tick();
    assert_reclaimers(2);
    drop(clones);
    assert_reclaimers(1);
    drop(other);
    assert_reclaimers(0);
}

#[test]
#[serial]
fn clients_and_blocks_do_not_keep_the_thread() {
    let (memory, _clock) = with_clock();
    let client = memory.register("a", SubscriptionTier::Basic).unwrap();
    let block = memory.allocate_for_client("a", 10_000).unwrap();
    let _scope = client.enter();
    drop(memory);
    assert_reclaimers(0);
    assert!(!client.is_active());
    drop(block);
}

#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "spills or measures pages")]
fn a_memory_may_have_no_thread_and_works() {
    let clock = Arc::new(ManualClock::default());
    let memory = Memory::builder(100 << 20)
        .background(false)
        .clock(Arc::clone(&clock))
        .build()
        .unwrap();
    assert!(!memory.has_reclaimer_thread());
    assert_reclaimers(0);
    memory.add_client("a", SubscriptionTier::Enterprise);
    let _block = memory.allocate_for_client("a", 10_000).unwrap();
    clock.advance(IDLE);
    memory.tick();
    assert_eq!(memory.snapshot().reclaim.spilled_bytes, 10_000);
}

#[test]
#[serial]
fn many_threads_tick_and_reclaim_at_once_while_handles_end() {
    let (memory, clock) = with_clock();
    memory.add_client("a", SubscriptionTier::Enterprise);
    std::thread::scope(|threads| {
        for _ in 0..4 {
            let (memory, clock) = (memory.clone(), Arc::clone(&clock));
            threads.spawn(move || {
                for _ in 0..50 {
                    let block = memory.allocate_for_client("a", 8192).unwrap();
                    clock.advance(Duration::from_secs(60));
                    memory.tick();
                    memory.reclaim_unused_memory();
                    drop(block);
                }
            });
        }
        drop(memory);
    });
    assert_reclaimers(0);
}

#[test]
#[serial]
fn the_last_handle_may_end_anywhere() {
    // Inside a scope of its own client, on a thread that did not make it.
    let (memory, _clock) = with_clock();
    let client = memory.register("a", SubscriptionTier::Basic).unwrap();
    std::thread::spawn(move || {
        let _scope = client.enter();
        drop(memory);
    })
    .join()
    .unwrap();
    assert_reclaimers(0);

    // Together with a block, while its thread unwinds.
    let (memory, _clock) = with_clock();
    memory.add_client("a", SubscriptionTier::Basic);
    let block = memory.allocate_for_client("a", 10_000).unwrap();
    let unwound = std::thread::Builder::new()
        .name("unwinds".into())
        .spawn(move || {
            let _both = (memory, block);
            std::panic::resume_unwind(Box::new(()));
        });
    assert!(unwound.unwrap().join().is_err());
    assert_reclaimers(0);

    // In a destructor of a thread's own variable.
    thread_local! {
        static LAST: std::cell::RefCell<Option<Memory>> = const { std::cell::RefCell::new(None) };
    }
    let (memory, _clock) = with_clock();
    std::thread::spawn(move || LAST.set(Some(memory)))
        .join()
        .unwrap();
    assert_reclaimers(0);
}

/// A clock of the host's making: holds a handle of the very memory, and drops
/// it on the reclaimer's thread.
struct Holding {
    memory: Mutex<Option<Memory>>,
    release: AtomicBool,
}

struct HoldingClock(Arc<Holding>);

impl Clock for HoldingClock {
    fn now(&self) -> Duration {
        let on_reclaimer = std::thread::current().name() == Some("tiered-reclaimer");
        if on_reclaimer && self.0.release.load(Ordering::Acquire) {
            drop(self.0.memory.lock().unwrap().take());
        }
        Duration::ZERO
    }
}

#[test]
#[serial]
fn the_last_handle_may_end_on_the_reclaimer_thread_itself() {
    let holding = Arc::new(Holding {
        memory: Mutex::new(None),
        release: AtomicBool::new(false),
    });
    let memory = Memory::builder(100 << 20)
        .clock(HoldingClock(Arc::clone(&holding)))
        .sample_every(Duration::from_millis(1))
        .build()
        .unwrap();
    let client = memory.register("a", SubscriptionTier::Basic).unwrap();
    *holding.memory.lock().unwrap() = Some(memory);
    holding.release.store(true, Ordering::Release);
    // The thread wakes by itself, every millisecond.
    assert_reclaimers(0);
    until("its memory has ended", || !client.is_active());
    assert!(holding.memory.lock().unwrap().is_none());
}

/// A clock that fails the thread.
struct FailingClock(Arc<AtomicBool>);

impl Clock for FailingClock {
    fn now(&self) -> Duration {
        let on_reclaimer = std::thread::current().name() == Some("tiered-reclaimer");
        if on_reclaimer && self.0.load(Ordering::Acquire) {
            std::panic::resume_unwind(Box::new(()));
        }
        Duration::ZERO
    }
}

#[test]
#[serial]
fn a_thread_that_panics_holds_nobody_up() {
    let fails = Arc::new(AtomicBool::new(false));
    let memory = Memory::builder(100 << 20)
        .clock(FailingClock(Arc::clone(&fails)))
        .build()
        .unwrap();
    memory.tick();
    fails.store(true, Ordering::Release);
    memory.tick();
    assert_reclaimers(0);
    memory.tick();
    assert_eq!(memory.reclaim_unused_memory().failed_blocks, 0);
    drop(memory);
}
