//! Taking unused credit back from the accounts of running threads.
//!
//! Only when a charge would be refused. First the accounts are merely read: if
//! all credit there is could not make the charge fit, nobody is disturbed.
//! Then every account with credit is barred, one heavy fence makes sure that
//! each owner sees the bar or that its last charge is seen here, and what is
//! not in use goes back to the budget.

use super::account::Account;
use super::{sampling, table};
use crate::registry::REGISTRY;
use crate::registry::slot::{Locked, NO_GENERATION, Slot, State};
use crate::registry::tree::Tree;
use crate::sync::bound;
use crate::sys;

/// How long to wait for an owner that is between publishing a charge and
/// withdrawing it. It needs no lock for that, only to run; a thread that will
/// never run again (another one's, in a forked child) must not hold us up.
const PATIENCE: usize = bound(10_000, 100);

fn accounts_of(locked: &Locked) -> impl Iterator<Item = &'static Account> + use<> {
    let tag = locked.slot().tag();
    table::owned().filter_map(move |table| table.find(tag))
}

/// Whether `account` is the one that is to be left alone, if there is one.
fn is(account: &Account, spared: Option<&Account>) -> bool {
    spared.is_some_and(|spared| core::ptr::eq(spared, account))
}

fn await_withdrawal(account: &Account) {
    for _ in 0..PATIENCE {
        if account.credit() >= 0 {
            return;
        }
        sys::yield_now();
    }
}

/// Returns all unused credit of the client to its budget, but for `own` (the
/// caller's account, whose credit the caller uses itself), if that can make a
/// charge of `size` bytes fit. Answers whether anything came back.
pub(super) fn within_client(locked: &mut Locked, own: Option<&Account>, size: u64) -> bool {
    let own_credit = own.map_or(0, |own| own.credit().max(0) as u64);
    let others: u64 = accounts_of(locked)
        .filter(|account| !is(account, own))
        .map(unused)
        .sum();
    let max = locked.slot().limits().max;
    let spent = locked.slot().charged().saturating_sub(own_credit);
    let needed = spent.saturating_add(size);
    if others == 0 || needed.saturating_sub(others) > max {
        return false;
    }
    seize(locked, own) > 0
}

/// Returns the unused credit of all threads but the caller's, if there is any.
pub(super) fn unused_of_others(locked: &mut Locked, own: Option<&Account>) {
    if accounts_of(locked).any(|account| !is(account, own) && account.credit() != 0) {
        seize(locked, own);
    }
}

/// Returns all unused credit of the client, the calling thread's included.
pub(super) fn all_of_client(locked: &mut Locked) {
    if locked.slot().state() == State::Active {
        seize(locked, None);
    }
}

/// Bars all accounts of the client but `spared`, fences, takes what is unused
/// and lets them go on, unless the client was removed: then they stay barred.
fn seize(locked: &mut Locked, spared: Option<&Account>) -> u64 {
    let barred = |locked: &Locked| {
        accounts_of(locked).filter(|account| account.window() > 0 && !is(account, spared))
    };
    barred(locked).for_each(Account::bar);
    let fenced = sys::heavy_fence();
    let mut seized = 0;
    for account in barred(locked).filter(|_| fenced) {
        await_withdrawal(account);
        seized += account.seize();
    }
    locked.refund(seized);
    // Seizing may have closed a window; its ceiling is set again all the same.
    for account in accounts_of(locked).filter(|account| !is(account, spared)) {
        let_go(locked, account);
    }
    seized
}

/// Lets the owner of a barred account go on, unless its client was removed or
/// holds more than it may: then its next charge has to ask.
fn let_go(locked: &Locked, account: &Account) {
    if locked.slot().state() == State::Active && !locked.is_over_limits() {
        if sampling::watches(locked.slot()) {
            account.lift();
        } else {
            account.unbar();
        }
    }
}

