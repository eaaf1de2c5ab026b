//! How a memory's clients and its reclaimer call each other: orders, relief,
//! alarm, stop.
//!
//! Plain blocking locks, but for [`Bell::alarm`], which is all of this that an
//! allocation may touch: an atomic flag, and an unpark of the reclaimer (a
//! futex on Linux: it neither waits nor allocates).
//!
//! The locks are only for those who wait for a reclaimer's thread and for that
//! thread. A forked child has none, and leaves them alone: they may be taken.

use crate::sync::{AtomicBool, AtomicU32, Condvar, Mutex, MutexGuard, Ordering, PoisonError};
use crate::sys;
use core::time::Duration;
use std::sync::OnceLock;
use std::thread::Thread;
use std::time::Instant;

#[derive(Debug, Default)]
struct Orders {
    stop: bool,
    /// Rounds of due work asked for, and done.
    asked: u64,
    done: u64,
    /// Times that relief was tried.
    relieved: u64,
}

/// What woke the reclaimer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Stop,
    /// Do what is due, then report that round `asked` is done.
    Work {
        asked: u64,
        /// And give relief to clients above their soft limit.
        pressed: bool,
        /// And see who is short of memory, and what the sources say.
        alarmed: bool,
    },
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    orders: Mutex<Orders>,
    /// What clients wait for: an order was carried out, or nobody is there.
    changed: Condvar,
    /// Somebody is short of memory. Set by allocations.
    alarm: AtomicBool,
    /// Somebody above a soft limit waits for relief.
    pressed: AtomicBool,
    /// The reclaimer's thread, to be woken.
    listener: OnceLock<Thread>,
    /// The process in which a reclaimer thread listens; 0 if none does. A
    /// forked child has the memory but not the thread.
    staffed_in: AtomicU32,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- the reclaimer's side ---------------------------------------------------

    pub(crate) fn staff(&self, staffed: bool) {
        let process = if staffed { sys::process_id() } else { 0 };
        self.staffed_in.store(process, Ordering::Release);
    }

    pub(crate) fn is_staffed(&self) -> bool {
        self.staffed_in.load(Ordering::Acquire) == sys::process_id()
    }

    /// Names the calling thread as the one that listens.
    pub(crate) fn attend(&self) {
        let _ = self.listener.set(std::thread::current());
    }

    fn wake(&self) {
        if let Some(listener) = self.listener.get().filter(|_| self.is_staffed()) {
            listener.unpark();
        }
    }

    /// Waits for a call, for `patience` at most. On the thread that attends.
    pub(crate) fn listen(&self, patience: Duration) -> Call {
        let until = Instant::now().checked_add(patience);
        loop {
            let orders = self.lock();
            if orders.stop {
                return Call::Stop;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let alarmed = self.take_alarm();
            let pressed = self.take_pressed();
            if alarmed || pressed || orders.asked > orders.done || left == Some(Duration::ZERO) {
                return Call::Work {
                    asked: orders.asked,
                    pressed,
                    alarmed,
                };
            }
            drop(orders);
            // Whoever gives an order after the look above leaves a token, with
            // which this returns at once.
            match left {
                Some(left) => std::thread::park_timeout(left),
                None => std::thread::park(),
            }
        }
    }

    /// Reports a call as answered, and whether relief was tried.
    pub(crate) fn answered(&self, asked: u64, relieved: bool) {
        let mut orders = self.lock();
        orders.done = asked;
        orders.relieved += u64::from(relieved);
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.wake();
        self.staff(false);
        self.changed.notify_all();
    }

    // --- the clients' side --------------------------------------------------------

    /// Has the reclaimer do what is due, and waits for it.
    pub(crate) fn ask_and_wait(&self) {
        let mut orders = self.lock();
        orders.asked += 1;
        let mine = orders.asked;
        self.wake();
        let _orders = self
            .changed
            .wait_while(orders, |orders| orders.done < mine && !orders.stop)
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Asks for relief, without waiting.
    pub(crate) fn press(&self) {
        self.pressed.store(true, Ordering::Release);
        self.wake();
    }

    /// Tells the reclaimer that somebody is short of memory. The one call that
    /// an allocation may make: it takes no lock and waits for nobody.
    pub(crate) fn alarm(&self) {
        if !self.alarm.swap(true, Ordering::Release) {
            self.wake();
        }
    }

    /// Takes the alarm away, to look into it.
    pub(crate) fn take_alarm(&self) -> bool {
        self.alarm.swap(false, Ordering::Acquire)
    }

    /// Takes a request for relief away, to answer it.
    pub(crate) fn take_pressed(&self) -> bool {
        self.pressed.swap(false, Ordering::Acquire)
    }

    /// Asks for relief and waits until it was tried, for `patience` at most.
    pub(crate) fn press_and_wait(&self, patience: Duration) {
        self.await_relief(self.relieved(), patience, true);
    }

    /// How often relief was tried.
    pub(crate) fn relieved(&self) -> u64 {
        self.lock().relieved
    }

    /// Waits until relief was tried more often than `before`, for `patience` at
    /// most; asks for it first if `press` is set.
    pub(crate) fn await_relief(&self, before: u64, patience: Duration, press: bool) {
        let orders = self.lock();
        if press {
            self.press();
        }
        let _orders = self
            .changed
            .wait_timeout_while(orders, patience, |orders| {
                orders.relieved == before && !orders.stop
            })
            .unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn calls_are_answered_in_the_order_they_came() {
        let bell = Arc::new(Bell::default());
        let reclaimer = {
            let bell = Arc::clone(&bell);
            std::thread::spawn(move || {
                bell.attend();
                bell.staff(true);
                let mut relieved = 0;
                loop {
                    match bell.listen(Duration::from_secs(60)) {
                        Call::Stop => return relieved,
                        Call::Work { asked, pressed, .. } => {
                            relieved += u64::from(pressed);
                            bell.answered(asked, pressed);
                        }
                    }
                }
            })
        };
        bell.ask_and_wait();
        bell.press_and_wait(Duration::from_secs(60));
        bell.stop();
        assert_eq!(reclaimer.join().unwrap(), 1);
        // Nobody listens any more, and nobody waits for ever.
        bell.ask_and_wait();
        bell.press_and_wait(Duration::from_secs(60));
    }

    #[test]
    fn an_alarm_wakes_once_and_is_taken_once() {
        let bell = Bell::default();
        bell.attend();
        bell.staff(true);
        bell.alarm();
        bell.alarm();
        let woken = bell.listen(Duration::from_secs(60));
        assert!(matches!(
            woken,
            Call::Work {
                alarmed: true,
                pressed: false,
                ..
            }
        ));
        let woken = bell.listen(Duration::ZERO);
        assert!(matches!(woken, Call::Work { alarmed: false, .. }));
        bell.alarm();
        assert!(bell.take_alarm());
        assert!(!bell.take_alarm());
    }

    /// Nobody might try it once more.
    #[test]
    fn relief_tried_before_the_wait_began_is_not_waited_for_again() {
        let bell = Bell::default();
        let before = bell.relieved();
        bell.answered(0, true);
        let began = Instant::now();
        let patience = Duration::from_secs(60);
        bell.await_relief(before, patience, false);
        assert!(began.elapsed() < patience);
    }

    #[test]
    fn patience_ends_without_a_reclaimer() {
        Bell::default().press_and_wait(Duration::from_millis(1));
    }
}
