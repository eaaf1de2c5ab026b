//! Locks that a forked child finds free: whoever holds one is in the cold path,
//! and `fork` waits until nobody is ([`super::fork`]).
//!
//! For sections that are short and wait for nothing but further such locks and
//! the heap, whose own fork handlers come after ours. All that the other threads
//! of the process do in the cold path waits for a fork, and so for whoever holds
//! one of these.

use super::fork::Cold;
use super::thread;
use crate::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use core::fmt;
use core::ops::{Deref, DerefMut};

/// A mutex that is never locked in a child at birth.
#[derive(Default)]
pub(crate) struct WholeMutex<T>(Mutex<T>);

/// A reader-writer lock that is never locked in a child at birth.
#[derive(Default)]
pub(crate) struct WholeRwLock<T>(RwLock<T>);

/// What is locked, and proof that no fork begins before it is free.
#[derive(Debug)]
pub(crate) struct Whole<G> {
    // Dropped in this order: free first, then out of the cold path.
    guard: G,
    _cold: Cold,
}

pub(crate) type WholeMutexGuard<'a, T> = Whole<MutexGuard<'a, T>>;
pub(crate) type WholeReadGuard<'a, T> = Whole<RwLockReadGuard<'a, T>>;
pub(crate) type WholeWriteGuard<'a, T> = Whole<RwLockWriteGuard<'a, T>>;

impl<G> Whole<G> {
    /// Enters the cold path first: a thread that had the lock and came to the
    /// cold path only then would be kept out while the fork goes on.
    fn take(lock: impl FnOnce() -> Result<G, PoisonError<G>>) -> Whole<G> {
        let cold = Cold::enter(thread::attached());
        Whole {
            guard: lock().unwrap_or_else(PoisonError::into_inner),
            _cold: cold,
        }
    }
}

impl<T> WholeMutex<T> {
    pub(crate) const fn new(value: T) -> WholeMutex<T> {
        WholeMutex(Mutex::new(value))
    }

    /// The value. A panic of an earlier holder left it good enough.
    pub(crate) fn lock(&self) -> WholeMutexGuard<'_, T> {
        Whole::take(|| self.0.lock())
    }
}

impl<T> WholeRwLock<T> {
    pub(crate) fn new(value: T) -> WholeRwLock<T> {
        WholeRwLock(RwLock::new(value))
    }

    /// The value, which nobody else knows of.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`WholeMutex::lock`], to read.
    pub(crate) fn read(&self) -> WholeReadGuard<'_, T> {
        Whole::take(|| self.0.read())
    }

    /// As [`WholeMutex::lock`], to write.
    pub(crate) fn write(&self) -> WholeWriteGuard<'_, T> {
        Whole::take(|| self.0.write())
    }
}

// What is locked is not shown: to look at it would take the lock outside the
// cold path, and the writer may be anything.
impl<T> fmt::Debug for WholeMutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WholeMutex").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for WholeRwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WholeRwLock").finish_non_exhaustive()
    }
}

impl<G: Deref> Deref for Whole<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Whole<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}
