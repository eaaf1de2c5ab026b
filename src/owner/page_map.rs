//! The page map: address >> 12 to owner tag, for blocks of a page and more.
//!
//! Two levels. The root is a static of 2 MiB that stays untouched (and so
//! costs no memory) but for the entries in use; a leaf covers 1 GiB of
//! addresses with 1 MiB of cells, is mapped when the first block falls into
//! its range, and is never unmapped. A block of at least 4 KiB owns the cell
//! of the page it starts in: no other block of that size can start there.
//!
//! # Orderings
//! A leaf pointer is published with `Release` and read with `Acquire`, so that
//! its zeroes are there before it is. Cells are `Relaxed`: a cell is written
//! by whoever allocates the block and read by whoever frees it, and handing
//! the block from one to the other orders the two.

use super::Tag;
use crate::sync::{AtomicPtr, AtomicU32, Ordering};
use crate::sys;
use core::ptr::{self, NonNull};

const PAGE_SHIFT: u32 = 12;
const LEAF_BITS: u32 = 18;
const ROOT_BITS: u32 = 18;

type Leaf = [AtomicU32; 1 << LEAF_BITS];

static ROOT: [AtomicPtr<Leaf>; 1 << ROOT_BITS] =
    [const { AtomicPtr::new(ptr::null_mut()) }; 1 << ROOT_BITS];

/// A mapped leaf that no range uses yet. Whoever holds one can [`set`] the
/// owner of any address without fail.
pub(crate) struct SpareLeaf(NonNull<Leaf>);

impl SpareLeaf {
    /// Maps a leaf, or says that there is no memory for one.
    pub(crate) fn map() -> Option<SpareLeaf> {
        sys::map(size_of::<Leaf>()).map(|at| SpareLeaf(at.cast()))
    }

    pub(crate) fn into_raw(self) -> *mut () {
        let leaf = self.0;
        core::mem::forget(self);
        leaf.as_ptr().cast()
    }

    /// # Safety
    /// `raw` came from [`SpareLeaf::into_raw`] and is used once.
    pub(crate) unsafe fn from_raw(raw: *mut ()) -> Option<SpareLeaf> {
        NonNull::new(raw.cast()).map(SpareLeaf)
    }
}

impl Drop for SpareLeaf {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length and published nowhere.
        unsafe { sys::unmap(self.0.cast(), size_of::<Leaf>()) };
    }
}

/// The root entry and the cell number of an address, or `None` if the address
/// lies beyond what the map covers (48 bits).
#[inline]
fn locate(address: usize) -> Option<(&'static AtomicPtr<Leaf>, usize)> {
    let page = address >> PAGE_SHIFT;
    let entry = ROOT.get(page >> LEAF_BITS)?;
    Some((entry, page & ((1 << LEAF_BITS) - 1)))
}

/// The cell of an address whose leaf exists.
#[inline]
fn cell(address: usize) -> Option<&'static AtomicU32> {
    let (entry, number) = locate(address)?;
    let leaf = entry.load(Ordering::Acquire);
    // SAFETY: a non-null leaf pointer was published by `install`, points to a
    // mapped, zeroed leaf, and leaves are never unmapped.
    unsafe { leaf.as_ref() }.map(|leaf| &leaf[number])
}

/// Publishes `spare` for the range of `address`, unless somebody else was
/// faster; then the spare is dropped (and unmapped).
fn install(entry: &AtomicPtr<Leaf>, spare: SpareLeaf) {
    let leaf = spare.0.as_ptr();
    if entry
        .compare_exchange(ptr::null_mut(), leaf, Ordering::Release, Ordering::Relaxed)
        .is_ok()
    {
        core::mem::forget(spare);
    }
}

/// Records the owner of the block that starts at `address`, mapping a leaf if
/// the range has none. `false`: no leaf could be had and nothing was recorded.
#[inline]
pub(crate) fn set(address: usize, tag: Tag) -> bool {
    set_in_known_leaf(address, tag) || set_in_new_leaf(address, tag, SpareLeaf::map())
}

/// As [`set`], but `false` if the range has no leaf.
#[inline(always)]
pub(crate) fn set_in_known_leaf(address: usize, tag: Tag) -> bool {
    match cell(address) {
        Some(cell) => {
            cell.store(tag.to_bits(), Ordering::Relaxed);
            true
        }
        None => false,
    }
}

