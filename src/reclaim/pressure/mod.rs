//! Who tells the reclaimer that memory is getting short: [`PressureSource`] and
//! the sources that come with the crate.
//!
//! A source judges; it takes nothing back itself. From the ledger's
//! [`Figures`] and from what it reads of the system it answers how many bytes
//! should be given back and how urgently ([`Pressure`]). What to take from whom
//! is the reclaimer's choice, and no source can push it below anybody's
//! guarantee.
//!
//! | source | pressure begins | wants |
//! |---|---|---|
//! | [`Watermarks`] | charged bytes above a share of the usable part | the ledger back at the low mark |
//! | [`ResidentSet`] | the process' resident set above a share of the total | the resident set back at the low mark |
//! | [`Cgroup`] | memory of the process' cgroup, or of one around it, above a share of its limit | the cgroup back at the low mark |
//! | [`Psi`] | tasks stall for memory | a share of what is charged, as long as they stall |
//!
//! All of them have hysteresis: what began above the high mark ends at the low
//! one, so that a figure that hovers around a mark does not start and stop
//! reclaiming all the time.
//!
//! What the system says and the ledger does not (allocator overhead, thread
//! stacks, code, other processes of the cgroup) is *unattributed*. It shrinks
//! what clients share, and is charged to none of them.
//!
//! ```
//! use tiered_allocator::pressure::{
//!     Figures, Pressure, PressureError, PressureSource, Urgency, Watermarks,
//! };
//!
//! /// A source of one's own: a switch that an operator throws.
//! struct Switch(std::sync::Arc<std::sync::atomic::AtomicU64>);
//!
//! impl PressureSource for Switch {
//!     fn name(&self) -> &'static str {
//!         "switch"
//!     }
//!
//!     fn read(&mut self, _: &Figures) -> Result<Pressure, PressureError> {
//!         let bytes = self.0.load(std::sync::atomic::Ordering::Relaxed);
//!         Ok(match bytes {
//!             0 => Pressure::NONE,
//!             bytes => Pressure::new(Urgency::High, bytes),
//!         })
//!     }
//! }
//!
//! let mut figures = Figures::default();
//! figures.total_bytes = 1_000;
//! figures.usable_bytes = 800;
//! figures.charged_bytes = 760;
//!
//! let mut marks = Watermarks::new(0.9, 0.75)?; // of the usable 800 bytes
//! let pressure = marks.read(&figures)?;
//! assert_eq!((pressure.urgency, pressure.excess_bytes), (Urgency::High, 160));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cgroup;
mod hierarchy;
mod marks;
mod psi;

pub use crate::registry::reclaimers::Urgency;
pub use cgroup::Cgroup;
pub use marks::{MarksError, ResidentSet, Watermarks};
pub use psi::{Psi, Stall, Stalls, TriggerError};

use core::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// What the ledger knows when a source is read. Bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Figures {
    /// The memory's total.
    pub total_bytes: u64,
    /// The part of it that clients may have within their limits.
    pub usable_bytes: u64,
    /// Charged to clients or reserved for them.
    pub charged_bytes: u64,
    /// The process' resident set, where the system tells it.
    pub resident_set_bytes: Option<u64>,
}

impl Figures {
    /// What is resident beyond what is charged: allocated outside any scope,
    /// or by somebody that the ledger does not see.
    pub fn unattributed_bytes(&self) -> Option<u64> {
        let resident = self.resident_set_bytes?;
        Some(resident.saturating_sub(self.charged_bytes))
    }
}

/// What a source answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pressure {
    /// How soon.
    pub urgency: Urgency,
    /// How many bytes should be given back.
    pub excess_bytes: u64,
}

impl Pressure {
    /// Nothing is wanted.
    pub const NONE: Pressure = Pressure::new(Urgency::Idle, 0);

    /// So many bytes, so soon.
    pub const fn new(urgency: Urgency, excess_bytes: u64) -> Pressure {
        Pressure {
            urgency,
            excess_bytes,
        }
    }

    /// Whether something is wanted.
    pub const fn is_none(self) -> bool {
        matches!(self.urgency, Urgency::Idle)
    }

    /// What satisfies both: the greater urgency, the larger excess.
    ///
    /// ```
    /// use tiered_allocator::pressure::{Pressure, Urgency};
    ///
    /// let one = Pressure::new(Urgency::Low, 500);
    /// let other = Pressure::new(Urgency::High, 100);
    /// assert_eq!(one.worst(other), Pressure::new(Urgency::High, 500));
    /// ```
    pub fn worst(self, other: Pressure) -> Pressure {
        Pressure {
            urgency: self.urgency.max(other.urgency),
            excess_bytes: self.excess_bytes.max(other.excess_bytes),
        }
    }
}

/// Tells the reclaimer when memory is short.
///
/// A memory's reclaimer reads its sources one after the other on its own
/// thread, outside any scope; never from inside an allocation. A source may
/// allocate, read files and take its time, for which the other sources wait.
pub trait PressureSource: Send {
    /// What events and reports call it.
    fn name(&self) -> &'static str;

    /// How many bytes should be given back now, and how urgently.
    ///
    /// # Errors
    /// The source cannot tell. That is reported; it counts as no pressure from
    /// this source, and changes nothing for the others. It is read again next
    /// time.
    fn read(&mut self, figures: &Figures) -> Result<Pressure, PressureError>;

    /// Called once, before the first [`read`](PressureSource::read), by a
    /// reclaimer that has a thread. A source that notices pressure by itself
    /// keeps `waker` and calls it; it is then read at once. What it started
    /// ends when the source is dropped.
    ///
    /// # Errors
    /// The source cannot wake anybody. That is reported, and it is read at the
    /// usual intervals.
    fn watch(&mut self, waker: PressureWaker) -> Result<(), PressureError> {
        let _ = waker;
        Ok(())
    }
}

impl<S: PressureSource + ?Sized> PressureSource for Box<S> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn read(&mut self, figures: &Figures) -> Result<Pressure, PressureError> {
        (**self).read(figures)
    }

    fn watch(&mut self, waker: PressureWaker) -> Result<(), PressureError> {
        (**self).watch(waker)
    }
}

/// Wakes the reclaimer, from any thread. Costs a lock and a notification.
#[derive(Clone)]
pub struct PressureWaker(Arc<dyn Fn() + Send + Sync>);

impl PressureWaker {
    /// Wakes by calling `wake`, which should return soon and must not panic.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> PressureWaker {
        PressureWaker(Arc::new(wake))
    }

    /// Has the reclaimer read its sources.
    pub fn wake(&self) {
        (self.0)();
    }
}

impl fmt::Debug for PressureWaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PressureWaker").finish_non_exhaustive()
    }
}

/// A source cannot tell, or cannot watch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PressureError {
    /// A file of the system cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file of the system says something else than it should.
    #[error("{} has no {expected}: {found:?}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
        /// What is there instead, cut after 80 characters.
        found: String,
    },
    /// The system does not tell this figure.
    #[error("this system does not tell {0}")]
    Unknown(&'static str),
    /// The process' cgroup is not below any mount that the process can see.
    #[error("the cgroup {} is not visible: no mount of its hierarchy shows it", group.display())]
    NotVisible {
        /// The cgroup, as its hierarchy names it.
        group: PathBuf,
    },
    /// What a source of one's own has to say.
    #[error(transparent)]
    Other(#[from] Box<dyn std::error::Error + Send + Sync>),
}
