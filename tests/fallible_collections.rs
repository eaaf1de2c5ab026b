//! Collections that take a client as their allocator.

mod common;

use allocator_api2::alloc::Allocator;
use allocator_api2::boxed::Box as ClientBox;
use allocator_api2::vec::Vec as ClientVec;
use common::{client, quiet};
use hashbrown::{DefaultHashBuilder, HashMap, TryReserveError};
use serial_test::serial;
use std::alloc::Layout;
use std::ptr::NonNull;
use tiered_allocator::{BudgetNode, Client, Enforcement, TieredAllocator};

const EACH: [Enforcement; 2] = [Enforcement::Graceful, Enforcement::Strict];

fn live(client: &Client) -> (u64, u64) {
    let usage = client.usage();
    (usage.live_bytes, usage.live_allocations)
}

#[test]
#[serial]
fn a_map_is_charged_to_its_client_whatever_scope_is_current() {
    assert!(TieredAllocator::is_installed());
    let memory = quiet(1 << 30);
    let owner = client(&memory, "owner", 1 << 20, Enforcement::Graceful);
    let other = client(&memory, "other", 1 << 20, Enforcement::Graceful);
    let mut map = HashMap::with_hasher_in(DefaultHashBuilder::default(), owner.clone());
    {
        let _scope = other.enter();
        for key in 0..1000_u64 {
            map.try_reserve(1).unwrap();
            map.insert(key, key * key);
        }
        assert_eq!(Client::current(), Some(other.clone()));
    }
    assert_eq!(map.get(&31), Some(&961));
    assert_eq!(live(&owner), (map.allocation_size() as u64, 1));
    assert_eq!(other.usage().total_allocations, 0);
    // Whoever drops it, wherever.
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let _scope = other.enter();
            drop(map);
        });
    });
    assert_eq!(live(&owner), (0, 0));
    assert_eq!(live(&other), (0, 0));
}

#[test]
#[serial]
fn beyond_the_limit_a_map_says_so_and_nothing_is_lent() {
    for enforcement in EACH {
        let memory = quiet(1 << 30);
        let owner = client(&memory, "owner", 100_000, enforcement);
        let mut map: HashMap<u64, u64, _, _> =
            HashMap::with_hasher_in(DefaultHashBuilder::default(), owner.clone());
        let refused = loop {
            if let Err(refused) = map.try_reserve(1) {
                break refused;
            }
            map.insert(map.len() as u64, 0);
        };
        let TryReserveError::AllocError { layout } = refused else {
            panic!("{refused:?}");
        };
        let held = map.allocation_size() as u64;
        let quota = owner.last_refusal().unwrap();
        assert_eq!(
            (&*quota.client, quota.requested, quota.limit, quota.node),
            ("owner", layout.size() as u64, 100_000, BudgetNode::Client)
        );
        assert!(quota.charged + quota.requested > 100_000);
        let usage = owner.usage();
        assert_eq!((usage.live_bytes, usage.refusals), (held, 1));
        assert_eq!(usage.overdrawn_bytes, 0);
        assert!(owner.checkpoint().is_ok());
        // What is there stays usable.
        assert!((0..map.len() as u64).all(|key| map.contains_key(&key)));
    }
}

#[test]
#[serial]
fn the_last_byte_is_granted_and_the_next_refused() {
    for enforcement in EACH {
        let memory = quiet(1 << 30);
        let owner = client(&memory, "owner", 10_000, enforcement);
        let mut bytes: ClientVec<u8, _> = ClientVec::new_in(owner.clone());
        bytes.try_reserve_exact(3).unwrap();
        bytes.extend_from_slice(b"abc");
        // Across the size from which on owners are in the page map.
        bytes.try_reserve_exact(10_000 - 3).unwrap();
        assert_eq!(live(&owner), (10_000, 1));
        assert!(bytes.try_reserve_exact(10_001 - 3).is_err());
        let quota = owner.last_refusal().unwrap();
        assert_eq!((quota.requested, quota.charged), (1, 10_000));
        assert_eq!(live(&owner), (10_000, 1));
        bytes.shrink_to_fit();
        assert_eq!((&bytes[..], live(&owner)), (&b"abc"[..], (3, 1)));
        // Others of this thread are lent to again.
        drop(bytes);
        assert_eq!(live(&owner), (0, 0));
    }
}

#[test]
#[serial]
fn ordinary_code_of_the_client_is_lent_to_as_before() {
    let memory = quiet(1 << 30);
    let owner = client(&memory, "owner", 10_000, Enforcement::Graceful);
    let mut bytes: ClientVec<u8, _> = ClientVec::new_in(owner.clone());
    assert!(bytes.try_reserve_exact(10_001).is_err());
    let lent = {
        let _scope = owner.enter();
        vec![0_u8; 10_001]
    };
    assert_eq!(owner.usage().overdrawn_bytes, 1);
    assert!(bytes.try_reserve_exact(1).is_err());
    drop(lent);
    bytes.try_reserve_exact(10_000).unwrap();
}