/// As [`set`], but takes the leaf from `spare` if one is needed: cannot fail
/// for an address that the map covers.
#[inline]
pub(crate) fn set_with(address: usize, tag: Tag, spare: SpareLeaf) -> Option<SpareLeaf> {
    match cell(address) {
        Some(cell) => {
            cell.store(tag.to_bits(), Ordering::Relaxed);
            Some(spare)
        }
        None => {
            if !set_in_new_leaf(address, tag, Some(spare)) {
                sys::die(&[
                    sys::Part::Text("tiered_allocator: the inner allocator returned the address "),
                    sys::Part::Hex(address as u64),
                    sys::Part::Text(", which lies beyond the 48 bits this crate supports.\n"),
                ]);
            }
            None
        }
    }
}

#[cold]
#[inline(never)]
fn set_in_new_leaf(address: usize, tag: Tag, spare: Option<SpareLeaf>) -> bool {
    let Some((entry, _)) = locate(address) else {
        return false;
    };
    if let Some(spare) = spare {
        install(entry, spare);
    }
    // Even without a spare somebody else may have installed the leaf by now.
    cell(address)
        .map(|cell| cell.store(tag.to_bits(), Ordering::Relaxed))
        .is_some()
}

/// The recorded owner, [`Tag::NONE`] if there is none.
#[inline]
pub(crate) fn get(address: usize) -> Tag {
    cell(address).map_or(Tag::NONE, |cell| {
        Tag::from_bits(cell.load(Ordering::Relaxed))
    })
}

/// The recorded owner, forgotten at once; see [`clear`].
#[inline]
pub(crate) fn take(address: usize) -> Tag {
    cell(address).map_or(Tag::NONE, |cell| {
        let tag = Tag::from_bits(cell.load(Ordering::Relaxed));
        cell.store(Tag::NONE.to_bits(), Ordering::Relaxed);
        tag
    })
}

/// Forgets the owner, before the block is given to the inner allocator: from
/// then on the page may belong to somebody else. A second free finds nothing.
#[inline]
pub(crate) fn clear(address: usize) {
    if let Some(cell) = cell(address) {
        cell.store(Tag::NONE.to_bits(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS_BITS: u32 = PAGE_SHIFT + LEAF_BITS + ROOT_BITS;

    // Addresses that no allocation of the test process can have: the lowest
    // and highest gigabytes of the range.
    const LOW: usize = 0x1000;
    const HIGH: usize = (1 << ADDRESS_BITS) - 0x1000;

    #[test]
    fn owners_are_kept_by_page_and_forgotten_on_clear() {
        assert_eq!(get(HIGH), Tag::NONE);
        assert!(set(HIGH, Tag::of(7)));
        assert!(set(HIGH - 0x1000, Tag::of(8)));
        assert_eq!(get(HIGH), Tag::of(7));
        assert_eq!(get(HIGH + 0xfff), Tag::of(7));
        assert_eq!(get(HIGH - 0x1000), Tag::of(8));
        clear(HIGH);
        assert_eq!(get(HIGH), Tag::NONE);
        assert_eq!(get(HIGH - 0x1000), Tag::of(8));
    }

    #[test]
    fn an_address_beyond_the_map_has_no_owner_and_takes_none() {
        let beyond = 1 << ADDRESS_BITS;
        assert!(!set(beyond, Tag::of(1)));
        assert_eq!(get(beyond), Tag::NONE);
        clear(beyond);
    }

    #[test]
    fn without_a_leaf_nothing_is_recorded_and_a_spare_always_helps() {
        let address = LOW + (5 << 30);
        assert!(!set_in_new_leaf(address, Tag::of(3), None));
        assert_eq!(get(address), Tag::NONE);
        let spare = SpareLeaf::map().expect("1 MiB can be mapped");
        assert!(set_with(address, Tag::of(3), spare).is_none());
        assert_eq!(get(address), Tag::of(3));
        let spare = SpareLeaf::map().expect("1 MiB can be mapped");
        assert!(set_with(address, Tag::of(4), spare).is_some());
        assert_eq!(get(address), Tag::of(4));
    }

    #[test]
    fn threads_that_race_for_one_leaf_all_find_their_cells() {
        let base = LOW + (9 << 30);
        std::thread::scope(|scope| {
            for thread in 0..8usize {
                scope.spawn(move || {
                    for page in 0..64usize {
                        let address = base + ((page * 8 + thread) << 12);
                        assert!(set(address, Tag::of(thread as u32 + 1)));
                    }
                });
            }
        });
        for page in 0..512usize {
            assert_eq!(get(base + (page << 12)), Tag::of((page % 8) as u32 + 1));
        }
    }
}
