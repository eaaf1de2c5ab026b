//! The cold path between accounts and budgets: draws credit, returns it,
//! admits a request or refuses it, opens and settles accounts.
//!
//! Lock order: `Tree::revoking` before any slot's lock; a request budget's
//! before that of what it is part of, and no other two; the inner allocator is
//! never called under any of them.

use super::account::{Account, WIDEST};
use super::fork::Cold;
use super::revoke;
use super::sampling;
use super::table::Table;
use super::thread;
use crate::owner::{Tag, corrupted};
use crate::registry::budget::{BudgetNode, Reach, Refusal, Tree, batch};
use crate::registry::events::EventKind;
use crate::registry::slot::{Locked, NO_GENERATION, Slot, State, Totals};
use crate::registry::{Enforcement, REGISTRY};
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
const LARGEST_BYTES: u64 = 1 << 60;

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

/// What kind of charge asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
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
    fn is_new_block(self) -> bool {
        matches!(self, Asks::Block | Asks::Fallible)
    }

    /// Whether the caller can do without: then nothing is lent to it.
    fn can_fail(self) -> bool {
        matches!(self, Asks::Fallible | Asks::Return)
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
    settle_unattributed(account, size, Asks::Block);
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

/// Gives back what [`charge_block`] or [`restore_block`] took. `blocks` is 1
/// if the block ends, 0 if only its bytes go elsewhere.
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

/// Admits a charge of `size` bytes exactly, or refuses it and changes nothing.
fn admit(
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
        settle_unattributed(account, size, asks);
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
/// are then charged to nobody (see [`charge_cold`]), and growth is granted.
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

/// Counts a refusal that [`charge_block`] and its like have answered, and that
/// is the caller's last word.
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
fn may_keep_credit(locked: &Locked, account: &Account) -> bool {
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
fn place(locked: &Locked, account: &Account, net: i64, credit: u64, size: u64, may_keep: bool) {
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

fn settle_unattributed(account: Option<&Account>, size: u64, asks: Asks) {
    let blocks = u64::from(asks.is_new_block());
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