#[test]
#[serial]
fn an_observed_client_is_granted_and_counted() {
    let memory = quiet(1 << 30);
    let owner = client(&memory, "owner", 1000, Enforcement::Observe);
    let mut bytes: ClientVec<u8, _> = ClientVec::new_in(owner.clone());
    bytes.try_reserve_exact(1001).unwrap();
    let usage = owner.usage();
    assert_eq!((usage.live_bytes, usage.observed_breaches), (1001, 1));
}

#[test]
#[serial]
fn a_box_keeps_alignment_and_goes_back() {
    #[repr(align(512))]
    struct Aligned([u8; 700]);
    let memory = quiet(1 << 30);
    let owner = client(&memory, "owner", 1 << 20, Enforcement::Strict);
    let boxed = ClientBox::try_new_in(Aligned([7; 700]), owner.clone()).unwrap();
    assert_eq!((&raw const *boxed).addr() % 512, 0);
    assert_eq!(boxed.0[699], 7);
    assert_eq!(live(&owner), (1024, 1));
    drop(boxed);
    assert_eq!(live(&owner), (0, 0));
}

#[test]
#[serial]
fn no_bytes_cost_nothing() {
    let memory = quiet(1 << 30);
    let owner = client(&memory, "owner", 1, Enforcement::Strict);
    let mut units: ClientVec<(), _> = ClientVec::new_in(owner.clone());
    units.resize(1000, ());
    drop(ClientBox::try_new_in((), owner.clone()).unwrap());
    let layout = Layout::from_size_align(0, 64).unwrap();
    let empty = owner.allocate(layout).unwrap();
    assert_eq!((empty.len(), empty.cast::<u8>().addr().get() % 64), (0, 0));
    assert_eq!(owner.usage().total_allocations, 0);
    // From nothing to something, and back to nothing.
    let roomy = client(&memory, "roomy", 100, Enforcement::Strict);
    let some = Layout::from_size_align(100, 64).unwrap();
    // SAFETY: an empty block of an equal allocator; each layout is the block's.
    unsafe {
        assert!(owner.grow(empty.cast(), layout, some).is_err());
        let grown = roomy.grow_zeroed(empty.cast(), layout, some).unwrap();
        assert_eq!(grown.as_ref(), [0; 100]);
        assert_eq!(live(&roomy), (100, 1));
        let shrunk = roomy.shrink(grown.cast(), some, layout).unwrap();
        assert_eq!((shrunk.len(), live(&roomy)), (0, (0, 0)));
        roomy.deallocate(shrunk.cast(), layout);
    }
}

/// A block filled with 0, 1, 2, and so on.
fn counted(owner: &Client, layout: Layout) -> NonNull<u8> {
    let block = owner.allocate(layout).unwrap().cast::<u8>();
    for at in 0..layout.size() {
        // SAFETY: within the block.
        unsafe { block.add(at).write(at as u8) };
    }
    block
}

fn is_counted(block: NonNull<u8>, bytes: usize) -> bool {
    // SAFETY: the callers' blocks have that many bytes.
    (0..bytes).all(|at| unsafe { block.add(at).read() } == at as u8)
}

#[test]
#[serial]
fn blocks_change_size_and_alignment_and_keep_their_bytes() {
    let memory = quiet(1 << 30);
    let owner = client(&memory, "owner", 1 << 20, Enforcement::Strict);
    let sizes = [1_usize, 63, 4095, 4096, 20_000];
    for (from, to) in sizes.iter().flat_map(|from| sizes.map(|to| (*from, to))) {
        for (align, new_align) in [(1, 1), (1, 256), (256, 16), (8192, 8192), (8192, 1)] {
            let old = Layout::from_size_align(from, align).unwrap();
            let new = Layout::from_size_align(to, new_align).unwrap();
            let block = counted(&owner, old);
            assert_eq!(live(&owner), (from as u64, 1));
            // SAFETY: the block's own layout, and a size on the right side of it.
            let moved = unsafe {
                match to >= from {
                    true => owner.grow_zeroed(block, old, new),
                    false => owner.shrink(block, old, new),
                }
            }
            .unwrap();
            assert_eq!(moved.len(), to);
            let start = moved.cast::<u8>();
            assert_eq!(start.addr().get() % new_align, 0);
            assert!(is_counted(start, from.min(to)), "{old:?} {new:?}");
            // SAFETY: the block is as long.
            let tail = unsafe { &moved.as_ref()[from.min(to)..] };
            assert!(tail.iter().all(|&byte| byte == 0));
            assert_eq!(live(&owner), (to as u64, 1));
            // SAFETY: the block's layout by now.
            unsafe { owner.deallocate(start, new) };
            assert_eq!(live(&owner), (0, 0));
        }
    }
}

