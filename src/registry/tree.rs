//! The budget tree: bytes charged to a tier and to a memory.
//!
//! A client's guarantee is charged to its ancestors from the start, so what
//! the ancestors hold for it is `max(guarantee, charged)`; [`lifted`](super::budget::lifted) is the
//! difference that a change of `charged` makes to that. Invariants:
//!
//! - Σ over the tier's clients of `max(guarantee, charged - overdrawn)` =
//!   `tier.charged`, and the same over all clients, plus `lent`, =
//!   `root.charged`.
//! - Σ over clients of `overdrawn` = `headroom.charged + lent`, and the same
//!   over a tier's clients = `tier.owed`.
//! - `charged <= limit` at every node that nobody forced (an observed client,
//!   or a limit lowered below what was charged).

use super::REGISTRY;
use super::bell::Bell;
use super::budget::{BEGUN, BudgetNode, MAX_TIERS, Node, OPEN_MASK, Reach, Refusal, UNLIMITED};
use super::events::Events;
use super::policies::{ConfigError, Policies};
use super::reclaimers::Reclaimers;
use super::short::Short;
use super::slot::Slot;
use super::tier::{Tier, TierPolicy};
use crate::sync::{AtomicU32, AtomicU64, Lock, Ordering, spin_loop};

/// The budgets of one memory. Shared by its clients' slots, and alive until
/// the last of them is free again.
pub(crate) struct Tree {
    /// Everything but overdrafts, against the usable part of the total.
    pub(crate) root: Node,
    /// Overdrafts, against the rest of the total.
    pub(crate) headroom: Node,
    /// Overdrafts for which the headroom was too small; part of `root.charged`.
    lent: AtomicU64,
    pub(crate) tiers: [Node; MAX_TIERS],
    /// Held while credit is taken back from several clients, so that two such
    /// walks do not undo each other.
    pub(crate) revoking: Lock<()>,
    /// Requests that other slots' credit may have refused and that are about
    /// to try again: until they have, nobody draws ahead or keeps credit.
    pub(crate) waiting: AtomicU32,
    /// Request budgets that have ended and may still hold something.
    pub(crate) ended: Lock<Ended>,
    /// What the tiers' names mean. Never touched by an allocation.
    pub(crate) policies: Policies,
    /// What was refused, lent and taken back.
    pub(crate) events: Events,
    /// Between the clients and the reclaimer.
    pub(crate) bell: Bell,
    /// Above so many bytes charged the reclaimer is called.
    alarm_above: AtomicU64,
    /// Clients that were lent what lower tiers are to give back.
    pub(crate) short: Short,
    /// What clients offer to give back.
    pub(crate) reclaimers: Reclaimers,
}

impl Tree {
    pub(crate) fn new(usable: u64, headroom: u64) -> Tree {
        let mut policies = Policies::new(usable, headroom);
        let tiers = [const { Node::new(UNLIMITED) }; MAX_TIERS];
        for (tier, node) in policies.first().iter().zip(&tiers) {
            node.set_precedence(tier.policy.precedence);
        }
        Tree {
            ended: Lock::new(Ended::default()),
            policies,
            events: Events::new(),
            bell: Bell::default(),
            alarm_above: AtomicU64::new(UNLIMITED),
            short: Short::default(),
            reclaimers: Reclaimers::default(),
            root: Node::new(usable),
            headroom: Node::new(headroom),
            lent: AtomicU64::new(0),
            tiers,
            revoking: Lock::new(()),
            waiting: AtomicU32::new(0),
        }
    }

    /// Defines a tier or changes it.
    pub(crate) fn define(&self, tier: &Tier, policy: TierPolicy) -> Result<(), ConfigError> {
        let (place, aggregate) = self.policies.define(tier, policy)?;
        self.tiers[place].set_limit(aggregate);
        self.tiers[place].set_precedence(policy.precedence);
        Ok(())
    }

    /// Whether the tier or the memory holds more than it may.
    pub(crate) fn is_over_limits(&self, tier: usize) -> bool {
        let over = |node: &Node| node.charged() > node.limit();
        over(&self.root) || over(&self.tiers[tier])
    }

    /// Bytes that a charge in this tier could still get.
    pub(crate) fn room(&self, tier: usize) -> u64 {
        self.root.room().min(self.tiers[tier].room())
    }

