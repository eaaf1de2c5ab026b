//! The cold path of a charge: what the allocator calls when the fast path has met
//! an account's ceiling, and what blocks are charged by. [`admit`](super::admit)
//! decides; [`settle`](super::settle) is the way back.

use super::admit::{Asks, LARGEST_BYTES, admit, count_refusal};
use super::fork::Cold;
use super::sampling;
use super::settle::settle_unattributed;
use super::thread;
use crate::owner::{Tag, corrupted};
use crate::registry::budget::{BudgetNode, Refusal};
use crate::registry::slot::Slot;
use crate::registry::{Enforcement, REGISTRY};
use crate::unwind;

/// The slot that a block's tag names, or that its sample does. Ends the process
/// if there is none.
pub(crate) fn owner(tag: Tag, address: usize, size: usize) -> &'static Slot {
    match sampling::plain(tag)
        .index()
        .and_then(|index| REGISTRY.slot(index))
    {
        Some(slot) => slot,
        None => corrupted(tag, address, size),
    }
}

/// Charges a new block of `size` bytes to the calling thread's client after
/// the fast path has met the ceiling and withdrawn. Answers the owner's tag,
/// or `None` if the client may not have it.
#[cold]
#[inline(never)]
pub(crate) fn charge_cold(size: u64) -> Option<Tag> {
    let table = thread::attached();
    let account = thread::current();
    // The first allocation of a thread: now it has accounts.
    if account.charge(size) {
        return Some(account.tag());
    }
    account.withdraw(size);
    let tag = thread::current_tag();
    let slot = REGISTRY.slot(tag.index()?)?;
    let account = (account.tag() == tag).then_some(account);
    let watched = sampling::watches(slot);
    if watched && account.is_some_and(|account| account.charge_watched(size, 1)) {
        return Some(sampling::new_block(slot, tag, size));
    }
    let cold = Cold::enter(table);
    let asks = match thread::is_fallible() {
        true => Asks::Fallible,
        false => Asks::Block,
    };
    match admit(slot, account, size, asks) {
        Ok(()) => {
            drop(cold);
            Some(sampling::new_block(slot, tag, size))
        }
        // The thread is panicking, or the client was removed while its scope is
        // still open. Code that may see a null sees one; other code must not
        // die of it.
        Err(refusal)
            if !asks.can_fail()
                && (unwind::must_not_refuse() && size <= LARGEST_BYTES
                    || refusal.node == BudgetNode::Removed
                        && slot.limits().enforcement != Enforcement::Strict) =>
        {
            charge_unattributed(size);
            let nobody = REGISTRY.slot(0)?;
            Some(sampling::new_block(nobody, thread::UNATTRIBUTED, size))
        }
        Err(refusal) => {
            note_refusal(slot, refusal, asks);
            None
        }
    }
}

/// The allocator is about to answer null.
fn note_refusal(slot: &'static Slot, refusal: Refusal, asks: Asks) {
    if asks.can_fail() {
        count_refusal(slot, refusal);
    }
    unwind::note_refusal(slot, refusal);
}

fn charge_unattributed(size: u64) {
    let account = thread::own_table().map(|table| table.home(thread::UNATTRIBUTED));
    settle_unattributed(account, size, 1);
}

/// Charges `size` more bytes to the owner of a block that grows, whose account
/// is not at hand or has met its ceiling (and withdrawn).
#[cold]
#[inline(never)]
pub(crate) fn grow_cold(slot: &'static Slot, size: u64) -> bool {
    let account = thread::account_for(slot);
    if account.is_some_and(|account| {
        let raised = account.raise(size);
        if !raised {
            account.withdraw(size);
        }
        raised
    }) {
        return true;
    }
    let watched = sampling::watches(slot);
    if watched && account.is_some_and(|account| account.charge_watched(size, 0)) {
        return true;
    }
    let _cold = Cold::enter(thread::own_table());
    let asks = match thread::is_fallible() {
        true => Asks::Return,
        false => Asks::Growth,
    };
    match admit(slot, account, size, asks) {
        Ok(()) => true,
        Err(refusal) => {
            note_refusal(slot, refusal, asks);
            false
        }
    }
}

/// Charges a block that exists to a client that has not had it, whoever is
/// current.
pub(crate) fn charge_for(slot: &'static Slot, size: u64) -> Result<(), Refusal> {
    let account = thread::account_for(slot);
    if let Some(account) = account {
        if account.charge(size) {
            return Ok(());
        }
        account.withdraw(size);
    }
    let _cold = Cold::enter(thread::own_table());
    admit(slot, account, size, Asks::Fallible).map_err(|refusal| count_refusal(slot, refusal))
}

/// Charges `size` bytes of a page-mapped block straight to the client's
/// totals: blocks come and go on any thread and live long. A refusal is not
/// counted yet.
pub(crate) fn charge_block(slot: &'static Slot, size: u64) -> Result<(), Refusal> {
    charge_block_that(Asks::Fallible, slot, size)
}

/// As [`charge_block`], for a block that exists and comes back from where its
/// bytes were not charged: a removed client's blocks may do that, too.
pub(crate) fn restore_block(slot: &'static Slot, size: u64) -> Result<(), Refusal> {
    charge_block_that(Asks::Return, slot, size)
}

fn charge_block_that(asks: Asks, slot: &'static Slot, size: u64) -> Result<(), Refusal> {
    let _cold = Cold::enter(thread::attached());
    admit(slot, None, size, asks)?;
    slot.lock().add_block_bytes(size as i64);
    Ok(())
}
