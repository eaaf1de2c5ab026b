//! The process-wide array of slots: grows by chunks that are mapped on demand
//! and never unmapped, hands out free indices, takes them back.
//!
//! # Orderings
//! A chunk is mapped and published first; a slot of it is initialised when its
//! index is handed out for the first time, so that pages of slots that nobody
//! has are not touched. `len` publishes it, with `Release`; whoever looks for a
//! slot reads `len` with `Acquire` and goes no further. The free list, and
//! `len`'s growth, are under the lock.

use super::slot::Slot;
use crate::owner::INDEX_BITS;
use crate::sync::{AtomicPtr, AtomicU32, Lock, Ordering, bound};
use crate::sys;
use core::ptr;

const CHUNK_BITS: u32 = bound(12, 2) as u32;
const CHUNK_SLOTS: usize = 1 << CHUNK_BITS;
const CHUNKS: usize = 1 << (INDEX_BITS - CHUNK_BITS);

/// No index follows in the free list. Index 0 is never free.
const END: u32 = 0;

/// Every client of the process lives here, whatever its memory.
pub(crate) static REGISTRY: Registry = Registry::new(1 << INDEX_BITS);

/// Client 0, there before anything can be mapped.
static UNATTRIBUTED: Slot = Slot::new(0);

pub(crate) struct Registry {
    capacity: u32,
    chunks: [AtomicPtr<Slot>; CHUNKS],
    /// Indices handed out so far, index 0 included.
    len: AtomicU32,
    free: Lock<u32>,
}

/// Why no index could be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exhausted {
    /// All indices are in use.
    Ids(u32),
    /// The system has no memory for another chunk.
    Memory,
}

impl Registry {
    /// `capacity` counts index 0, which is never handed out.
    pub(crate) const fn new(capacity: u32) -> Registry {
        Registry {
            capacity,
            chunks: [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS],
            len: AtomicU32::new(1),
            free: Lock::new(END),
        }
    }

    /// Clients that can exist at once.
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity - 1
    }

    /// The slot with this index, if it was ever handed out.
    #[inline]
    pub(crate) fn slot(&self, index: u32) -> Option<&'static Slot> {
        if index == 0 {
            return Some(&UNATTRIBUTED);
        }
        let chunk = self.chunks.get((index >> CHUNK_BITS) as usize)?;
        let first = chunk.load(Ordering::Acquire);
        if first.is_null() || index >= self.len.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: a published chunk has room for `CHUNK_SLOTS` slots and is
        // never unmapped, the masked offset lies within it, and the slots
        // below `len` are initialised.
        Some(unsafe { &*first.add(index as usize & (CHUNK_SLOTS - 1)) })
    }

    /// A slot for a new client: one that was used before, else a fresh one.
    pub(crate) fn acquire(&self) -> Result<&'static Slot, Exhausted> {
        let mut free = self.free.lock();
        if *free != END {
            // The list holds only indices that were handed out before.
            if let Some(slot) = self.slot(*free) {
                *free = slot.next_free();
                return Ok(slot);
            }
        }
        let index = self.len.load(Ordering::Relaxed);
        if index >= self.capacity {
            return Err(Exhausted::Ids(self.capacity()));
        }
        let chunk = &self.chunks[(index >> CHUNK_BITS) as usize];
        let mut first = chunk.load(Ordering::Relaxed);
        if first.is_null() {
            first = map_chunk()?;
            chunk.store(first, Ordering::Release);
        }
        // SAFETY: the chunk has room for `CHUNK_SLOTS` slots. `len` is not
        // above `index`, so nobody else looks at this one, and the lock keeps
        // others from initialising it.
        unsafe {
            first
                .add(index as usize & (CHUNK_SLOTS - 1))
                .write(Slot::new(index));
        }
        self.len.store(index + 1, Ordering::Release);
        self.slot(index).ok_or(Exhausted::Memory)
    }

    /// Takes a slot back that no client, block or scope uses.
    pub(crate) fn release(&self, slot: &'static Slot) {
        let mut free = self.free.lock();
        slot.set_next_free(*free);
        *free = slot.index();
    }
}

/// Room for a chunk's slots, page-aligned. Kept by the registry for the life of
/// the process.
fn map_chunk() -> Result<*mut Slot, Exhausted> {
    let slots = sys::map(size_of::<[Slot; CHUNK_SLOTS]>()).ok_or(Exhausted::Memory)?;
    Ok(slots.cast().as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn indices_are_unique_and_run_out_with_a_clear_answer() {
        let registry = Box::leak(Box::new(Registry::new(6)));
        let mut seen = HashSet::new();
        let mut slots = Vec::new();
        for _ in 0..5 {
            let slot = registry.acquire().unwrap();
            assert!(seen.insert(slot.index()));
            slots.push(slot);
        }
        assert!(!seen.contains(&0));
        assert_eq!(registry.acquire().err(), Some(Exhausted::Ids(5)));
        // A slot that comes back is handed out again.
        registry.release(slots[2]);
        assert_eq!(registry.acquire().unwrap().index(), slots[2].index());
        assert_eq!(registry.acquire().err(), Some(Exhausted::Ids(5)));
    }

    #[test]
    fn an_index_that_was_never_handed_out_has_no_slot() {
        let registry = Box::leak(Box::new(Registry::new(100)));
        assert!(registry.slot(0).is_some());
        assert!(registry.slot(1).is_none());
        let first = registry.acquire().unwrap();
        assert_eq!(registry.slot(1).map(Slot::index), Some(first.index()));
        assert!(registry.slot(2).is_none());
        assert!(registry.slot(u32::MAX).is_none());
    }

    #[cfg(all(unix, not(miri), not(tiered_allocator_portable)))]
    #[test]
    fn slots_that_nobody_has_take_no_memory() {
        // What a huge page makes resident besides is not the registry's.
        #[cfg(target_os = "linux")]
        {
            let [on, none]: [libc::c_ulong; 2] = [1, 0];
            // SAFETY: a flag of this process; no memory is passed.
            unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, on, none, none, none) };
        }
        let registry = Box::leak(Box::new(Registry::new(1 << INDEX_BITS)));
        for _ in 0..3 {
            registry.acquire().unwrap();
        }
        let first = registry.chunks[0].load(Ordering::Acquire);
        let chunk = ptr::NonNull::new(first.cast()).unwrap();
        let bytes = size_of::<[Slot; CHUNK_SLOTS]>();
        // SAFETY: the registry's own mapping, never unmapped.
        let resident = unsafe { sys::resident_bytes(chunk, bytes) };
        assert!(resident > 0 && resident < bytes / 8, "{resident} bytes");
    }
}
