//! A thread's accounts, found by client: one mapping a thread, 16,384 places,
//! of which only the touched pages cost memory.
//!
//! A client's home is its index modulo the number of places; if that is taken
//! the next three are tried. So up to 16,384 clients with consecutive indices
//! never meet. Tables are never unmapped: a thread that ends leaves its table
//! to the next one, and whoever adds up accounts may walk over all of them at
//! any time.
//!
//! # Orderings
//! The list of all tables only grows: `Release` on the head publishes a table
//! and its `next`, `Acquire` reads them. `used` bits are stored by the owner
//! under the lock of the slot that comes or goes, which is the lock that a
//! walker for that slot holds; a walker without it may miss or see an account
//! that is just moving, and notices by the slot's sequence.

use super::account::Account;
use crate::owner::Tag;
use crate::owner::page_map::SpareLeaf;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Lock, Ordering, bound};
use crate::sys;
use core::ptr;

const PLACES: usize = bound(1 << 14, PROBES);
const PROBES: usize = 4;

/// Tables start at so many different places in a page, for walks over what all
/// of them hold in one place: mappings that started alike would put it in one
/// and the same set of the caches.
const COLORS: usize = 16;

const _: () = assert!(align_of::<Table>() <= size_of::<Account>());

/// See the module's description. All zero is an empty table.
#[repr(C)]
pub(crate) struct Table {
    next: AtomicPtr<Table>,
    next_idle: AtomicPtr<Table>,
    /// How deep the owner is in the cold path; see [`super::fork`].
    pub(crate) cold: AtomicU32,
    /// 1 while a thread owns the table.
    owned: AtomicU32,
    spare_leaf: AtomicPtr<()>,
    used: [AtomicU64; PLACES.div_ceil(64)],
    accounts: [Account; PLACES],
}

static ALL: AtomicPtr<Table> = AtomicPtr::new(ptr::null_mut());

struct Idle(*mut Table);

// SAFETY: tables are process-wide and shared by design; the pointer is a list
// head that only the lock's holder follows.
unsafe impl Send for Idle {}

static IDLE: Lock<Idle> = Lock::new(Idle(ptr::null_mut()));

/// A table for the calling thread: one that an ended thread left, else a new
/// one; `None` if there is no memory for it.
pub(crate) fn acquire() -> Option<&'static Table> {
    let mut idle = IDLE.lock();
    // SAFETY: the list holds tables only, and tables are never unmapped.
    if let Some(table) = unsafe { idle.0.as_ref() } {
        idle.0 = table.next_idle.load(Ordering::Relaxed);
        table.owned.store(1, Ordering::Relaxed);
        return Some(table);
    }
    drop(idle);
    static COLOR: AtomicU32 = AtomicU32::new(0);
    let color = COLOR.fetch_add(1, Ordering::Relaxed) as usize % COLORS;
    let mapping = sys::map(size_of::<Table>() + COLORS * size_of::<Account>())?;
    // SAFETY: stays within the mapping, and aligned for `Table`.
    let fresh: *mut Table = unsafe { mapping.add(color * size_of::<Account>()) }
        .cast()
        .as_ptr();
    // SAFETY: the mapping is page-aligned, large enough and zeroed, which is a
    // valid empty `Table`; it is never unmapped.
    let table = unsafe { &*fresh };
    table.owned.store(1, Ordering::Relaxed);
    let mut head = ALL.load(Ordering::Relaxed);
    loop {
        table.next.store(head, Ordering::Relaxed);
        match ALL.compare_exchange_weak(head, fresh, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return Some(table),
            Err(now) => head = now,
        }
    }
}

/// Leaves an empty table to the next thread.
pub(crate) fn release(table: &'static Table) {
    let mut idle = IDLE.lock();
    table.owned.store(0, Ordering::Release);
    table.next_idle.store(idle.0, Ordering::Relaxed);
    idle.0 = ptr::from_ref(table).cast_mut();
}