    /// Has the reclaimer called when more than `bytes` are charged.
    pub(crate) fn set_alarm(&self, bytes: u64) {
        self.alarm_above.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that tiers of a lower precedence than this one have borrowed.
    pub(crate) fn borrowed_below(&self, tier: usize) -> u64 {
        let precedence = self.tiers[tier].precedence();
        let lower = |node: &&Node| node.precedence() < precedence;
        self.tiers.iter().filter(lower).map(Node::borrowed).sum()
    }

    /// How much more could be lent to clients of this tier for what lower tiers
    /// have borrowed; `None` if what is lent already is more than that. Lower
    /// tiers' own overdrafts are no claim on it. A tier whose aggregate limit
    /// could bind is lent nothing: loans are no part of what that counts.
    pub(crate) fn can_be_made_up(&self, tier: usize) -> Option<u64> {
        let node = &self.tiers[tier];
        let total = self.root.limit().saturating_add(self.headroom.limit());
        if node.limit() < total {
            return None;
        }
        let precedence = node.precedence();
        let claims = |node: &&Node| node.precedence() >= precedence;
        let owed: u64 = self.tiers.iter().filter(claims).map(Node::owed).sum();
        self.borrowed_below(tier).checked_sub(owed)
    }

    /// Overdrafts of tiers of a higher precedence than this one's.
    fn owed_above(&self, node: &Node) -> u64 {
        let precedence = node.precedence();
        let higher = |node: &&Node| node.precedence() > precedence;
        self.tiers.iter().filter(higher).map(Node::owed).sum()
    }

    /// An overdraft of one of the tier's clients became another.
    pub(crate) fn change_owed(&self, tier: usize, from: u64, to: u64) {
        let owed = &self.tiers[tier].owed;
        owed.fetch_add(to, Ordering::Relaxed);
        owed.fetch_sub(from, Ordering::Relaxed);
    }

    /// A guarantee of one of the tier's clients became another.
    pub(crate) fn change_guarantee(&self, tier: usize, from: u64, to: u64) {
        let guaranteed = &self.tiers[tier].guaranteed;
        guaranteed.fetch_add(to, Ordering::Relaxed);
        guaranteed.fetch_sub(from, Ordering::Relaxed);
    }

    /// Whether a client of a higher tier is short: what becomes free goes there.
    fn is_held_back(&self, node: &Node) -> bool {
        node.precedence() < self.short.precedence()
    }

    /// Whether clients of this tier may hold credit: not while a request waits
    /// for what others hold, and not while a higher tier is short.
    pub(crate) fn lets_keep_credit(&self, tier: usize) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0 && !self.is_held_back(&self.tiers[tier])
    }

    /// Charges the root for a tier, and calls the reclaimer if that is much.
    fn charge_root(&self, node: &Node, bytes: u64) -> Result<(), (u64, u64)> {
        let held_back = if self.is_held_back(node) {
            self.owed_above(node)
        } else {
            0
        };
        let limit = self.root.limit().saturating_sub(held_back);
        self.root.charge_below(limit, bytes)?;
        if self.root.charged() > self.alarm_above.load(Ordering::Relaxed) {
            // Once: the reclaimer sets it again.
            self.alarm_above.store(UNLIMITED, Ordering::Relaxed);
            self.bell.alarm();
        }
        Ok(())
    }

    /// Charges `bytes` to the tier and the memory, or to neither.
    pub(crate) fn charge(&self, tier: usize, bytes: u64, reach: Reach) -> Result<(), Refusal> {
        if bytes == 0 {
            return Ok(());
        }
        let node = &self.tiers[tier];
        match reach {
            Reach::Observed => {
                node.force(bytes);
                self.root.force(bytes);
                Ok(())
            }
            Reach::Headroom => self.lend(bytes),
            Reach::Ahead if self.can_be_made_up(tier) >= Some(bytes) => self.lend(bytes),
            Reach::Ahead => Err(self.exhausted(bytes)),
            Reach::Limits | Reach::PastRequests => loop {
                match self.charge_within(node, bytes) {
                    Ok(()) => return Ok(()),
                    Err((refused, certain)) if certain => return Err(refused),
                    // Somebody's charge, possibly about to be taken back, was
                    // in the way: a refusal now could be a false one.
                    Err(_) => spin_loop(),
                }
            },
        }
    }

