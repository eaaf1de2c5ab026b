//! Who has charged how much: the accounts of the threads, and the cold path
//! between them and the clients' budgets.
//!
//! - [`account`]: one thread's balance with one client; the fast path.
//! - [`table`]: a thread's accounts, found by client; tables are reused.
//! - [`thread`]: the current account, the stack of scopes, thread exit.
//! - [`grant`]: the cold path of a charge, as others call it.
//! - [`admit`]: draws credit, admits a request or refuses it.
//! - [`settle`]: the cold path of a free; accounts that begin and end.
//! - [`revoke`]: takes unused credit back from running threads.
//! - [`reading`]: adds up what a client has, from all threads.
//! - [`retire`]: the end of a client and the reuse of its slot.
//! - [`sampling`]: the blocks that the heap profiler has sampled.
//! - [`fork`]: keeps the cold path whole across `fork`, and [`whole`] what else
//!   a child must find free.

pub(crate) mod account;
pub(crate) mod admit;
pub(crate) mod fork;
pub(crate) mod grant;
pub(crate) mod reading;
pub(crate) mod retire;
pub(crate) mod revoke;
pub(crate) mod sampling;
pub(crate) mod settle;
mod steps;
pub(crate) mod table;
pub(crate) mod thread;
pub(crate) mod whole;
