//! A heap profile of what nobody pays for. On its own: the test harness'
//! allocations are sampled, too, and some of them outlive the test.

mod common;

use common::{Bytes, quiet};
use tiered_allocator::TieredAllocator;
use tiered_allocator::profile::ProfileOptions;

#[inline(never)]
fn nobodys_site(size: usize) -> Bytes {
    std::hint::black_box(Bytes::new(size).unwrap())
}

#[test]
fn what_is_allocated_outside_any_scope_shows_if_asked_for() {
    assert!(TieredAllocator::is_installed());
    let memory = quiet(1 << 30);
    let start = |options: ProfileOptions| {
        let options = options.sample_bytes(1).seed(1);
        memory.start_heap_profile(&options).unwrap();
    };
    start(ProfileOptions::new());
    let _unseen = nobodys_site(777);
    assert_eq!(memory.heap_profile(None).unwrap().sites, []);
    memory.stop_heap_profile().unwrap();

    start(ProfileOptions::new().unattributed(true));
    let held = nobodys_site(12_345);
    let found = || {
        let profile = memory.heap_profile(None).unwrap();
        profile.sites.into_iter().find(|site| {
            let mut names = site.frames.iter().map(|frame| &frame.function);
            names.any(|name| name.contains("nobodys_site"))
        })
    };
    let site = found().expect("the block outside any scope");
    assert_eq!((site.client, &*site.client_name), (None, "(unattributed)"));
    assert_eq!((site.live_bytes, site.live_blocks), (12_345, 1));
    memory.stop_heap_profile().unwrap();
    drop(held);
    assert_eq!(found(), None);

    // Client 0 is back on its fast path, and its books are right. The harness
    // waits meanwhile.
    let before = memory.snapshot().unattributed_bytes;
    let block = Bytes::new(1000);
    assert_eq!(memory.snapshot().unattributed_bytes, before + 1000);
    drop(block);
}