#[test]
#[serial]
fn a_refused_change_leaves_the_block_as_it_was() {
    let memory = quiet(1 << 30);
    let owner = client(&memory, "owner", 5000, Enforcement::Graceful);
    let old = Layout::from_size_align(4500, 8).unwrap();
    let block = counted(&owner, old);
    for (size, align) in [(5001, 8), (4600, 64), (4000, 64)] {
        let new = Layout::from_size_align(size, align).unwrap();
        // SAFETY: the block's own layout, and a size on the right side of it.
        let changed = unsafe {
            match size >= old.size() {
                true => owner.grow(block, old, new),
                false => owner.shrink(block, old, new),
            }
        };
        assert!(changed.is_err());
        assert!(is_counted(block, 4500));
        assert_eq!(live(&owner), (4500, 1));
    }
    // SAFETY: the block is as it was.
    unsafe { owner.deallocate(block, old) };
    assert_eq!(live(&owner), (0, 0));
}

#[test]
#[serial]
fn a_removed_client_is_refused_and_still_gets_its_bytes_back() {
    for enforcement in EACH {
        let memory = quiet(1 << 30);
        let owner = client(&memory, "owner", 1 << 20, enforcement);
        let mut held: ClientVec<u8, _> = ClientVec::with_capacity_in(5000, owner.clone());
        held.push(1);
        memory.remove_client("owner").unwrap();
        let mut new: ClientVec<u8, _> = ClientVec::new_in(owner.clone());
        assert!(new.try_reserve_exact(1).is_err());
        assert!(held.try_reserve_exact(6000).is_err());
        assert_eq!(live(&owner), (5000, 1));
        held.shrink_to_fit();
        assert_eq!(live(&owner), (1, 1));
        drop(held);
        assert_eq!(owner.usage().live_bytes, 0);
        // The index goes to the next one, and the old handle pays nothing of it.
        let next = client(&memory, "next", 1 << 20, enforcement);
        assert!(new.try_reserve_exact(1).is_err());
        assert_eq!(next.usage().total_allocations, 0);
    }
}

#[test]
#[serial]
fn a_request_budget_binds_its_collections() {
    let memory = quiet(1 << 30);
    let owner = client(&memory, "owner", 1 << 20, Enforcement::Graceful);
    let budget = owner.budget(1000).unwrap();
    let mut rows: ClientVec<u8, _> = ClientVec::new_in((*budget).clone());
    rows.try_reserve_exact(1000).unwrap();
    assert!(rows.try_reserve_exact(1001).is_err());
    assert_eq!(
        budget.last_refusal().map(|quota| quota.node),
        Some(BudgetNode::Request)
    );
    assert_eq!(live(&owner), (1000, 1));
    // What outlives the budget is bound by the client alone.
    drop(budget);
    rows.try_reserve_exact(2000).unwrap();
    assert_eq!(live(&owner), (2000, 1));
    drop(rows);
    assert_eq!(live(&owner), (0, 0));
}

#[test]
#[serial]
fn credit_of_other_threads_is_no_reason_to_refuse() {
    let memory = quiet(1 << 30);
    let owner = client(&memory, "owner", 1 << 20, Enforcement::Strict);
    std::thread::scope(|threads| {
        let (told, hears) = std::sync::mpsc::channel::<()>();
        let (done, waits) = std::sync::mpsc::channel();
        threads.spawn({
            let owner = owner.clone();
            move || {
                // Leaves unused credit in this thread's account.
                drop(ClientVec::<u8, _>::with_capacity_in(100, owner));
                done.send(()).unwrap();
                hears.recv().unwrap();
            }
        });
        waits.recv().unwrap();
        let mut all: ClientVec<u8, _> = ClientVec::new_in(owner.clone());
        all.try_reserve_exact(1 << 20).unwrap();
        assert_eq!(live(&owner), (1 << 20, 1));
        told.send(()).unwrap();
    });
}

#[test]
#[serial]
fn a_refusal_names_the_whole_request_and_what_lives() {
    let memory = quiet(1 << 30);
    let owner = client(&memory, "owner", 100_000, Enforcement::Strict);
    let mut bytes: ClientVec<u8, _> = ClientVec::with_capacity_in(1000, owner.clone());
    bytes.push(1);
    // The thread has credit beyond what lives: no part of the figures.
    assert!(owner.usage().charged_bytes > 1000);
    let mut more: ClientVec<u8, _> = ClientVec::new_in(owner.clone());
    assert!(more.try_reserve_exact(99_500).is_err());
    let quota = owner.last_refusal().unwrap();
    assert_eq!((quota.requested, quota.charged), (99_500, 1000));
}
