//! What may be done to a slot while its lock is held: charging and refunding,
//! opening and closing, and leaving records of it.
//!
//! Locks of slots are taken upwards only (a request budget's, then what it is
//! part of), and nothing is allocated or freed under one: the allocator may
//! need it. What must be dropped is handed out.

use super::{Limits, NO_GENERATION, Slot, State, Totals};
use crate::registry::budget::{self, BudgetNode, Reach, Refusal, UNLIMITED};
use crate::registry::events::EventKind;
use crate::registry::policies::LARGEST;
use crate::registry::tree::Tree;
use crate::sync::{LockGuard, Ordering, fence};
use core::ptr;
use std::sync::Arc;

impl Slot {
    pub(crate) fn lock(&'static self) -> Locked {
        let guard = self.lock.lock();
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        Locked {
            slot: self,
            _guard: guard,
        }
    }
}

/// A slot whose lock is held.
pub(crate) struct Locked {
    slot: &'static Slot,
    _guard: LockGuard<'static, ()>,
}

impl Drop for Locked {
    fn drop(&mut self) {
        let sequence = self.slot.sequence.load(Ordering::Relaxed);
        self.slot
            .sequence
            .store(sequence.wrapping_add(1), Ordering::Release);
    }
}

impl Locked {
    pub(crate) fn slot(&self) -> &'static Slot {
        self.slot
    }

    /// The budgets above the client; none for client 0 and a free slot.
    pub(crate) fn tree(&self) -> Option<&Tree> {
        // SAFETY: the pointer is null or came from `Arc::into_raw` in `open`,
        // and `close` (which needs `&mut self`) is the only one to give that
        // reference back.
        unsafe { self.slot.tree.load(Ordering::Relaxed).as_ref() }
    }

    /// A reference of its own to the tree, to use after unlocking.
    pub(crate) fn share_tree(&self) -> Option<Arc<Tree>> {
        let tree = self.slot.tree.load(Ordering::Relaxed);
        if tree.is_null() {
            return None;
        }
        // SAFETY: `tree` came from `Arc::into_raw` and the slot still owns one
        // reference; this makes a second one.
        unsafe {
            Arc::increment_strong_count(tree);
            Some(Arc::from_raw(tree))
        }
    }

    pub(crate) fn name(&self) -> Option<&Arc<str>> {
        // SAFETY: the lock is held and `&self` keeps `set_name` away.
        unsafe { (*self.slot.name.get()).as_ref() }
    }

    /// Puts a name in place and hands the old one out, to be dropped after
    /// unlocking.
    pub(crate) fn set_name(&mut self, name: Option<Arc<str>>) -> Option<Arc<str>> {
        // SAFETY: the lock is held and `&mut self` is exclusive.
        unsafe { core::mem::replace(&mut *self.slot.name.get(), name) }
    }

    /// Leaves a record of what happens to the client now.
    pub(crate) fn record(&self, kind: EventKind, refusal: Refusal) {
        self.record_with(kind, refusal, 0);
    }

    /// As [`Locked::record`], with the system's error number.
    pub(crate) fn record_with(&self, kind: EventKind, refusal: Refusal, os_error: i32) {
        if let Some(tree) = self.tree() {
            let slot = self.slot;
            let (index, generation) = (slot.index(), slot.generation());
            tree.events
                .leave(kind, slot.tier(), index, generation, refusal, os_error);
        }
    }

    /// Counts a refusal and leaves a record of it.
    pub(crate) fn refuse(&self, refusal: Refusal) -> Refusal {
        self.slot.refusals.fetch_add(1, Ordering::Relaxed);
        self.record(EventKind::Refused, refusal);
        refusal
    }

    /// What the client has at the moment, as a record says it.
    pub(crate) fn figures(&self) -> Refusal {
        Refusal {
            node: match self.slot.parent() {
                Some(_) => BudgetNode::Request,
                None => BudgetNode::Client,
            },
            requested: 0,
            charged: self.slot.charged(),
            limit: self.slot.limits().max,
        }
    }

    /// Which budget the client is over: its own, or, if it is within that, the
    /// tier's or the memory's that had no room for it.
    pub(crate) fn excess(&self) -> Refusal {
        let own = self.figures();
        let Some(tree) = self.tree().filter(|_| own.charged <= own.limit) else {
            return own;
        };
        let tier = &tree.tiers[self.slot.tier()];
        if tier.charged() < tier.limit() {
            return tree.figures(0);
        }
        Refusal {
            node: BudgetNode::Tier,
            requested: 0,
            charged: tier.charged(),
            limit: tier.limit(),
        }
    }

    /// Whether a budget of the client, or above it, is charged beyond its
    /// limit: it was lowered, or the enforcement let it happen.
    pub(crate) fn is_over_limits(&self) -> bool {
        let over = |slot: &Slot| slot.charged() > slot.max.load(Ordering::Relaxed);
        core::iter::successors(Some(self.slot), |slot| slot.parent()).any(over)
            || self
                .tree()
                .is_some_and(|tree| tree.is_over_limits(self.slot.tier()))
    }

    /// Bytes that could still be charged within all limits.
    pub(crate) fn room(&self) -> u64 {
        // The figures of the slots above are a hint here: charging is exact.
        let mut slot = self.slot;
        let mut room = slot.room();
        while let Some(parent) = slot.parent() {
            slot = parent;
            room = room.min(slot.room());
        }
        let spare_guarantee = slot
            .guarantee
            .load(Ordering::Relaxed)
            .saturating_sub(slot.charged());
        let above = self.tree().map_or(UNLIMITED, |tree| {
            tree.room(slot.tier()).saturating_add(spare_guarantee)
        });
        room.min(above)
    }

    /// Bytes that could be lent for what lower tiers have borrowed.
    fn room_ahead(&self) -> u64 {
        let slots = core::iter::successors(Some(self.slot), |slot| slot.parent());
        let own = slots.map(Slot::room).min().unwrap_or(0);
        self.tree().map_or(0, |tree| {
            let others = tree.can_be_made_up(self.slot.tier()).unwrap_or(0);
            own.min(tree.headroom_room()).min(others)
        })
    }

    /// Charges `bytes`, and ahead of need as much more as [`budget::batch`]
    /// allows after a window of so many bytes, if `ahead` says how many. Answers
    /// what was charged ahead. A refusal changes nothing.
    pub(crate) fn charge(
        &mut self,
        bytes: u64,
        ahead: Option<u64>,
        reach: Reach,
    ) -> Result<u64, Refusal> {
        let charged = self.slot.charged();
        let limits = self.slot.limits();
        let is_request = self.slot.parent().is_some();
        let ceiling = match reach {
            Reach::Limits | Reach::Ahead => limits.max,
            _ if is_request => UNLIMITED,
            Reach::PastRequests => limits.max,
            Reach::Headroom => limits.max.saturating_add(limits.overdraft),
            // What no process can address would only wrap the sums above.
            Reach::Observed => LARGEST,
        };
        let refused = |charged| Refusal {
            node: if is_request {
                BudgetNode::Request
            } else {
                BudgetNode::Client
            },
            requested: bytes,
            charged,
            limit: limits.max,
        };
        let grown = charged.checked_add(bytes).ok_or(refused(charged))?;
        if grown > ceiling && bytes > 0 {
            return Err(refused(charged));
        }
        if let Some(window) = ahead
            && matches!(reach, Reach::Limits | Reach::Ahead)
        {
            let room = match reach {
                Reach::Ahead => self.room_ahead(),
                _ => self.room(),
            };
            let extra = budget::batch(room.saturating_sub(bytes), bytes, window);
            if extra > 0 && self.lift(charged, grown + extra, reach).is_ok() {
                return Ok(extra);
            }
        }
        self.lift(charged, grown, reach).map(|()| 0)
    }

    /// Raises `charged` to `grown` here and, by what the guarantee does not
    /// cover, in the tree.
    fn lift(&mut self, charged: u64, grown: u64, reach: Reach) -> Result<(), Refusal> {
        let slot = self.slot;
        let overdrawn = slot.overdrawn();
        if let Some(parent) = slot.parent() {
            // Locks go upwards only.
            parent.lock().charge(grown - charged, None, reach)?;
        } else if let Some(tree) = self.tree() {
            let tier = slot.tier();
            if matches!(reach, Reach::Headroom | Reach::Ahead) {
                let wanted = grown - charged;
                let (fits, lifted) = self.fitting(tree, charged - overdrawn, wanted);
                let mut lent = wanted - fits;
                tree.charge(tier, lent, reach)?;
                if tree.charge(tier, lifted, Reach::Limits).is_err() {
                    // Somebody was faster.
                    tree.charge(tier, fits, reach)
                        .inspect_err(|_| tree.repay(lent))?;
                    lent = wanted;
                }
                self.set_overdrawn(tree, overdrawn + lent);
            } else {
                let guarantee = slot.guarantee.load(Ordering::Relaxed);
                let above = budget::lifted(guarantee, charged - overdrawn, grown - overdrawn);
                tree.charge(tier, above, reach)?;
            }
        }
        slot.charged.store(grown, Ordering::Relaxed);
        if grown > slot.peak() {
            slot.peak.store(grown, Ordering::Relaxed);
        }
        Ok(())
    }

    /// How many of `wanted` bytes fit the limits on top of `own`, and by how
    /// much they would lift the budgets above.
    fn fitting(&self, tree: &Tree, own: u64, wanted: u64) -> (u64, u64) {
        let limits = self.slot.limits();
        let above = tree
            .room(self.slot.tier())
            .saturating_add(limits.guarantee.saturating_sub(own));
        let fits = wanted.min(limits.max.saturating_sub(own)).min(above);
        (fits, budget::lifted(limits.guarantee, own, own + fits))
    }

    /// Whether the client is overdrawn only because lower tiers hold what it
    /// may have.
    pub(crate) fn is_lent_ahead(&self) -> bool {
        let slot = self.slot;
        slot.charged() <= slot.max.load(Ordering::Relaxed)
            && self.tree().is_some_and(|tree| {
                slot.overdrawn() > 0 && tree.can_be_made_up(slot.tier()).is_some()
            })
    }

    /// Moves as much of an overdraft as fits the limits by now from the
    /// headroom to the budgets: overdrawn is what is really beyond.
    pub(crate) fn cover_overdraft(&self) {
        let slot = self.slot;
        let overdrawn = slot.overdrawn();
        let Some(tree) = self.tree().filter(|_| overdrawn > 0) else {
            return;
        };
        let (covered, lifted) = self.fitting(tree, slot.charged() - overdrawn, overdrawn);
        if tree.charge(slot.tier(), lifted, Reach::Limits).is_ok() {
            tree.repay(covered);
            self.set_overdrawn(tree, overdrawn - covered);
        }
    }

    /// Gives `bytes` back: first what was overdrawn, then what was borrowed,
    /// then what the guarantee covers. Cannot fail.
    pub(crate) fn refund(&mut self, bytes: u64) {
        let slot = self.slot;
        let charged = slot.charged();
        let overdrawn = slot.overdrawn();
        debug_assert!(bytes <= charged, "refunded {bytes} of {charged} charged");
        if let Some(parent) = slot.parent() {
            parent.lock().refund(bytes);
        } else if let Some(tree) = self.tree() {
            let repaid = bytes.min(overdrawn);
            if repaid > 0 {
                tree.repay(repaid);
                self.set_overdrawn(tree, overdrawn - repaid);
            }
            let guarantee = slot.guarantee.load(Ordering::Relaxed);
            let before = charged - overdrawn;
            let after = before - (bytes - repaid);
            tree.refund(slot.tier(), budget::lifted(guarantee, after, before));
        }
        slot.charged.store(charged - bytes, Ordering::Relaxed);
        self.cover_overdraft();
    }

    pub(crate) fn add_block_bytes(&mut self, bytes: i64) {
        let blocks = self.slot.block_bytes().wrapping_add_signed(bytes);
        self.slot.block_bytes.store(blocks, Ordering::Relaxed);
    }

    /// Gives the slot to a new client. Its guarantee is charged to the tree,
    /// or the slot stays as it was.
    pub(crate) fn open(
        &mut self,
        name: Arc<str>,
        tree: Arc<Tree>,
        tier: usize,
        limits: Limits,
    ) -> Result<u32, Refusal> {
        let slot = self.slot;
        debug_assert_eq!(slot.state(), State::Free);
        tree.charge(tier, limits.guarantee, Reach::Limits)?;
        slot.tree
            .store(Arc::into_raw(tree).cast_mut(), Ordering::Relaxed);
        slot.tier.store(tier as u8, Ordering::Relaxed);
        self.store_limits(limits);
        self.set_guarantee(tier, tier, limits.guarantee);
        self.set_name(Some(name));
        Ok(self.next_generation())
    }

    /// The slot is its new client's, whose figures start from nothing.
    fn next_generation(&mut self) -> u32 {
        let slot = self.slot;
        slot.peak.store(0, Ordering::Relaxed);
        slot.refusals.store(0, Ordering::Relaxed);
        slot.observed.store(0, Ordering::Relaxed);
        slot.ask_to_stop(false);
        slot.stalled_ns.store(0, Ordering::Relaxed);
        let generation = match slot.generation().wrapping_add(1) {
            NO_GENERATION => NO_GENERATION + 1,
            next => next,
        };
        slot.generation.store(generation, Ordering::Release);
        slot.state.store(State::Active as u8, Ordering::Release);
        generation
    }

    /// Makes the slot a request budget of `parent`, which the caller keeps
    /// from being closed meanwhile. Nothing is charged or reserved.
    pub(crate) fn open_budget(
        &mut self,
        parent: &'static Slot,
        tree: Option<Arc<Tree>>,
        max: u64,
    ) -> u32 {
        let slot = self.slot;
        debug_assert_eq!(slot.state(), State::Free);
        parent.children.fetch_add(1, Ordering::Relaxed);
        let tree = tree.map_or(ptr::null(), Arc::into_raw);
        slot.tree.store(tree.cast_mut(), Ordering::Relaxed);
        self.store_limits(Limits {
            max,
            soft: max,
            guarantee: 0,
            overdraft: UNLIMITED,
            enforcement: parent.limits().enforcement,
        });
        slot.guarantee.store(0, Ordering::Relaxed);
        // Accounts that older generations left behind count to the client from
        // now on; their negated sum, which is what a free slot has settled,
        // takes them out again.
        parent.settle(slot.settled());
        slot.parent
            .store(ptr::from_ref(parent).cast_mut(), Ordering::Release);
        self.next_generation()
    }

    /// Ends a request budget: what it holds, and what that grows by, is bound
    /// by the client alone.
    pub(crate) fn end_budget(&mut self) {
        let slot = self.slot;
        slot.max.store(UNLIMITED, Ordering::Relaxed);
        slot.soft.store(UNLIMITED, Ordering::Relaxed);
        slot.state.store(State::Retired as u8, Ordering::Release);
    }

    /// Keeps the tiers' sums of guarantees up with a client's own.
    fn set_guarantee(&mut self, from_tier: usize, tier: usize, guarantee: u64) {
        let before = self.slot.guarantee.swap(guarantee, Ordering::Relaxed);
        if let Some(tree) = self.tree() {
            tree.change_guarantee(from_tier, before, 0);
            tree.change_guarantee(tier, 0, guarantee);
        }
    }

    /// Keeps the tier's sum of overdrafts up with the client's own.
    fn set_overdrawn(&self, tree: &Tree, overdrawn: u64) {
        let before = self.slot.overdrawn.swap(overdrawn, Ordering::Relaxed);
        tree.change_owed(self.slot.tier(), before, overdrawn);
    }

    fn store_limits(&mut self, limits: Limits) {
        let slot = self.slot;
        slot.max.store(limits.max, Ordering::Relaxed);
        slot.soft.store(limits.soft, Ordering::Relaxed);
        slot.overdraft.store(limits.overdraft, Ordering::Relaxed);
        slot.enforcement
            .store(limits.enforcement as u8, Ordering::Relaxed);
    }

    /// Changes tier and limits of a live client. Only a guarantee that does
    /// not fit is refused, and then nothing changes; what is charged already
    /// moves along whatever the new limits are.
    pub(crate) fn reconfigure(&mut self, tier: usize, limits: Limits) -> Result<(), Refusal> {
        let slot = self.slot;
        let own = slot.charged() - slot.overdrawn();
        let held = budget::held(slot.guarantee.load(Ordering::Relaxed), own);
        let wanted = budget::held(limits.guarantee, own);
        if let Some(tree) = self.tree() {
            if wanted > held {
                tree.charge(tier, wanted - held, Reach::Limits)?;
                tree.move_between_tiers(slot.tier(), tier, held);
            } else {
                tree.move_between_tiers(slot.tier(), tier, held);
                tree.refund(tier, held - wanted);
            }
            tree.change_owed(slot.tier(), slot.overdrawn(), 0);
            tree.change_owed(tier, 0, slot.overdrawn());
        }
        self.set_guarantee(slot.tier(), tier, limits.guarantee);
        slot.tier.store(tier as u8, Ordering::Relaxed);
        self.store_limits(limits);
        Ok(())
    }

    /// Takes the client away: no new charges, no guarantee. Its bytes stay.
    pub(crate) fn retire(&mut self) {
        let slot = self.slot;
        let own = slot.charged() - slot.overdrawn();
        let guarantee = slot.guarantee.load(Ordering::Relaxed);
        self.set_guarantee(slot.tier(), slot.tier(), 0);
        if let Some(tree) = self.tree() {
            tree.refund(slot.tier(), budget::held(guarantee, own) - own);
        }
        slot.state.store(State::Retired as u8, Ordering::Release);
    }

    /// Whether blocks or scopes outside the threads' accounts still need the
    /// slot.
    pub(crate) fn is_held(&self) -> bool {
        fence(Ordering::SeqCst);
        self.slot.holds.load(Ordering::Acquire) != 0
            || self.slot.children.load(Ordering::Acquire) != 0
    }

    /// Frees a retired slot whose bytes are gone. `threads` is what its
    /// accounts add up to: the next generation starts from the negated sum, so
    /// accounts need not be cleared. Hands out what must be dropped unlocked.
    pub(crate) fn close(&mut self, threads: Totals) -> (Option<Arc<str>>, Option<Arc<Tree>>) {
        let slot = self.slot;
        debug_assert_eq!(slot.state(), State::Retired);
        debug_assert_eq!(slot.charged(), 0);
        let start = threads.negated();
        slot.settled_net.store(start.net, Ordering::Relaxed);
        slot.settled_allocated
            .store(start.allocated, Ordering::Relaxed);
        slot.settled_allocs.store(start.allocs, Ordering::Relaxed);
        slot.settled_frees.store(start.frees, Ordering::Relaxed);
        slot.state.store(State::Free as u8, Ordering::Release);
        if let Some(parent) = slot.parent() {
            // What is in the accounts is the client's from now on; what was
            // settled is already.
            parent.settle(threads);
            slot.parent.store(ptr::null_mut(), Ordering::Release);
            parent.children.fetch_sub(1, Ordering::Release);
        }
        let name = self.set_name(None);
        let tree = slot.tree.swap(ptr::null_mut(), Ordering::Relaxed);
        let tree = (!tree.is_null()).then(|| {
            // SAFETY: `open` stored the result of `Arc::into_raw`; the swap
            // makes sure that nobody takes this reference a second time.
            unsafe { Arc::from_raw(tree.cast_const()) }
        });
        (name, tree)
    }
}
