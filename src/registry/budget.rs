//! One budget, and the arithmetic between a client's charge and what the
//! budgets above it hold. [`tree`](super::tree) puts them together.
//!
//! # Orderings
//! Every update is one read-modify-write of one word, whose modification order
//! alone decides who got the last bytes, and the words publish no other memory:
//! `Relaxed`, but for the two that must be seen in order. A refusal is certain
//! if no charge that was taken back can have caused it; so whoever finds one in
//! `charged` must find it in `tentative`, too. Raised, `charged` is stored with
//! `Release` and loaded with `Acquire`: what is seen in it had begun. `tentative`
//! ends with `Release` and begins with `Acquire`: what has ended is gone from
//! `charged`.

use crate::sync::{AtomicU8, AtomicU64, Ordering};

/// "No limit" as a number.
pub(crate) const UNLIMITED: u64 = u64::MAX;

/// Tiers that one memory can have, the three subscription tiers included.
pub(crate) const MAX_TIERS: usize = 32;

/// The most bytes a thread draws ahead of its needs at first.
pub(crate) const FIRST_BATCH_BYTES: u64 = 64 * 1024;

/// The most that it draws ahead at all.
const MAX_BATCH_BYTES: u64 = 1024 * 1024;

/// A batch should cover several large blocks.
const LARGE_BLOCKS: u64 = 32;

/// How much to draw ahead for blocks of about `size` bytes when `room` bytes
/// are left: less and less towards the limit, so that the last bytes are
/// handed out exactly. A thread that left a window of `window` bytes has moved
/// half as much since it was placed, and gets twice the batch that it had then:
/// what it may hold unused is of the order of what it moves.
pub(crate) fn batch(room: u64, size: u64, window: u64) -> u64 {
    let wanted = size.saturating_mul(LARGE_BLOCKS).max(window);
    (room / 64).min(wanted.clamp(FIRST_BATCH_BYTES, MAX_BATCH_BYTES))
}

/// What the ancestors hold for a client with this guarantee and charge.
pub(crate) fn held(guarantee: u64, charged: u64) -> u64 {
    guarantee.max(charged)
}

/// How much more the ancestors must hold when `charged` grows to `grown`.
pub(crate) fn lifted(guarantee: u64, charged: u64, grown: u64) -> u64 {
    held(guarantee, grown) - held(guarantee, charged)
}

/// Which budget said no.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum BudgetNode {
    /// A request budget inside a client: [`Client::budget`](crate::Client::budget).
    Request,
    /// The client's own `max`.
    Client,
    /// The aggregate limit of the client's tier.
    Tier,
    /// The usable part of the memory.
    Memory,
    /// The client has been removed; nothing new may be charged to it.
    Removed,
}

/// One budget's answer to a charge that did not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    pub(crate) node: BudgetNode,
    pub(crate) requested: u64,
    pub(crate) charged: u64,
    pub(crate) limit: u64,
}

impl Refusal {
    /// The refusal as the caller is to see it, whose request of `size` bytes
    /// was to use up a credit first that the client is charged already.
    pub(crate) fn of_request(self, size: u64, credit: u64) -> Refusal {
        let own = matches!(self.node, BudgetNode::Client | BudgetNode::Request);
        Refusal {
            requested: size,
            charged: self.charged.saturating_sub(if own { credit } else { 0 }),
            ..self
        }
    }
}

/// How far a charge may reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// Within every limit.
    Limits,
    /// Past the request budgets, within the limits of client, tier and memory.
    PastRequests,
    /// Within the client's own limits, out of the memory's headroom: for what
    /// clients of lower tiers have borrowed and are to give back.
    Ahead,
    /// Past the limits, out of the memory's headroom.
    Headroom,
    /// Granted whatever the limits say (an observed client).
    Observed,
}

