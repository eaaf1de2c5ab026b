//! Admits a charge exactly, or refuses it and changes nothing: draws credit,
//! takes back what others do not use, lends where the enforcement says so.
//!
//! Lock order: `Tree::revoking` before any slot's lock; a request budget's
//! before that of what it is part of, and no other two; the inner allocator is
//! never called under any of them.

use super::account::{Account, WIDEST};
use super::fork::Cold;
use super::revoke;
use super::sampling;
use super::settle::settle_unattributed;
use super::thread;
use crate::registry::Enforcement;
use crate::registry::budget::{BudgetNode, Reach, Refusal, batch};
use crate::registry::events::EventKind;
use crate::registry::slot::{Locked, Slot, State, Totals};
use crate::registry::tree::Tree;
use crate::sync::{Ordering, bound};
use crate::sys;
use crate::unwind;
use core::ptr;
use std::sync::Arc;

/// How often a charge goes back to take credit from others before it accepts
/// a refusal by a tier or a memory.
const ROUNDS: usize = bound(64, 16);

/// A request waits to try again; see [`Tree::waiting`].
struct Waiting(Arc<Tree>);

impl Waiting {
    fn begin(tree: Arc<Tree>) -> Waiting {
        // Before the walk that takes credit back: whoever draws credit after
        // that walk has passed its slot's lock sees this.
        tree.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(tree)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The largest request that is looked at: more than any address space holds,
/// and far enough from the ends of the counters that no sum reaches them.
pub(super) const LARGEST_BYTES: u64 = 1 << 60;

/// What kind of charge asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// A new block, for code that may not be able to fail.
    Block,
    /// A block that exists grows, whoever is current.
    Growth,
    /// A new block, for a caller that gets an error with its figures.
    Fallible,
    /// A block that exists grows, or comes back from where it was not charged,
    /// for such a caller.
    Return,
}

impl Asks {
    pub(super) fn is_new_block(self) -> bool {
        matches!(self, Asks::Block | Asks::Fallible)
    }

