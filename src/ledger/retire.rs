//! The end of a client: removal, and the reuse of its slot.
//!
//! A removed client is *retired* until its last byte is freed and its last
//! scope left. Nothing tells when that is (a free costs nothing extra), so the
//! slot is looked at now and then; see [`try_close`].

use super::fork::Cold;
use super::{reading, revoke, thread};
use crate::registry::REGISTRY;
use crate::registry::events::EventKind;
use crate::registry::slot::{Locked, Slot, State};
use crate::registry::tree::Tree;
use crate::sys;

/// Ends new charges to the client of `generation`. `false`: it was removed
/// before.
pub(crate) fn retire(slot: &'static Slot, generation: u32) -> bool {
    let _cold = Cold::enter(thread::attached());
    let mut locked = slot.lock();
    if !slot.is_active(generation) {
        return false;
    }
    locked.retire();
    locked.record(EventKind::Retired, locked.figures());
    revoke::for_removal(&mut locked);
    let tree = locked.share_tree().filter(|_| slot.has_children());
    drop(locked);
    if let Some(tree) = tree {
        // Its request budgets: without credit their charges come to where the
        // removal is seen.
        revoke::within_tree(&tree, 0, |other| other.is_within(slot));
    }
    true
}

/// Ends a request budget. Costs no fence: scopes of it may stay open, and go
/// on within the client's limits.
pub(crate) fn end_budget(slot: &'static Slot, generation: u32) {
    let _cold = Cold::enter(thread::attached());
    let mut locked = slot.lock();
    if !slot.is_active(generation) {
        return;
    }
    locked.end_budget();
    let tree = locked.share_tree();
    drop(locked);
    if let Some(tree) = tree {
        tree.ended.lock().push(slot);
    }
}

/// How many request budgets have ended and are not closed.
pub(crate) fn ended(tree: &Tree) -> usize {
    let _cold = Cold::enter(thread::attached());
    tree.ended.lock().len()
}

/// Takes one of them, to close it or to keep it elsewhere.
pub(crate) fn take_ended(tree: &Tree) -> Option<&'static Slot> {
    let _cold = Cold::enter(thread::attached());
    tree.ended.lock().pop()
}

/// Closes up to `most` ended request budgets of which nothing is left.
pub(crate) fn sweep_ended(tree: &Tree, most: usize) {
    let _cold = Cold::enter(thread::attached());
    for _ in 0..most {
        let Some(slot) = tree.ended.lock().pop() else {
            return;
        };
        if !try_close(slot, slot.generation()) {
            tree.ended.lock().push(slot);
        }
    }
}

/// Frees the slot of a retired client or an ended request budget if nothing of
/// it is left. `true`: it is free, or belongs to somebody else by now.
///
/// Frees may go on while the accounts are added up. They only lower the sum,
/// which never was below zero: zero means that nothing lives.
pub(crate) fn try_close(slot: &'static Slot, generation: u32) -> bool {
    let cold = Cold::enter(thread::attached());
    let mut locked = slot.lock();
    if slot.generation() != generation || slot.state() != State::Retired {
        return true;
    }
    let is_empty = |locked: &Locked| {
        let threads = reading::accounts(slot);
        let live = slot.settled().plus(threads).net;
        let used = live != 0 || locked.is_held() || revoke::is_entered(locked);
        (!used).then_some(threads)
    };
    if is_empty(&locked).is_none() {
        return false;
    }
    if !sys::heavy_fence_available() && revoke::has_accounts(&locked) {
        // Nothing tells whether their owners have seen the removal: the slot
        // is closed when their threads have ended.
        return false;
    }
    if slot.parent().is_some() {
        revoke::for_removal(&mut locked);
    } else {
        revoke::reclaim_barred(&mut locked);
    }
    // Once more: a scope of a request budget could be entered until now.
    let Some(threads) = is_empty(&locked).filter(|_| slot.charged() == 0) else {
        return false;
    };
    locked.record(EventKind::Closed, locked.figures());
    let (name, tree) = locked.close(threads);
    drop(locked);
    REGISTRY.release(slot);
    drop(cold);
    // The name and perhaps the tree go back to the heap, under no lock.
    drop((name, tree));
    true
}
