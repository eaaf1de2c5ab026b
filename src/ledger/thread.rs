//! The calling thread: its current account, its table, its open scopes.
//!
//! A thread goes through these states:
//!
//! ```text
//! fresh --first allocation--> attached (has a table) --thread exit--> detached
//!   \--no table to be had---------------------------------------------^
//! ```
//!
//! A *detached* thread works on, without accounts: every call goes to the cold
//! path and settles with the client's shared totals. So the heap works before
//! `main`, in thread-local destructors and after the thread's exit hook. The
//! thread-local is `const`-initialised and has no destructor: access is a
//! plain load that always works (`std::thread::LocalKey` would panic after a
//! destructor has run).

use super::account::Account;
use super::fork;
use super::sampling;
use super::settle;
use super::table::{self, Table};
use crate::owner::Tag;
use crate::registry::REGISTRY;
use crate::registry::slot::Slot;
use crate::sync::{light_fence, thread_local};
use crate::sys;
use core::cell::Cell;
use core::ptr;

/// Client 0.
pub(crate) const UNATTRIBUTED: Tag = Tag::of(0);

/// What every thread points to first. Its ceiling sends the first call to the
/// cold path, which gives the thread accounts of its own.
static FRESH: Account = Account::nobody();

/// How deep scopes may nest and still be left in any order.
const REMEMBERED: usize = 32;

/// Set in a thread's `moment` while it charges no account, or while `ended` is
/// not 0: then scopes are entered and left the long way.
const IRREGULAR: u64 = 1 << 63;

/// Set in the `moment` of a scope that was entered the long way. No thread's
/// has it, so the short way out, which looks for the moment after, is barred.
const ENTERED_IRREGULARLY: u64 = 1 << 62;

/// What a scope charges, in one word: a pointer to an account (even), or twice
/// a client's tag plus one if the thread has no account for it, or
/// [`Charged::ENDED`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Charged(*const Account);

pub(crate) struct Thread {
    current: Cell<*const Account>,
    table: Cell<Option<&'static Table>>,
    /// `epoch << 32 | depth`: how many scopes are open, in one word with a
    /// number that grows when the thread loses its table. Scopes from before
    /// are void then. And [`IRREGULAR`].
    moment: Cell<u64>,
    /// Scopes among `scopes` that ended before one inside them did, and one
    /// more if `disordered`.
    ended: Cell<u32>,
    /// The client of a thread that charges without an account.
    tableless: Cell<Tag>,
    attached_once: Cell<bool>,
    /// The allocation in progress is for a caller that can fail.
    fallible: Cell<bool>,
    /// Whether a scope too deep to be remembered was left before one inside it.
    disordered: Cell<bool>,
    scopes: [Cell<Charged>; REMEMBERED],
    /// Current while the thread has no account for its client.
    nobody: Account,
}

thread_local! {
    static THREAD: Thread = const {
        Thread {
            current: Cell::new(&raw const FRESH),
            table: Cell::new(None),
            moment: Cell::new(0),
            ended: Cell::new(0),
            tableless: Cell::new(UNATTRIBUTED),
            attached_once: Cell::new(false),
            fallible: Cell::new(false),
            disordered: Cell::new(false),
            scopes: [const { Cell::new(Charged::ENDED) }; REMEMBERED],
            nobody: Account::nobody(),
        }
    };
}

/// What belongs to the calling thread. The reference must not leave it.
#[inline(always)]
fn this<'a>() -> &'a Thread {
    // A pointer leaves the closure, for which `with` has nothing to test and
    // is inlined; what is done with it need not be.
    let thread = THREAD.with(ptr::from_ref);
    // SAFETY: the thread-local has no destructor: it is there for as long as
    // code runs on this thread.
    unsafe { &*thread }
}

/// The account that the calling thread charges. Never null, one load.
///
/// The reference must not leave the calling function: the account may be the
/// thread's own `nobody`.
#[inline(always)]
pub(crate) fn current<'a>() -> &'a Account {
    let current = this().current.get();
    // SAFETY: `current` points to `FRESH` (static), to an account of a table
    // (never unmapped) or to this thread's `nobody`, which outlives every call
    // made on this thread.
    unsafe { &*current }
}

