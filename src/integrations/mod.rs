//! Clients on the runtimes of others: a feature and a module each.
//!
//! A scope belongs to a thread. Work that a runtime moves to another thread
//! must take its client along, or it is charged to nobody.
//!
//! | work | takes its client along by | feature |
//! |---|---|---|
//! | a future, on any runtime | [`InClientExt::in_client`](crate::InClientExt::in_client) | none |
//! | a closure, on any pool | [`Client::bind`](crate::Client::bind) | none |
//! | a thread | [`Client::spawn`](crate::Client::spawn) | none |
//! | a tokio task, tokio's blocking pool | `tokio::spawn`, `tokio::spawn_blocking` | `tokio` |
//! | a rayon pool, a parallel iterator | `rayon::install`, `in_client` | `rayon` |
//! | what a span does, instrumented futures included | `tracing_subscriber::ClientLayer` | `tracing-subscriber` |
//! | a map, a vector, a box | `allocator_api2`: a client is an allocator | `allocator-api2` |
//! | an HTTP request: handler, body, answer | `tower::TenantLayer` | `tower` |
//!
//! Caches that give back their coldest entries when memory is short:
//! `lru::offer` and `quick_cache::offer`, each with the feature of its name;
//! any other by [`Client::register_reclaimer`](crate::Client::register_reclaimer).
//!
//! With the feature `tracing`, the events of a memory reach whoever listens
//! to `tracing`; with `metrics`, its figures reach Prometheus, OpenTelemetry or
//! another recorder; with `snapshot-socket`, other programs of the same user
//! read its snapshots.
//!
//! What a runtime keeps for itself and happens to allocate while it works for
//! a client (a queue that grows, a thread's first use of a structure) is
//! charged to that client until the runtime frees it. The functions in here
//! leave the scope where they know of such a place.

#[cfg(feature = "allocator-api2")]
pub mod allocator_api2;
#[cfg(feature = "lru")]
pub mod lru;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(feature = "quick_cache")]
pub mod quick_cache;
#[cfg(feature = "rayon")]
pub mod rayon;
#[cfg(any(feature = "lru", feature = "quick_cache"))]
mod share;
#[cfg(all(feature = "snapshot-socket", unix))]
pub mod snapshot_socket;
#[cfg(feature = "tokio")]
pub mod tokio;
#[cfg(feature = "tower")]
pub mod tower;
#[cfg(feature = "tracing")]
pub mod tracing;
#[cfg(feature = "tracing-subscriber")]
pub mod tracing_subscriber;
