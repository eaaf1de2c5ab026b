//! What is measured: the workloads, each generic over the heap it runs on.
//!
//! Every heap is a static and is called through [`allocate`], [`free`] and
//! [`reallocate`], which are never inlined: so does compiled code reach a
//! global allocator (`__rust_alloc` and its kin), and nothing about a size is
//! known in there.

use crate::growth::Header;
use crate::trailer::Trailer;
use cap::Cap;
use mimalloc::MiMalloc;
use stats_alloc::StatsAlloc;
use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::ptr;
use tiered_allocator::TieredAllocator;
use tikv_jemallocator::Jemalloc;
use tracking_allocator::Allocator as Tracking;

/// An allocator with its one instance.
pub trait Heap: GlobalAlloc + Sync + 'static {
    fn heap() -> &'static Self;
}

macro_rules! heaps {
    ($($heap:ty = $instance:expr;)*) => {
        $(impl Heap for $heap {
            #[inline(always)]
            fn heap() -> &'static Self {
                static HEAP: $heap = $instance;
                &HEAP
            }
        })*
    };
}

heaps! {
    System = System;
    MiMalloc = MiMalloc;
    Jemalloc = Jemalloc;
    TieredAllocator<System> = TieredAllocator::new(System);
    TieredAllocator<MiMalloc> = TieredAllocator::new(MiMalloc);
    TieredAllocator<Jemalloc> = TieredAllocator::new(Jemalloc);
    Trailer<System> = Trailer(System);
    Trailer<MiMalloc> = Trailer(MiMalloc);
    Trailer<Jemalloc> = Trailer(Jemalloc);
    Header<System> = Header::new(System);
    Header<MiMalloc> = Header::new(MiMalloc);
    Header<Jemalloc> = Header::new(Jemalloc);
    Cap<System> = Cap::new(System, 64 << 20);
    StatsAlloc<System> = StatsAlloc::system();
    Tracking<System> = Tracking::system();
}

/// # Safety
/// As [`GlobalAlloc::alloc`].
#[inline(never)]
pub unsafe fn allocate<H: Heap>(layout: Layout) -> *mut u8 {
    // SAFETY: the caller's contract.
    unsafe { H::heap().alloc(layout) }
}

/// # Safety
/// As [`GlobalAlloc::dealloc`].
#[inline(never)]
pub unsafe fn free<H: Heap>(block: *mut u8, layout: Layout) {
    // SAFETY: the caller's contract.
    unsafe { H::heap().dealloc(block, layout) }
}

/// # Safety
/// As [`GlobalAlloc::realloc`].
#[inline(never)]
pub unsafe fn reallocate<H: Heap>(block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
    // SAFETY: the caller's contract.
    unsafe { H::heap().realloc(block, layout, new_size) }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// One block at a time.
#[inline(never)]
pub fn pairs<H: Heap>(size: usize, pairs: usize) {
    for _ in 0..pairs {
        let layout = layout(black_box(size));
        // SAFETY: the size is not zero; the block goes back as it came.
        unsafe {
            let block = black_box(allocate::<H>(layout));
            free::<H>(block, layout);
        }
    }
}

/// As [`pairs`] with a size known to the compiler and everything inlined.
#[inline(never)]
pub fn constant_pairs<H: Heap, const SIZE: usize>(pairs: usize) {
    let heap = H::heap();
    for _ in 0..pairs {
        // SAFETY: as in `pairs`.
        unsafe {
            let block = black_box(heap.alloc(layout(SIZE)));
            heap.dealloc(block, layout(SIZE));
        }
    }
}

/// Blocks held at a time: sizes and an order of freeing, made up once.
#[derive(Clone)]
pub struct Batch {
    sizes: Vec<usize>,
    order: Vec<usize>,
    blocks: Vec<*mut u8>,
    filled: bool,
}

impl Batch {
    /// Sizes between the two bounds, uniform, freed in random order.
    pub fn new(blocks: usize, smallest: usize, largest: usize) -> Batch {
        let mut random = Random(0x2545_F491_4F6C_DD1D);
        let sizes = (0..blocks)
            .map(|_| smallest + random.below(largest - smallest + 1))
            .collect();
        let mut order: Vec<usize> = (0..blocks).collect();
        for last in (1..blocks).rev() {
            order.swap(last, random.below(last + 1));
        }
        Batch {
            sizes,
            order,
            blocks: vec![ptr::null_mut(); blocks],
            filled: false,
        }
    }

    /// Writes every block from end to end, as its user would, and not only its
    /// first byte.
    pub fn filled(self) -> Batch {
        Batch {
            filled: true,
            ..self
        }
    }

    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    #[inline(never)]
    pub fn allocate<H: Heap>(&mut self) {
        for (block, &size) in self.blocks.iter_mut().zip(&self.sizes) {
            // SAFETY: the size is not zero.
            *block = unsafe { allocate::<H>(layout(size)) };
            assert!(!block.is_null());
            // SAFETY: the block has at least one byte, or as many as its size.
            unsafe { block.write_bytes(1, if self.filled { size } else { 1 }) };
        }
    }

    #[inline(never)]
    pub fn free<H: Heap>(&mut self) {
        for &at in &self.order {
            // SAFETY: `allocate` made the block with this size.
            unsafe { free::<H>(self.blocks[at], layout(self.sizes[at])) };
        }
    }
}

/// A vector that grows by doubling, as `Vec::push` does.
#[inline(never)]
pub fn growth<H: Heap>(first: usize, last: usize) {
    let mut size = black_box(first);
    // SAFETY: sizes are not zero, and each call gets the layout of the last.
    unsafe {
        let mut block = allocate::<H>(layout(size));
        while size < last {
            block = reallocate::<H>(block, layout(size), size * 2);
            assert!(!block.is_null());
            size *= 2;
            // The part that a push would write next.
            block.add(size / 2).write(1);
        }
        free::<H>(block, layout(size));
    }
}

/// A small, fast generator: the sequence is the same in each run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }
}