/// The account of the calling thread whose home place bears `tag`: the inline
/// guess before [`account_for`].
#[inline(always)]
pub(crate) fn guess<'a>(tag: Tag) -> Option<&'a Account> {
    let account = this().table.get()?.home(tag);
    (account.tag() == tag).then_some(account)
}

/// The calling thread's account for the client with this tag; made if need
/// be. `None`: the thread has no table or no place for it.
pub(crate) fn account_for<'a>(slot: &'static Slot) -> Option<&'a Account> {
    let table = attached()?;
    let tag = slot.tag();
    table
        .find(tag)
        .or_else(|| settle::open_account(table, slot))
}

/// The calling thread's table, if it has one.
pub(crate) fn own_table() -> Option<&'static Table> {
    this().table.get()
}

/// The calling thread's table, made on first use.
pub(crate) fn attached() -> Option<&'static Table> {
    let thread = this();
    if !thread.attached_once.get() {
        thread.attach();
    }
    thread.table.get()
}

/// The client that the calling thread charges.
pub(crate) fn current_tag() -> Tag {
    let tag = current().tag();
    if tag != Tag::NEVER {
        return tag;
    }
    this().tableless.get()
}

/// Makes one call of the global allocator whose refusal the caller can take:
/// nothing is lent to it. The call does not unwind, as `GlobalAlloc` demands.
#[cfg(feature = "allocator-api2")]
#[inline]
pub(crate) fn fallibly<R>(call: impl FnOnce() -> R) -> R {
    let thread = this();
    thread.fallible.set(true);
    let answer = call();
    thread.fallible.set(false);
    answer
}

/// Whether a call made with `fallibly` is under way.
pub(crate) fn is_fallible() -> bool {
    this().fallible.get()
}

#[inline(always)]
fn depth_at(moment: u64) -> usize {
    moment as u32 as usize
}

fn epoch_at(moment: u64) -> u64 {
    moment >> 32
}

impl Thread {
    #[cold]
    #[inline(never)]
    fn attach(&self) {
        self.attached_once.set(true);
        // Until this is done, and for good if it fails, the thread works
        // without accounts; that also covers allocations made on the way.
        self.set_current(Charged::tableless(UNATTRIBUTED));
        self.note_regularity();
        sys::heavy_fence_available();
        fork::install();
        let _cold = fork::Cold::enter(None);
        let Some(table) = table::acquire() else {
            return;
        };
        if !sys::on_thread_exit(detach) {
            table::release(table);
            return;
        }
        let base = table.home(UNATTRIBUTED);
        base.claim_unattributed(UNATTRIBUTED);
        table.set_used(0, true);
        self.table.set(Some(table));
        light_fence();
        if sampling::is_on() {
            // Found out for certain, and undone if need be, by the first charge.
            base.watch();
        }
        self.set_current(self.base());
        self.note_regularity();
    }

    /// Brings [`IRREGULAR`] up to date; to be called last by whatever sets
    /// `current` or `ended` the long way.
    fn note_regularity(&self) {
        let nobody = ptr::eq(self.current.get(), &raw const self.nobody);
        let moment = self.moment.get() & !IRREGULAR;
        self.moment.set(if nobody || self.ended.get() != 0 {
            moment | IRREGULAR
        } else {
            moment
        });
    }

    /// What is charged outside any scope.
    fn base(&self) -> Charged {
        match self.table.get() {
            Some(table) => Charged::account(table.home(UNATTRIBUTED)),
            None => Charged::tableless(UNATTRIBUTED),
        }
    }

    fn set_current(&self, charged: Charged) {
        if charged.is_account() {
            self.current.set(charged.0);
        } else {
            self.set_tableless(charged);
        }
    }

    #[cold]
    #[inline(never)]
    fn set_tableless(&self, charged: Charged) {
        match charged.tableless_tag() {
            Some(tag) => {
                self.tableless.set(tag);
                self.current.set(&raw const self.nobody);
            }
            None => self.set_current(self.base()),
        }
    }

    /// What an attached thread charges; [`FRESH`] is behind it.
    fn now(&self) -> Charged {
        let current = self.current.get();
        debug_assert!(!ptr::eq(current, &raw const FRESH));
        if ptr::eq(current, &raw const self.nobody) {
            return Charged::tableless(self.tableless.get());
        }
        Charged(current)
    }

