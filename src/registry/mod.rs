//! Who the clients are and what they may have.
//!
//! [`tree`] is the budgets of one memory (memory -> tier -> client), [`budget`]
//! one of them and its arithmetic, [`slot`] what the process keeps of one
//! client, [`table`] the process-wide array of slots with its free list,
//! [`policies`] turns tiers and overrides into bytes. Nothing here knows of
//! threads, blocks or clocks.

pub(crate) mod bell;
pub(crate) mod budget;
pub(crate) mod events;
pub(crate) mod overage;
pub(crate) mod policies;
pub(crate) mod reclaimers;
pub(crate) mod rungs;
mod short;
pub(crate) mod slot;
mod table;
mod tier;
pub(crate) mod tree;

pub use policies::{ClientOptions, ConfigError};
pub(crate) use table::{Exhausted, REGISTRY};
pub use tier::{
    Enforcement, Limit, ParseTierError, ReclaimPolicy, SubscriptionTier, Tier, TierPolicy,
};
