//! [`Client`]: a handle to a registered tenant.

use super::error::{OverQuota, QuotaExceeded, RegisterError};
use super::scope::{Scope, untracked};
use crate::heap_block::{HeapBlock, change_owner};
use crate::ledger::fork::Cold;
use crate::ledger::reading::{self, Reading};
use crate::ledger::{retire, settle, thread};
use crate::owner::Tag;
use crate::registry::REGISTRY;
use crate::registry::budget::{BudgetNode, Refusal};
use crate::registry::policies::{ClientOptions, override_mask};
use crate::registry::slot::{Limits, Locked, Slot, State};
use crate::registry::tree::Tree;
use crate::registry::{Enforcement, Tier};
use crate::unwind;
use core::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Which client, for as long as the process lives: ids are not used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId {
    index: u32,
    generation: u32,
}

impl ClientId {
    pub(crate) fn new(index: u32, generation: u32) -> ClientId {
        ClientId { index, generation }
    }

    /// The small integer that blocks are tagged with. Used again by a later
    /// client when nothing of this one is left.
    pub fn index(self) -> u32 {
        self.index
    }

    /// How many clients have had the index, this one included.
    pub fn generation(self) -> u32 {
        self.generation
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// What a client has and had, in bytes and in blocks.
///
/// Exact when no thread is working for the client; else as of no single
/// moment, but never below zero and never above what is charged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ClientUsage {
    /// Bytes allocated and not freed, on the heap and in blocks.
    pub live_bytes: u64,
    /// Of these, bytes in blocks from `allocate_for_client`.
    pub block_bytes: u64,
    /// Allocations not freed.
    pub live_allocations: u64,
    /// Bytes drawn from the budget: live bytes and the threads' unused credit.
    pub charged_bytes: u64,
    /// The highest that `charged_bytes` was: at least the highest that
    /// `live_bytes` was, at most 2 MiB a thread more (128 KiB if it never moves
    /// as much and no block is larger than 2 KiB).
    pub peak_bytes: u64,
    /// Bytes beyond the limits, out of the memory's headroom.
    pub overdrawn_bytes: u64,
    /// Bytes ever allocated.
    pub total_bytes: u64,
    /// Allocations ever made.
    pub total_allocations: u64,
    /// Requests refused.
    pub refusals: u64,
    /// Requests granted only because the client is observed.
    pub observed_breaches: u64,
    /// Time that safe points above the soft limit have waited, all threads
    /// together, in nanoseconds. Those of request budgets count to the client.
    pub stalled_ns: u64,
}

/// A tenant: a handle that is cheap to clone, stays with its tenant whatever
/// that is renamed to, and does not keep anything alive.
///
/// ```
/// use tiered_allocator::{Memory, SubscriptionTier};
///
/// let memory = Memory::new(1 << 30);
/// let client = memory.register("acme", SubscriptionTier::Basic)?;
/// let words = client.run(|| "charged to acme".split(' ').collect::<Vec<_>>())?;
/// assert_eq!(words.len(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Client {
    slot: &'static Slot,
    generation: u32,
    /// The slot's, kept here so that entering does not touch the slot.
    tag: Tag,
}

impl Client {
    pub(crate) fn new(slot: &'static Slot, generation: u32) -> Client {
        Client {
            slot,
            generation,
            tag: slot.tag(),
        }
    }

    /// The handle of the client that has or had this id.
    pub(crate) fn with_id(id: ClientId) -> Option<Client> {
        REGISTRY
            .slot(id.index)
            .map(|slot| Client::new(slot, id.generation))
    }