    /// Whether the caller can do without: then nothing is lent to it.
    pub(super) fn can_fail(self) -> bool {
        matches!(self, Asks::Fallible | Asks::Return)
    }
}

/// Admits a charge of `size` bytes exactly, or refuses it and changes nothing.
pub(super) fn admit(
    slot: &'static Slot,
    account: Option<&Account>,
    size: u64,
    asks: Asks,
) -> Result<(), Refusal> {
    if size > LARGEST_BYTES {
        let refusal = Refusal {
            node: BudgetNode::Client,
            requested: size,
            charged: slot.charged(),
            limit: slot.limits().max,
        };
        return Err(refused(&slot.lock(), asks, refusal));
    }
    if slot.is_unattributed() {
        settle_unattributed(account, size, u64::from(asks.is_new_block()));
        return Ok(());
    }
    let mut waiting = None;
    let mut found_nothing = false;
    for round in 1.. {
        let mut locked = slot.lock();
        if asks.is_new_block() && !takes_new_blocks(slot) {
            let refusal = Refusal {
                node: BudgetNode::Removed,
                requested: size,
                charged: slot.charged(),
                limit: 0,
            };
            // Other clients' requests go on, charged to nobody.
            return Err(match slot.limits().enforcement {
                Enforcement::Strict => refused(&locked, asks, refusal),
                _ => refusal,
            });
        }
        let refusal = match try_admit(&mut locked, account, size, asks, Reach::Limits) {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        let by_itself = matches!(refusal.node, BudgetNode::Client | BudgetNode::Request);
        if by_itself && size > refusal.limit {
            // What can never fit disturbs nobody.
        } else if by_itself && slot.parent().is_none() && !slot.has_children() {
            if revoke::within_client(&mut locked, account, size)
                && try_admit(&mut locked, account, size, asks, Reach::Limits).is_ok()
            {
                return Ok(());
            }
        } else if round < ROUNDS {
            // Credit of other slots may be in the way: of the request budgets
            // of the same client, or of other clients.
            if waiting.is_none() {
                waiting = locked.share_tree().map(Waiting::begin);
            }
            drop(locked);
            let client = slot.client();
            let family = |other: &'static Slot| !by_itself || ptr::eq(other.client(), client);
            let missing = (refusal.charged + refusal.requested).saturating_sub(refusal.limit);
            let returned = waiting
                .as_ref()
                .is_some_and(|Waiting(tree)| revoke::within_tree(tree, missing, family));
            // What was found may be another's by now, and what was not may
            // have been taken back by another: once more.
            if returned || !found_nothing {
                found_nothing = !returned;
                continue;
            }
            locked = slot.lock();
            if asks.is_new_block() && !takes_new_blocks(slot) {
                continue;
            }
            if try_admit(&mut locked, account, size, asks, Reach::Limits).is_ok() {
                return Ok(());
            }
        }
        if refusal.node == BudgetNode::Memory && try_ahead(&mut locked, account, size, asks) {
            return Ok(());
        }
        return beyond(&mut locked, account, size, asks, refusal);
    }
    unreachable!("the last round returns")
}

/// Lends a client that is within its own limits what lower tiers have borrowed,
/// out of the headroom, and calls the reclaimer to get it back from them.
fn try_ahead(locked: &mut Locked, account: Option<&Account>, size: u64, asks: Asks) -> bool {
    let tier = locked.slot().tier();
    if locked
        .tree()
        .is_none_or(|tree| tree.borrowed_below(tier) < size)
    {
        return false;
    }
    let admitted = try_admit(locked, account, size, asks, Reach::Ahead).is_ok();
    if let Some(tree) = locked.tree() {
        let refused = if admitted { 0 } else { size };
        let precedence = tree.tiers[tier].precedence();
        let client = locked.slot().client().index();
        tree.short.note(client, precedence, refused);
        tree.bell.alarm();
    }
    admitted
}

/// Whether new blocks may be charged to the slot. A request budget that has
/// ended takes them for as long as its client does: scopes of it may be open.
fn takes_new_blocks(slot: &'static Slot) -> bool {
    slot.client().state() == State::Active
}

/// The place where a tier's enforcement decides about a request that does not
/// fit its budgets.
fn beyond(
    locked: &mut Locked,
    account: Option<&Account>,
    size: u64,
    asks: Asks,
    refusal: Refusal,
) -> Result<(), Refusal> {
    match locked.slot().limits().enforcement {
        Enforcement::Strict => refuse_or_spare(locked, account, size, asks, refusal),
        Enforcement::Graceful if asks.can_fail() => Err(refused(locked, asks, refusal)),
        Enforcement::Graceful => {
            let client = locked.slot().client();
            let slot = locked.slot();
            let is_over = || client.overdrawn() > 0 || slot.is_over_budget();
            let was_over = is_over();
            // What others hold and do not use is no reason to overdraw.
            revoke::unused_of_others(locked, account);
            let past_request = refusal.node == BudgetNode::Request
                && try_admit(locked, account, size, asks, Reach::PastRequests).is_ok();
            if !past_request && try_admit(locked, account, size, asks, Reach::Headroom).is_err() {
                return refuse_or_spare(locked, account, size, asks, refusal);
            }
            if !was_over && is_over() {
                locked.record(EventKind::Overdraft, refusal);
            }
            Ok(())
        }
        Enforcement::Observe => {
            locked.slot().count_observed();
            locked.record(EventKind::Observed, refusal);
            try_admit(locked, account, size, asks, Reach::Observed)
        }
    }
}

/// The refusal, unless the thread is panicking. A panic allocates: its message,
/// its backtrace, what destructors do; refused, it would end the process, or
/// wait for ever for the lock that backtraces are printed under. So new blocks
/// are then charged to nobody (`grant::charge_cold`), and growth is granted.
fn refuse_or_spare(
    locked: &mut Locked,
    account: Option<&Account>,
    size: u64,
    asks: Asks,
    refusal: Refusal,
) -> Result<(), Refusal> {
    match asks {
        Asks::Growth if unwind::must_not_refuse() => {
            try_admit(locked, account, size, asks, Reach::Observed)
        }
        Asks::Block if unwind::must_not_refuse() => Err(refusal),
        _ => Err(refused(locked, asks, refusal)),
    }
}

/// Counts a refusal, unless the caller can fail: it may try again first, and
/// counts the last one itself ([`count_refusal`]).
fn refused(locked: &Locked, asks: Asks, refusal: Refusal) -> Refusal {
    if asks.can_fail() {
        refusal
    } else {
        locked.refuse(refusal)
    }
}

/// Counts a refusal that `grant::charge_block` and its like have answered, and
/// that is the caller's last word.
pub(crate) fn count_refusal(slot: &'static Slot, refusal: Refusal) -> Refusal {
    let _cold = Cold::enter(thread::attached());
    let is_gone = refusal.node == BudgetNode::Removed;
    if is_gone && slot.limits().enforcement != Enforcement::Strict {
        return refusal;
    }
    slot.lock().refuse(refusal)
}

/// One attempt: uses the account's credit, charges the rest, and ahead of need
/// as much as the room allows.
fn try_admit(
    locked: &mut Locked,
    account: Option<&Account>,
    size: u64,
    asks: Asks,
    reach: Reach,
) -> Result<(), Refusal> {
    let slot = locked.slot();
    let blocks = u64::from(asks.is_new_block());
    let Some(account) = account else {
        locked.charge(size, None, reach)?;
        slot.settle(Totals {
            net: size as i64,
            allocated: size,
            allocs: blocks,
            frees: 0,
        });
        return Ok(());
    };
    let mut credit = account.credit().max(0) as u64;
    if credit > 0 && locked.is_over_limits() {
        // A limit was lowered: what was drawn under the old one is not used.
        locked.refund(credit);
        account.place(account.net(), 0, 0);
        credit = 0;
    }
    let net = account.net() + size as i64;
    let may_keep = may_keep_credit(locked, account);
    let mut left = if credit >= size {
        credit - size
    } else {
        let rest = size - credit;
        let ahead = may_keep.then(|| u64::from(account.window()));
        let charged = locked.charge(rest, ahead, reach);
        charged.map_err(|refusal| refusal.of_request(size, credit))?
    };
    if !may_keep {
        locked.refund(left);
        left = 0;
    }
    place(locked, account, net, left, size, may_keep);
    account.count(size, blocks);
    Ok(())
}

/// Whether the account may hold credit: only where it could be taken back, and
/// not while somebody is taking it back.
pub(super) fn may_keep_credit(locked: &Locked, account: &Account) -> bool {
    let slot = locked.slot();
    sys::heavy_fence_available()
        && locked
            .tree()
            .is_none_or(|tree| tree.lets_keep_credit(slot.tier()))
        && slot.state() == State::Active
        && slot.client().state() == State::Active
        && !account.is_barred()
}

/// Moves the account's window: `credit` bytes for charges, and as much for
/// frees as the room allows, before the cold path looks again.
pub(super) fn place(
    locked: &Locked,
    account: &Account,
    net: i64,
    credit: u64,
    size: u64,
    may_keep: bool,
) {
    let frees = if may_keep {
        batch(locked.room(), size, u64::from(account.window()))
    } else {
        0
    };
    // Credit and batch are below 2 MiB but for what a large window held.
    let window = (credit + frees).min(u64::from(WIDEST)) as u32;
    account.place(net, credit, window);
    if sampling::watches(locked.slot()) {
        account.watch();
    }
}
