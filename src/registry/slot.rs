//! What the process keeps of one client, for as long as the process lives.
//!
//! A slot is never freed: a late free may write to it at any time. It is used
//! again, under a new generation, once its last byte is gone.
//!
//! Access rules, per field:
//!
//! - written under the lock, read by anybody: the budget (`charged` and its
//!   limits), `state`, `tier`, `generation`, the settled totals;
//! - under the lock only: `name`, `tree`;
//! - `sequence` is odd while the lock is held. Whoever reads several figures
//!   without the lock compares it before and after.
//!
//! Invariant, whenever the lock is free (Σ over the threads' accounts):
//! `charged = settled net + Σ granted`, and `Σ granted - Σ net` is the unused
//! credit. So `charged >= live`, and `charged <= max` unless enforcement
//! allowed more or `max` was lowered.
//!
//! # Orderings
//! `holds` against `state` is Dekker's pattern: a holder adds itself, fences,
//! looks at `state`; whoever closes has stored `state` before, fences, looks
//! at `holds`. One sees the other. The lock orders everything written under
//! it. `sequence` is a seqlock: odd is stored before a release fence, even with
//! `Release`; a reader loads it with `Acquire`, reads, and checks it after an
//! acquire fence. All figures are atomics, so a torn set of figures is possible
//! and detected, a torn figure is not possible.

mod locked;

pub(crate) use locked::Locked;

use super::tier::Enforcement;
use super::tree::Tree;
use crate::owner::Tag;
use crate::sync::{
    AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Lock, Ordering, fence,
};
use core::cell::UnsafeCell;
use core::ptr;
use std::sync::Arc;

/// Generation of an account that no handle may enter.
pub(crate) const NO_GENERATION: u32 = 0;

/// Where a slot is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum State {
    Free = 0,
    Active = 1,
    /// Removed, with blocks, scopes or holds left.
    Retired = 2,
}

/// The limits of one client in bytes, resolved from its tier and overrides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    pub(crate) max: u64,
    pub(crate) soft: u64,
    pub(crate) guarantee: u64,
    /// How far past `max` a graceful client may go.
    pub(crate) overdraft: u64,
    pub(crate) enforcement: Enforcement,
}

/// See the module's description.
#[repr(align(64))]
pub(crate) struct Slot {
    lock: Lock<()>,
    state: AtomicU8,
    enforcement: AtomicU8,
    tier: AtomicU8,
    /// Which limits the client has of its own; see [`super::policies`].
    overrides: AtomicU8,
    /// Whether the reclaimer wants the client's work to stop.
    asked_to_stop: AtomicBool,
    index: AtomicU32,
    generation: AtomicU32,
    sequence: AtomicU32,
    /// Blocks and account-less scopes that need the slot to stay theirs.
    holds: AtomicU32,
    next_free: AtomicU32,

    charged: AtomicU64,
    overdrawn: AtomicU64,
    max: AtomicU64,
    soft: AtomicU64,
    guarantee: AtomicU64,
    overdraft: AtomicU64,
    peak: AtomicU64,

    settled_net: AtomicI64,
    settled_allocated: AtomicU64,
    settled_allocs: AtomicU64,
    settled_frees: AtomicU64,

    block_bytes: AtomicU64,
    /// Bytes in blocks that nobody has pinned. Pins come and go without the
    /// lock, so this may be below zero for a moment.
    idle_block_bytes: AtomicI64,
    refusals: AtomicU64,
    observed: AtomicU64,
    /// Time that safe points have waited.
    stalled_ns: AtomicU64,

    /// The slot that this one is a request budget of; null for a client.
    parent: AtomicPtr<Slot>,
    /// Request budgets right below, ended ones that still hold something
    /// included.
    children: AtomicU32,

    tree: AtomicPtr<Tree>,
    name: UnsafeCell<Option<Arc<str>>>,
}

const _: () = assert!(size_of::<Slot>() <= 192);

// SAFETY: `name` is the only field that is not `Sync`; it is touched through
// `Locked` alone, so under the lock, and `Option<Arc<str>>` is `Send + Sync`.
unsafe impl Sync for Slot {}

impl Slot {
    pub(crate) const fn new(index: u32) -> Slot {
        Slot {
            lock: Lock::new(()),
            state: AtomicU8::new(State::Free as u8),
            enforcement: AtomicU8::new(0),
            tier: AtomicU8::new(0),
            overrides: AtomicU8::new(0),
            asked_to_stop: AtomicBool::new(false),
            index: AtomicU32::new(index),
            generation: AtomicU32::new(NO_GENERATION),
            sequence: AtomicU32::new(0),
            holds: AtomicU32::new(0),
            next_free: AtomicU32::new(0),
            charged: AtomicU64::new(0),
            overdrawn: AtomicU64::new(0),
            max: AtomicU64::new(0),
            soft: AtomicU64::new(0),
            guarantee: AtomicU64::new(0),
            overdraft: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            settled_net: AtomicI64::new(0),
            settled_allocated: AtomicU64::new(0),
            settled_allocs: AtomicU64::new(0),
            settled_frees: AtomicU64::new(0),
            block_bytes: AtomicU64::new(0),
            idle_block_bytes: AtomicI64::new(0),
            refusals: AtomicU64::new(0),
            observed: AtomicU64::new(0),
            stalled_ns: AtomicU64::new(0),
            parent: AtomicPtr::new(ptr::null_mut()),
            children: AtomicU32::new(0),
            tree: AtomicPtr::new(ptr::null_mut()),
            name: UnsafeCell::new(None),
        }
    }

