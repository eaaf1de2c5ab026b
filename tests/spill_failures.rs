//! Spilling loses nothing: a full disk, a refused write and a full spill area
//! leave the blocks where they were, and say why.

#![cfg(all(target_os = "linux", not(tiered_allocator_portable)))]

mod common;

use common::{memory_backed, timed};
use serial_test::serial;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tiered_allocator::{
    Event, EventKind, Limit, Memory, MemoryBlock, SubscriptionTier, TierPolicy, TieredAllocator,
};

use SubscriptionTier::{Basic, Enterprise, Premium};

const KIB: usize = 1024;
const MIB: u64 = 1 << 20;
const TOTAL: u64 = 400 * MIB;

fn byte(seed: usize, at: usize) -> u8 {
    (seed * 31 + at / 7) as u8
}

fn filled(memory: &Memory, client: &str, bytes: usize, seed: usize) -> MemoryBlock {
    let mut block = memory.allocate_for_client(client, bytes).unwrap();
    let mut pin = block.pin_mut().unwrap();
    for (at, place) in pin.iter_mut().enumerate() {
        *place = byte(seed, at);
    }
    drop(pin);
    block
}

fn assert_filled(block: &MemoryBlock, seed: usize) {
    let pin = block.pin().unwrap();
    let wrong = pin.iter().enumerate().find(|&(at, &b)| b != byte(seed, at));
    assert_eq!(wrong, None, "block {seed}");
}

fn failures(memory: &Memory) -> Vec<Event> {
    let (events, _) = memory.events(0);
    let failed = |event: &Event| event.kind == EventKind::SpillFailed;
    events.into_iter().filter(failed).collect()
}

/// A directory of our own, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let name = format!("tiered-allocator-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Mounts 1 MiB of tmpfs, for the calling thread alone. An error means that
/// the process may not: only root may.
fn mount_tmpfs(dir: &Path) -> std::io::Result<()> {
    let path = CString::new(dir.as_os_str().as_bytes()).unwrap();
    let ok = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: all strings end with a zero byte; the namespace is this thread's
    // own, so nothing outside of it is mounted anywhere.
    unsafe {
        ok(libc::unshare(libc::CLONE_NEWNS))?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        ok(libc::mount(
            c"none".as_ptr(),
            c"/".as_ptr(),
            std::ptr::null(),
            private,
            std::ptr::null(),
        ))?;
        ok(libc::mount(
            c"tmpfs".as_ptr(),
            path.as_ptr(),
            c"tmpfs".as_ptr(),
            0,
            c"size=1m".as_ptr().cast(),
        ))
    }
}

#[test]
#[serial]
fn a_full_file_system_leaves_the_blocks_in_memory_and_says_so() {
    assert!(TieredAllocator::is_installed());
    let dir = Dir::new("full");
    let work = || {
        if let Err(refused) = mount_tmpfs(&dir.0) {
            // SAFETY: takes nothing.
            let is_root = unsafe { libc::geteuid() } == 0;
            assert!(!is_root, "root could not mount a tmpfs: {refused}");
            eprintln!("not root, so no small file system to fill: {refused}");
            return;
        }
        let (memory, clock) = timed(TOTAL, |builder| builder.spill_dir(&dir.0));
        memory.register("a", Basic).unwrap();
        let mut blocks: Vec<Option<MemoryBlock>> = (0..4)
            .map(|seed| Some(filled(&memory, "a", 400 * KIB, seed)))
            .collect();
        clock.advance(Duration::from_secs(300));
        let report = memory.reclaim_unused_memory();
        assert_eq!((report.spilled_blocks, report.failed_blocks), (2, 2));
        assert_eq!(memory.usage().spilled_bytes, 800 * KIB as u64);
        let failed = failures(&memory);
        assert_eq!(failed.len(), 2);
        assert_eq!(failed[0].os_error, Some(libc::ENOSPC));
        assert_eq!(failed[0].requested, 400 * KIB as u64);
        assert_eq!(failed[0].charged, 800 * KIB as u64);
        assert_eq!(failed[0].name.as_deref(), Some("a"));
        // The client pays for those two alone.
        let live = memory.client_usage("a").unwrap().live_bytes;
        assert_eq!(live, 800 * KIB as u64);
        // A place that becomes free is used.
        let spilled = (0..4).find(|&at| {
            let block = blocks[at].as_ref().unwrap();
            block.resident_bytes() == 0
        });
        blocks[spilled.unwrap()] = None;
        let report = memory.reclaim_unused_memory();
        assert_eq!((report.spilled_blocks, report.failed_blocks), (1, 1));
        for (seed, block) in blocks.iter().enumerate() {
            if let Some(block) = block {
                assert_filled(block, seed);
            }
        }
        drop(blocks);
        assert_eq!(memory.usage().spilled_bytes, 0);
        assert_eq!(memory.get_resource_usage(), (0, 0));
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap());
}

