//! A server for several tenants in one process, on one heap, and a live page
//! that shows whose memory is whose.
//!
//! | file | |
//! |---|---|
//! | `tenant.rs` | the tenants, what they keep, how they are served |
//! | `jobs.rs` | what they may ask for: reports, pages, archives, scripts, feeds |
//! | `scripts.rs` | the engine that runs their scripts |
//! | `attribution.rs` | whose request it is, and so who pays |
//! | `load.rs` | traffic, so that there is something to see; the hostile load |
//! | `live.rs` | the figures, twice a second, as server-sent events |
//! | `operator.rs` | what the operator may change, and the token for it |
//! | `profile.rs` | which functions hold whose memory: flame graphs and pprof files |
//! | `guard.rs` | who may ask at all: hosts, origins, headers |
//! | `page/` | the page |
//! | `top.rs` | the same in a terminal, for any process: the example `tiered_top` |

mod app;
mod attribution;
mod error;
mod guard;
mod jobs;
mod live;
mod load;
mod operator;
mod page;
mod profile;
mod scripts;
mod tenant;
#[cfg(unix)]
pub mod top;

pub use app::{App, Options};
