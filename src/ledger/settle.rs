//! The cold path of a free, and of accounts that begin and end: returns credit
//! and moves what accounts have counted to the client's totals. The locks are
//! those of [`admit`](super::admit), in the same order.

use super::account::Account;
use super::admit::{may_keep_credit, place};
use super::fork::Cold;
use super::revoke;
use super::sampling;
use super::table::Table;
use super::thread;
use crate::owner::Tag;
use crate::registry::REGISTRY;
use crate::registry::budget::batch;
use crate::registry::slot::{Locked, NO_GENERATION, Slot, State, Totals};
use crate::registry::tree::Tree;
use crate::unwind;

/// Gives back what `grant::charge_block` or `grant::restore_block` took.
/// `blocks` is 1 if the block ends, 0 if only its bytes go elsewhere.
pub(crate) fn refund_block(slot: &'static Slot, size: u64, blocks: u64) {
    let _cold = Cold::enter(thread::attached());
    let mut locked = slot.lock();
    locked.refund(size);
    locked.add_block_bytes(-(size as i64));
    slot.settle(Totals {
        net: -(size as i64),
        frees: blocks,
        ..Totals::default()
    });
}

/// Counts a block that is not charged at the moment for its new owner.
pub(crate) fn pass_block(from: &'static Slot, to: &'static Slot) {
    let _cold = Cold::enter(thread::attached());
    from.settle(Totals {
        frees: 1,
        ..Totals::default()
    });
    to.settle(Totals {
        allocs: 1,
        ..Totals::default()
    });
}

/// Books a refund of `size` bytes that took the account below its floor: keeps
/// a batch of credit, gives the rest back to the client's budget.
#[cold]
#[inline(never)]
pub(crate) fn refund_cold(account: &Account, size: u64) {
    let Some(slot) = account.tag().index().and_then(|index| REGISTRY.slot(index)) else {
        return;
    };
    let _cold = Cold::enter(thread::own_table());
    give_back(&mut slot.lock(), account, size);
}

fn give_back(locked: &mut Locked, account: &Account, size: u64) {
    let credit = account.credit().max(0) as u64;
    let may_keep = may_keep_credit(locked, account);
    let keep = if may_keep {
        batch(locked.room(), size, u64::from(account.window())).min(credit)
    } else {
        0
    };
    locked.refund(credit - keep);
    place(locked, account, account.net(), keep, size, may_keep);
}

/// Refunds a block, or part of one, of a client for which the calling thread
/// has no account at hand.
#[cold]
#[inline(never)]
pub(crate) fn refund_elsewhere(slot: &'static Slot, size: u64, blocks: u64) {
    if let Some(account) = thread::account_for(slot) {
        let above = if blocks == 0 {
            account.lower(size)
        } else {
            account.refund(size)
        };
        if !above {
            refund_cold(account, size);
        }
        return;
    }
    let _cold = Cold::enter(thread::own_table());
    settle_tableless(slot.tag(), -(size as i64), 0, blocks);
}

/// Undoes a charge for which the inner allocator had no memory. `blocks` is 1
/// for a new block, 0 for growth; without growth there is nothing to undo but
/// the memory of an earlier refusal.
#[cold]
#[inline(never)]
pub(crate) fn undo(tag: Tag, size: u64, blocks: u64) {
    unwind::forget_refusal();
    if size == 0 {
        return;
    }
    let tag = if blocks == 0 {
        sampling::plain(tag)
    } else {
        sampling::freed(tag)
    };
    let Some(slot) = tag.index().and_then(|index| REGISTRY.slot(index)) else {
        return;
    };
    if let Some(account) = thread::account_for(slot) {
        if !account.undo(size, blocks) {
            refund_cold(account, size);
        }
        return;
    }
    let _cold = Cold::enter(thread::own_table());
    let mut locked = slot.lock();
    if !slot.is_unattributed() {
        locked.refund(size);
    }
    slot.settle(
        Totals {
            net: size as i64,
            allocated: size,
            allocs: blocks,
            frees: 0,
        }
        .negated(),
    );
}

/// Books `net` bytes of a client without an account. For a charge the budget
/// has been asked before; a refund is given back here.
fn settle_tableless(tag: Tag, net: i64, allocs: u64, frees: u64) {
    let Some(slot) = tag.index().and_then(|index| REGISTRY.slot(index)) else {
        return;
    };
    let totals = Totals {
        net,
        allocated: net.max(0) as u64,
        allocs,
        frees,
    };
    if slot.is_unattributed() {
        slot.settle(totals);
        return;
    }
    let mut locked = slot.lock();
    if net < 0 {
        locked.refund(net.unsigned_abs());
    }
    slot.settle(totals);
}

/// Charges `size` bytes to nobody. `blocks` is 1 for a new block, 0 for growth.
pub(super) fn settle_unattributed(account: Option<&Account>, size: u64, blocks: u64) {
    if let Some(account) = account {
        // Its ceiling was low for a profile, which may be over.
        account.charge_unbound(size, blocks);
        if let Some(slot) = REGISTRY.slot(0).filter(|slot| !sampling::watches(slot)) {
            let _locked = slot.lock();
            if !sampling::watches(slot) {
                account.unbind();
            }
        }
        return;
    }
    settle_tableless(thread::UNATTRIBUTED, size as i64, blocks, 0);
}

/// Returns the unused credit of all threads to the client's budget, so that
/// `charged` is what lives.
pub(crate) fn collect(locked: &mut Locked) {
    revoke::all_of_client(locked);
}

/// As [`collect`], for a client and the request budgets below it, whose locks
/// are taken one by one.
pub(crate) fn collect_with_budgets(slot: &'static Slot) {
    let _cold = Cold::enter(thread::attached());
    let mut locked = slot.lock();
    revoke::all_of_client(&mut locked);
    let tree = locked.share_tree().filter(|_| slot.has_children());
    drop(locked);
    if let Some(tree) = tree {
        revoke::within_tree(&tree, 0, |other| other.is_within(slot));
    }
}

/// As [`collect`], for all clients of a memory. The caller holds no slot's
/// lock. Answers whether anything came back.
pub(crate) fn collect_all(tree: &Tree) -> bool {
    let _cold = Cold::enter(thread::attached());
    revoke::within_tree(tree, 0, |_| true)
}

/// Opens an account of the calling thread for a client, evicting another if
/// there is no place. `None`: scopes hold all places.
#[cold]
#[inline(never)]
pub(crate) fn open_account<'a>(table: &'static Table, slot: &'static Slot) -> Option<&'a Account> {
    let _cold = Cold::enter(Some(table));
    let (place, account) = table.place_for(slot.tag())?;
    if table.is_used_at(place) {
        settle_account(table, place, account);
    }
    let locked = slot.lock();
    let generation = match slot.state() {
        State::Active => slot.generation(),
        _ => NO_GENERATION,
    };
    account.claim(slot.tag(), generation);
    table.set_used(place, true);
    drop(locked);
    Some(account)
}

/// Moves what an account holds to its client's totals and makes it unused.
fn settle_account(table: &Table, place: usize, account: &Account) {
    let Some(slot) = account.tag().index().and_then(|index| REGISTRY.slot(index)) else {
        return;
    };
    let mut locked = slot.lock();
    if !slot.is_unattributed() {
        locked.refund(account.credit().max(0) as u64);
    }
    slot.settle(account.totals());
    account.clear();
    table.set_used(place, false);
}

/// Settles all accounts of a table whose owner is gone or going.
pub(crate) fn settle_table(table: &Table) {
    for (place, account) in table.accounts() {
        settle_account(table, place, account);
    }
}
