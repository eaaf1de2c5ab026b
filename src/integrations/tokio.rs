//! tokio: tasks, and work on the blocking pool, in a client's scope.
//!
//! The functions are used as tokio's own of the same name, with the client
//! first. They are short hands: `JoinSet::spawn`, `Handle::spawn` and the like
//! take [`future.in_client(&client)`](crate::InClientExt::in_client), and
//! `Handle::spawn_blocking` takes [`client.bind(work)`](Client::bind).
//!
//! A task spawned from inside a task does not inherit the client by itself:
//! [`spawn_current`] and [`spawn_blocking_current`] hand it on.
//!
//! What a worker keeps for itself and lets grow during a poll is charged to
//! the client that is polled, and given back when the runtime ends: the list
//! behind `tokio::task::yield_now` (16 bytes for each task that waits in it),
//! the queue of a current-thread runtime.
//!
//! ```
//! use tiered_allocator::integrations::tokio as tenant;
//! use tiered_allocator::{Client, Memory, SubscriptionTier};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?;
//! # runtime.block_on(async {
//! let memory = Memory::new(1 << 30);
//! let client = memory.register("acme", SubscriptionTier::Basic)?;
//!
//! let task = tenant::spawn(&client, async {
//!     let blocking = tenant::spawn_blocking_current(|| Client::current());
//!     let there = blocking.await.expect("it does not panic").ok().flatten();
//!     (Client::current(), there)
//! });
//! assert_eq!(task.await??, (Some(client.clone()), Some(client)));
//! # Ok(())
//! # })
//! # }
//! ```

use crate::client::{Client, InClientExt, OverQuota, QuotaExceeded, untracked};
use ::tokio::task::{self, JoinHandle};
use core::future::Future;

/// Spawns a task that works for `client`: the future is charged to it wherever
/// it is polled and dropped, and so is the task itself. When the client is
/// over its quota, the future is dropped at its next poll, and the task
/// answers the error.
///
/// ```
/// # use tiered_allocator::integrations::tokio as tenant;
/// # use tiered_allocator::{Client, Memory, SubscriptionTier};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?;
/// # runtime.block_on(async {
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("acme", SubscriptionTier::Basic)?;
/// let task = tenant::spawn(&client, async {
///     tokio::task::yield_now().await;
///     Client::current()
/// });
/// assert_eq!(task.await??, Some(client));
/// # Ok(())
/// # })
/// # }
/// ```
///
/// # Panics
/// As `tokio::spawn`, outside a runtime.
#[track_caller]
pub fn spawn<F>(client: &Client, future: F) -> JoinHandle<Result<F::Output, QuotaExceeded>>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let future = future.in_client(client);
    let _scope = client.enter();
    task::spawn(future)
}

/// As [`spawn`], for the client of the innermost scope. Outside any scope the
/// task is charged to nobody, and nothing ends it.
///
/// # Panics
/// As `tokio::spawn`, outside a runtime.
#[track_caller]
pub fn spawn_current<F>(future: F) -> JoinHandle<Result<F::Output, QuotaExceeded>>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match Client::current() {
        Some(client) => spawn(&client, future),
        None => task::spawn(async move { Ok(future.await) }),
    }
}

/// Runs `work` on tokio's pool for blocking work, in a scope of `client`, as
/// [`Client::run`]. What `work` captures is charged to the client, the pool's
/// threads and its queue are not.
///
/// ```
/// # use tiered_allocator::integrations::tokio as tenant;
/// # use tiered_allocator::{Client, Memory, SubscriptionTier};
/// # #[global_allocator]
/// # static HEAP: tiered_allocator::TieredAllocator = tiered_allocator::TieredAllocator::system();
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?;
/// # runtime.block_on(async {
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("acme", SubscriptionTier::Basic)?;
/// let text = tenant::spawn_blocking(&client, || "charged to acme".to_owned()).await??;
/// assert_eq!(client.usage().live_bytes, text.capacity() as u64);
/// # Ok(())
/// # })
/// # }
/// ```
///
/// # Panics
/// As `tokio::task::spawn_blocking`, outside a runtime.
#[track_caller]
pub fn spawn_blocking<R, F>(client: &Client, work: F) -> JoinHandle<Result<R, OverQuota<R>>>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    let run = {
        let client = client.clone();
        let kept = client.kept();
        move || {
            let _kept = kept;
            client.run(work)
        }
    };
    let boxed = client.bind(|| Box::new(run))();
    // Here tokio may start a thread or double its queue: both outlive `work`.
    untracked(|| task::spawn_blocking(boxed))
}

/// As [`spawn_blocking`], for the client of the innermost scope. Outside any
/// scope the work is charged to nobody.
///
/// # Panics
/// As `tokio::task::spawn_blocking`, outside a runtime.
#[track_caller]
pub fn spawn_blocking_current<R, F>(work: F) -> JoinHandle<Result<R, OverQuota<R>>>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    match Client::current() {
        Some(client) => spawn_blocking(&client, work),
        None => task::spawn_blocking(|| Ok(work())),
    }
}
