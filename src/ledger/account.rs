//! What one thread knows about one client: one balance, one ceiling.
//!
//! ```text
//!   0                 balance                    window = ceiling - 1
//!   |--------------------|--------------------------|
//!     frees move left  <-+->  allocations move right
//!   below 0: cold path      credit = window - balance     above: cold path
//! ```
//!
//! `balance` rises with every allocation and falls with every free, so a
//! thread that does both in turn never leaves the window, and never the fast
//! path. `offset` shifts the window: the thread's net bytes with the client
//! are `offset + balance`, and what it has drawn from the client's budget is
//! `granted = offset + window`. Both may be negative (a thread that frees what
//! others allocate); their difference, the unused credit, is not. The ceiling
//! is the first balance that is too high, so that 0 bars every charge. Barred
//! for real is an account whose `window` has the bit [`BARRED`]: where the heap
//! profiler watches, the ceiling is always 0, and [`Account::charge_watched`]
//! looks at the window itself.
//!
//! Access rules:
//!
//! - `balance`, `allocated`, `allocs`, `frees`, `pins`: stored by the owning
//!   thread alone, so a load and a store are as good as a read-modify-write;
//! - `offset`, `window`, `ceiling`, `generation`: stored under the slot's lock
//!   only, by the owner's cold path or a revoker; `tag`: by the owner, under
//!   the lock of the slot that it names or named;
//! - anybody may load anything.
//!
//! # Orderings
//! *Publish, then check*: [`Account::charge`] stores the new balance before it
//! loads the ceiling, with a [`light_fence`] between. A revoker stores a low
//! ceiling, issues `heavy_fence`, then loads the balance. The pair of fences
//! forbids the one bad outcome, in which the owner misses the low ceiling and
//! the revoker misses the balance (membarrier(2), "store buffering"). Every
//! single access can then be `Relaxed`. [`Account::pin`] and the withdrawal of
//! a generation work the same way.

use super::steps;
use crate::owner::Tag;
use crate::registry::slot::{NO_GENERATION, Totals};
use crate::sync::{AtomicI64, AtomicU32, AtomicU64, Ordering, light_fence, load_own_u32};

/// See the module's description. One cache line; all zero is an unused account.
#[repr(C, align(64))]
pub(crate) struct Account {
    pub(super) balance: AtomicU64,
    pub(super) ceiling: AtomicU64,
    allocated: AtomicU64,
    allocs: AtomicU64,
    frees: AtomicU64,
    offset: AtomicI64,
    tag: AtomicU32,
    generation: AtomicU32,
    window: AtomicU32,
    pins: AtomicU32,
}

const _: () = assert!(size_of::<Account>() == 64);

/// Set in `window` while a revoker bars the account.
const BARRED: u32 = 1 << 31;

/// The widest that a window can be.
pub(crate) const WIDEST: u32 = BARRED - 1;

/// Where client 0's balance starts: so far from both ends that no program gets
/// there.
const MIDDLE: u64 = 1 << 62;

#[inline(always)]
pub(super) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(amount),
        Ordering::Relaxed,
    );
}

impl Account {
    /// An account that belongs to no client: its ceiling of 0 sends every
    /// charge to the cold path, whatever the balance; no block's tag matches.
    pub(crate) const fn nobody() -> Account {
        Account {
            balance: AtomicU64::new(0),
            ceiling: AtomicU64::new(0),
            allocated: AtomicU64::new(0),
            allocs: AtomicU64::new(0),
            frees: AtomicU64::new(0),
            offset: AtomicI64::new(0),
            tag: AtomicU32::new(Tag::NEVER.to_bits()),
            generation: AtomicU32::new(NO_GENERATION),
            window: AtomicU32::new(0),
            pins: AtomicU32::new(0),
        }
    }

    #[inline(always)]
    pub(crate) fn tag(&self) -> Tag {
        Tag::from_bits(self.tag.load(Ordering::Relaxed))
    }

    /// [`Account::tag`], read by the owning thread: a plain load, which the
    /// comparison with a block's tag takes straight from memory.
    ///
    /// # Safety
    /// The calling thread owns the account, or it is nobody's.
    #[inline(always)]
    pub(crate) unsafe fn own_tag(&self) -> Tag {
        // SAFETY: only the owner stores here, and it is the caller.
        Tag::from_bits(unsafe { load_own_u32(&self.tag) })
    }