    pub(crate) fn index(&self) -> u32 {
        self.index.load(Ordering::Relaxed)
    }

    pub(crate) fn tag(&self) -> Tag {
        Tag::of(self.index())
    }

    /// Index 0: allocations outside any scope. No budget binds it.
    pub(crate) fn is_unattributed(&self) -> bool {
        self.index() == 0
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            1 => State::Active,
            2 => State::Retired,
            _ => State::Free,
        }
    }

    /// The client or request budget above, if this is a request budget. Set
    /// before the first account exists, null only after the last is barred.
    #[inline]
    pub(crate) fn parent(&self) -> Option<&'static Slot> {
        // SAFETY: null, or a slot stored by `open_budget`; slots live for ever.
        unsafe { self.parent.load(Ordering::Acquire).as_ref() }
    }

    /// The client that this slot is or belongs to.
    pub(crate) fn client(&'static self) -> &'static Slot {
        let mut slot = self;
        while let Some(parent) = slot.parent() {
            slot = parent;
        }
        slot
    }

    /// Whether this is `slot` or a request budget below it.
    pub(crate) fn is_within(&'static self, slot: &'static Slot) -> bool {
        core::iter::successors(Some(self), |slot| slot.parent()).any(|above| ptr::eq(above, slot))
    }

    /// Whether the slot's budgets are those of `tree`: a hint without the lock.
    pub(crate) fn is_in(&self, tree: &Tree) -> bool {
        self.has_tree(tree)
    }

    /// As [`Slot::is_in`], for a tree of which only the address is at hand.
    pub(crate) fn has_tree(&self, tree: *const Tree) -> bool {
        ptr::eq(self.tree.load(Ordering::Relaxed), tree)
    }

    /// Whether request budgets exist below this slot.
    pub(crate) fn has_children(&self) -> bool {
        self.children.load(Ordering::Relaxed) > 0
    }

    /// Whether the client that had this slot in `generation` still has it. The
    /// state comes first: a generation that is still the old one then says
    /// whose state it was. The other way round both may be right, and of two
    /// clients.
    pub(crate) fn is_active(&self, generation: u32) -> bool {
        self.state() == State::Active && self.generation() == generation
    }

    /// Whether scopes of the client that had this slot in `generation` may be
    /// entered: those of an ended request budget may while something of it is
    /// left, so that work which outlives it goes on within its client's limits.
    pub(crate) fn may_be_entered(&self, generation: u32) -> bool {
        self.generation() == generation
            && match self.state() {
                State::Active => true,
                State::Retired => self.parent().is_some(),
                State::Free => false,
            }
    }

    /// The tier; a request budget's is its client's, whatever that moves to.
    pub(crate) fn tier(&self) -> usize {
        match self.parent() {
            Some(parent) => parent.tier(),
            None => usize::from(self.tier.load(Ordering::Relaxed)),
        }
    }

    pub(crate) fn overrides(&self) -> u8 {
        self.overrides.load(Ordering::Relaxed)
    }

    pub(crate) fn set_overrides(&self, overrides: u8) {
        self.overrides.store(overrides, Ordering::Relaxed);
    }

    pub(crate) fn charged(&self) -> u64 {
        self.charged.load(Ordering::Relaxed)
    }

    pub(crate) fn overdrawn(&self) -> u64 {
        self.overdrawn.load(Ordering::Relaxed)
    }

    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    pub(crate) fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    pub(crate) fn observed(&self) -> u64 {
        self.observed.load(Ordering::Relaxed)
    }

    pub(crate) fn stalled_ns(&self) -> u64 {
        self.stalled_ns.load(Ordering::Relaxed)
    }

    /// Bytes in blocks that the reclaimer could take.
    pub(crate) fn idle_block_bytes(&self) -> u64 {
        self.idle_block_bytes.load(Ordering::Relaxed).max(0) as u64
    }

    pub(crate) fn add_idle_block_bytes(&self, bytes: i64) {
        self.idle_block_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether the client is at a point where it must stop or may have to
    /// wait: past its limits, above its soft limit, or asked to stop. Four
    /// loads.
    #[inline]
    pub(crate) fn needs_attention(&self) -> bool {
        self.overdrawn() > 0
            || self.is_asked_to_stop()
            || self.charged() > self.soft.load(Ordering::Relaxed)
            || self.parent().is_some_and(Slot::needs_attention)
    }

    /// Whether the reclaimer wants this client's work to stop, so that others
    /// get what it has borrowed.
    #[inline]
    pub(crate) fn is_asked_to_stop(&self) -> bool {
        self.asked_to_stop.load(Ordering::Relaxed)
    }

    pub(crate) fn ask_to_stop(&self, stop: bool) {
        self.asked_to_stop.store(stop, Ordering::Relaxed);
    }

    /// How far the client is above its soft limit.
    pub(crate) fn above_soft(&self) -> u64 {
        let soft = self.soft.load(Ordering::Relaxed);
        self.charged().saturating_sub(soft)
    }

    /// What the client has beyond its guarantee, within its limits.
    pub(crate) fn borrowed(&self) -> u64 {
        let guarantee = self.guarantee.load(Ordering::Relaxed);
        self.charged()
            .saturating_sub(self.overdrawn())
            .saturating_sub(guarantee)
    }

    /// Whether this is a request budget that holds more than it may. One of an
    /// observed client may hold anything.
    pub(crate) fn is_over_budget(&self) -> bool {
        self.parent().is_some()
            && self.charged() > self.max.load(Ordering::Relaxed)
            && self.enforcement() != Enforcement::Observe
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        self.block_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max: self.max.load(Ordering::Relaxed),
            soft: self.soft.load(Ordering::Relaxed),
            guarantee: self.guarantee.load(Ordering::Relaxed),
            overdraft: self.overdraft.load(Ordering::Relaxed),
            enforcement: self.enforcement(),
        }
    }

    /// A request budget's is its client's, whatever that changes to.
    fn enforcement(&self) -> Enforcement {
        match self.parent() {
            Some(parent) => parent.enforcement(),
            None => Enforcement::from_bits(self.enforcement.load(Ordering::Relaxed)),
        }
    }

    fn room(&self) -> u64 {
        let max = self.max.load(Ordering::Relaxed);
        max.saturating_sub(self.charged())
    }

    /// Keeps the slot from being closed. Whoever finds the client active after
    /// this (see the fences here and in [`Locked::is_held`]) can rely on it.
    pub(crate) fn hold(&self) {
        self.holds.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// `Release`, so that whoever sees the hold gone sees what was done under it.
    pub(crate) fn release(&self) {
        self.holds.fetch_sub(1, Ordering::Release);
    }

    pub(crate) fn next_free(&self) -> u32 {
        self.next_free.load(Ordering::Relaxed)
    }

    pub(crate) fn set_next_free(&self, index: u32) {
        self.next_free.store(index, Ordering::Relaxed);
    }

    pub(crate) fn count_observed(&self) {
        self.observed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_stalled(&self, ns: u64) {
        self.stalled_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Adds what an account or an account-less operation did, here and at what
    /// this is a request budget of. Any thread, any time; a reader who needs it
    /// together with the accounts takes the lock or checks the sequence.
    pub(crate) fn settle(&self, totals: Totals) {
        if let Some(parent) = self.parent() {
            parent.settle(totals);
        }
        self.settled_net.fetch_add(totals.net, Ordering::Relaxed);
        self.settled_allocated
            .fetch_add(totals.allocated, Ordering::Relaxed);
        self.settled_allocs
            .fetch_add(totals.allocs, Ordering::Relaxed);
        self.settled_frees
            .fetch_add(totals.frees, Ordering::Relaxed);
    }

    pub(crate) fn settled(&self) -> Totals {
        Totals {
            net: self.settled_net.load(Ordering::Relaxed),
            allocated: self.settled_allocated.load(Ordering::Relaxed),
            allocs: self.settled_allocs.load(Ordering::Relaxed),
            frees: self.settled_frees.load(Ordering::Relaxed),
        }
    }

    /// The sequence, if nobody holds the lock.
    pub(crate) fn quiet_sequence(&self) -> Option<u32> {
        let sequence = self.sequence.load(Ordering::Acquire);
        (sequence & 1 == 0).then_some(sequence)
    }

    /// Whether nobody has held the lock since [`Slot::quiet_sequence`].
    pub(crate) fn unchanged_since(&self, sequence: u32) -> bool {
        fence(Ordering::Acquire);
        self.sequence.load(Ordering::Relaxed) == sequence
    }
}

/// What passed through one account, or through many added up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Totals {
    /// Allocated minus freed bytes; negative where others' blocks are freed.
    pub(crate) net: i64,
    pub(crate) allocated: u64,
    pub(crate) allocs: u64,
    pub(crate) frees: u64,
}

impl Totals {
    /// Wrapping, so that a new generation can start from the negated sum of
    /// the old one.
    pub(crate) fn plus(self, other: Totals) -> Totals {
        Totals {
            net: self.net.wrapping_add(other.net),
            allocated: self.allocated.wrapping_add(other.allocated),
            allocs: self.allocs.wrapping_add(other.allocs),
            frees: self.frees.wrapping_add(other.frees),
        }
    }

    pub(crate) fn negated(self) -> Totals {
        Totals {
            net: self.net.wrapping_neg(),
            allocated: self.allocated.wrapping_neg(),
            allocs: self.allocs.wrapping_neg(),
            frees: self.frees.wrapping_neg(),
        }
    }
}