/// Returns the unused credit of every slot of a memory that is concerned, one
/// slot at a time, if there are `missing` bytes of it. The caller holds no
/// slot's lock. Answers whether anything came back.
pub(super) fn within_tree(
    tree: &Tree,
    missing: u64,
    concerns: impl Fn(&'static Slot) -> bool,
) -> bool {
    let _revoking = tree.revoking.lock();
    if !has_credit(tree, missing, &concerns) {
        return false;
    }
    for_each_in(tree, &concerns, |_, account| {
        if account.credit() != 0 {
            account.bar();
        }
    });
    let fenced = sys::heavy_fence();
    let mut returned = false;
    for_each_in(tree, &concerns, |locked, account| {
        // An owner that came to the cold path meanwhile has moved its window
        // and lifted the bar: what it drew then is not looked at.
        if account.is_barred() {
            if fenced {
                await_withdrawal(account);
                let seized = account.seize();
                locked.refund(seized);
                returned |= seized > 0;
            }
            let_go(locked, account);
        }
    });
    returned
}

/// Whether the accounts that are concerned hold any unused credit, and at
/// least `missing` bytes. Reads only, so that a refusal disturbs nobody.
fn has_credit(tree: &Tree, missing: u64, concerns: impl Fn(&'static Slot) -> bool) -> bool {
    let mut credit = 0_u64;
    for table in table::owned() {
        for (_, account) in table.accounts() {
            let slot = account.tag().index().and_then(|index| REGISTRY.slot(index));
            if let Some(slot) = slot.filter(|slot| slot.is_in(tree) && concerns(slot)) {
                credit = credit.saturating_add(settled_credit(slot, account));
            }
        }
    }
    credit > 0 && credit >= missing
}

/// The account's unused credit, when nobody is in the middle of moving it: what
/// an owner has charged and not yet placed would be seen nowhere.
fn settled_credit(slot: &'static Slot, account: &Account) -> u64 {
    if let Some(sequence) = slot.quiet_sequence() {
        let credit = unused(account);
        if slot.unchanged_since(sequence) {
            return credit;
        }
    }
    let _locked = slot.lock();
    unused(account)
}

/// The account's unused credit. An attempt about to be withdrawn hides it;
/// there can be no more than the window. One load: the owner goes on charging.
fn unused(account: &Account) -> u64 {
    u64::try_from(account.credit()).unwrap_or_else(|_| u64::from(account.window()))
}

/// Runs `visit` for each account of a slot of `tree` that is concerned, under
/// the slot's lock. Removed clients are among them: what they free is credit,
/// too.
fn for_each_in(
    tree: &Tree,
    concerns: impl Fn(&'static Slot) -> bool,
    mut visit: impl FnMut(&mut Locked, &Account),
) {
    for table in table::owned() {
        for (_, account) in table.accounts() {
            let tag = account.tag();
            let Some(slot) = tag.index().and_then(|index| REGISTRY.slot(index)) else {
                continue;
            };
            if !slot.is_in(tree) || !concerns(slot) {
                continue;
            }
            let mut locked = slot.lock();
            let belongs = locked
                .tree()
                .is_some_and(|owned| core::ptr::eq(owned, tree));
            if belongs && account.tag() == tag {
                visit(&mut locked, account);
            }
        }
    }
}

/// Bars every account of a client that is being removed, for good, and takes
/// its unused credit back. Scopes that are still open go to the cold path.
pub(crate) fn for_removal(locked: &mut Locked) {
    for account in accounts_of(locked) {
        account.admit_generation(NO_GENERATION);
        account.bar();
    }
    // Without the fence nobody has credit, and a scope that misses the new
    // generation by a moment charges through the cold path.
    sys::heavy_fence();
    reclaim_barred(locked);
}

/// Takes the credit that frees have left in the barred accounts of a removed
/// client.
pub(crate) fn reclaim_barred(locked: &mut Locked) {
    let mut seized = 0;
    for account in accounts_of(locked) {
        await_withdrawal(account);
        seized += account.seize();
    }
    locked.refund(seized);
}

/// Whether some thread has an account of the client.
pub(crate) fn has_accounts(locked: &Locked) -> bool {
    accounts_of(locked).next().is_some()
}

/// Whether a scope of some thread still points to an account of the client.
pub(crate) fn is_entered(locked: &Locked) -> bool {
    accounts_of(locked).any(Account::is_pinned)
}
