//! What [`crate::sync`] offers, under `loom`: every access may see whatever
//! the C11 memory model lets it see, for as many executions as there are.
//!
//! A word keeps the layout and the `const` constructor of the real one. What
//! is stored to it goes to an object of the model that is found by the word's
//! address and forgotten with the execution; so the words themselves, those of
//! statics included, are as new in each.

use core::ops::{Deref, DerefMut};
use core::sync::atomic::Ordering;
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;

pub(crate) use loom::sync::atomic::fence;
pub(crate) use loom::thread::yield_now as spin_loop;
pub(crate) use loom::thread::yield_now;
// Nothing that is modelled here waits for one of these.
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub(crate) use std::thread_local;

thread_local! {
    static OBJECTS: RefCell<HashMap<usize, &'static dyn Any>> = RefCell::new(HashMap::new());
}

/// Forgets the objects of the execution before.
pub(crate) fn begin_execution() {
    OBJECTS.with_borrow_mut(HashMap::clear);
}

/// The model's object for what is at this address. Leaked, as loom's executions
/// end by being dropped.
fn object<T: 'static>(address: *const (), make: impl FnOnce() -> T) -> &'static T {
    let known = OBJECTS.with_borrow(|objects| objects.get(&(address as usize)).copied());
    let object = known.unwrap_or_else(|| {
        let fresh: &'static dyn Any = Box::leak(Box::new(make()));
        OBJECTS.with_borrow_mut(|objects| objects.insert(address as usize, fresh));
        fresh
    });
    object.downcast_ref().expect("no address is used twice")
}

macro_rules! atomic {
    ($name:ident $(<$param:ident>)?, $value:ty) => {
        #[derive(Debug, Default)]
        #[repr(transparent)]
        pub(crate) struct $name $(<$param>)? (core::sync::atomic::$name $(<$param>)?);

        #[allow(dead_code, reason = "each type has all that any of them needs")]
        impl $(<$param: 'static>)? $name $(<$param>)? {
            pub(crate) const fn new(value: $value) -> Self {
                Self(core::sync::atomic::$name::new(value))
            }

            fn object(&self) -> &'static loom::sync::atomic::$name $(<$param>)? {
                let address = core::ptr::from_ref(self).cast();
                object(address, || {
                    loom::sync::atomic::$name::new(self.0.load(Ordering::Relaxed))
                })
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                self.object().load(order)
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                self.object().store(value, order);
            }

            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                self.object().swap(value, order)
            }

            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.object().compare_exchange(current, new, success, failure)
            }

            pub(crate) fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                // Never fails without a reason: that would be a branch more.
                self.object().compare_exchange(current, new, success, failure)
            }

            pub(crate) fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                update: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                self.object().fetch_update(success, failure, update)
            }
        }
    };
}

macro_rules! counts {
    ($name:ident, $value:ty) => {
        #[allow(dead_code, reason = "each type has all that any of them needs")]
        impl $name {
            pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                self.object().fetch_add(value, order)
            }

            pub(crate) fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                self.object().fetch_max(value, order)
            }

            pub(crate) fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                self.object().fetch_sub(value, order)
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

/// A thread reads its own words as they are.
pub(crate) unsafe fn load_own_u64(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

/// As [`load_own_u64`].
pub(crate) unsafe fn load_own_u32(word: &AtomicU32) -> u32 {
    word.load(Ordering::Relaxed)
}

/// The allocator's own lock: one of the model, around a real one that is
/// always free.
pub(crate) struct Lock<T>(spin::mutex::SpinMutex<T, super::Relax>);

/// What a [`Lock`] gives.
pub(crate) struct LockGuard<'a, T> {
    value: spin::mutex::SpinMutexGuard<'a, T, super::Relax>,
    _order: loom::sync::MutexGuard<'static, ()>,
}

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Lock<T> {
        Lock(spin::mutex::SpinMutex::new(value))
    }

    pub(crate) fn lock(&self) -> LockGuard<'_, T> {
        let address = core::ptr::from_ref(self).cast();
        let order = object(address, || loom::sync::Mutex::new(()));
        let order = order.lock().unwrap();
        LockGuard {
            value: self.0.lock(),
            _order: order,
        }
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.0.is_locked()
    }
}

impl<T> Deref for LockGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for LockGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
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

/// Threads of these models end without a hook.
pub(crate) fn on_thread_exit(_: fn()) -> bool {
    true
}
