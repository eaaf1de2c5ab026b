//! tower: HTTP services that charge each request to its tenant.
//!
//! [`TenantLayer`] goes around any `tower::Service` that turns an
//! `http::Request` into an `http::Response`: a handler or router of axum, a
//! service on hyper. It reads from the request whose it is, and runs the service
//! for that client, which [`Client::current`](crate::Client::current) names
//! there.
//!
//! ```
//! use tiered_allocator::integrations::tower::TenantLayer;
//! use tiered_allocator::{Memory, SubscriptionTier};
//! use http::HeaderName;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = Memory::new(1 << 30);
//! memory.register("acme", SubscriptionTier::Basic)?;
//! let layer = TenantLayer::from_header(&memory, HeaderName::from_static("x-tenant"))
//!     .budget(8 << 20); // one request of a tenant may have 8 MiB
//! // axum: Router::new().route("/report", get(report)).layer(layer)
//! # let _ = layer;
//! # Ok(())
//! # }
//! ```
//!
//! The layer believes what the request says: put it behind whatever checks that
//! the request may speak for its tenant.
//!
//! The service gets the request with a [`RequestBody`]; one that takes another
//! body only needs an adapter, such as `MapRequestBodyLayer` of tower-http.
//!
//! # What is charged to the tenant
//!
//! | memory | charged to |
//! |---|---|
//! | what the service allocates in `call`, in its future, in polls of its response body | the tenant |
//! | the request body, as the service reads it | the tenant: each piece is copied out of the connection's buffer, see [`RequestBody`] |
//! | the response's body, until it is written to the connection | the tenant, if the service allocated it |
//! | the response's headers | their text: the tenant, if the service allocated it. Their table: nobody, since hyper keeps the table for the connection's next request |
//! | the same with HTTP/2, and trailers | nobody, once the service has answered them: they are copied, since the connection keeps text to compress later headers |
//! | connections: read and write buffers, request headers, tasks; with HTTP/2 its streams' state and what has arrived of their bodies and was not read | nobody: they are read before the tenant is known, and outlive its request |
//! | tasks, blocking work and WebSockets that the service starts | nobody, unless they take their client along: see [`integrations`](super) |
//!
//! A panic hook that runs in the service runs in the tenant's scope, too: the
//! symbols that a first backtrace reads are kept by the standard library for
//! good, and charged to the tenant that panicked first. Take backtraces in
//! [`untracked`](crate::untracked).
//!
//! # When a request is ended
//!
//! The layer is a safe point before the service is called, before and after
//! each poll, and when the service has answered: whoever is over its quota
//! there gets the answer of the table, and the service's future is dropped.
//!
//! | cause | status | `Retry-After` |
//! |---|---|---|
//! | the request names no tenant | 401 | |
//! | there is no such tenant, or it was removed | 404 | |
//! | the tenant's `max`, or the request's budget, is used up | 429 | 1 s |
//! | the tier or the memory is used up | 507 | 1 s |
//! | there is no slot for a request budget | 503 | 1 s |
//!
//! [`TenantLayer::missing`], [`unknown`](TenantLayer::unknown),
//! [`retry_after`](TenantLayer::retry_after) and
//! [`answer`](TenantLayer::answer) change that. Once the headers are sent, only
//! the body can tell: it ends with the [`QuotaExceeded`](crate::QuotaExceeded)
//! as its error, on which servers break the connection (HTTP/1) or reset the
//! stream (HTTP/2), which takes with it what of the answer was not sent yet, and
//! leaves the connection's other requests alone. That is asked before every piece
//! but the first, so an answer of one piece always arrives.

mod answer;
mod body;
mod future;
mod headers;
mod layer;
mod request;

pub use answer::{Fallback, Refused};
pub use body::{BoxError, RequestBody, ResponseBody};
pub use future::ResponseFuture;
pub use layer::{TenantLayer, TenantService};
