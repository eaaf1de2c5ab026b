//! A panic needs memory, most of all for a backtrace. In a client that has
//! used up its own it must still be an ordinary panic.

use std::alloc::{GlobalAlloc, Layout};
use tiered_allocator::{
    ClientOptions, Enforcement, Limit, Memory, SubscriptionTier, TieredAllocator,
};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const MAX: usize = 100_000;

#[test]
fn a_panic_in_a_client_at_its_limit_is_caught_as_any_other() {
    assert!(TieredAllocator::is_installed());
    // A default hook that meets a refusal waits for its own lock for ever.
    std::panic::set_hook(Box::new(|info| {
        let trace = std::backtrace::Backtrace::force_capture();
        assert!(!trace.to_string().is_empty());
        assert!(info.to_string().contains("on purpose"));
    }));
    for enforcement in [Enforcement::Graceful, Enforcement::Strict] {
        // Of its own: the symbols that a backtrace reads are kept for good.
        let memory = Memory::builder(1 << 20).usable(1.0).build().unwrap();
        let options = ClientOptions::new(SubscriptionTier::Enterprise)
            .max(Limit::Bytes(MAX as u64))
            .enforcement(enforcement);
        let client = memory
            .register(&format!("{enforcement:?}"), options)
            .unwrap();
        let layout = Layout::from_size_align(MAX, 1).unwrap();
        let scope = client.enter();
        // SAFETY: the size is not zero; the block is freed with its layout.
        let block = unsafe { HEAP.alloc(layout) };
        assert!(!block.is_null());
        let caught = std::panic::catch_unwind(|| panic!("on purpose"));
        // SAFETY: as above.
        unsafe { HEAP.dealloc(block, layout) };
        drop(scope);
        assert!(caught.is_err());
    }
}