    // --- the fast path: the owning thread, no lock ---------------------------

    /// Charges one block. One counter, one comparison, two statistics.
    /// `false`: over the ceiling; [`Account::withdraw`] must follow.
    #[inline(always)]
    pub(crate) fn charge(&self, size: u64) -> bool {
        if self.raise(size) {
            add(&self.allocs, 1);
            true
        } else {
            false
        }
    }

    /// Charges the growth of a block that exists. Otherwise as `charge`.
    #[inline(always)]
    pub(crate) fn raise(&self, size: u64) -> bool {
        if !steps::add_and_compare(self, size) {
            return false;
        }
        add(&self.allocated, size);
        true
    }

    /// Refunds one block. `false`: below the floor; the books are right, but
    /// the cold path should give credit back.
    #[inline(always)]
    pub(crate) fn refund(&self, size: u64) -> bool {
        add(&self.frees, 1);
        self.lower(size)
    }

    /// Refunds the shrinking of a block that lives on.
    #[inline(always)]
    pub(crate) fn lower(&self, size: u64) -> bool {
        steps::subtract_and_test(self, size)
    }

    // --- the owner's cold path ------------------------------------------------

    /// Takes back the store of a charge that met the ceiling. The owner does
    /// this first, before any lock: a revoker that saw the attempt waits for it.
    ///
    /// A fresh thread's account is shared by all of them, and its balance
    /// means nothing: its ceiling of 0 refuses whatever their racing attempts
    /// add up to.
    pub(crate) fn withdraw(&self, size: u64) {
        let balance = if self.tag() == Tag::NEVER {
            0
        } else {
            self.balance.load(Ordering::Relaxed).wrapping_sub(size)
        };
        self.balance.store(balance, Ordering::Release);
    }

    /// Undoes a whole charge, statistics included: the inner allocator had no
    /// memory. As [`Account::refund`] it may end below the floor.
    pub(crate) fn undo(&self, size: u64, blocks: u64) -> bool {
        add(&self.allocs, blocks.wrapping_neg());
        add(&self.allocated, size.wrapping_neg());
        self.lower(size)
    }

    /// Counts a block (or with `blocks` 0 its growth) that the cold path has
    /// charged.
    pub(crate) fn count(&self, size: u64, blocks: u64) {
        add(&self.allocs, blocks);
        add(&self.allocated, size);
    }

    /// Charges a block (or with `blocks` 0 its growth) to a watched account,
    /// within its window and credit as the fast path does. `false`: not within
    /// them; nothing has changed.
    ///
    /// Publish, then check: [`Account::bar`] stores the window, too.
    #[cfg_attr(not(feature = "profile"), allow(dead_code))]
    pub(crate) fn charge_watched(&self, size: u64, blocks: u64) -> bool {
        add(&self.balance, size);
        light_fence();
        let window = self.window.load(Ordering::Relaxed);
        let balance = self.balance.load(Ordering::Relaxed);
        if window & BARRED != 0 || balance > u64::from(window) {
            self.withdraw(size);
            return false;
        }
        self.count(size, blocks);
        true
    }

    /// As [`Account::charge_watched`], for client 0, which no budget binds.
    pub(crate) fn charge_unbound(&self, size: u64, blocks: u64) {
        add(&self.balance, size);
        self.count(size, blocks);
    }

    /// Moves the window so that the thread's net is `net` and its unused
    /// credit `credit`, with room for `window - credit` bytes of frees. The
    /// owner, under the slot's lock.
    pub(crate) fn place(&self, net: i64, credit: u64, window: u32) {
        debug_assert!(credit <= u64::from(window));
        let balance = u64::from(window) - credit;
        self.offset.store(net - balance as i64, Ordering::Relaxed);
        self.window.store(window, Ordering::Relaxed);
        self.balance.store(balance, Ordering::Relaxed);
        self.unbar();
    }

    /// Makes an unused account a client's. The owner, under the slot's lock.
    pub(crate) fn claim(&self, tag: Tag, generation: u32) {
        self.generation.store(generation, Ordering::Relaxed);
        self.tag.store(tag.to_bits(), Ordering::Release);
    }

