//! The reclaimer: one thread a memory that samples usage, reclaims idle blocks
//! when their time has come, and climbs the ladder when memory is short.
//! Without a thread, whoever calls [`Reclaimer::tick`] does its work.

use super::climb::PressureState;
use super::idle::{ReclaimReport, Urge};
use super::options::{Intervals, Ladder};
use super::pressure::{PressureSource, PressureWaker};
use super::purge::Purge;
use crate::client::untracked;
use crate::memory::Shared;
use crate::registry::bell::Call;
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::sys;
use core::fmt;
use core::time::Duration;
use std::sync::Arc;
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
    last: Mutex<Done>,
    pub(super) pressure: Mutex<PressureState>,
}

/// A memory's reclaimer, with or without a thread.
pub(crate) struct Reclaimer {
    desk: Arc<Desk>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The process that started the thread: a forked child has none to join.
    process: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
            last: Mutex::new(Done {
                reclaim: now,
                sample: now,
                watch: now,
            }),
            pressure: Mutex::new(pressure),
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
            thread: Mutex::new(thread),
            process: sys::process_id(),
        }
    }

    pub(crate) fn has_thread(&self) -> bool {
        self.process == sys::process_id()
            && lock(&self.thread)
                .as_ref()
                .is_some_and(|thread| !thread.is_finished())
    }

    /// Does what is due, on the reclaimer thread if there is one, and waits
    /// until it is done.
    pub(crate) fn tick(&self) {
        let own_thread = lock(&self.thread)
            .as_ref()
            .is_some_and(|thread| thread.thread().id() == std::thread::current().id());
        if !self.has_thread() || own_thread {
            let bell = &self.desk.shared.tree.bell;
            // In a forked child the bell may have been left locked.
            let is_ours = self.process == sys::process_id();
            let pressed = is_ours && bell.take_pressed();
            self.desk.work(pressed, bell.take_alarm());
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
        let Some(thread) = lock(&self.thread).take() else {
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

impl Desk {
    fn let_go(&self) {
        if let Some(mut state) = self.try_pressure() {
            self.let_all_go_on(&mut state);
        }
    }

    /// The thread's whole life.
    fn serve(&self) {
        let bell = &self.shared.tree.bell;
        bell.attend();
        untracked(|| {
            let tree = Arc::clone(&self.shared.tree);
            let waker = PressureWaker::new(move || tree.bell.alarm());
            lock(&self.pressure).start_watching(self, &waker);
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
        let last = *lock(&self.last);
        let due = |last: Duration, interval| last.saturating_add(interval).saturating_sub(now);
        let mut next =
            due(last.reclaim, self.intervals.reclaim).min(due(last.sample, self.intervals.sample));
        let pressure = lock(&self.pressure);
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
            let mut last = lock(&self.last);
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
            .try_pressure()
            .is_some_and(|pressure| pressure.pace().is_some());
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
