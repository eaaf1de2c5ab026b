//! What others may see of a memory, as plain data.

mod snapshot;

pub(crate) use snapshot::take_snapshot;
pub use snapshot::{ClientSnapshot, ReclaimTotals, Snapshot, TierSnapshot};
