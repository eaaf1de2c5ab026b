//! The figures of a refusal, for callers whose error has no room for them.

use super::error::QuotaExceeded;
use super::handle::{Client, quota_exceeded};
use super::scope::untracked;
use crate::registry::events::EventKind;

impl Client {
    /// Why a request of this client was last refused, on whatever thread: for
    /// code that was told so by a `TryReserveError`, say, which has no figures.
    /// `None` if it never was, or more than 1,024 other
    /// [events](crate::Memory::events) of its memory came after, or nothing of
    /// the client is left. What is asked for after the client was removed
    /// leaves no record unless the client is `Strict`. A request budget's
    /// refusals are its own.
    ///
    /// ```
    /// # use tiered_allocator::{Memory, SubscriptionTier};
    /// # let memory = Memory::new(1 << 30);
    /// let client = memory.register("acme", SubscriptionTier::Basic)?;
    /// assert_eq!(client.last_refusal(), None);
    /// assert!(memory.allocate_for_client("acme", 1 << 30).is_err());
    /// assert_eq!(client.last_refusal().unwrap().requested, 1 << 30);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn last_refusal(&self) -> Option<QuotaExceeded> {
        untracked(|| {
            let tree = self.tree().ok()?;
            let (records, _) = tree.events.read(0);
            let (index, generation) = (self.id().index(), self.id().generation());
            let own = records.iter().rev().find(|(_, record)| {
                record.kind == EventKind::Refused
                    && (record.index, record.generation) == (index, generation)
            });
            own.map(|(_, record)| quota_exceeded(self.slot(), record.refusal))
        })
    }
}
