//! Feature `unwind`: allocations that fail for other reasons than a quota keep
//! the hook that was there before.

#![cfg(feature = "unwind")]
#![feature(alloc_error_hook)]

use std::alloc::{Layout, set_alloc_error_hook};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use tiered_allocator::{ClientOptions, Enforcement, Limit, Memory, TieredAllocator};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

/// More than the system has, less than a layout may be.
const TOO_MUCH: usize = isize::MAX as usize / 2;

struct Previous(usize);

fn previous(layout: Layout) {
    resume_unwind(Box::new(Previous(layout.size())));
}

#[test]
fn other_failures_keep_the_previous_hook() {
    assert!(TieredAllocator::is_installed());
    set_alloc_error_hook(previous);
    let memory = Memory::new(1 << 30);
    let options = ClientOptions::new("Basic")
        .max(Limit::Bytes(1000))
        .enforcement(Enforcement::Strict);
    let client = memory.register("a", options).unwrap();

    // Nobody's allocation: the system refuses it.
    let failed = catch_unwind(|| Vec::<u8>::with_capacity(TOO_MUCH)).unwrap_err();
    assert_eq!(failed.downcast_ref::<Previous>().unwrap().0, TOO_MUCH);

    // A quota goes another way, and leaves no trace for the next failure.
    let refused = client.run(|| vec![0_u8; 2000]).unwrap_err();
    assert_eq!(refused.quota.requested, 2000);
    let quiet = client.run(|| {
        let mut buffer = Vec::<u8>::new();
        buffer.try_reserve(2000).is_err()
    });
    assert!(quiet.unwrap());
    let failed = catch_unwind(AssertUnwindSafe(|| Vec::<u8>::with_capacity(TOO_MUCH)));
    assert!(failed.unwrap_err().is::<Previous>());
}