    pub(crate) fn slot(&self) -> &'static Slot {
        self.slot
    }

    /// The client of the innermost scope of the calling thread; `None` outside
    /// any scope.
    pub fn current() -> Option<Client> {
        let slot = REGISTRY.slot(thread::current_tag().index()?)?;
        (!slot.is_unattributed()).then(|| Client::new(slot, slot.generation()))
    }

    /// Which client this is.
    pub fn id(&self) -> ClientId {
        ClientId {
            index: self.slot.index(),
            generation: self.generation,
        }
    }

    /// The name at the moment, or `None` once nothing of the client is left.
    pub fn name(&self) -> Option<Arc<str>> {
        if self.slot.parent().is_some() {
            // A request budget goes by the name of its client.
            let client = self.slot.client();
            return Client::new(client, client.generation()).name();
        }
        self.locked(|locked| locked.name().cloned()).flatten()
    }

    /// The tier at the moment, or `None` once nothing of the client is left.
    pub fn tier(&self) -> Option<Tier> {
        let (tree, tier) = self.locked(|locked| (locked.share_tree(), self.slot.tier()))?;
        let named = tree?.policies.at(tier)?;
        Some(Tier::sharing(named.name))
    }

    /// Whether the client is registered: not removed, and its memory neither.
    pub fn is_active(&self) -> bool {
        self.slot.is_active(self.generation)
    }

    /// Whether scopes of the client may be entered: it was not removed.
    #[cfg(any(feature = "allocator-api2", feature = "tracing-subscriber"))]
    pub(crate) fn may_be_entered(&self) -> bool {
        self.slot.may_be_entered(self.generation) && self.slot.client().state() == State::Active
    }

    /// Runs `read` under the slot's lock, if the slot is still this client's.
    /// Nothing may be allocated in there: the allocator may need the lock.
    pub(crate) fn locked<T>(&self, read: impl FnOnce(&mut Locked) -> T) -> Option<T> {
        let _cold = Cold::enter(thread::attached());
        let mut locked = self.slot.lock();
        let is_ours = self.slot.generation() == self.generation && self.slot.state() != State::Free;
        is_ours.then(|| read(&mut locked))
    }

    /// Keeps the slot this client's for as long as the guard lives; `None` if
    /// the client was removed.
    pub(crate) fn held(&self) -> Option<Hold> {
        self.slot.hold();
        let hold = Hold(self.slot);
        self.is_active().then_some(hold)
    }

    /// Keeps a request budget from being closed under work that will enter it
    /// and may outlive it. `None` for a client, which needs no keeping.
    pub(crate) fn kept(&self) -> Option<Hold> {
        let is_budget = self.slot.parent().is_some();
        (is_budget && thread::hold(self.slot, self.generation)).then(|| Hold(self.slot))
    }

    /// Makes an allocation that exists the client's: it is charged to this
    /// client and refunded to the one that had it. For what a request built
    /// and a cache keeps.
    ///
    /// Only the value's own block moves: for a `Vec<String>`, adopt the strings
    /// one by one. Where no [`TieredAllocator`](crate::TieredAllocator) is
    /// installed nothing is charged, and nothing happens.
    ///
    /// ```
    /// # use tiered_allocator::{Memory, SubscriptionTier, TieredAllocator};
    /// # #[global_allocator]
    /// # static HEAP: TieredAllocator = TieredAllocator::system();
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new(1 << 30);
    /// let request = memory.register("acme", SubscriptionTier::Basic)?;
    /// let cache = memory.register("cache", SubscriptionTier::Enterprise)?;
    /// let mut page = request.run(|| vec![0_u8; 10_000])?;
    /// cache.adopt(&mut page)?;
    /// assert_eq!(request.usage().live_bytes, 0);
    /// assert_eq!(cache.usage().live_bytes, 10_000);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// This client may not have so much, or was removed; nothing is changed.
    pub fn adopt<T: HeapBlock + ?Sized>(&self, value: &mut T) -> Result<(), QuotaExceeded> {
        let Some((block, layout)) = value.heap_block() else {
            return Ok(());
        };
        let refused = |refusal| quota_exceeded(self.slot, refusal);
        let Some(_hold) = self.held() else {
            return Err(refused(Refusal {
                node: BudgetNode::Removed,
                requested: layout.size() as u64,
                charged: 0,
                limit: 0,
            }));
        };
        // SAFETY: `HeapBlock` promises a live block of the global allocator
        // with its layout, and the exclusive borrow keeps everybody else from
        // it meanwhile.
        unsafe { change_owner(block, layout, self.slot) }.map_err(refused)
    }

    /// Charges what the calling thread allocates to this client, until the
    /// guard is dropped. Scopes nest; the innermost counts. After the client
    /// was removed, allocations are charged to nobody.
    ///
    /// ```
    /// # use tiered_allocator::{Client, Memory, SubscriptionTier};
    /// # let memory = Memory::new(1 << 30);
    /// let client = memory.register("acme", SubscriptionTier::Basic)?;
    /// {
    ///     let _scope = client.enter();
    ///     assert_eq!(Client::current().map(|c| c.id()), Some(client.id()));
    /// }
    /// assert!(Client::current().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use = "the scope ends when the guard is dropped"]
    pub fn enter(&self) -> Scope {
        Scope::enter(self.slot, self.tag, self.generation)
    }

    /// Runs `work` in a scope of this client. The end is a safe point.
    ///
    /// With the feature `unwind` a refused allocation in `work` that cannot
    /// fail unwinds to here, as a panic would. What `work` was changing is left
    /// as it was at that moment, which is what `AssertUnwindSafe` is about.
    ///
    /// # Errors
    /// [`OverQuota`], with what the work returned, if the client is over its
    /// quota when the work ends; without it, if the work was unwound.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> Result<R, OverQuota<R>> {
        let scope = self.enter();
        let caught = unwind::catch(self, work);
        drop(scope);
        let output = match caught {
            Ok(output) => output,
            Err(quota) => {
                return Err(OverQuota {
                    quota,
                    output: None,
                });
            }
        };
        match self.checkpoint() {
            Ok(()) => Ok(output),
            Err(quota) => Err(OverQuota {
                quota,
                output: Some(output),
            }),
        }
    }

    /// Wraps `work` so that it runs in a scope of this client on whichever
    /// thread calls it: for pools, and whatever else takes a closure. Unlike
    /// [`Client::run`] it hands on what the work returns, and is no safe point.
    ///
    /// ```
    /// # use tiered_allocator::{Client, Memory, SubscriptionTier};
    /// # let memory = Memory::new(1 << 30);
    /// let client = memory.register("acme", SubscriptionTier::Basic)?;
    /// let work = client.bind(|| Client::current().map(|client| client.id()));
    /// let current = std::thread::spawn(work).join().unwrap();
    /// assert_eq!(current, Some(client.id()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn bind<R, F>(&self, work: F) -> impl FnOnce() -> R + use<R, F>
    where
        F: FnOnce() -> R,
    {
        let client = self.clone();
        let kept = self.kept();
        move || {
            let _kept = kept;
            let _scope = client.enter();
            work()
        }
    }

    /// Starts a thread that does `work` for this client, as [`Client::run`].
    ///
    /// # Errors
    /// The system has no resources for another thread.
    pub fn spawn<R, F>(&self, work: F) -> io::Result<JoinHandle<Result<R, OverQuota<R>>>>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let client = self.clone();
        let kept = self.kept();
        std::thread::Builder::new().spawn(move || {
            let _kept = kept;
            client.run(work)
        })
    }

    /// What the client has and had.
    pub fn usage(&self) -> ClientUsage {
        if self.slot.generation() != self.generation {
            return ClientUsage::default();
        }
        let _cold = Cold::enter(thread::attached());
        let usage = usage(self.slot, reading::of(self.slot));
        // The slot may have gone to the next client meanwhile.
        if self.slot.generation() != self.generation {
            return ClientUsage::default();
        }
        usage
    }

    /// Moves the client to another tier: its limits become that tier's, but
    /// for those it was given of its own. What it holds stays, and counts
    /// against the new tier; above a lowered limit nothing new is granted.
    ///
    /// # Errors
    /// The tier is unknown, its guarantee does not fit, or the client was
    /// removed. Nothing is changed then.
    pub fn set_tier(&self, tier: impl Into<Tier>) -> Result<(), RegisterError> {
        if let Some(client) = self.behind_budget() {
            return client.set_tier(tier);
        }
        untracked(|| {
            let tree = self.tree()?;
            let (place, policy) = tree.policies.find(&tier.into())?;
            let _alone = tree.policies.change();
            let overrides = self.slot.overrides();
            let limits = tree
                .policies
                .carry_over(&policy, self.slot.limits(), overrides)?;
            self.change(&tree, place, limits, overrides)
        })
    }

    /// Gives the client this tier and these limits of its own, in place of
    /// those it had.
    ///
    /// # Errors
    /// As [`Client::set_tier`], and limits that make no sense.
    pub fn configure(&self, options: impl Into<ClientOptions>) -> Result<(), RegisterError> {
        if let Some(client) = self.behind_budget() {
            return client.configure(options);
        }
        untracked(|| {
            let options = options.into();
            let tree = self.tree()?;
            let (place, policy) = tree.policies.find(&options.tier)?;
            let limits = tree.policies.limits(&policy, &options)?;
            let _alone = tree.policies.change();
            self.change(&tree, place, limits, override_mask(&options))
        })
    }

    /// The client, if this is a request budget: tier and guarantee are the
    /// client's, and what the tiers hold is booked under it alone.
    fn behind_budget(&self) -> Option<Client> {
        let is_budget = self.slot.parent().is_some();
        let client = self.slot.client();
        is_budget.then(|| Client::new(client, client.generation()))
    }

    pub(crate) fn tree(&self) -> Result<Arc<Tree>, RegisterError> {
        self.locked(|locked| locked.share_tree())
            .flatten()
            .ok_or(RegisterError::Removed)
    }

    fn change(
        &self,
        tree: &Tree,
        place: usize,
        limits: Limits,
        overrides: u8,
    ) -> Result<(), RegisterError> {
        match self.try_change(place, limits, overrides) {
            // Unused credit is no reason to refuse a guarantee.
            Err(RegisterError::GuaranteeDoesNotFit { .. }) if settle::collect_all(tree) => {
                self.try_change(place, limits, overrides)
            }
            changed => changed,
        }
    }

    fn try_change(&self, place: usize, limits: Limits, overrides: u8) -> Result<(), RegisterError> {
        self.locked(|locked| {
            if self.slot.state() != State::Active {
                return Err(RegisterError::Removed);
            }
            locked
                .reconfigure(place, limits)
                .map_err(guarantee_does_not_fit)?;
            self.slot.set_overrides(overrides);
            // Credit drawn under the old limits must not outlast them.
            settle::collect(locked);
            Ok(())
        })
        .unwrap_or(Err(RegisterError::Removed))?;
        if self.slot.has_children() {
            settle::collect_with_budgets(self.slot);
        }
        Ok(())
    }

    pub(crate) fn shares_tree_with(&self, tree: &Arc<Tree>) -> bool {
        self.locked(|locked| locked.share_tree())
            .flatten()
            .is_some_and(|own| Arc::ptr_eq(&own, tree))
    }

    pub(crate) fn retire(&self) -> bool {
        retire::retire(self.slot, self.generation)
    }

    pub(crate) fn try_close(&self) -> bool {
        retire::try_close(self.slot, self.generation)
    }

    /// The limits in force, in bytes: `max`, soft limit, guarantee. All 0 once
    /// nothing of the client is left.
    pub fn limits(&self) -> (u64, u64, u64) {
        self.locked(|locked| locked.slot().limits())
            .map_or((0, 0, 0), |own| (own.max, own.soft, own.guarantee))
    }

    /// What happens beyond `max`: `Strict` once nothing of the client is left.
    pub fn enforcement(&self) -> Enforcement {
        self.locked(|locked| locked.slot().limits().enforcement)
            .unwrap_or(Enforcement::Strict)
    }

    /// Gives the client another name, under the lock of its memory's names.
    pub(crate) fn rename(&self, name: Arc<str>) -> Option<Arc<str>> {
        self.locked(|locked| locked.set_name(Some(name))).flatten()
    }
}

