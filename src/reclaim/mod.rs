//! Taking back what clients hold: which blocks and caches ([`ladder`], pure),
//! when and because of what ([`thread`], [`climb`], [`pressure`]), and how
//! ([`idle`], [`rungs`], [`stop`], [`callers`], [`purge`]).

mod callers;
mod climb;
mod idle;
mod ladder;
mod options;
pub mod pressure;
pub mod purge;
mod rungs;
mod stop;
mod thread;

pub use idle::ReclaimReport;
pub(crate) use options::Intervals;
pub use options::Ladder;
pub(crate) use thread::{Plan, Reclaimer};
