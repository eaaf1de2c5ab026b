//! The reclaimer: one thread a memory that samples usage, reclaims idle blocks
//! when their time has come, and climbs the ladder when memory is short.
//! Without a thread, whoever calls [`Reclaimer::tick`] does its work.

use super::climb::PressureState;
use super::idle::{ReclaimReport, Urge};
use super::options::{Intervals, Ladder};
use super::pressure::{PressureSource, PressureWaker};
use super::purge::Purge;
use crate::client::untracked;
use crate::ledger::whole::WholeMutex;
use crate::memory::Shared;
use crate::registry::bell::Call;
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::sys;
use core::fmt;
use core::time::Duration;
use std::sync::{Arc, TryLockError};
use std::thread::JoinHandle;

/// When each kind of work was last done, by the memory's clock.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    reclaim: Duration,
    sample: Duration,
    watch: Duration,
}

/// What a reclaimer is made of.
pub(crate) struct Plan {
    pub(crate) intervals: Intervals,
    pub(crate) ladder: Ladder,
    pub(crate) sources: Vec<Box<dyn PressureSource>>,
    pub(crate) purge: Option<Box<dyn Purge>>,
    pub(crate) background: bool,
}

/// What the reclaimer's thread and its callers share.
pub(super) struct Desk {
    pub(super) shared: Arc<Shared>,
    pub(super) intervals: Intervals,
    pub(super) ladder: Ladder,
    pub(super) purge: Option<Box<dyn Purge>>,
    /// Whether a thread of its own does the work.
    pub(super) background: bool,
    last: WholeMutex<Done>,
    pressure: WholeMutex<Arc<Memo>>,
}

/// What is remembered of the pressure, and the process that does. It is locked
/// while callbacks and sources of the host's run: a fork cannot wait for that,
/// and the child begins a memo of its own.
struct Memo {
    process: u32,
    state: Mutex<PressureState>,
}

/// A memory's reclaimer, with or without a thread.
pub(crate) struct Reclaimer {
    desk: Arc<Desk>,
    thread: WholeMutex<Option<JoinHandle<()>>>,
    /// The process that started the thread: a forked child has none to join.
    process: u32,
}

impl Reclaimer {
    pub(crate) fn start(shared: Arc<Shared>, plan: Plan) -> Reclaimer {
        let now = shared.now();
        let background = plan.background;
        let pressure = PressureState::new(plan.ladder.watermarks.clone(), plan.sources);
        let desk = Arc::new(Desk {
            shared,
            intervals: plan.intervals,
            ladder: plan.ladder,
            purge: plan.purge,
            background,
            last: WholeMutex::new(Done {
                reclaim: now,
                sample: now,
                watch: now,
            }),
            pressure: WholeMutex::new(Arc::new(Memo::new(pressure))),
        });
        desk.arm();
        desk.shared.tree.bell.staff(background);
        let thread = background
            .then(|| {
                let desk = Arc::clone(&desk);
                std::thread::Builder::new()
                    .name("tiered-reclaimer".to_owned())
                    .spawn(move || {
                        let _gone = Gone(&desk);
                        desk.serve();
                    })
                    .ok()
            })
            .flatten();
        if thread.is_none() {
            desk.shared.tree.bell.staff(false);
        }
        Reclaimer {
            desk,
            thread: WholeMutex::new(thread),
            process: sys::process_id(),
        }
    }

    pub(crate) fn has_thread(&self) -> bool {
        self.process == sys::process_id()
            && self
                .thread
                .lock()
                .as_ref()
                .is_some_and(|thread| !thread.is_finished())
    }

    /// Does what is due, on the reclaimer thread if there is one, and waits
    /// until it is done.
    pub(crate) fn tick(&self) {
        let own_thread = self
            .thread
            .lock()
            .as_ref()
            .is_some_and(|thread| thread.thread().id() == std::thread::current().id());
        if !self.has_thread() || own_thread {
            let bell = &self.desk.shared.tree.bell;
            self.desk.work(bell.take_pressed(), bell.take_alarm());
            return;
        }
        self.desk.shared.tree.bell.ask_and_wait();
    }

    /// One pass over the idle blocks on the calling thread.
    pub(crate) fn reclaim_now(&self) -> ReclaimReport {
        untracked(|| self.desk.reclaim_idle(Urge::Due))
    }

    /// Stops the thread and waits for its end, unless this is it.
    pub(crate) fn stop(&self) {
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        if self.process != sys::process_id() {
            // The thread exists in the parent only; there is nothing to join,
            // and joining would wait for ever.
            core::mem::forget(thread);
            return;
        }
        self.desk.shared.tree.bell.stop();
        if thread.thread().id() != std::thread::current().id() {
            // A panic in the thread was reported when it happened.
            let _ = thread.join();
        }
    }

