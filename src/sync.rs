//! The only place that names atomics, locks, fences and thread-locals.
//!
//! Everything above takes its synchronisation from here, so that a model
//! checker can stand in for `core` and `std` in one spot (`sync/shuttle.rs`
//! and `sync/loom.rs`, for the unit tests alone and if `--cfg` names one; see
//! `scripts/model.sh`). The asymmetric fence is split in two: [`light_fence`]
//! is what the owner of an account pays on every allocation,
//! [`crate::sys::heavy_fence`] is what a revoker pays.

#[cfg(not(all(test, any(tiered_allocator_loom, tiered_allocator_shuttle))))]
mod real {
    pub(crate) use core::hint::spin_loop;
    #[cfg(feature = "profile")]
    pub(crate) use core::sync::atomic::AtomicUsize;
    pub(crate) use core::sync::atomic::{
        AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, fence,
    };
    pub(crate) use std::sync::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    };
    pub(crate) use std::thread_local;

    /// A lock for the allocator's own short sections: never allocates, never
    /// poisons, never parks.
    pub(crate) type Lock<T> = spin::mutex::SpinMutex<T, super::Relax>;

    /// What a [`Lock`] gives.
    pub(crate) type LockGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T, super::Relax>;

    /// A word that the calling thread alone stores to, loaded as plain memory: the
    /// comparison that follows may take it from there, in one instruction.
    ///
    /// # Safety
    /// No other thread stores to `word` during the call.
    #[inline(always)]
    // Assembly does this step where it can.
    #[cfg_attr(target_arch = "x86_64", allow(dead_code))]
    pub(crate) unsafe fn load_own_u64(word: &AtomicU64) -> u64 {
        // SAFETY: the pointer is the word's own; the caller excludes writers.
        unsafe { *word.as_ptr() }
    }

    /// As [`load_own_u64`].
    ///
    /// # Safety
    /// No other thread stores to `word` during the call.
    #[inline(always)]
    pub(crate) unsafe fn load_own_u32(word: &AtomicU32) -> u32 {
        // SAFETY: the pointer is the word's own; the caller excludes writers.
        unsafe { *word.as_ptr() }
    }
}

#[cfg(all(test, tiered_allocator_loom))]
#[path = "sync/loom.rs"]
pub(crate) mod real;

#[cfg(all(test, tiered_allocator_shuttle))]
#[path = "sync/shuttle.rs"]
pub(crate) mod real;

pub(crate) use core::sync::atomic::Ordering;
pub(crate) use real::*;
pub(crate) use std::sync::PoisonError;

/// A size of a table or a number of attempts: the program's, or under a model
/// checker the small one, with which few steps reach every case.
pub(crate) const fn bound(real: usize, modelled: usize) -> usize {
    if cfg!(all(
        test,
        any(tiered_allocator_loom, tiered_allocator_shuttle)
    )) {
        modelled
    } else {
        real
    }
}

/// The owner's half of the asymmetric fence, between publishing a balance and
/// reading the ceiling. Costs no instruction where the revoker can interrupt
/// every running thread (`membarrier`), a full fence elsewhere.
#[inline(always)]
pub(crate) fn light_fence() {
    if cfg!(tiered_allocator_fence) || !crate::sys::ASYMMETRIC_FENCE {
        fence(Ordering::SeqCst);
    } else {
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
    }
}

/// How a thread passes the time while a short lock is taken: a few pauses,
/// then the rest of its time slice, so that a preempted holder can run.
pub(crate) struct Relax;

impl spin::RelaxStrategy for Relax {
    #[inline]
    fn relax() {
        for _ in 0..bound(32, 0) {
            spin_loop();
        }
        crate::sys::yield_now();
    }
}
