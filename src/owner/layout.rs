//! The only arithmetic on layouts: the user's block plus its owner tag.

use super::Tag;
use core::alloc::Layout;

/// Bytes from which on a block is found through the page map and carries no
/// tag. Two blocks of at least one page never start in the same page.
pub(crate) const PAGE_MAPPED_MIN: usize = 4096;

const TAG_BYTES: usize = size_of::<Tag>();

// The largest tagged size, rounded up to any alignment that `Layout` allows,
// stays within `isize::MAX`: alignments up to 8192 round it to at most 8192,
// larger ones round it to themselves.
const _: () = assert!(PAGE_MAPPED_MIN - 1 + TAG_BYTES <= 8192);

/// Whether a block of `size` bytes has its owner in the page map.
#[inline(always)]
pub(crate) const fn is_page_mapped(size: usize) -> bool {
    size >= PAGE_MAPPED_MIN
}

/// Bytes to ask of the inner allocator for `size` bytes of the user.
#[inline(always)]
pub(crate) const fn inner_size(size: usize) -> usize {
    if is_page_mapped(size) {
        size
    } else {
        size + TAG_BYTES
    }
}

/// The layout that the inner allocator sees for the user's `layout`.
#[inline(always)]
pub(crate) fn inner(layout: Layout) -> Layout {
    // SAFETY: `layout` is one.
    unsafe { inner_of(layout.size(), layout.align()) }
}

/// As [`inner`], for a layout in two parts.
///
/// # Safety
/// `size` and `align` are those of a [`Layout`].
#[inline(always)]
pub(crate) unsafe fn inner_of(size: usize, align: usize) -> Layout {
    // SAFETY: a page-mapped layout is the caller's own, valid one. Otherwise
    // the size is below `PAGE_MAPPED_MIN + TAG_BYTES` and the assertion above
    // shows that rounding it up to the (valid) alignment cannot overflow.
    unsafe { Layout::from_size_align_unchecked(inner_size(size), align) }
}

/// The same pointer, of which the compiler knows nothing.
///
/// `__rust_alloc` and its kin are known to the compiler: what they return has
/// the size that was asked for and no more, and what is stored into a block
/// that goes straight to `__rust_dealloc` is dead. Both are wrong for the tag
/// behind the block. That does not show while these functions are calls, but
/// they can be inlined into the caller (and were: a read of the tag became a
/// read of whatever a register held). So a block's pointer passes through here
/// before its tag is read, and through [`expose`] after it was written.
#[inline(always)]
pub(crate) fn launder(block: *mut u8) -> *mut u8 {
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64"
    ))]
    {
        let mut block = block;
        // SAFETY: no instruction is emitted. To the compiler the register may
        // change and memory may be read and written, which is the point.
        unsafe {
            core::arch::asm!("/* {0} */", inout(reg) block, options(nostack, preserves_flags));
        }
        block
    }
    #[cfg(not(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64"
    )))]
    core::hint::black_box(block)
}

/// Tells the compiler that somebody may read what is behind this pointer; see
/// [`launder`].
#[inline(always)]
fn expose(block: *mut u8) {
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64"
    ))]
    // SAFETY: no instruction is emitted; to the compiler memory may be read.
    unsafe {
        core::arch::asm!("/* {0} */", in(reg) block, options(nostack, preserves_flags));
    }
    #[cfg(not(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64"
    )))]
    core::hint::black_box(block);
}

/// Writes the tag behind a small block.
///
/// # Safety
/// `block` has [`inner_size`]`(size)` writable bytes and `size` is not page-mapped.
#[inline(always)]
pub(crate) unsafe fn write_tag(block: *mut u8, size: usize, tag: Tag) {
    // SAFETY: the four bytes at `size` belong to the block (caller); the store
    // may be unaligned.
    unsafe { block.add(size).cast::<Tag>().write_unaligned(tag) }
    expose(block);
}

/// Reads the tag behind a small block.
///
/// # Safety
/// `block` came from this crate with `size`, passed through [`launder`], and
/// `size` is not page-mapped.
#[inline(always)]
pub(crate) unsafe fn read_tag(block: *mut u8, size: usize) -> Tag {
    // SAFETY: `write_tag` initialised these bytes; any bit pattern is a `Tag`.
    unsafe { block.add(size).cast::<Tag>().read_unaligned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_blocks_grow_by_a_tag() {
        for size in [1, 8, 4091, 4092, 4095] {
            assert_eq!(inner_size(size), size + 4, "{size}");
        }
        for size in [4096, 65536, isize::MAX as usize] {
            assert_eq!(inner_size(size), size, "{size}");
        }
    }

    #[test]
    fn every_alignment_that_a_layout_allows_survives() {
        for shift in 0..usize::BITS - 1 {
            let align = 1usize << shift;
            for size in [1, 4095, 4096] {
                let Ok(layout) = Layout::from_size_align(size, align) else {
                    continue;
                };
                let inner = inner(layout);
                assert!(Layout::from_size_align(inner.size(), inner.align()).is_ok());
                assert_eq!(inner.align(), align);
            }
        }
    }
}