    /// The memory ends: nobody is asked to stop for it any more.
    pub(crate) fn let_go(&self) {
        self.desk.let_go();
    }
}

impl fmt::Debug for Reclaimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reclaimer")
            .field("intervals", &self.desk.intervals)
            .field("ladder", &self.desk.ladder)
            .field("has_thread", &self.has_thread())
            .finish_non_exhaustive()
    }
}

/// Tells whoever waits for the thread that it is gone, also when a clock of
/// the host's making has made it panic.
struct Gone<'desk>(&'desk Desk);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.shared.tree.bell.stop();
        self.0.let_go();
    }
}

impl Memo {
    fn new(state: PressureState) -> Memo {
        Memo {
            process: sys::process_id(),
            state: Mutex::new(state),
        }
    }

    /// A clock of the host's making may have panicked under the lock: what was
    /// remembered then is good enough.
    fn lock(&self) -> MutexGuard<'_, PressureState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, PressureState>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Desk {
    /// What this process remembers of the pressure.
    fn memo(&self) -> Arc<Memo> {
        let mut memo = self.pressure.lock();
        if memo.process != sys::process_id() {
            let inherited = memo.try_lock().map(|mut state| state.inherit());
            let state = inherited.unwrap_or_else(|| {
                // Whoever climbed is gone, and what it knew with it: whom it had
                // asked to stop, and the sources.
                self.let_everybody_go_on();
                PressureState::anew(self.ladder.watermarks.clone())
            });
            // Not dropped: it may be in the middle of a change.
            core::mem::forget(core::mem::replace(&mut *memo, Arc::new(Memo::new(state))));
        }
        Arc::clone(&memo)
    }

    /// Uses what is remembered of the pressure, if nobody is at it.
    pub(super) fn with_pressure<T>(
        &self,
        use_state: impl FnOnce(&mut PressureState) -> T,
    ) -> Option<T> {
        let memo = self.memo();
        let mut state = memo.try_lock()?;
        Some(use_state(&mut state))
    }

    fn let_go(&self) {
        self.with_pressure(|state| self.let_all_go_on(state));
    }

    /// The thread's whole life.
    fn serve(&self) {
        let bell = &self.shared.tree.bell;
        bell.attend();
        untracked(|| {
            let tree = Arc::clone(&self.shared.tree);
            let waker = PressureWaker::new(move || tree.bell.alarm());
            self.memo().lock().start_watching(self, &waker);
        });
        while let Call::Work {
            asked,
            pressed,
            alarmed,
        } = bell.listen(self.time_to_next())
        {
            let relieved = self.work(pressed, alarmed);
            bell.answered(asked, relieved);
        }
    }

    fn time_to_next(&self) -> Duration {
        let now = self.shared.now();
        let last = *self.last.lock();
        let due = |last: Duration, interval| last.saturating_add(interval).saturating_sub(now);
        let mut next =
            due(last.reclaim, self.intervals.reclaim).min(due(last.sample, self.intervals.sample));
        let memo = self.memo();
        let pressure = memo.lock();
        if pressure.has_sources() {
            next = next.min(due(last.watch, self.intervals.watch));
        }
        pressure.pace().map_or(next, |pace| next.min(pace))
    }

    /// Does what is due, what clients above their soft limit ask for, and what
    /// pressure asks for. Answers whether relief was tried.
    fn work(&self, pressed: bool, alarmed: bool) -> bool {
        let now = self.shared.now();
        let (reclaim, sample, watch) = {
            let mut last = self.last.lock();
            let due = |last: &mut Duration, interval| {
                let is_due = now.saturating_sub(*last) >= interval;
                if is_due {
                    *last = now;
                }
                is_due
            };
            (
                due(&mut last.reclaim, self.intervals.reclaim),
                due(&mut last.sample, self.intervals.sample),
                due(&mut last.watch, self.intervals.watch),
            )
        };
        // Not a wait: a client's reclaimer may have called us, in the middle of
        // it all.
        let is_pressed = self
            .with_pressure(|pressure| pressure.pace().is_some())
            .unwrap_or_default();
        let relieve = pressed || alarmed || is_pressed;
        untracked(|| {
            if reclaim {
                self.reclaim_idle(Urge::Due);
            }
            if sample {
                self.sample();
            }
            if pressed {
                self.reclaim_idle(Urge::Relief);
            }
            if relieve || watch {
                self.relieve(pressed);
            }
        });
        relieve
    }

    fn sample(&self) {
        for block in self.shared.blocks() {
            block.measure();
        }
        self.shared.sweep_all();
    }
}