    /// Enters a scope that charges this account, which is pinned. The calling
    /// thread has a table, so it is attached.
    #[inline(always)]
    fn push_account(&self, account: &Account) -> Entered {
        let charged = Charged::account(account);
        let moment = self.moment.get();
        if moment & IRREGULAR != 0 {
            return self.push(charged);
        }
        let before = Charged(self.current.get());
        self.open(charged, moment);
        self.current.set(account);
        Entered {
            charged,
            before,
            moment,
        }
    }

    #[inline(always)]
    fn push(&self, charged: Charged) -> Entered {
        // Two words come back in registers; a whole `Entered` would make the
        // short way go through memory, too.
        let (before, moment) = self.push_cold(charged);
        Entered {
            charged,
            before,
            moment,
        }
    }

    #[cold]
    #[inline(never)]
    fn push_cold(&self, charged: Charged) -> (Charged, u64) {
        let moment = self.moment.get() & !IRREGULAR;
        let before = self.now();
        self.open(charged, moment);
        self.set_current(charged);
        self.note_regularity();
        (before, moment | ENTERED_IRREGULARLY)
    }

    #[inline(always)]
    fn open(&self, charged: Charged, moment: u64) {
        if let Some(place) = self.scopes.get(depth_at(moment)) {
            place.set(charged);
        }
        self.moment.set(moment + 1);
    }

    #[inline(always)]
    fn pop(&self, entered: &Entered) {
        let &Entered {
            charged,
            before,
            moment,
        } = entered;
        if self.moment.get() != moment + 1 {
            return self.pop_cold(charged, before, moment);
        }
        self.moment.set(moment);
        self.current.set(before.0);
        // SAFETY: the thread's moment never has `ENTERED_IRREGULARLY`, so the
        // scope was entered by `push_account`: it charges an account, and
        // accounts lie in tables, which are never unmapped.
        unsafe { &*charged.0 }.unpin();
    }

    /// In parts, so that the short way need not put them into memory.
    #[cold]
    #[inline(never)]
    fn pop_cold(&self, charged: Charged, before: Charged, moment: u64) {
        self.moment.set(self.moment.get() & !IRREGULAR);
        self.close(&Entered {
            charged,
            before,
            moment: moment & !ENTERED_IRREGULARLY,
        });
        self.note_regularity();
    }

    fn close(&self, entered: &Entered) {
        if epoch_at(self.moment.get()) != epoch_at(entered.moment) {
            // The accounts of that time were settled when the thread lost its
            // table; only a hold on a slot is still owed.
            entered.charged.release_hold();
            return;
        }
        if self.moment.get() == entered.moment + 1 {
            self.unwind_to(entered);
        } else if let Some(place) = self.scopes.get(depth_at(entered.moment)) {
            // Left before a scope inside it was: that one goes on.
            place.set(Charged::ENDED);
            self.ended.set(self.ended.get() + 1);
        } else if !self.disordered.replace(true) {
            self.ended.set(self.ended.get() + 1);
        }
        entered.charged.unpin();
    }

    fn unwind_to(&self, entered: &Entered) {
        let mut depth = depth_at(entered.moment);
        if self.disordered.get() {
            // What was charged before may have been left by now. The innermost
            // scope that is remembered has not, or says so.
            depth = depth.min(REMEMBERED);
        }
        if depth <= REMEMBERED && self.disordered.replace(false) {
            self.ended.set(self.ended.get() - 1);
        }
        while depth > 0 && self.scopes.get(depth - 1).map(Cell::get) == Some(Charged::ENDED) {
            depth -= 1;
            self.ended.set(self.ended.get() - 1);
        }
        self.moment
            .set(epoch_at(entered.moment) << 32 | depth as u64);
        let outer = match depth {
            0 => self.base(),
            depth => self.scopes.get(depth - 1).map_or(entered.before, Cell::get),
        };
        self.set_current(outer);
    }
}

impl Charged {
    /// A scope that ended before one inside it did.
    const ENDED: Charged = Charged(ptr::null());

    #[inline(always)]
    fn account(account: &Account) -> Charged {
        Charged(account)
    }

    fn tableless(tag: Tag) -> Charged {
        Charged(ptr::without_provenance((tag.to_bits() as usize) << 1 | 1))
    }

    #[inline(always)]
    fn is_account(self) -> bool {
        self.0.addr() & 1 == 0 && self != Self::ENDED
    }

