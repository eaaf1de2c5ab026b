//! How a memory's clients and its reclaimer call each other: orders, relief,
//! stop. Plain blocking locks; never touched from inside an allocation.

use crate::sys;
use core::time::Duration;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct Orders {
    stop: bool,
    /// Rounds of due work asked for, and done.
    asked: u64,
    done: u64,
    /// Somebody above a soft limit waits for relief.
    pressed: bool,
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
    },
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    orders: Mutex<Orders>,
    changed: Condvar,
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

    /// Waits for a call, for `patience` at most.
    pub(crate) fn listen(&self, patience: Duration) -> Call {
        let mut orders = self.lock();
        let called = |orders: &Orders| orders.stop || orders.pressed || orders.asked > orders.done;
        if !called(&orders) {
            orders = self
                .changed
                .wait_timeout_while(orders, patience, |orders| !called(orders))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if orders.stop {
            return Call::Stop;
        }
        Call::Work {
            asked: orders.asked,
            pressed: core::mem::take(&mut orders.pressed),
        }
    }

    /// Reports a call as answered.
    pub(crate) fn answered(&self, asked: u64, pressed: bool) {
        let mut orders = self.lock();
        orders.done = asked;
        orders.relieved += u64::from(pressed);
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.staff(false);
        self.changed.notify_all();
    }

    // --- the clients' side --------------------------------------------------------

    /// Has the reclaimer do what is due, and waits for it.
    pub(crate) fn ask_and_wait(&self) {
        let mut orders = self.lock();
        orders.asked += 1;
        let mine = orders.asked;
        self.changed.notify_all();
        let _orders = self
            .changed
            .wait_while(orders, |orders| orders.done < mine && !orders.stop)
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Asks for relief, without waiting.
    pub(crate) fn press(&self) {
        self.lock().pressed = true;
        self.changed.notify_all();
    }

    /// Takes a request for relief away, to answer it.
    pub(crate) fn take_pressed(&self) -> bool {
        core::mem::take(&mut self.lock().pressed)
    }

    /// Asks for relief and waits until it was tried, for `patience` at most.
    pub(crate) fn press_and_wait(&self, patience: Duration) {
        let mut orders = self.lock();
        orders.pressed = true;
        let before = orders.relieved;
        self.changed.notify_all();
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
                let mut relieved = 0;
                loop {
                    match bell.listen(Duration::from_secs(60)) {
                        Call::Stop => return relieved,
                        Call::Work { asked, pressed } => {
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
    fn patience_ends_without_a_reclaimer() {
        Bell::default().press_and_wait(Duration::from_millis(1));
    }
}