/// See [`Client::held`] and [`Client::kept`].
pub(crate) struct Hold(&'static Slot);

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hold").field(&self.0.index()).finish()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl PartialEq for Client {
    fn eq(&self, other: &Client) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Client {}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("id", &format_args!("{}", self.id()))
            .field("name", &self.name())
            .finish()
    }
}

pub(crate) fn guarantee_does_not_fit(refusal: Refusal) -> RegisterError {
    RegisterError::GuaranteeDoesNotFit {
        requested: refusal.requested,
        charged: refusal.charged,
        limit: refusal.limit,
    }
}

pub(crate) fn usage(slot: &Slot, reading: Reading) -> ClientUsage {
    ClientUsage {
        live_bytes: reading.live_bytes,
        block_bytes: slot.block_bytes().min(reading.live_bytes),
        live_allocations: reading.live_blocks,
        charged_bytes: slot.charged().max(reading.live_bytes),
        peak_bytes: slot.peak().max(reading.live_bytes),
        overdrawn_bytes: slot.overdrawn(),
        total_bytes: reading.allocated_bytes,
        total_allocations: reading.allocations,
        refusals: slot.refusals(),
        observed_breaches: slot.observed(),
        stalled_ns: slot.stalled_ns(),
    }
}

/// Puts names to a refusal. Allocates, so never from inside `alloc`.
pub(crate) fn quota_exceeded(slot: &'static Slot, refusal: Refusal) -> QuotaExceeded {
    let client = Client::new(slot, slot.generation());
    let unknown = || Arc::from("?");
    // Not at the cost of a client that has nothing left to pay with.
    let (client, tier) = untracked(|| {
        let tier = client.tier().map(|tier| tier.shared_name());
        (
            client.name().unwrap_or_else(unknown),
            tier.unwrap_or_else(unknown),
        )
    });
    QuotaExceeded {
        client,
        tier,
        requested: refusal.requested,
        charged: refusal.charged,
        limit: refusal.limit,
        node: refusal.node,
    }
}
