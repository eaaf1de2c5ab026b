//! tracing-subscriber: spans that carry a client enter its scope.
//!
//! Where code is instrumented already, a span that names the tenant is all that
//! is needed: with a [`ClientLayer`] in the subscriber, what is allocated while
//! the span is entered is charged to that client. That holds for
//! [`Instrument`](::tracing::Instrument)ed futures on any runtime, too: the
//! span is entered for each poll, on whichever thread it is.
//!
//! ```
//! use tiered_allocator::integrations::tracing_subscriber::ClientLayer;
//! use tiered_allocator::{Memory, SubscriptionTier, TieredAllocator};
//! use tracing_subscriber::layer::SubscriberExt;
//!
//! #[global_allocator]
//! static HEAP: TieredAllocator = TieredAllocator::system();
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let memory = Memory::new(1 << 30);
//!     let acme = memory.register("acme", SubscriptionTier::Basic)?;
//!     let subscriber = tracing_subscriber::registry().with(ClientLayer::new(&memory));
//!
//!     let page = tracing::subscriber::with_default(subscriber, || {
//!         let request = tracing::info_span!("request", client = "acme");
//!         request.in_scope(|| vec![0_u8; 1000])
//!     });
//!     assert_eq!(acme.usage().live_bytes, 1000);
//!     drop(page);
//!     Ok(())
//! }
//! ```
//!
//! # Which client
//!
//! - The one that the span names in its field `client`
//!   ([`field`](ClientLayer::field) chooses another), as it is created or
//!   [recorded](::tracing::Span::record) later; or the one that
//!   [`attach`] gave it, which may be a request budget.
//! - Otherwise that of the nearest span around it that has one, wherever the
//!   span is entered: a task that is instrumented with a child span is charged
//!   to the parent's client.
//! - A span without one changes nothing. Nor does a name that the memory does
//!   not know, or of a client that was removed since: the span is as one
//!   without a client.
//!
//! A client that a span is given while it is entered counts from the next time
//! it is entered. Spans may be left in any order.
//!
//! # What to know
//!
//! - **A span that is filtered out charges nobody.** A global `EnvFilter` of
//!   `warn` turns off the `info` spans of your tenants, and with them the
//!   accounts. Give filters to the layers that need them (`with_filter`), not
//!   to the subscriber.
//! - **The layer only charges.** It stops nobody at a quota: for that, call
//!   [`Client::checkpoint`] or put the future
//!   [`in_client`](crate::InClientExt::in_client) besides.
//! - **What the layer keeps** is charged to nobody. What other layers and the
//!   registry itself allocate on the tenants' time is charged to the tenants,
//!   unless they are wrapped in [`Untracked`]: without it, the first tenant
//!   that creates a span on a thread pays for the thread's pool of spans
//!   (some 5 KB), as long as the subscriber lives.
//! - **The layer holds the memory**, as long as the subscriber lives.
//!
//! # The client in log lines
//!
//! A layer cannot add fields to others' events. A span's own field `client` is
//! printed with the span by the formats of `tracing_subscriber::fmt`, JSON
//! included. For clients that were attached, or entered without a span, there
//! is [`ClientFormat`].

mod format;
mod layer;
mod untracked;

pub use format::ClientFormat;
pub use layer::{ClientLayer, SpanClient, attach};
pub use untracked::Untracked;

#[cfg(doc)]
use crate::client::Client;
