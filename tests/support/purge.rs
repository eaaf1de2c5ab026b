//! What every inner allocator must do when it is asked to give back.

#[cfg(all(target_os = "linux", not(tiered_allocator_portable)))]
#[path = "until.rs"]
mod until;

use std::io::ErrorKind;
#[cfg(all(target_os = "linux", not(tiered_allocator_portable)))]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use tiered_allocator::purge::Purge;
use tiered_allocator::{Memory, TieredAllocator};

const BLOCK_BYTES: usize = 1000;
const BLOCKS: usize = 200 << 20 >> 10;
/// One block in so many lives on, so that the heap cannot shrink by its end.
const SURVIVOR: usize = 500;

fn resident_bytes(memory: &Memory) -> Option<u64> {
    memory.snapshot().resident_set_bytes
}

/// Small blocks of which all but a few are freed.
fn fragments() -> Vec<Box<[u8]>> {
    let mut blocks: Vec<Option<Box<[u8]>>> = (0..BLOCKS)
        .map(|n| Some(vec![n as u8 | 1; BLOCK_BYTES].into_boxed_slice()))
        .collect();
    // From the front, so that what is last in the heap is freed last.
    let survivors = blocks
        .iter_mut()
        .enumerate()
        .filter_map(|(n, block)| block.take().filter(|_| n % SURVIVOR == SURVIVOR - 1))
        .collect();
    drop(blocks);
    survivors
}

/// Frees 200 MiB that the inner allocator keeps, purges, and sees the resident
/// set fall by more than half of it.
pub fn gives_freed_memory_back(purge: &dyn Purge) {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::builder(8 << 30).background(false).build().unwrap();
    if resident_bytes(&memory).is_none() {
        return;
    }
    let start = resident_bytes(&memory).unwrap();
    // By a thread that is alive and idle when the purge comes, as a server's
    // workers are.
    let (freed, wait_for_free) = mpsc::channel();
    let (finish, wait_for_end) = mpsc::channel::<()>();
    let worker = std::thread::spawn(move || {
        let survivors = fragments();
        freed.send(()).unwrap();
        let _ = wait_for_end.recv();
        survivors
    });
    wait_for_free.recv().unwrap();
    let before = resident_bytes(&memory).unwrap();
    let purged = match purge.purge() {
        // Only glibc's heap can be asked.
        Err(reason) if cfg!(not(target_env = "gnu")) && reason.kind() == ErrorKind::Unsupported => {
            return;
        }
        purged => purged.unwrap(),
    };
    let after = resident_bytes(&memory).unwrap();
    finish.send(()).unwrap();
    let survivors = worker.join().unwrap();
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    println!(
        "resident: {:.1} MiB at the start, {:.1} before the purge, {:.1} after ({purged:?})",
        mib(start),
        mib(before),
        mib(after),
    );
    assert_eq!(survivors.len(), BLOCKS / SURVIVOR);
    let intact = |block: &[u8]| block.len() == BLOCK_BYTES && block.iter().all(|&b| b & 1 == 1);
    assert!(survivors.iter().all(|block| intact(block)));
    assert!(before > after, "{before} before, {after} after");
    assert!(
        after.saturating_sub(start) < 100 << 20,
        "{after} after, {start} at the start"
    );
}

/// Children that are forked while another thread purges can use the heap and
/// purge it, too.
#[cfg(all(target_os = "linux", not(tiered_allocator_portable)))]
pub fn leaves_forked_children_a_working_heap(purge: &dyn Purge) {
    assert!(TieredAllocator::is_installed());
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = purge.purge();
                drop(vec![1_u8; 100_000]);
            }
        });
        let _stops = until::Stops(&done);
        for _ in 0..50 {
            // SAFETY: the child uses the heap, which works in forked children,
            // and ends without running anything else.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: a child that waits for ever is ended by the alarm.
                unsafe { libc::alarm(60) };
                let blocks: Vec<Box<[u8]>> = (1..100).map(|n| vec![1; n * 100].into()).collect();
                drop(blocks);
                let _ = purge.purge();
                // SAFETY: as above.
                unsafe { libc::_exit(7) };
            }
            let mut status = -1;
            // SAFETY: our child, and a status of ours.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 7 << 8, "the child's end");
        }
    });
}
