//! Taking back what nobody uses: which blocks ([`ladder`], pure), and when and
//! by whom ([`thread`]).

mod ladder;
pub mod pressure;
pub mod purge;
mod thread;

pub use thread::ReclaimReport;
pub(crate) use thread::{Intervals, Reclaimer};
