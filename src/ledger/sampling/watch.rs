//! Whether a profile is being taken, and of whom: one in a process at a time.
//!
//! # Orderings
//! The plan is stored before `TREE`, with `Release`, and read after it with
//! `Acquire`. Accounts learn of a start by their ceiling: it is stored under
//! their slot's lock, as is every other ceiling, after `TREE`; whoever moves a
//! window later looks at `TREE` under that lock. A thread that makes its
//! account for client 0, which needs no lock, stores the account, then looks
//! at `TREE`; between storing `TREE` and walking over the accounts lies a
//! heavy fence, so one of the two sees the other.

use super::samples;
use crate::ledger::fork::Cold;
use crate::ledger::{table, thread};
use crate::registry::REGISTRY;
use crate::registry::slot::Slot;
use crate::registry::tree::Tree;
use crate::sync::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Lock, Ordering};
use crate::sys;
use core::ptr;
use std::sync::Arc;

/// Whose clients are profiled; null while no profile is taken.
static TREE: AtomicPtr<Tree> = AtomicPtr::new(ptr::null_mut());
/// The only client to profile, `index << 32 | generation`, or 0 for all.
static ONLY: AtomicU64 = AtomicU64::new(0);
static UNATTRIBUTED_TOO: AtomicBool = AtomicBool::new(false);

/// Grows with each start.
static EPOCH: AtomicU32 = AtomicU32::new(0);
static SAMPLE_BYTES: AtomicU64 = AtomicU64::new(1);
static SEED: AtomicU64 = AtomicU64::new(0);
/// Threads that have taken part.
static THREADS: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// The memory of the latest profile. Held on to, so that its address stays its
/// own.
struct Session {
    tree: Option<Arc<Tree>>,
    running: bool,
}

static SESSION: Lock<Session> = Lock::new(Session {
    tree: None,
    running: false,
});

/// What to profile, and how.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) sample_bytes: u64,
    pub(crate) max_samples: u32,
    pub(crate) seed: u64,
    /// One client alone: its slot and generation.
    pub(crate) only: Option<(&'static Slot, u32)>,
    pub(crate) unattributed: bool,
}

/// Why no profile was started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotStarted {
    AlreadyRunning,
    OutOfMemory,
}

/// What there is to say of a profile as a whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) epoch: u32,
    pub(crate) running: bool,
    pub(crate) sample_bytes: u64,
    pub(crate) dropped: u64,
    pub(crate) taken: u32,
}

/// Whether any client is profiled. One load.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    !TREE.load(Ordering::Relaxed).is_null()
}

/// Whether the allocations of this slot's client are profiled.
#[inline]
pub(crate) fn watches(slot: &'static Slot) -> bool {
    let tree = TREE.load(Ordering::Acquire);
    if tree.is_null() {
        return false;
    }
    if slot.is_unattributed() {
        return UNATTRIBUTED_TOO.load(Ordering::Relaxed);
    }
    slot.has_tree(tree)
        && match ONLY.load(Ordering::Relaxed) {
            0 => true,
            only => key(slot.client(), slot.client().generation()) == only,
        }
}

fn key(slot: &Slot, generation: u32) -> u64 {
    u64::from(slot.index()) << 32 | u64::from(generation)
}

pub(super) fn epoch() -> u32 {
    EPOCH.load(Ordering::Relaxed)
}

pub(super) fn sample_bytes() -> u64 {
    SAMPLE_BYTES.load(Ordering::Relaxed)
}

pub(super) fn count_dropped() {
    DROPPED.fetch_add(1, Ordering::Relaxed);
}

/// The profile that the calling thread takes part in from now on, and a seed
/// of the thread's own.
pub(super) fn join() -> (u32, u64) {
    let thread = THREADS.fetch_add(1, Ordering::Relaxed);
    let seed = SEED.load(Ordering::Relaxed) ^ thread.wrapping_mul(0xD1B5_4A32_D192_ED03);
    (epoch(), seed)
}

/// Starts a profile of the clients of `tree`.
pub(crate) fn start(tree: &Arc<Tree>, plan: &Plan) -> Result<(), NotStarted> {
    let before;
    {
        let _cold = Cold::enter(thread::attached());
        let mut session = SESSION.lock();
        if session.running {
            return Err(NotStarted::AlreadyRunning);
        }
        if !samples::reserve(plan.max_samples) {
            return Err(NotStarted::OutOfMemory);
        }
        session.running = true;
        before = session.tree.replace(Arc::clone(tree));
        let only = plan
            .only
            .map_or(0, |(slot, generation)| key(slot, generation));
        ONLY.store(only, Ordering::Relaxed);
        UNATTRIBUTED_TOO.store(plan.unattributed, Ordering::Relaxed);
        SAMPLE_BYTES.store(plan.sample_bytes, Ordering::Relaxed);
        SEED.store(plan.seed, Ordering::Relaxed);
        THREADS.store(0, Ordering::Relaxed);
        DROPPED.store(0, Ordering::Relaxed);
        EPOCH.fetch_add(1, Ordering::Relaxed);
        TREE.store(Arc::as_ptr(tree).cast_mut(), Ordering::Release);
        // Refused: then nobody but client 0 has credit to allocate by, and of
        // that a moment may be missed.
        sys::heavy_fence();
        watch_accounts();
    }
    // Under no lock: it may be the last handle.
    drop(before);
    Ok(())
}

/// Lowers the ceiling of every account that is to be watched.
fn watch_accounts() {
    for table in table::owned() {
        for (_, account) in table.accounts() {
            let tag = account.tag();
            let Some(slot) = tag.index().and_then(|index| REGISTRY.slot(index)) else {
                continue;
            };
            if watches(slot) {
                let _locked = slot.lock();
                if account.tag() == tag {
                    account.watch();
                }
            }
        }
    }
}

/// Ends the profile of `tree`; `false` if none is taken. The accounts come back
/// to their ceilings one by one, with their next charge.
pub(crate) fn stop(tree: &Tree) -> bool {
    let _cold = Cold::enter(thread::attached());
    let mut session = SESSION.lock();
    let is_ours = session.tree.as_deref().is_some_and(|of| ptr::eq(of, tree));
    if !session.running || !is_ours {
        return false;
    }
    session.running = false;
    TREE.store(ptr::null_mut(), Ordering::Release);
    true
}

/// The latest profile's figures, if it was taken of `tree`.
pub(crate) fn figures(tree: &Tree) -> Option<Figures> {
    let _cold = Cold::enter(thread::attached());
    let session = SESSION.lock();
    let is_ours = session.tree.as_deref().is_some_and(|of| ptr::eq(of, tree));
    is_ours.then(|| Figures {
        epoch: epoch(),
        running: session.running,
        sample_bytes: sample_bytes(),
        dropped: DROPPED.load(Ordering::Relaxed),
        taken: samples::taken(),
    })
}