/// Every table of the process, idle ones (which are empty) included.
pub(crate) fn all() -> impl Iterator<Item = &'static Table> {
    // SAFETY: only `acquire` stores here, and tables are never unmapped.
    let first = unsafe { ALL.load(Ordering::Acquire).as_ref() };
    core::iter::successors(first, |table| {
        // SAFETY: as above.
        unsafe { table.next.load(Ordering::Acquire).as_ref() }
    })
}

/// The tables that threads own: the others are empty. `Acquire` with the
/// `Release` in [`release`]: whoever sees a table without owner sees what
/// settling it wrote, the slots' sequences included. A table that gets an owner
/// opens its first account under the slot's lock, after that.
pub(crate) fn owned() -> impl Iterator<Item = &'static Table> {
    all().filter(|table| table.is_owned())
}

/// After `fork`, in the child: the parent's other threads are gone, and one of
/// them may have been between lock and unlock.
pub(crate) fn idle_is_locked() -> bool {
    IDLE.is_locked()
}

impl Table {
    /// The place where a client's account is first looked for.
    #[inline(always)]
    pub(crate) fn home(&self, tag: Tag) -> &Account {
        &self.accounts[tag.unchecked_index() as usize & (PLACES - 1)]
    }

    fn probes(&self, tag: Tag) -> impl Iterator<Item = (usize, &Account)> {
        let home = tag.unchecked_index() as usize;
        (home..home + PROBES).map(|place| {
            let place = place & (PLACES - 1);
            (place, &self.accounts[place])
        })
    }

    fn is_used(&self, place: usize) -> bool {
        self.used[place / 64].load(Ordering::Relaxed) & (1 << (place % 64)) != 0
    }

    fn mark(&self, place: usize, used: bool) {
        let word = &self.used[place / 64];
        let bit = 1u64 << (place % 64);
        let bits = word.load(Ordering::Relaxed);
        word.store(
            if used { bits | bit } else { bits & !bit },
            Ordering::Relaxed,
        );
    }

    /// The account of this client, if the thread has one. Touches no page
    /// that is not in use.
    pub(crate) fn find(&self, tag: Tag) -> Option<&Account> {
        self.probes(tag)
            .find(|(place, account)| self.is_used(*place) && account.tag() == tag)
            .map(|(_, account)| account)
    }

    /// A place for an account of this client: an unused one, else one that no
    /// scope points to and whose client must make room first.
    pub(crate) fn place_for(&self, tag: Tag) -> Option<(usize, &Account)> {
        self.probes(tag)
            .find(|(place, _)| !self.is_used(*place))
            .or_else(|| self.probes(tag).find(|(_, account)| !account.is_pinned()))
    }

    /// Marks a place used or unused; the owner, under the slot's lock.
    pub(crate) fn set_used(&self, place: usize, used: bool) {
        self.mark(place, used);
    }

    pub(crate) fn is_used_at(&self, place: usize) -> bool {
        self.is_used(place)
    }

    /// All accounts in use, with their places.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = (usize, &Account)> {
        self.used.iter().enumerate().flat_map(move |(word, bits)| {
            let mut bits = bits.load(Ordering::Relaxed);
            core::iter::from_fn(move || {
                if bits == 0 {
                    return None;
                }
                let place = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                Some((place, &self.accounts[place]))
            })
        })
    }

    /// Whether a thread owns the table.
    pub(crate) fn is_owned(&self) -> bool {
        self.owned.load(Ordering::Acquire) != 0
    }

    /// The leaf that the owner keeps, or a fresh one; see [`SpareLeaf`].
    pub(crate) fn take_spare_leaf(&self) -> Option<SpareLeaf> {
        let raw = self.spare_leaf.load(Ordering::Relaxed);
        self.spare_leaf.store(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: only `keep_spare_leaf` stores here, only the owner takes,
        // and taking leaves null behind.
        unsafe { SpareLeaf::from_raw(raw) }.or_else(SpareLeaf::map)
    }

    /// Keeps a leaf for the owner's next need.
    pub(crate) fn keep_spare_leaf(&self, spare: SpareLeaf) {
        self.spare_leaf.store(spare.into_raw(), Ordering::Relaxed);
    }
}
