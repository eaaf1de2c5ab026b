//! Design notes, for those who want to know why before they trust it.
//!
//! - [`implementation`]: how it works, with diagrams;
//! - [`orderings`]: every atomic, and why its ordering suffices;
//! - [`limitations`]: what is not seen, what it costs, what differs between
//!   platforms.
//!
//! What shows that it keeps its promises, test by test and with the commands, is
//! in the package: `docs/VERIFICATION.md`.
//!
//! These modules hold no code.

pub mod implementation;
pub mod limitations;
#[cfg(doctest)]
mod misuse;
pub mod orderings;
