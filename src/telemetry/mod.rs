//! What others may see of a memory, as plain data.

mod events;
#[cfg(feature = "serde")]
mod serde;
mod snapshot;

pub use crate::registry::events::EventKind;
pub use events::Event;
pub(crate) use events::read_events;
pub(crate) use snapshot::take_snapshot;
pub use snapshot::{ClientSnapshot, ReclaimTotals, Snapshot, TierSnapshot};
