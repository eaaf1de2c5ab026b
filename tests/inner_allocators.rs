//! What the inner allocator sees: each method forwarded once, to its own
//! counterpart, with the owner tag in the layout of small blocks alone.

mod support;

use serial_test::serial;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use support::Block;
use tiered_allocator::{ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    Alloc(Layout),
    AllocZeroed(Layout),
    Dealloc(Layout),
    Realloc(Layout, usize),
}

/// Writes down every call. Its own notes come from the test's allocator, which
/// is another.
struct Recorder {
    calls: Mutex<Vec<Call>>,
}

impl Recorder {
    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }

    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

// SAFETY: everything is passed on to `System` as it came.
unsafe impl GlobalAlloc for Recorder {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.note(Call::Alloc(layout));
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.note(Call::AllocZeroed(layout));
        // SAFETY: the caller's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.note(Call::Dealloc(layout));
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.note(Call::Realloc(layout, new_size));
        // SAFETY: the caller's contract.
        unsafe { System.realloc(block, layout, new_size) }
    }
}

static HEAP: TieredAllocator<Recorder> = TieredAllocator::new(Recorder {
    calls: Mutex::new(Vec::new()),
});

const SIZES: [usize; 12] = [1, 2, 8, 63, 64, 1000, 4091, 4092, 4095, 4096, 4097, 3 << 20];
const ALIGNS: [usize; 5] = [1, 8, 64, 4096, 1 << 20];

/// What the inner allocator has to be asked for.
fn inner(size: usize, align: usize) -> Layout {
    let tag = if size < 4096 { 4 } else { 0 };
    Layout::from_size_align(size + tag, align).unwrap()
}

#[test]
#[serial]
fn every_method_is_forwarded_once_with_the_tag_in_small_layouts_only() {
    HEAP.inner().take();
    for align in ALIGNS {
        for size in SIZES {
            let layout = Layout::from_size_align(size, align).unwrap();
            let inner_layout = inner(size, align);
            drop(Block::new(&HEAP, layout, 1).unwrap());
            assert_eq!(
                HEAP.inner().take(),
                [Call::Alloc(inner_layout), Call::Dealloc(inner_layout)]
            );
            drop(Block::zeroed(&HEAP, layout, 2).unwrap());
            assert_eq!(
                HEAP.inner().take(),
                [Call::AllocZeroed(inner_layout), Call::Dealloc(inner_layout)]
            );
            for new_size in SIZES {
                let mut block = Block::new(&HEAP, layout, 3).unwrap();
                assert!(block.resize(new_size));
                drop(block);
                let new = inner(new_size, align);
                assert_eq!(
                    HEAP.inner().take(),
                    [
                        Call::Alloc(inner_layout),
                        Call::Realloc(inner_layout, new.size()),
                        Call::Dealloc(new),
                    ]
                );
            }
        }
    }
}

#[test]
#[serial]
fn what_a_quota_refuses_never_reaches_the_inner_allocator() {
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    let options = ClientOptions::new(SubscriptionTier::Basic)
        .max(Limit::Bytes(10_000))
        .enforcement(tiered_allocator::Enforcement::Strict);
    let client = memory.register("small", options).unwrap();
    let _scope = client.enter();
    let mut block = Block::bytes(&HEAP, 9_000).unwrap();
    HEAP.inner().take();
    assert!(Block::bytes(&HEAP, 1_001).is_none());
    assert!(!block.resize(10_001));
    assert_eq!(HEAP.inner().take(), []);
    assert_eq!(client.usage().live_bytes, 9_000);
    assert_eq!(client.usage().refusals, 2);
    assert!(block.resize(10_000));
    drop(block);
    HEAP.inner().take();
}

#[test]
#[serial]
fn a_size_that_no_layout_holds_is_not_charged() {
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    let options = ClientOptions::new(SubscriptionTier::Basic)
        .max(Limit::Unlimited)
        .enforcement(tiered_allocator::Enforcement::Observe);
    let client = memory.register("huge", options).unwrap();
    let _scope = client.enter();
    let layout = Layout::from_size_align(isize::MAX as usize, 1).unwrap();
    // The inner allocator has no such memory.
    assert!(Block::new(&HEAP, layout, 0).is_none());
    assert!(Block::zeroed(&HEAP, layout, 0).is_none());
    let mut block = Block::bytes(&HEAP, 100).unwrap();
    assert!(!block.resize(isize::MAX as usize));
    assert_eq!(client.usage().live_bytes, 100);
    assert_eq!(client.usage().total_bytes, 100);
    assert_eq!(client.usage().live_allocations, 1);
    drop(block);
    assert_eq!(client.usage().live_bytes, 0);
    HEAP.inner().take();
}