    /// One attempt. The flag of a refusal says whether it is certain: no
    /// charge that was later taken back can have caused it.
    fn charge_within(&self, node: &Node, bytes: u64) -> Result<(), (Refusal, bool)> {
        if node.limit() == UNLIMITED {
            // Nothing can be refused below the root, so nothing is tentative.
            self.charge_root(node, bytes)
                .map_err(refusal(BudgetNode::Memory, bytes))
                .map_err(|refused| (refused, true))?;
            node.force(bytes);
            return Ok(());
        }
        let before = node.tentative.fetch_add(BEGUN + 1, Ordering::Acquire);
        let charged = node
            .charge(bytes)
            .map_err(refusal(BudgetNode::Tier, bytes))
            .and_then(|()| {
                self.charge_root(node, bytes).map_err(|figures| {
                    node.refund(bytes);
                    refusal(BudgetNode::Memory, bytes)(figures)
                })
            });
        let after = node.tentative.fetch_sub(1, Ordering::Release);
        charged.map_err(|refused| {
            let alone = before & OPEN_MASK == 0 && after == before.wrapping_add(BEGUN + 1);
            (refused, refused.node == BudgetNode::Memory || alone)
        })
    }

    /// Gives back what [`Tree::charge`] took.
    pub(crate) fn refund(&self, tier: usize, bytes: u64) {
        if bytes > 0 {
            self.tiers[tier].refund(bytes);
            self.root.refund(bytes);
            if self.is_held_back(&self.tiers[tier]) {
                // Somebody waits for just this.
                self.bell.alarm();
            }
        }
    }

    /// Lends `bytes` past the limits: out of the headroom, and when that is
    /// used up out of what is free below the limits, guarantees left alone.
    /// So nothing is refused to a graceful client while the total is not
    /// exhausted.
    fn lend(&self, bytes: u64) -> Result<(), Refusal> {
        if bytes > self.headroom.limit().saturating_add(self.root.limit()) {
            // Nobody shall see the attempt.
            return Err(self.exhausted(bytes));
        }
        let from_headroom = loop {
            let spare = self.headroom.room().min(bytes);
            // An error: somebody was faster. What is left now may do, too.
            if spare == 0 || self.headroom.charge(spare).is_ok() {
                break spare;
            }
        };
        let from_root = bytes - from_headroom;
        // An observed client may have filled the root beyond its limit; that
        // is nothing to a loan that takes nothing of it.
        if from_root > 0 && self.root.charge(from_root).is_err() {
            self.headroom.refund(from_headroom);
            return Err(self.exhausted(bytes));
        }
        self.lent.fetch_add(from_root, Ordering::Relaxed);
        Ok(())
    }

    fn exhausted(&self, bytes: u64) -> Refusal {
        refusal(BudgetNode::Memory, bytes)((
            self.root.charged().saturating_add(self.headroom.charged()),
            self.root.limit().saturating_add(self.headroom.limit()),
        ))
    }

    /// Gives back what was lent: first what others may need.
    pub(crate) fn repay(&self, bytes: u64) {
        let lent = self
            .lent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lent| {
                Some(lent - lent.min(bytes))
            });
        let to_root = lent.unwrap_or(0).min(bytes);
        self.root.refund(to_root);
        self.headroom.refund(bytes - to_root);
    }

    /// By all clients together: charged or reserved within the limits, and
    /// overdrawn. `lent` is looked at once, so what moves meanwhile is in one
    /// figure or the other and their sum stays within the total.
    pub(crate) fn charged_and_overdrawn(&self) -> (u64, u64) {
        let lent = self.lent.load(Ordering::Relaxed);
        (
            self.root.charged().saturating_sub(lent),
            self.headroom.charged() + lent,
        )
    }

    /// Headroom that nobody has been lent.
    pub(crate) fn headroom_room(&self) -> u64 {
        self.headroom.room()
    }

    /// Overdrafts of all clients together.
    pub(crate) fn overdrawn(&self) -> u64 {
        self.charged_and_overdrawn().1
    }

    /// All that is charged to the memory, overdrafts included, against its
    /// usable part; said of a request of so many bytes.
    pub(crate) fn figures(&self, requested: u64) -> Refusal {
        let (charged, overdrawn) = self.charged_and_overdrawn();
        Refusal {
            node: BudgetNode::Memory,
            requested,
            charged: charged + overdrawn,
            limit: self.root.limit(),
        }
    }

    /// Moves `bytes` from one tier's sum to another's. The bytes exist, so the
    /// other tier's limit refuses later charges but not this.
    pub(crate) fn move_between_tiers(&self, from: usize, to: usize, bytes: u64) {
        if from != to && bytes > 0 {
            self.tiers[to].force(bytes);
            self.tiers[from].refund(bytes);
        }
    }
}

