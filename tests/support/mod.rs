//! A raw block with known contents, for tests that must see every null.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::alloc::{GlobalAlloc, Layout};
use std::slice;

/// How many random programs to try: what `PROPTEST_CASES` says, or `usual`.
pub fn cases(usual: u32) -> u32 {
    let given = std::env::var("PROPTEST_CASES").ok();
    given.and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}

pub type Heap = &'static (dyn GlobalAlloc + Sync);

/// A live block and the heap that it goes back to.
pub struct Block {
    heap: Heap,
    at: *mut u8,
    layout: Layout,
    seed: u8,
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:p}: {:?}", self.at, self.layout)
    }
}

// SAFETY: a `Block` owns its bytes, and a heap takes them back on any thread.
unsafe impl Send for Block {}
// SAFETY: a shared `Block` is only read.
unsafe impl Sync for Block {}

/// Every kilobyte starts with its number, so that shifted contents show.
const CHUNK: usize = 1024;

fn stamp(number: usize, len: usize) -> ([u8; 4], usize) {
    ((number as u32).to_le_bytes(), len.min(4))
}

fn uniform(bytes: &[u8], value: u8) -> bool {
    bytes.first().is_none_or(|&first| first == value)
        && (bytes.len() < 2 || bytes[1..] == bytes[..bytes.len() - 1])
}

impl Block {
    pub fn new(heap: Heap, layout: Layout, seed: u8) -> Option<Block> {
        // SAFETY: tests ask for no empty layouts.
        let at = unsafe { heap.alloc(layout) };
        Block::adopt(heap, at, layout, seed)
    }

    /// As `new`, through `alloc_zeroed`, whose promise is checked.
    pub fn zeroed(heap: Heap, layout: Layout, seed: u8) -> Option<Block> {
        // SAFETY: tests ask for no empty layouts.
        let at = unsafe { heap.alloc_zeroed(layout) };
        if !at.is_null() {
            // SAFETY: a fresh block of this size.
            let bytes = unsafe { slice::from_raw_parts(at, layout.size()) };
            assert!(uniform(bytes, 0), "not zeroed: {layout:?}");
        }
        Block::adopt(heap, at, layout, seed)
    }

    /// Of `size` bytes without alignment.
    pub fn bytes(heap: Heap, size: usize) -> Option<Block> {
        Block::new(heap, Layout::from_size_align(size, 1).unwrap(), 0x5A)
    }

    fn adopt(heap: Heap, at: *mut u8, layout: Layout, seed: u8) -> Option<Block> {
        if at.is_null() {
            return None;
        }
        assert_eq!(at as usize % layout.align(), 0, "misaligned: {layout:?}");
        let mut block = Block {
            heap,
            at,
            layout,
            seed,
        };
        block.fill();
        Some(block)
    }

    pub fn size(&self) -> usize {
        self.layout.size()
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    pub fn address(&self) -> usize {
        self.at as usize
    }

    /// `false`, and nothing has changed, if the heap refuses.
    pub fn resize(&mut self, size: usize) -> bool {
        self.verify(self.size());
        // SAFETY: the block is live and has this layout; no test comes near
        // the largest size.
        let moved = unsafe { self.heap.realloc(self.at, self.layout, size) };
        if moved.is_null() {
            self.verify(self.size());
            return false;
        }
        assert_eq!(moved as usize % self.layout.align(), 0, "misaligned");
        let kept = self.size().min(size);
        self.at = moved;
        self.layout = Layout::from_size_align(size, self.layout.align()).unwrap();
        self.verify(kept);
        self.fill();
        true
    }

    fn fill(&mut self) {
        // SAFETY: the block is live and nobody else's.
        let bytes = unsafe {
            self.at.write_bytes(self.seed, self.size());
            slice::from_raw_parts_mut(self.at, self.layout.size())
        };
        for (number, chunk) in bytes.chunks_mut(CHUNK).enumerate() {
            let (stamp, len) = stamp(number, chunk.len());
            chunk[..len].copy_from_slice(&stamp[..len]);
        }
    }

    /// Checks the first `len` bytes.
    pub fn verify(&self, len: usize) {
        // SAFETY: the block is live, and `fill` has written all of it.
        let bytes = unsafe { slice::from_raw_parts(self.at, len) };
        for (number, chunk) in bytes.chunks(CHUNK).enumerate() {
            let (stamp, len) = stamp(number, chunk.len());
            assert!(
                chunk[..len] == stamp[..len] && uniform(&chunk[len..], self.seed),
                "contents changed in kilobyte {number} of {:?}",
                self.layout
            );
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.verify(self.size());
        }
        // SAFETY: the block is live and has this layout.
        unsafe { self.heap.dealloc(self.at, self.layout) };
    }
}