/// Set for a process that may take every file's room from itself.
const ALONE: &str = "TIERED_ALLOCATOR_TEST_ALONE";

/// The limit binds the whole process, what the test harness writes included:
/// this binary once more, into pipes.
#[test]
#[serial]
fn a_write_that_fails_half_way_leaves_the_block_in_memory() {
    const SELF: &str = "a_write_that_fails_half_way_leaves_the_block_in_memory";
    if std::env::var_os(ALONE).is_some() {
        writes_fail_half_way();
        println!("writes failed: done");
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", SELF, "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{said} {errors}");
    assert!(said.contains("writes failed: done"), "{said}");
}

/// Every write beyond 512 KiB of a file is refused, as by a disk that fails in
/// the middle of a block.
fn writes_fail_half_way() {
    let mut old = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let limit = |limit: &libc::rlimit| {
        // SAFETY: a valid limit; a process may always lower its soft limit and
        // raise it back to what its hard limit allows.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, limit) }, 0);
    };
    // SAFETY: `old` is ours to write; the signal would end the process.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &mut old), 0);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    let (memory, clock) = timed(TOTAL, |builder| builder);
    memory.register("a", Basic).unwrap();
    let small = filled(&memory, "a", 300 * KIB, 1);
    let large = filled(&memory, "a", 400 * KIB, 2);
    let last = filled(&memory, "a", 200 * KIB, 3);
    clock.advance(Duration::from_secs(300));
    limit(&libc::rlimit {
        rlim_cur: 512 * KIB as u64,
        ..old
    });
    let report = memory.reclaim_unused_memory();
    limit(&old);
    // The largest goes first; then neither of the others fits behind it.
    assert_eq!((report.spilled_blocks, report.failed_blocks), (1, 2));
    assert!(
        failures(&memory)
            .iter()
            .all(|e| e.os_error == Some(libc::EFBIG))
    );
    assert_eq!(memory.usage().spilled_bytes, 400 * KIB as u64);
    let report = memory.reclaim_unused_memory();
    assert_eq!((report.spilled_blocks, report.failed_blocks), (2, 0));
    assert_filled(&small, 1);
    assert_filled(&large, 2);
    assert_filled(&last, 3);
    let reclaim = memory.snapshot().reclaim;
    assert_eq!(reclaim.restored_blocks, 3);
    assert_eq!(reclaim.restored_bytes, 900 * KIB as u64);
    assert!(reclaim.longest_restore > Duration::ZERO);
    assert!(reclaim.restore_time >= reclaim.longest_restore);
}

#[test]
#[serial]
fn a_full_spill_area_is_an_event_with_its_limit() {
    let (memory, clock) = timed(TOTAL, |builder| builder.spill_limit_bytes(64 * KIB as u64));
    memory.register("a", Basic).unwrap();
    let block = filled(&memory, "a", 100 * KIB, 1);
    clock.advance(Duration::from_secs(300));
    assert_eq!(memory.reclaim_unused_memory().failed_blocks, 1);
    let failed = failures(&memory);
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].charged, failed[0].limit), (0, 64 * KIB as u64));
    assert_eq!(failed[0].os_error, None);
    assert_filled(&block, 1);
}