    /// Makes an unused account client 0's, which no budget binds.
    pub(crate) fn claim_unattributed(&self, tag: Tag) {
        self.offset.store(-(MIDDLE as i64), Ordering::Relaxed);
        self.balance.store(MIDDLE, Ordering::Relaxed);
        self.unbind();
        self.pins.store(1, Ordering::Relaxed);
        self.claim(tag, NO_GENERATION);
    }

    /// Puts client 0's ceiling out of reach.
    pub(crate) fn unbind(&self) {
        self.ceiling.store(2 * MIDDLE, Ordering::Relaxed);
    }

    /// Sends every charge to the cold path, which goes on within the window.
    /// Under the slot's lock, or by the owner of client 0's account.
    pub(crate) fn watch(&self) {
        self.ceiling.store(0, Ordering::Relaxed);
    }

    /// Makes it unused again, its totals having been settled. The owner (or
    /// the only thread of a forked child), under the slot's lock.
    pub(crate) fn clear(&self) {
        self.tag.store(Tag::NONE.to_bits(), Ordering::Relaxed);
        self.generation.store(NO_GENERATION, Ordering::Relaxed);
        for counter in [
            &self.balance,
            &self.ceiling,
            &self.allocated,
            &self.allocs,
            &self.frees,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
        self.offset.store(0, Ordering::Relaxed);
        self.window.store(0, Ordering::Relaxed);
        self.pins.store(0, Ordering::Relaxed);
    }

    // --- scopes ---------------------------------------------------------------

    /// Keeps the account the client's while a scope of `generation` points to
    /// it. `false`: that generation may not be entered any more.
    #[inline(always)]
    pub(crate) fn pin(&self, generation: u32) -> bool {
        let pins = self.pins.load(Ordering::Relaxed);
        self.pins.store(pins.wrapping_add(1), Ordering::Relaxed);
        light_fence();
        if self.generation.load(Ordering::Relaxed) == generation {
            true
        } else {
            // Not `pins`, which would have to be kept for it.
            self.unpin();
            false
        }
    }

    #[inline(always)]
    pub(crate) fn unpin(&self) {
        let pins = self.pins.load(Ordering::Relaxed);
        // Release: whoever sees no pin sees all that the scope did.
        self.pins.store(pins.wrapping_sub(1), Ordering::Release);
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) != 0
    }