/// A queue of slots, linked through the slots themselves: putting one in
/// allocates nothing.
#[derive(Default)]
pub(crate) struct Ended {
    first: Option<&'static Slot>,
    last: Option<&'static Slot>,
    len: usize,
}

impl Ended {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, slot: &'static Slot) {
        slot.set_next_free(0);
        match self.last.replace(slot) {
            Some(last) => last.set_next_free(slot.index()),
            None => self.first = Some(slot),
        }
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<&'static Slot> {
        let slot = self.first?;
        self.first = match slot.next_free() {
            0 => None,
            next => REGISTRY.slot(next),
        };
        if self.first.is_none() {
            self.last = None;
        }
        self.len -= 1;
        Some(slot)
    }
}

fn refusal(node: BudgetNode, requested: u64) -> impl Fn((u64, u64)) -> Refusal {
    move |(charged, limit)| Refusal {
        node,
        requested,
        charged,
        limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_charge_changes_no_node() {
        let tree = Tree::new(100, 0);
        tree.tiers[1].set_limit(80);
        tree.charge(0, 70, Reach::Limits).unwrap();
        // The tier would allow it, the root does not: the tier is rolled back.
        let refused = tree.charge(1, 40, Reach::Limits).unwrap_err();
        assert_eq!(refused.node, BudgetNode::Memory);
        assert_eq!((refused.charged, refused.limit), (70, 100));
        assert_eq!(tree.tiers[1].charged(), 0);
        assert_eq!(tree.root.charged(), 70);
        // The tier refuses: the root never hears of it.
        let refused = tree.charge(1, 81, Reach::Limits).unwrap_err();
        assert_eq!(refused.node, BudgetNode::Tier);
        assert_eq!(tree.root.charged(), 70);
        // The exact rest fits, one byte more does not.
        tree.charge(1, 30, Reach::Limits).unwrap();
        assert!(tree.charge(1, 1, Reach::Limits).is_err());
        assert!(tree.charge(1, 0, Reach::Limits).is_ok());
    }

    #[test]
    fn a_huge_request_does_not_wrap() {
        let tree = Tree::new(u64::MAX / 2, 10);
        tree.charge(0, 10, Reach::Limits).unwrap();
        assert!(tree.charge(0, u64::MAX, Reach::Limits).is_err());
        assert!(tree.charge(0, u64::MAX, Reach::Headroom).is_err());
        assert_eq!(tree.root.charged(), 10);
        assert_eq!(tree.overdrawn(), 0);
    }

    #[test]
    fn overdrafts_use_the_headroom_first_and_give_it_back_last() {
        let tree = Tree::new(100, 20);
        tree.charge(0, 30, Reach::Limits).unwrap();
        tree.charge(0, 15, Reach::Headroom).unwrap();
        assert_eq!((tree.headroom.charged(), tree.root.charged()), (15, 30));
        // More than the headroom has left: the rest is lent from the limits.
        tree.charge(0, 25, Reach::Headroom).unwrap();
        assert_eq!((tree.headroom.charged(), tree.root.charged()), (20, 50));
        assert_eq!(tree.overdrawn(), 40);
        // The total is the end, and a refusal changes nothing.
        let refused = tree.charge(0, 51, Reach::Headroom).unwrap_err();
        assert_eq!((refused.charged, refused.limit), (70, 120));
        assert_eq!(tree.overdrawn(), 40);
        tree.repay(30);
        assert_eq!((tree.headroom.charged(), tree.root.charged()), (10, 30));
        tree.repay(10);
        assert_eq!(tree.overdrawn(), 0);
    }

    /// Pitfall 3: subtract, then test, lets others in while a refused request
    /// is being taken back.
    #[test]
    fn racing_charges_never_pass_the_limit() {
        let tree = Tree::new(1000, 0);
        tree.tiers[0].set_limit(900);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..20_000u64 {
                        let bytes = round % 300 + 1;
                        if tree.charge(0, bytes, Reach::Limits).is_ok() {
                            assert!(tree.tiers[0].charged() <= 900);
                            assert!(tree.root.charged() <= 1000);
                            tree.refund(0, bytes);
                        }
                    }
                });
            }
        });
        assert_eq!(tree.tiers[0].charged(), 0);
        assert_eq!(tree.root.charged(), 0);
        tree.charge(0, 900, Reach::Limits).unwrap();
    }
}
