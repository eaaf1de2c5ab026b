//! Clients as their users see them: handles, scopes, errors.
//!
//! No `unsafe` but the pin projections in [`future`]; all bookkeeping is the
//! ledger's.

mod budget;
mod error;
mod future;
mod handle;
mod last_refusal;
mod reclaimer;
mod safe_point;
mod scope;

pub use budget::Budget;
pub use error::{OverQuota, QuotaExceeded, RegisterError, UnknownClient};
pub use future::{AttributedTo, InClient, InClientExt};
pub use handle::{Client, ClientId, ClientUsage};
pub use scope::{Scope, untracked};

#[cfg(feature = "tracing-subscriber")]
pub(crate) use handle::Hold;
#[cfg(feature = "tower")]
pub(crate) use safe_point::SafePoint;

pub(crate) use handle::{guarantee_does_not_fit, quota_exceeded, usage};