    /// Lets scopes of `generation` in, or with [`NO_GENERATION`] none. Under
    /// the slot's lock.
    pub(crate) fn admit_generation(&self, generation: u32) {
        self.generation.store(generation, Ordering::Relaxed);
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    // --- the books ------------------------------------------------------------

    /// The thread's net bytes with the client. A balance below the floor has
    /// wrapped; read as signed it is the right negative number.
    pub(crate) fn net(&self) -> i64 {
        let balance = self.balance.load(Ordering::Relaxed) as i64;
        self.offset.load(Ordering::Relaxed).wrapping_add(balance)
    }

    /// Bytes drawn from the budget and not used. Negative while the owner
    /// tries to charge more than it has.
    pub(crate) fn credit(&self) -> i64 {
        let balance = self.balance.load(Ordering::Acquire) as i64;
        i64::from(self.window()) - balance
    }

    pub(crate) fn window(&self) -> u32 {
        self.window.load(Ordering::Relaxed) & !BARRED
    }

    pub(crate) fn totals(&self) -> Totals {
        Totals {
            net: self.net(),
            allocated: self.allocated.load(Ordering::Relaxed),
            allocs: self.allocs.load(Ordering::Relaxed),
            frees: self.frees.load(Ordering::Relaxed),
        }
    }

    /// Bytes that the thread has freed so far: never more than it had when the
    /// call returns, because `allocated` is loaded before the balance.
    pub(crate) fn freed(&self) -> u64 {
        let allocated = self.allocated.load(Ordering::Acquire);
        allocated.wrapping_sub(self.net() as u64)
    }

    pub(crate) fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Acquire)
    }

    pub(crate) fn allocs(&self) -> u64 {
        self.allocs.load(Ordering::Relaxed)
    }

    // --- a revoker, under the slot's lock --------------------------------------

    /// Sends the owner's next charge to the cold path.
    pub(crate) fn bar(&self) {
        self.ceiling.store(0, Ordering::Relaxed);
        self.window.store(self.window() | BARRED, Ordering::Relaxed);
    }

    /// Whether a revoker has barred the account and not come back yet.
    pub(crate) fn is_barred(&self) -> bool {
        self.window.load(Ordering::Relaxed) > BARRED
    }

    /// Lets the owner use what it has.
    pub(crate) fn unbar(&self) {
        self.lift();
        self.ceiling
            .store(u64::from(self.window()) + 1, Ordering::Relaxed);
    }

    /// As [`Account::unbar`], for an account that is watched.
    pub(crate) fn lift(&self) {
        self.window.store(self.window(), Ordering::Relaxed);
    }

    /// After [`Account::bar`] and a heavy fence: shrinks the window to what is
    /// in use and answers how many bytes of credit that frees.
    pub(crate) fn seize(&self) -> u64 {
        let window = self.window();
        let balance = self.balance.load(Ordering::Acquire) as i64;
        let used = balance.clamp(0, i64::from(window)) as u32;
        let barred = self.window.load(Ordering::Relaxed) & BARRED;
        self.window.store(used | barred, Ordering::Relaxed);
        u64::from(window - used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        let account = Account::nobody();
        account.claim(Tag::of(4), 9);
        account
    }

    #[test]
    fn alternating_charges_and_refunds_stay_inside_the_window() {
        let account = account();
        account.place(0, 100, 200);
        for _ in 0..10_000 {
            assert!(account.charge(60));
            assert!(account.refund(60));
        }
        assert_eq!(account.net(), 0);
        assert_eq!(account.credit(), 100);
        assert_eq!(account.totals().allocated, 600_000);
        assert_eq!(account.freed(), 600_000);
    }

    /// Fresh threads share one such account and race for its balance.
    #[test]
    fn an_account_of_nobody_refuses_whatever_its_balance_is() {
        let account = Account::nobody();
        assert!(!account.charge(0));
        assert!(!account.charge(1));
        account.withdraw(1);
        assert!(!account.charge(0));
        assert_eq!(account.totals().allocs, 0);
    }

    #[test]
    fn the_ceiling_is_exact_and_a_withdrawn_charge_leaves_no_trace() {
        let account = account();
        account.place(0, 100, 200);
        assert!(account.charge(100));
        assert!(!account.charge(1));
        account.withdraw(1);
        assert_eq!(account.net(), 100);
        assert_eq!(account.credit(), 0);
        assert_eq!(account.totals().allocs, 1);
    }

    #[test]
    fn below_the_floor_the_books_stay_right() {
        let account = account();
        account.place(0, 10, 20);
        assert!(account.refund(10));
        assert!(!account.refund(500));
        assert_eq!(account.net(), -510);
        assert_eq!(account.credit(), 520);
    }

    #[test]
    fn a_watched_account_admits_within_its_window_and_not_past_a_bar() {
        let account = account();
        account.place(0, 100, 200);
        account.watch();
        assert!(!account.charge(1));
        account.withdraw(1);
        assert!(!account.is_barred());
        assert!(account.charge_watched(60, 1));
        assert!(!account.charge_watched(41, 1));
        assert!(account.charge_watched(40, 0));
        assert_eq!((account.net(), account.credit()), (100, 0));
        assert_eq!((account.allocs(), account.allocated()), (1, 100));
        assert!(account.refund(50));
        account.bar();
        assert!(account.is_barred());
        assert!(!account.charge_watched(1, 1));
        assert_eq!(account.seize(), 50);
        account.lift();
        assert!(!account.is_barred());
        assert!(!account.charge_watched(1, 1));
        assert_eq!((account.net(), account.credit()), (50, 0));
    }

    #[test]
    fn seizing_takes_what_is_unused_and_nothing_else() {
        let account = account();
        account.place(0, 100, 200);
        assert!(account.charge(30));
        account.bar();
        assert!(!account.charge(1));
        account.withdraw(1);
        assert_eq!(account.seize(), 70);
        assert_eq!(account.credit(), 0);
        assert_eq!(account.net(), 30);
        account.unbar();
        // What is freed afterwards can be used again.
        assert!(account.refund(30));
        assert!(account.charge(30));
        assert!(!account.charge(1));
    }

    #[test]
    fn a_withdrawn_generation_cannot_be_entered() {
        let account = account();
        assert!(account.pin(9));
        assert!(account.is_pinned());
        account.unpin();
        account.admit_generation(NO_GENERATION);
        assert!(!account.pin(9));
        assert!(!account.is_pinned());
    }
}
