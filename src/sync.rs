//! The only place that names atomics, locks and fences.
//!
//! Everything above takes its synchronisation from here, so that a model
//! checker can stand in for `core` in one spot. The asymmetric fence is split
//! in two: [`light_fence`] is what the owner of an account pays on every
//! allocation, [`crate::sys::heavy_fence`] is what a revoker pays.

pub(crate) use core::sync::atomic::{
    AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering,
};

/// The owner's half of the asymmetric fence, between publishing a balance and
/// reading the ceiling. Costs no instruction where the revoker can interrupt
/// every running thread (`membarrier`), a full fence elsewhere.
#[inline(always)]
pub(crate) fn light_fence() {
    if cfg!(tiered_allocator_fence) || !crate::sys::ASYMMETRIC_FENCE {
        core::sync::atomic::fence(Ordering::SeqCst);
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
        for _ in 0..32 {
            core::hint::spin_loop();
        }
        crate::sys::yield_now();
    }
}

/// A lock for the allocator's own short sections: never allocates, never
/// poisons, never parks.
pub(crate) type Lock<T> = spin::mutex::SpinMutex<T, Relax>;
