//! Scopes: whose allocations a stretch of code makes.

#[cfg(feature = "allocator-api2")]
use super::handle::Client;
use crate::ledger::thread::{self, Entered};
use crate::owner::Tag;
use crate::registry::slot::Slot;
use core::marker::PhantomData;

/// The stretch of code whose allocations are charged to a client. Made by
/// [`Client::enter`](crate::Client::enter); ends, and the outer scope counts
/// again, when it is dropped, also when a panic unwinds through it.
///
/// Belongs to its thread:
///
/// ```compile_fail
/// fn needs_send<T: Send>(_: T) {}
/// # let memory = tiered_allocator::Memory::new(1 << 30);
/// # let client = memory.register("c", tiered_allocator::SubscriptionTier::Basic).unwrap();
/// needs_send(client.enter());
/// ```
#[derive(Debug)]
pub struct Scope {
    entered: Entered,
    _of_this_thread: PhantomData<*mut ()>,
}

impl Scope {
    #[inline]
    pub(crate) fn enter(slot: &'static Slot, tag: Tag, generation: u32) -> Scope {
        Scope {
            entered: thread::enter(slot, tag, generation),
            _of_this_thread: PhantomData,
        }
    }

    /// Whether the client may be charged: it has not been removed.
    #[cfg(feature = "allocator-api2")]
    #[inline]
    pub(crate) fn is_of(&self, client: &Client) -> bool {
        thread::current_tag() == client.slot().tag()
    }

    fn unattributed() -> Scope {
        Scope {
            entered: thread::enter_unattributed(),
            _of_this_thread: PhantomData,
        }
    }
}

impl Drop for Scope {
    #[inline]
    fn drop(&mut self) {
        thread::leave(&self.entered);
    }
}

/// Runs `work` outside any scope: what it allocates is charged to nobody. For
/// memory that a tenant's request makes but the host keeps.
///
/// ```
/// # use tiered_allocator::{untracked, Client, Memory, SubscriptionTier};
/// # let memory = Memory::new(1 << 30);
/// let client = memory.register("acme", SubscriptionTier::Basic)?;
/// let _scope = client.enter();
/// untracked(|| assert!(Client::current().is_none()));
/// assert!(Client::current().is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn untracked<R>(work: impl FnOnce() -> R) -> R {
    let _scope = Scope::unattributed();
    work()
}