/// A budget that many threads charge at once.
#[repr(align(128))]
pub(crate) struct Node {
    charged: AtomicU64,
    limit: AtomicU64,
    /// Charges that passed this node and may still be taken back because an
    /// ancestor refuses: `begun << 32 | open`.
    pub(super) tentative: AtomicU64,
    /// A tier's: the guarantees of its clients, part of `charged`.
    pub(super) guaranteed: AtomicU64,
    /// A tier's: the overdrafts of its clients, no part of `charged`.
    pub(super) owed: AtomicU64,
    /// A tier's: the higher, the later it gives way.
    precedence: AtomicU8,
}

pub(super) const BEGUN: u64 = 1 << 32;
pub(super) const OPEN_MASK: u64 = BEGUN - 1;

impl Node {
    pub(crate) const fn new(limit: u64) -> Node {
        Node {
            charged: AtomicU64::new(0),
            limit: AtomicU64::new(limit),
            tentative: AtomicU64::new(0),
            guaranteed: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            precedence: AtomicU8::new(0),
        }
    }

    pub(crate) fn charged(&self) -> u64 {
        self.charged.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    pub(crate) fn precedence(&self) -> u8 {
        self.precedence.load(Ordering::Relaxed)
    }

    pub(crate) fn set_precedence(&self, precedence: u8) {
        self.precedence.store(precedence, Ordering::Relaxed);
    }

    /// What a tier's clients have beyond their guarantees.
    pub(crate) fn borrowed(&self) -> u64 {
        let guaranteed = self.guaranteed.load(Ordering::Relaxed);
        self.charged().saturating_sub(guaranteed)
    }

    /// What a tier's clients were lent.
    pub(crate) fn owed(&self) -> u64 {
        self.owed.load(Ordering::Relaxed)
    }

    pub(super) fn room(&self) -> u64 {
        self.limit().saturating_sub(self.charged())
    }

    /// Adds `bytes` if they fit, by compare-and-swap: never subtract and test.
    pub(super) fn charge(&self, bytes: u64) -> Result<(), (u64, u64)> {
        self.charge_below(self.limit(), bytes)
    }

    pub(super) fn charge_below(&self, limit: u64, bytes: u64) -> Result<(), (u64, u64)> {
        let mut charged = self.charged.load(Ordering::Acquire);
        loop {
            let Some(grown) = charged.checked_add(bytes).filter(|&grown| grown <= limit) else {
                return Err((charged, limit));
            };
            match self.charged.compare_exchange_weak(
                charged,
                grown,
                Ordering::Release,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => charged = now,
            }
        }
    }

    pub(super) fn force(&self, bytes: u64) {
        self.charged.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn refund(&self, bytes: u64) {
        let before = self.charged.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "refunded {bytes} of {before} charged");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_shrinks_with_the_room_to_nothing() {
        assert_eq!(batch(UNLIMITED, 8, 0), FIRST_BATCH_BYTES);
        assert_eq!(batch(64 * FIRST_BATCH_BYTES, 8, 0), FIRST_BATCH_BYTES);
        for (size, window) in [(8, 0), (8, UNLIMITED), (UNLIMITED, 0)] {
            assert_eq!(batch(6400, size, window), 100);
            assert_eq!(batch(63, size, window), 0);
            assert_eq!(batch(0, size, window), 0);
        }
        assert_eq!(batch(UNLIMITED, UNLIMITED, 0), MAX_BATCH_BYTES);
        assert_eq!(batch(UNLIMITED, 8, 200_000), 200_000);
        assert_eq!(batch(UNLIMITED, 8, UNLIMITED), MAX_BATCH_BYTES);
    }

    #[test]
    fn a_charge_within_the_guarantee_lifts_nothing() {
        assert_eq!(lifted(100, 0, 100), 0);
        assert_eq!(lifted(100, 40, 140), 40);
        assert_eq!(lifted(100, 140, 150), 10);
        assert_eq!(lifted(0, 10, 30), 20);
    }
}
