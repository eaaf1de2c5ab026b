//! The cold path across `fork`.
//!
//! A child inherits one thread and the memory of all. If another thread was
//! inside the cold path, its locks stay taken for ever and its books half
//! written. So `fork` waits until nobody is: everybody announces the cold path
//! in a word of their own ([`Table::cold`], or [`TABLELESS`] where there is no
//! table), and stays out while [`FORKING`] is set.
//!
//! Locks of `std` that a child must find free are taken in here, too:
//! [`super::whole`].
//!
//! # Orderings
//! Dekker's pattern with a full fence on both sides: a thread stores its
//! announcement, fences, loads `FORKING`; the forking thread stores `FORKING`,
//! fences, loads the announcements. One of the two sees the other.

use super::table::{self, Table};
use super::{settle, thread};
use crate::sync::{AtomicBool, AtomicU32, Ordering, fence, thread_local};
use crate::sys;
use core::cell::Cell;
use core::fmt;

static FORKING: AtomicBool = AtomicBool::new(false);
static TABLELESS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// How deep the thread is in the cold path without a table.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// How many times over the thread is forking, by the handlers that have run:
    /// then it waits for nobody, least of all for itself. Fork handlers of other
    /// libraries may allocate.
    static FORKER: Cell<u32> = const { Cell::new(0) };
}

/// Whether another thread is forking.
fn must_wait() -> bool {
    FORKING.load(Ordering::SeqCst) && FORKER.get() == 0
}

/// Proof that the calling thread is inside the cold path.
pub(crate) struct Cold(Option<&'static Table>);

impl Cold {
    /// Enters the cold path, after a `fork` in progress if there is one. May
    /// be nested.
    pub(crate) fn enter(table: Option<&'static Table>) -> Cold {
        match table {
            Some(table) => {
                let depth = table.cold.load(Ordering::Relaxed);
                table.cold.store(depth + 1, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                // A thread that came in before it had a table is inside already.
                while depth == 0 && must_wait() && DEPTH.get() == 0 {
                    table.cold.store(0, Ordering::Release);
                    sys::yield_now();
                    table.cold.store(1, Ordering::Relaxed);
                    fence(Ordering::SeqCst);
                }
            }
            None => {
                let depth = DEPTH.get();
                DEPTH.set(depth + 1);
                TABLELESS.fetch_add(1, Ordering::SeqCst);
                while depth == 0 && must_wait() {
                    TABLELESS.fetch_sub(1, Ordering::SeqCst);
                    sys::yield_now();
                    TABLELESS.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
        Cold(table)
    }
}

impl fmt::Debug for Cold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cold")
    }
}

impl Drop for Cold {
    fn drop(&mut self) {
        match self.0 {
            Some(table) => {
                let depth = table.cold.load(Ordering::Relaxed);
                // Release: whoever sees the thread outside sees what it wrote.
                table.cold.store(depth - 1, Ordering::Release);
            }
            None => {
                DEPTH.set(DEPTH.get() - 1);
                TABLELESS.fetch_sub(1, Ordering::Release);
            }
        }
    }
}

/// Arranges for all of this, once in a process: before the first thread has an
/// account.
pub(crate) fn install() {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if !INSTALLED.swap(true, Ordering::Relaxed) {
        sys::on_fork(prepare, resume_parent, resume_child);
    }
}

/// Arranges for it again, once in a process: before there are locks under which
/// the heap is used ([`super::whole`]).
///
/// What is registered last is prepared first. A heap that keeps itself whole
/// across a fork takes its own locks in a handler, which it may have registered
/// after [`install`], when it was first used; a thread in the cold path that
/// needs them would never get out of it. It has been used by now.
pub(crate) fn install_before_the_heap() {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if !INSTALLED.load(Ordering::Acquire) {
        drop(core::hint::black_box(Box::new(0_u64)));
        if !INSTALLED.swap(true, Ordering::AcqRel) {
            sys::on_fork(prepare, resume_parent, resume_child);
        }
    }
}

unsafe extern "C" fn prepare() {
    let times = FORKER.get();
    FORKER.set(times + 1);
    if times > 0 {
        return;
    }
    // Two threads may fork at once: one after the other.
    while FORKING.swap(true, Ordering::SeqCst) {
        sys::yield_now();
    }
    fence(Ordering::SeqCst);
    let busy = || {
        TABLELESS.load(Ordering::Acquire) != 0
            || table::all().any(|table| table.cold.load(Ordering::Acquire) != 0)
    };
    while busy() {
        sys::yield_now();
    }
}

/// Whether this is the last of as many handlers as have prepared the fork.
fn is_over() -> bool {
    let left = FORKER.get() - 1;
    FORKER.set(left);
    left == 0
}

unsafe extern "C" fn resume_parent() {
    if !is_over() {
        return;
    }
    FORKING.store(false, Ordering::SeqCst);
}

unsafe extern "C" fn resume_child() {
    if !is_over() {
        return;
    }
    debug_assert!(!table::idle_is_locked());
    sys::note_fork();
    // A thread that was kept out may have been announcing itself anew, and
    // nobody is left to take that back.
    TABLELESS.store(0, Ordering::SeqCst);
    for table in table::all() {
        table.cold.store(0, Ordering::SeqCst);
    }
    FORKING.store(false, Ordering::SeqCst);
    // The other threads are gone; what they had belongs to the clients still.
    let own = thread::own_table();
    for table in table::all() {
        let is_own = own.is_some_and(|own| core::ptr::eq(own, table));
        if table.is_owned() && !is_own {
            settle::settle_table(table);
            table::release(table);
        }
    }
}
