//! placeholder
#![warn(missing_debug_implementations)]
#![cfg_attr(feature = "unwind", feature(alloc_error_hook))]
mod allocator;
mod client;
pub mod clock;
mod heap_block;
mod ledger;
mod memory;
mod owner;
mod reclaim;
mod registry;
mod sync;
mod sys;
mod telemetry;
mod unwind;
pub use allocator::TieredAllocator;
pub use client::{
    AttributedTo, Budget, Client, ClientId, ClientUsage, InClient, InClientExt, OverQuota,
    QuotaExceeded, RegisterError, Scope, UnknownClient, untracked,
};
pub use heap_block::HeapBlock;
pub use memory::{
    AllocateError, DeallocateError, DeallocateReason, Memory, MemoryBlock, MemoryBuilder,
    MemoryUsage, Pin, PinError, PinMut, Registration, TransferError, WrongClient,
};
pub use reclaim::ReclaimReport;
pub use registry::budget::BudgetNode;
pub use registry::{
    ClientOptions, ConfigError, Enforcement, Limit, ParseTierError, ReclaimPolicy,
    SubscriptionTier, Tier, TierPolicy,
};
pub use telemetry::{ClientSnapshot, Event, EventKind, ReclaimTotals, Snapshot, TierSnapshot};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
