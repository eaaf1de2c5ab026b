//! The reclaimer: one thread a memory that samples usage and reclaims idle
//! blocks when their time has come. Without a thread, whoever calls
//! [`Reclaimer::tick`] does its work.

use super::ladder::{Candidate, victims};
use crate::client::untracked;
use crate::memory::{BlockState, Reclaimed, Shared};
use crate::registry::bell::Call;
use crate::sys;
use core::fmt;
use core::time::Duration;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How often what is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intervals {
    pub(crate) reclaim: Duration,
    pub(crate) sample: Duration,
}

impl Default for Intervals {
    fn default() -> Intervals {
        Intervals {
            reclaim: Duration::from_secs(60),
            sample: Duration::from_secs(10),
        }
    }
}

/// What one pass over the idle blocks did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ReclaimReport {
    /// Blocks written to the spill file.
    pub spilled_blocks: u64,
    /// Their bytes.
    pub spilled_bytes: u64,
    /// Blocks thrown away, as their policy allows.
    pub discarded_blocks: u64,
    /// Their bytes.
    pub discarded_bytes: u64,
    /// Blocks that could not be written out and stay in memory.
    pub failed_blocks: u64,
}

/// When the two kinds of work were last done, by the memory's clock.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    reclaim: Duration,
    sample: Duration,
}

/// Which idle blocks a pass takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Urgency {
    /// Those whose tier's idle time is over.
    Due,
    /// Those of clients above their soft limit, until they are below.
    Relief,
}

struct Desk {
    shared: Arc<Shared>,
    intervals: Intervals,
    last: Mutex<Done>,
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
    pub(crate) fn start(shared: Arc<Shared>, intervals: Intervals, background: bool) -> Reclaimer {
        let now = shared.now();
        let desk = Arc::new(Desk {
            shared,
            intervals,
            last: Mutex::new(Done {
                reclaim: now,
                sample: now,
            }),
        });
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
            self.desk.work();
            // In a forked child the bell may have been left locked.
            let is_ours = self.process == sys::process_id();
            if is_ours && self.desk.shared.tree.bell.take_pressed() {
                untracked(|| self.desk.reclaim(Urgency::Relief));
            }
            return;
        }
        self.desk.shared.tree.bell.ask_and_wait();
    }

    /// One pass over the idle blocks on the calling thread.
    pub(crate) fn reclaim_now(&self) -> ReclaimReport {
        untracked(|| self.desk.reclaim(Urgency::Due))
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
}

impl fmt::Debug for Reclaimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reclaimer")
            .field("intervals", &self.desk.intervals)
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
    }
}

impl Desk {
    /// The thread's whole life.
    fn serve(&self) {
        let bell = &self.shared.tree.bell;
        while let Call::Work { asked, pressed } = bell.listen(self.time_to_next()) {
            self.work();
            if pressed {
                untracked(|| self.reclaim(Urgency::Relief));
            }
            bell.answered(asked, pressed);
        }
    }

    fn time_to_next(&self) -> Duration {
        let now = self.shared.now();
        let last = *lock(&self.last);
        let due = |last: Duration, interval| last.saturating_add(interval).saturating_sub(now);
        let reclaim = due(last.reclaim, self.intervals.reclaim);
        let sample = due(last.sample, self.intervals.sample);
        reclaim.min(sample)
    }

    /// Does what is due.
    fn work(&self) {
        let now = self.shared.now();
        let due = {
            let mut last = lock(&self.last);
            let sample = now.saturating_sub(last.sample) >= self.intervals.sample;
            let reclaim = now.saturating_sub(last.reclaim) >= self.intervals.reclaim;
            if sample {
                last.sample = now;
            }
            if reclaim {
                last.reclaim = now;
            }
            (sample, reclaim)
        };
        untracked(|| {
            if due.1 {
                self.reclaim(Urgency::Due);
            }
            if due.0 {
                self.sample();
            }
        });
    }

    fn sample(&self) {
        for block in self.shared.blocks() {
            block.measure();
        }
        self.shared.sweep_all();
    }

    fn reclaim(&self, urgency: Urgency) -> ReclaimReport {
        let now = self.shared.now();
        let policies = self.shared.tree.policies.all();
        let blocks: Vec<Arc<BlockState>> = self.shared.blocks();
        let mut idle = Vec::new();
        let mut candidates = Vec::new();
        for block in blocks.iter().filter(|block| block.is_idle()) {
            let Some(tier) = policies.get(block.owner_tier()) else {
                continue;
            };
            let idle_after = match urgency {
                Urgency::Due => tier.policy.idle_after,
                Urgency::Relief if block.owner_is_pressed() => Duration::ZERO,
                Urgency::Relief => continue,
            };
            idle.push((block, tier.policy.reclaim, idle_after));
            candidates.push(Candidate {
                precedence: tier.policy.precedence,
                idle_for: block.idle_for(now),
                idle_after,
                bytes: block.len() as u64,
            });
        }
        let mut report = ReclaimReport::default();
        for at in victims(&candidates) {
            let (block, policy, idle_after) = idle[at];
            if urgency == Urgency::Relief && !block.owner_is_pressed() {
                continue;
            }
            let bytes = block.len() as u64;
            match block.reclaim(now, idle_after, policy) {
                Reclaimed::Spilled => {
                    report.spilled_blocks += 1;
                    report.spilled_bytes += bytes;
                }
                Reclaimed::Discarded => {
                    report.discarded_blocks += 1;
                    report.discarded_bytes += bytes;
                }
                Reclaimed::Failed => report.failed_blocks += 1,
                Reclaimed::Left => {}
            }
        }
        let counts = &self.shared.counts;
        counts
            .spilled_bytes
            .fetch_add(report.spilled_bytes, Ordering::Relaxed);
        counts
            .discarded_bytes
            .fetch_add(report.discarded_bytes, Ordering::Relaxed);
        counts
            .failed_spills
            .fetch_add(report.failed_blocks, Ordering::Relaxed);
        counts.passes.fetch_add(1, Ordering::Relaxed);
        self.shared.sweep_all();
        report
    }
}
