//! What [`crate::sync`] offers, under `shuttle`: every access, every attempt
//! at a lock and every wait is a point at which the scheduler may turn to
//! another task.
//!
//! Atomics keep the layout of the real ones (tables are made of zeroed pages)
//! and are sequentially consistent, whatever ordering is asked for. All tasks
//! run on one thread of the system, so what has no point in it is one step.

use core::cell::Cell;
use core::sync::atomic::Ordering;
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;

pub(crate) use shuttle::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
pub(crate) use shuttle::thread::yield_now as spin_loop;

/// Here another task may run.
fn point() {
    shuttle::sync::atomic::AtomicBool::new(false).load(Ordering::SeqCst);
}

/// Sequentially consistent as everything here: only a point.
pub(crate) fn fence(_: Ordering) {
    point();
}

macro_rules! atomic {
    ($name:ident $(<$param:ident>)?, $value:ty) => {
        #[derive(Debug, Default)]
        #[repr(transparent)]
        pub(crate) struct $name $(<$param>)? (core::sync::atomic::$name $(<$param>)?);

        #[allow(dead_code, reason = "each type has all that any of them needs")]
        impl $(<$param>)? $name $(<$param>)? {
            pub(crate) const fn new(value: $value) -> Self {
                Self(core::sync::atomic::$name::new(value))
            }

            pub(crate) const fn as_ptr(&self) -> *mut $value {
                self.0.as_ptr()
            }

            pub(crate) fn load(&self, _: Ordering) -> $value {
                point();
                self.0.load(Ordering::SeqCst)
            }

            pub(crate) fn store(&self, value: $value, _: Ordering) {
                point();
                self.0.store(value, Ordering::SeqCst);
            }

            pub(crate) fn swap(&self, value: $value, _: Ordering) -> $value {
                point();
                self.0.swap(value, Ordering::SeqCst)
            }

            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                _: Ordering,
                _: Ordering,
            ) -> Result<$value, $value> {
                point();
                self.0.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
            }

            pub(crate) fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(current, new, success, failure)
            }

            pub(crate) fn fetch_update(
                &self,
                _: Ordering,
                _: Ordering,
                update: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                point();
                self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, update)
            }
        }
    };
}

macro_rules! counts {
    ($name:ident, $value:ty) => {
        #[allow(dead_code, reason = "each type has all that any of them needs")]
        impl $name {
            pub(crate) fn fetch_add(&self, value: $value, _: Ordering) -> $value {
                point();
                self.0.fetch_add(value, Ordering::SeqCst)
            }

            pub(crate) fn fetch_max(&self, value: $value, _: Ordering) -> $value {
                point();
                self.0.fetch_max(value, Ordering::SeqCst)
            }

            pub(crate) fn fetch_sub(&self, value: $value, _: Ordering) -> $value {
                point();
                self.0.fetch_sub(value, Ordering::SeqCst)
            }
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicPtr<T>, *mut T);
atomic!(AtomicU8, u8);
atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
atomic!(AtomicI64, i64);
atomic!(AtomicUsize, usize);
counts!(AtomicU8, u8);
counts!(AtomicU32, u32);
counts!(AtomicU64, u64);
counts!(AtomicI64, i64);
counts!(AtomicUsize, usize);

/// A word that the calling thread alone stores to, loaded as plain memory: the
/// comparison that follows may take it from there, in one instruction.
///
/// # Safety
/// No other thread stores to `word` during the call.
#[inline(always)]
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

/// What a [`Lock`] gives.
pub(crate) type LockGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T, super::Relax>;

/// The allocator's own lock, with a point before it is taken.
pub(crate) struct Lock<T>(spin::mutex::SpinMutex<T, super::Relax>);

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Lock<T> {
        Lock(spin::mutex::SpinMutex::new(value))
    }

    pub(crate) fn lock(&self) -> LockGuard<'_, T> {
        point();
        self.0.lock()
    }

    pub(crate) fn is_locked(&self) -> bool {
        point();
        self.0.is_locked()
    }
}

// --- threads: what `crate::sys` does for real ones ------------------------------

/// The task's own values, by the static that they belong to. There for as long
/// as the task is, destructors of other thread-locals included.
type Own = HashMap<(usize, usize), &'static dyn Any>;

std::thread_local! {
    static OWN: RefCell<Own> = RefCell::new(HashMap::new());
}

/// Forgets what tasks of earlier executions had under the same numbers.
pub(crate) fn begin_execution() {
    OWN.with_borrow_mut(HashMap::clear);
}

/// A thread-local without a destructor. What it holds is leaked.
pub(crate) struct TaskLocal<T: 'static>(pub(crate) fn() -> T);

impl<T: 'static> TaskLocal<T> {
    pub(crate) fn with<R>(&'static self, look: impl FnOnce(&T) -> R) -> R {
        let task = usize::from(shuttle::current::me());
        let key = (core::ptr::from_ref(self) as usize, task);
        let known = OWN.with_borrow(|own| own.get(&key).copied());
        let own = known.unwrap_or_else(|| {
            let fresh: &'static dyn Any = Box::leak(Box::new((self.0)()));
            OWN.with_borrow_mut(|own| own.insert(key, fresh));
            fresh
        });
        look(own.downcast_ref().expect("a static has one type"))
    }
}

impl<T: Copy> TaskLocal<Cell<T>> {
    pub(crate) fn get(&'static self) -> T {
        self.with(Cell::get)
    }

    pub(crate) fn set(&'static self, value: T) {
        self.with(|cell| cell.set(value));
    }
}

macro_rules! task_local {
    ($($(#[$meta:meta])* static $name:ident: $type:ty = const $init:block;)*) => {
        $(
            $(#[$meta])*
            static $name: $crate::sync::real::TaskLocal<$type> =
                $crate::sync::real::TaskLocal(|| $init);
        )*
    };
}
pub(crate) use task_local as thread_local;

struct ExitHook(Cell<Option<fn()>>);

impl Drop for ExitHook {
    fn drop(&mut self) {
        if let Some(hook) = self.0.take() {
            hook();
        }
    }
}

shuttle::thread_local! {
    static EXIT: ExitHook = ExitHook(Cell::new(None));
}

pub(crate) fn on_thread_exit(hook: fn()) -> bool {
    EXIT.try_with(|exit| exit.0.set(Some(hook))).is_ok()
}

pub(crate) fn yield_now() {
    shuttle::thread::yield_now();
}

/// Full fences on both sides stand in for the asymmetric pair.
pub(crate) const ASYMMETRIC_FENCE: bool = false;

pub(crate) fn heavy_fence_available() -> bool {
    true
}

pub(crate) fn heavy_fence() -> bool {
    fence(Ordering::SeqCst);
    true
}