#[test]
#[serial]
fn the_file_has_no_name_and_is_nobody_elses() {
    use std::os::unix::fs::MetadataExt;
    let dir = Dir::new("nameless");
    let (memory, clock) = timed(TOTAL, |builder| builder.spill_dir(&dir.0));
    memory.register("a", Basic).unwrap();
    let block = filled(&memory, "a", 100 * KIB, 1);
    clock.advance(Duration::from_secs(300));
    assert_eq!(memory.reclaim_unused_memory().spilled_blocks, 1);
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0);
    let device = std::fs::metadata(&dir.0).unwrap().dev();
    let is_ours = |fd: &std::fs::DirEntry| {
        let link = std::fs::read_link(fd.path()).unwrap_or_default();
        link.starts_with(&dir.0)
    };
    let files: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter(is_ours)
        .map(|fd| std::fs::metadata(fd.path()).unwrap())
        .collect();
    assert_eq!(files.len(), 1);
    assert_eq!(files[0].mode() & 0o777, 0o600);
    assert_eq!((files[0].nlink(), files[0].dev()), (0, device));
    assert_filled(&block, 1);
}

/// Tiers have idle times of their own, and give way in order; nobody's bytes
/// are mixed up however many there are.
#[test]
#[serial]
fn a_thousand_clients_with_idle_blocks_lose_nothing() {
    let tiers = [Basic, Premium, Enterprise];
    let (memory, clock) = timed(TOTAL, |mut builder| {
        for (tier, seconds) in tiers.into_iter().zip([10, 20, 30]) {
            let policy = TierPolicy::from(tier)
                .max(Limit::Bytes(MIB))
                .idle_after(Duration::from_secs(seconds));
            builder = builder.tier(tier, policy);
        }
        builder.spill_dir(memory_backed())
    });
    let sizes = [64 * KIB, 65 * KIB + 13, 96 * KIB];
    let blocks: Vec<MemoryBlock> = (0..1000)
        .map(|at| {
            let name = format!("client {at}");
            memory.register(&name, tiers[at % 3]).unwrap();
            filled(&memory, &name, sizes[at / 3 % 3], at)
        })
        .collect();
    let resident = |tier: usize| {
        let own = blocks.iter().skip(tier).step_by(3);
        own.filter(|block| block.resident_bytes() > 0).count()
    };
    let held = [334, 333, 333];
    for passed in 0..3 {
        clock.advance(Duration::from_secs(10));
        let report = memory.reclaim_unused_memory();
        assert_eq!(report.failed_blocks, 0);
        assert_eq!(report.spilled_blocks, held[passed]);
        let left = |tier: usize| {
            if tier <= passed {
                0
            } else {
                held[tier] as usize
            }
        };
        assert_eq!([0, 1, 2].map(resident), [0, 1, 2].map(left));
    }
    assert_eq!(memory.get_resource_usage(), (0, 0));
    for (at, block) in blocks.iter().enumerate() {
        assert_filled(block, at);
    }
    let all: u64 = blocks.iter().map(|block| block.len() as u64).sum();
    assert_eq!(memory.get_resource_usage().0, all);
    let reclaim = memory.snapshot().reclaim;
    assert_eq!(
        (reclaim.spilled_blocks, reclaim.restored_blocks),
        (1000, 1000)
    );
    assert_eq!((reclaim.spilled_bytes, reclaim.restored_bytes), (all, all));
    drop(blocks);
    assert_eq!(memory.get_resource_usage(), (0, 0));
    assert_eq!(memory.usage().spilled_bytes, 0);
}
