//! What clients offer to give back: callbacks into their caches.
//!
//! The list alone is kept here; who is asked, when and on which thread is the
//! reclaimer's business.

use super::slot::{Slot, State};
use crate::client::ClientId;
use crate::ledger::whole::WholeMutex;
use crate::sync::{AtomicBool, AtomicU32, Mutex, MutexGuard, Ordering, PoisonError};
use core::fmt;
use core::time::Duration;
use std::sync::Arc;

/// How soon bytes are wanted back. Later ones are more urgent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Urgency {
    /// Nothing is wanted.
    #[default]
    Idle,
    /// Give back what costs nothing.
    Low,
    /// Give back what is not needed right now.
    High,
    /// The limit is reached: give back what can be given back.
    Critical,
}

/// What a client's reclaimer is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ReclaimRequest {
    /// Whose memory is wanted.
    pub client: ClientId,
    /// Bytes wanted back. More is welcome when it comes for nothing; what goes
    /// below the client's guarantee is not asked for.
    pub wanted_bytes: u64,
    /// How soon.
    pub urgency: Urgency,
    /// How long the ladder waits for the answer before it goes on without it.
    pub deadline: Duration,
}

type Callback = dyn FnMut(ReclaimRequest) -> u64 + Send;

/// One registered callback.
pub(crate) struct Entry {
    pub(crate) slot: &'static Slot,
    generation: u32,
    /// `None` once it is unregistered or has panicked.
    callback: Mutex<Option<Box<Callback>>>,
    gone: AtomicBool,
    /// Being called, possibly by a thread that nobody waits for any more.
    busy: AtomicBool,
    /// Calls in a row after which the ledger showed nothing.
    strikes: AtomicU32,
    /// Rounds to be left out because of them.
    resting: AtomicU32,
}

/// How a call ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Called {
    /// With what the callback says it released.
    Answered(u64),
    /// With a panic. It will not be called again.
    Panicked,
    /// It was unregistered meanwhile.
    Gone,
}

/// Rounds that a callback is left out at most because it gave nothing.
const LONGEST_REST: u32 = 64;

impl Entry {
    fn lock(&self) -> MutexGuard<'_, Option<Box<Callback>>> {
        self.callback.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
            || self.slot.generation() != self.generation
            || self.slot.state() == State::Free
    }

    pub(crate) fn client(&self) -> ClientId {
        ClientId::new(self.slot.index(), self.generation)
    }

    /// Claims the callback for one call, if nobody is calling it.
    pub(crate) fn claim(&self) -> bool {
        !self.is_gone() && !self.busy.swap(true, Ordering::Acquire)
    }

    fn is_resting(&self) -> bool {
        self.resting.load(Ordering::Relaxed) > 0
    }

    /// Whether the callback is to be left out of this round because it gave
    /// nothing before.
    pub(crate) fn rests(&self) -> bool {
        self.resting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_ok()
    }

    /// Notes what the ledger showed after a call.
    pub(crate) fn judge(&self, released_bytes: u64) {
        if released_bytes > 0 {
            self.strikes.store(0, Ordering::Relaxed);
            return;
        }
        let strikes = self.strikes.fetch_add(1, Ordering::Relaxed).min(6);
        self.resting
            .store((1 << strikes).min(LONGEST_REST), Ordering::Relaxed);
    }

    /// Calls the callback. After [`Entry::claim`].
    pub(crate) fn call(&self, request: ReclaimRequest) -> Called {
        let mut callback = self.lock();
        let called = match callback.as_mut() {
            None => Called::Gone,
            Some(callback) => {
                let call = std::panic::AssertUnwindSafe(|| callback(request));
                std::panic::catch_unwind(call).map_or(Called::Panicked, Called::Answered)
            }
        };
        if called == Called::Panicked {
            self.gone.store(true, Ordering::Release);
        }
        let dropped = callback.take_if(|_| self.is_gone());
        drop(callback);
        // What the callback owns may panic once more on its way out.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(dropped)));
        self.busy.store(false, Ordering::Release);
        called
    }
}

/// See the module's description.
#[derive(Default)]
pub(crate) struct Reclaimers(WholeMutex<Vec<Arc<Entry>>>);

impl Reclaimers {
    pub(crate) fn add(
        &self,
        slot: &'static Slot,
        generation: u32,
        callback: Box<Callback>,
    ) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            slot,
            generation,
            callback: Mutex::new(Some(callback)),
            gone: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            strikes: AtomicU32::new(0),
            resting: AtomicU32::new(0),
        });
        self.0.lock().push(Arc::clone(&entry));
        entry
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Whether one of the client's caches would be asked now.
    pub(crate) fn offers(&self, slot: &'static Slot) -> bool {
        let would = |entry: &Arc<Entry>| {
            core::ptr::eq(entry.slot, slot) && !entry.is_gone() && !entry.is_resting()
        };
        self.0.lock().iter().any(would)
    }

    /// All that are there, after those that are gone were let go.
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        let mut entries = self.0.lock();
        let gone: Vec<Arc<Entry>> = entries.extract_if(.., |entry| entry.is_gone()).collect();
        let all = entries.clone();
        drop(entries);
        // Callbacks own what they like: nothing of it may be dropped under a
        // lock that they might ask for, and it may panic on its way out.
        for entry in gone {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(entry)));
        }
        all
    }
}

/// Unregisters a reclaimer when it is dropped. A call that is under way is not
/// waited for; the callback is then dropped when it ends.
///
/// From [`Client::register_reclaimer`](crate::Client::register_reclaimer).
#[must_use = "the reclaimer is unregistered when this is dropped"]
pub struct ReclaimerGuard(Option<Arc<Entry>>);

impl ReclaimerGuard {
    pub(crate) fn new(entry: Arc<Entry>) -> ReclaimerGuard {
        ReclaimerGuard(Some(entry))
    }

    /// Leaves the reclaimer registered for as long as its client and memory
    /// exist.
    pub fn keep(mut self) {
        self.0 = None;
    }

    /// Whether the reclaimer is still asked: it has not panicked, and
    /// something of its client is left.
    pub fn is_registered(&self) -> bool {
        self.0.as_ref().is_some_and(|entry| !entry.is_gone())
    }
}

impl Drop for ReclaimerGuard {
    fn drop(&mut self) {
        let Some(entry) = self.0.take() else {
            return;
        };
        entry.gone.store(true, Ordering::Release);
        // Not if it is being called, possibly by this very thread: whoever
        // calls it drops it then, at the latest the next round does.
        let callback = entry
            .callback
            .try_lock()
            .ok()
            .and_then(|mut callback| callback.take());
        drop(callback);
    }
}

impl fmt::Debug for ReclaimerGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReclaimerGuard")
            .field("is_registered", &self.is_registered())
            .finish_non_exhaustive()
    }
}
