//! The memory behind a block: pages of its own from one page up, else a piece
//! of the system's heap. Never from the global allocator, which would charge
//! it a second time.

use crate::sys;
use core::ptr::NonNull;
use std::alloc::{GlobalAlloc, Layout, System};

/// Alignment of a block that has no pages of its own.
const SMALL_ALIGN: usize = 16;

/// `len` zeroed bytes at a fixed address, freed on drop.
#[derive(Debug)]
pub(super) struct Pages {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: `Pages` owns its bytes as a `Box<[u8]>` would; nothing about them
// belongs to a thread. Shared access goes through `as_ptr`, whose users say
// themselves how they keep readers and writers apart.
unsafe impl Send for Pages {}
// SAFETY: as above; the methods on `&self` read two fields that never change,
// but for those that are `unsafe` and ask for exclusive use.
unsafe impl Sync for Pages {}

fn small_layout(len: usize) -> Option<Layout> {
    Layout::from_size_align(len, SMALL_ALIGN).ok()
}

impl Pages {
    /// `len > 0` zeroed bytes, or `None` if the system has none.
    pub(super) fn allocate(len: usize) -> Option<Pages> {
        debug_assert!(len > 0);
        let base = match Self::mapped_bytes(len) {
            Some(mapped) => sys::map(mapped)?,
            None => {
                // SAFETY: `len` is not zero.
                NonNull::new(unsafe { System.alloc_zeroed(small_layout(len)?) })?
            }
        };
        Some(Pages { base, len })
    }

    /// Bytes of the mapping, if a block of `len` bytes has one.
    fn mapped_bytes(len: usize) -> Option<usize> {
        let page = sys::page_bytes();
        (len >= page).then(|| len.checked_next_multiple_of(page).unwrap_or(usize::MAX))
    }

    pub(super) fn as_ptr(&self) -> NonNull<u8> {
        self.base
    }

    /// Whether physical memory can be given back while the block lives.
    pub(super) fn can_be_reclaimed(&self) -> bool {
        Self::mapped_bytes(self.len).is_some()
    }

    /// Physical bytes in use, at most `len`.
    pub(super) fn resident_bytes(&self) -> usize {
        match Self::mapped_bytes(self.len) {
            // SAFETY: the mapping of this very block, alive while `self` is.
            Some(mapped) => unsafe { sys::resident_bytes(self.base, mapped) }.min(self.len),
            None => self.len,
        }
    }

    /// The block's bytes.
    ///
    /// # Safety
    /// Nobody writes to them while the slice is used.
    pub(super) unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: `base` has `len` initialised (zeroed at least) bytes; the
        // caller keeps writers away.
        unsafe { core::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// The block's bytes, to write to.
    ///
    /// # Safety
    /// Nobody else reads or writes them while the slice is used.
    #[expect(
        clippy::mut_from_ref,
        reason = "exclusion is the caller's, by contract"
    )]
    pub(super) unsafe fn bytes_mut(&self) -> &mut [u8] {
        // SAFETY: as `bytes`, and the caller keeps everybody else away.
        unsafe { core::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }

    /// Gives the physical memory back; the bytes read as zero afterwards.
    ///
    /// # Safety
    /// Nobody reads or writes the bytes during the call.
    pub(super) unsafe fn discard(&self) {
        if let Some(mapped) = Self::mapped_bytes(self.len) {
            // SAFETY: the block's own mapping, unused by contract.
            unsafe { sys::discard(self.base, mapped) };
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        match (Self::mapped_bytes(self.len), small_layout(self.len)) {
            // SAFETY: mapped by `allocate` with this length, and `self` ends.
            (Some(mapped), _) => unsafe { sys::unmap(self.base, mapped) },
            // SAFETY: allocated with this layout, and `self` ends.
            (None, Some(layout)) => unsafe { System.dealloc(self.base.as_ptr(), layout) },
            (None, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_blocks_are_zeroed_and_writable() {
        for len in [1, 15, 4095, 4096, 4097, 1 << 20] {
            let pages = Pages::allocate(len).unwrap();
            // SAFETY: nobody else knows these pages.
            let bytes = unsafe { pages.bytes_mut() };
            assert_eq!(bytes.len(), len);
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(0xAB);
            assert!(pages.resident_bytes() <= len);
            assert_eq!(pages.can_be_reclaimed(), len >= sys::page_bytes());
        }
    }

    #[test]
    fn what_cannot_be_had_is_none() {
        assert!(Pages::allocate(isize::MAX as usize).is_none());
        assert!(Pages::allocate(usize::MAX).is_none());
    }
}
