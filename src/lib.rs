//! Whose memory is this, how much may they have, and what happens when they
//! want more? This crate answers for every heap allocation of a process that
//! serves many tenants.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | **client** | a tenant: a name in a memory, with a tier. See [`Client`]. What is allocated outside any scope is *unattributed*. |
//! | **tier** | limits and treatment that clients share: a [`SubscriptionTier`] or one of your own, see [`TierPolicy`]. |
//! | **memory** | a budget domain: a total, its tiers, its clients, its reclaimer thread. See [`Memory`]. |
//! | **scope** | the stretch of code whose allocations a client pays for. Scopes nest; the innermost counts. See [`Scope`]. |
//! | **account** | what one thread knows about one client. |
//! | **credit** | bytes that a thread drew from a client's budget in advance and has not used. |
//! | **owner tag** | how a block of the heap remembers who pays for it. |
//! | **charge**, **refund** | take bytes from a budget, give them back. |
//! | **request budget** | a limit for one piece of a client's work, inside the client's own. See [`Budget`]. |
//! | **usable part**, **headroom** | limits are counted in the usable part of a memory's total; what goes past a limit comes out of the rest. |
//! | **block** | a large buffer of a client that can be reclaimed while idle. See [`MemoryBlock`]. |
//! | **pin** | access to a block's bytes, which stay while it lives. See [`Pin`], [`PinMut`]. |
//!
//! # Quick start
//!
//! ```
//! use tiered_allocator::{Memory, SubscriptionTier, TieredAllocator};
//!
//! #[global_allocator]
//! static HEAP: TieredAllocator = TieredAllocator::system();
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let memory = Memory::new(1_000_000_000);
//!     let client = memory.register("acme", SubscriptionTier::Premium)?;
//!
//!     // The heap: what this computes is charged to acme.
//!     let words = client.run(|| vec![String::from("a"), String::from("b")])?;
//!     assert_eq!(client.usage().live_allocations, 3);
//!     drop(words);
//!     assert_eq!(client.usage().live_bytes, 0);
//!
//!     // A block: spilled to disk while nobody has pinned it for a while.
//!     let mut block = memory.allocate_for_client("acme", 50_000_000)?;
//!     block.pin_mut()?[0] = 1;
//!     memory.deallocate_for_client("acme", block)?;
//!     Ok(())
//! }
//! ```
//!
//! Without the global allocator, blocks are all that is charged.
//!
//! # What is where
//!
//! | to | see |
//! |---|---|
//! | install the allocator | [`TieredAllocator`] |
//! | set up budgets, tiers and clients | [`Memory`], [`MemoryBuilder`], [`TierPolicy`], [`ClientOptions`], [`Limit`], [`Enforcement`] |
//! | charge code to a client | [`Client::run`], [`Client::enter`], [`Client::spawn`], [`InClientExt::in_client`], [`untracked`] |
//! | limit one request of a client | [`Client::budget`], [`Budget`] |
//! | stop a client that is over its quota | [`Client::checkpoint`], [`OverQuota`], [`QuotaExceeded`] |
//! | pass memory from one client to another | [`Client::adopt`], [`MemoryBlock::charge_to`] |
//! | have large buffers that may be taken while idle | [`Memory::allocate_for_client`], [`MemoryBlock`], [`ReclaimPolicy`] |
//! | see who allocated what lives, by call stack | the feature `profile` and its module, `Memory::start_heap_profile` |
//! | know who has what, and what happened | [`Client::usage`], [`Memory::snapshot`], [`Memory::events`], [`Client::last_refusal`] |
//! | size a memory by its container, hear when memory is short | [`Memory::from_cgroup`], [`pressure`], [`purge`] |
//! | drive time in tests | [`clock`], [`Memory::tick`] |
//!
//! Why and how: [`docs::implementation`], [`docs::orderings`],
//! [`docs::limitations`].
//!
//! # Features
//!
//! - `mimalloc`: `TieredAllocator::mimalloc()`; needs a C compiler.
//! - `jemalloc`: `TieredAllocator::jemalloc()`; needs a C compiler, make and sh.
//! - `profile`: a sampling heap profiler, by client and call stack, as pprof
//!   and as a flame graph.
//! - `unwind`: on nightly Rust, a refused allocation in code that cannot fail
//!   unwinds to [`Client::run`] instead of aborting the process.
//! - `tokio`, `rayon`, `tower`, `tracing`, `tracing-subscriber`, `metrics`,
//!   `allocator-api2`, `lru`, `quick_cache`: see [`integrations`].
//! - `serde`: `Serialize` for [`Snapshot`], [`Event`], [`QuotaExceeded`] and what
//!   they are made of; see [`Snapshot`] for the names.
//! - `snapshot-socket`: on Unix, snapshots over a local socket, for other
//!   programs of the same user; see [`integrations`].
//!
//! None is on by default.

#![warn(missing_debug_implementations)]
#![cfg_attr(feature = "unwind", feature(alloc_error_hook))]
mod allocator;
mod client;
pub mod clock;
pub mod docs;
mod heap_block;
pub mod integrations;
mod ledger;
#[cfg(all(
    test,
    any(target_os = "linux", target_os = "android"),
    not(any(
        tiered_allocator_fence,
        tiered_allocator_loom,
        tiered_allocator_portable,
        tiered_allocator_shuttle
    ))
))]
mod litmus;
mod memory;
#[cfg(all(test, tiered_allocator_shuttle))]
mod model;
#[cfg(all(test, tiered_allocator_loom))]
mod model_weak;
mod owner;
#[cfg(feature = "profile")]
pub mod profile;
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
    MemoryUsage, Pin, PinError, PinMut, Registration, SizeError, TransferError, WrongClient,
};
pub use reclaim::{Ladder, ReclaimReport};
pub use reclaim::{pressure, purge};
pub use registry::budget::BudgetNode;
pub use registry::reclaimers::{ReclaimRequest, ReclaimerGuard};
pub use registry::rungs::{Relief, Rung, RungTotals};
pub use registry::{
    ClientOptions, ConfigError, Enforcement, Limit, ParseTierError, ReclaimPolicy,
    SubscriptionTier, Tier, TierPolicy,
};
pub use telemetry::{ClientSnapshot, Event, EventKind, ReclaimTotals, Snapshot, TierSnapshot};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
