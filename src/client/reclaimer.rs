//! [`Client::register_reclaimer`]: caches that can be asked to shrink.

use super::error::RegisterError;
use super::handle::Client;
use super::scope::untracked;
use crate::registry::reclaimers::{ReclaimRequest, ReclaimerGuard};

impl Client {
    /// Offers memory of this client that could be given back, such as a cache:
    /// when memory is short, `reclaim` is called with how much is wanted and
    /// how urgently, frees what it can, and answers how many bytes it freed.
    ///
    /// The answer is not believed but compared with the ledger: a reclaimer
    /// after whose calls the client holds no less is asked less and less often.
    ///
    /// `reclaim` is called outside any scope and without any lock held, on a
    /// thread of the memory's reclaimer, or on the caller's in
    /// [`Memory::tick`](crate::Memory::tick) of a memory without a thread;
    /// never from inside an allocation, and never twice at once. If it panics,
    /// it is unregistered. If it does not answer in time
    /// ([`Ladder::call`](crate::Ladder::call)), the ladder goes on without it,
    /// and asks it again only when it has.
    ///
    /// It is registered until the guard is dropped. A closure that owns a
    /// [`Memory`](crate::Memory) keeps that alive for as long: hold what it
    /// frees by a `Weak`.
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use tiered_allocator::{Memory, SubscriptionTier};
    ///
    /// let memory = Memory::new(1 << 30);
    /// let client = memory.register("acme", SubscriptionTier::Basic)?;
    /// let pages: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    /// let shared = Arc::clone(&pages);
    /// let guard = client.register_reclaimer(move |request| {
    ///     let mut pages = shared.lock().unwrap();
    ///     let mut freed = 0;
    ///     while freed < request.wanted_bytes {
    ///         let Some(page) = pages.pop() else { break };
    ///         freed += page.capacity() as u64;
    ///     }
    ///     freed
    /// })?;
    /// # drop((guard, pages));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The client was removed.
    pub fn register_reclaimer(
        &self,
        reclaim: impl FnMut(ReclaimRequest) -> u64 + Send + 'static,
    ) -> Result<ReclaimerGuard, RegisterError> {
        // A request budget's caches are its client's.
        let slot = self.slot().client();
        let _hold = self.held().ok_or(RegisterError::Removed)?;
        untracked(|| {
            let tree = self.tree()?;
            let reclaim = Box::new(reclaim);
            let entry = tree.reclaimers.add(slot, slot.generation(), reclaim);
            Ok(ReclaimerGuard::new(entry))
        })
    }
}