    fn tableless_tag(self) -> Option<Tag> {
        (self.0.addr() & 1 == 1).then(|| Tag::from_bits((self.0.addr() >> 1) as u32))
    }

    #[inline(always)]
    fn unpin(self) {
        if self.is_account() {
            // SAFETY: neither a tag nor `ENDED`, so it came from `account`;
            // accounts live in tables, which are never unmapped.
            unsafe { &*self.0 }.unpin();
        } else {
            self.release_hold();
        }
    }

    #[cold]
    #[inline(never)]
    fn release_hold(self) {
        if let Some(slot) = self
            .tableless_tag()
            .and_then(Tag::index)
            .and_then(|index| REGISTRY.slot(index))
        {
            slot.release();
        }
    }
}

/// A scope that the calling thread has entered; to be left on the same thread,
/// once.
#[derive(Debug)]
pub(crate) struct Entered {
    charged: Charged,
    before: Charged,
    /// When it was entered; whole words only, so that what was just stored is
    /// not loaded in another size. And [`ENTERED_IRREGULARLY`].
    moment: u64,
}

/// Charges the calling thread's allocations to the client that has `slot` in
/// `generation`, until [`leave`]. If that client was removed, to client 0.
///
/// `tag` is the slot's, so that the slot itself need not be touched.
///
/// Cost with an account at its home place: about 10 loads and stores.
#[inline]
pub(crate) fn enter(slot: &'static Slot, tag: Tag, generation: u32) -> Entered {
    let thread = this();
    if let Some(table) = thread.table.get() {
        let account = table.home(tag);
        if account.tag() == tag && account.pin(generation) {
            return thread.push_account(account);
        }
    }
    thread.push(hold_cold(slot, generation))
}

/// Keeps what a scope of this client shall charge, opening an account for it
/// if need be.
#[cold]
#[inline(never)]
fn hold_cold(slot: &'static Slot, generation: u32) -> Charged {
    if let Some(account) = account_for(slot) {
        if account.pin(generation) || (renew(account, slot, generation) && account.pin(generation))
        {
            return Charged::account(account);
        }
    } else if hold(slot, generation) {
        return Charged::tableless(slot.tag());
    }
    hold_unattributed()
}

/// Keeps the slot for a scope that has no account, or for work that has yet to
/// enter one. Under the lock, as an ended request budget may be closed at any
/// moment. To be given back with [`Slot::release`].
pub(crate) fn hold(slot: &'static Slot, generation: u32) -> bool {
    let _cold = fork::Cold::enter(own_table());
    let locked = slot.lock();
    let may_enter = slot.may_be_entered(generation);
    if may_enter {
        slot.hold();
    }
    drop(locked);
    may_enter
}

/// Lets a new generation into an account that an older one left behind.
fn renew(account: &Account, slot: &'static Slot, generation: u32) -> bool {
    let _cold = fork::Cold::enter(own_table());
    let locked = slot.lock();
    let may_enter = slot.may_be_entered(generation);
    if may_enter {
        account.admit_generation(generation);
    }
    drop(locked);
    may_enter
}

/// Charges the calling thread's allocations to nobody, until [`leave`].
pub(crate) fn enter_unattributed() -> Entered {
    let charged = hold_unattributed();
    this().push(charged)
}

fn hold_unattributed() -> Charged {
    if let Some(table) = attached() {
        let account = table.home(UNATTRIBUTED);
        account.pin(account.generation());
        return Charged::account(account);
    }
    if let Some(slot) = REGISTRY.slot(0) {
        slot.hold();
    }
    Charged::tableless(UNATTRIBUTED)
}

/// Ends a scope: the calling thread charges again what it charged before.
#[inline]
pub(crate) fn leave(entered: &Entered) {
    this().pop(entered);
}

/// The thread's exit hook: settles its accounts, leaves its table to another.
fn detach() {
    THREAD.with(|thread| {
        let Some(table) = thread.table.get() else {
            return;
        };
        thread.table.set(None);
        thread.moment.set((epoch_at(thread.moment.get()) + 1) << 32);
        thread.ended.set(0);
        thread.disordered.set(false);
        thread.set_current(Charged::tableless(UNATTRIBUTED));
        thread.note_regularity();
        let _cold = fork::Cold::enter(None);
        settle::settle_table(table);
        table::release(table);
    });
}
