//! Blocks: bytes that are the client's, stay while they are pinned, and may go
//! elsewhere while they are not.

mod common;
#[path = "support/huge_pages.rs"]
mod huge_pages;

use common::{client, quiet, timed};
use huge_pages::resident_at_most;
use serial_test::serial;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tiered_allocator::{
    AllocateError, BudgetNode, DeallocateReason, Enforcement, Limit, Memory, MemoryBlock, PinError,
    ReclaimPolicy, ReclaimReport, SubscriptionTier, TierPolicy, TieredAllocator,
};

use SubscriptionTier::{Basic, Enterprise, Premium};

const TOTAL: u64 = 100 << 20;
const IDLE: Duration = Duration::from_secs(300);

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Fills a block with bytes that differ from page to page; their hash.
fn fill(block: &mut MemoryBlock, seed: u64) -> u64 {
    let mut pin = block.pin_mut().unwrap();
    let mut random = seed;
    for chunk in pin.chunks_mut(8) {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
        chunk.copy_from_slice(&random.to_le_bytes()[..chunk.len()]);
    }
    hash(&pin)
}

fn report(change: impl FnOnce(&mut ReclaimReport)) -> ReclaimReport {
    let mut report = ReclaimReport::default();
    change(&mut report);
    report
}

#[test]
#[serial]
fn blocks_of_any_size_are_zeroed_and_charged_to_the_byte() {
    assert!(TieredAllocator::is_installed());
    let memory = quiet(1 << 30);
    let client = memory.register("a", Enterprise).unwrap();
    for size in [1, 15, 16, 4095, 4096, 4097, 50_000_000] {
        let mut block = memory.allocate_for_client("a", size).unwrap();
        assert_eq!(block.len(), size);
        assert_eq!(client.usage().live_bytes, size as u64);
        assert_eq!(client.usage().block_bytes, size as u64);
        assert_eq!(client.usage().live_allocations, 1);
        assert!(block.pin().unwrap().iter().all(|&byte| byte == 0));
        let sum = fill(&mut block, size as u64);
        assert_eq!(hash(&block.pin().unwrap()), sum);
        assert_eq!(block.pin().unwrap().as_ptr(), block.as_ptr().as_ptr());
        memory.deallocate_for_client("a", block).unwrap();
        assert_eq!(memory.get_resource_usage(), (0, 0));
    }
}

#[test]
#[serial]
fn impossible_sizes_and_names_are_errors_and_cost_nothing() {
    let memory = quiet(1 << 30);
    let client = memory.register("a", Basic).unwrap();
    let zero = memory.allocate_for_client("a", 0).unwrap_err();
    assert!(matches!(zero, AllocateError::ZeroSize));
    for size in [usize::MAX, isize::MAX as usize, 1 << 40] {
        let huge = memory.allocate_for_client("a", size).unwrap_err();
        assert!(matches!(huge, AllocateError::QuotaExceeded(quota)
            if quota.requested == size as u64));
    }
    let nobody = memory.allocate_for_client("b", 1).unwrap_err();
    assert!(matches!(nobody, AllocateError::UnknownClient(unknown) if unknown.name == "b"));
    let usage = client.usage();
    assert_eq!(
        (usage.live_bytes, usage.charged_bytes, usage.peak_bytes),
        (0, 0, 0)
    );
    assert_eq!(usage.refusals, 3);
}

#[test]
#[serial]
fn a_refused_block_says_who_how_much_and_against_what() {
    let memory = quiet(1_000_000);
    client(&memory, "a", 10_000, Enforcement::Strict);
    let held = memory.allocate_for_client("a", 9_000).unwrap();
    let refused = memory.allocate_for_client("a", 1_001).unwrap_err();
    let AllocateError::QuotaExceeded(quota) = refused else {
        panic!("{refused}");
    };
    assert_eq!(&*quota.client, "a");
    assert_eq!(&*quota.tier, "Enterprise");
    assert_eq!(
        (quota.requested, quota.charged, quota.limit),
        (1_001, 9_000, 10_000)
    );
    assert_eq!(quota.node, BudgetNode::Client);
    let text = quota.to_string();
    for part in [
        "`a`",
        "Enterprise",
        "1001",
        "9000",
        "10000",
        "raise the limit",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    assert!(memory.allocate_for_client("a", 1_000).is_ok());
    drop(held);
}

#[test]
#[serial]
fn a_block_given_to_the_wrong_client_comes_back_as_it_was() {
    let memory = quiet(1 << 30);
    memory.register("owner", Basic).unwrap();
    memory.register("other", Basic).unwrap();
    let mut block = memory.allocate_for_client("owner", 10_000).unwrap();
    let sum = fill(&mut block, 1);
    let refused = memory.deallocate_for_client("other", block).unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("`owner`") && text.contains("`other`"),
        "{text}"
    );
    let DeallocateReason::WrongClient(wrong) = &refused.reason else {
        panic!("{text}");
    };
    assert_eq!((&*wrong.owner, wrong.named.as_str()), ("owner", "other"));
    let refused = memory
        .deallocate_for_client("nobody", refused.block)
        .unwrap_err();
    assert!(matches!(refused.reason, DeallocateReason::UnknownClient(_)));
    assert_eq!(hash(&refused.block.pin().unwrap()), sum);
    assert_eq!(memory.client_usage("owner").unwrap().live_bytes, 10_000);
    memory
        .deallocate_for_client("owner", refused.block)
        .unwrap();
    assert_eq!(memory.get_resource_usage(), (0, 0));
}

#[test]
#[serial]
fn many_threads_read_one_block_through_pins_of_their_own() {
    let memory = quiet(1 << 30);
    memory.register("a", Basic).unwrap();
    let mut block = memory.allocate_for_client("a", 100_000).unwrap();
    let sum = fill(&mut block, 9);
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                for _ in 0..20 {
                    let (one, two) = (block.pin().unwrap(), block.pin().unwrap());
                    assert_eq!((hash(&one), hash(&two)), (sum, sum));
                }
            });
        }
    });
}

#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "spills or measures pages")]
fn used_follows_the_pages_that_were_touched() {
    let memory = quiet(1 << 30);
    memory.register("a", Basic).unwrap();
    let mut block = memory.allocate_for_client("a", 1 << 20).unwrap();
    let used = || memory.update_client_usage("a").unwrap();
    let follows = |(allocated, used): (u64, u64), touched| {
        let expected = touched..=resident_at_most(touched).min(allocated);
        assert!(expected.contains(&used), "{used} of {expected:?}");
        assert_eq!(allocated, 1 << 20);
    };
    follows(used(), 0);
    block.pin_mut().unwrap()[..65_536].fill(1);
    follows(used(), 65_536);
    follows((1 << 20, block.resident_bytes()), 65_536);
    block.pin_mut().unwrap().fill(1);
    assert_eq!(used(), (1 << 20, 1 << 20));
    assert_eq!(memory.get_client_resource_usage("a").unwrap(), used());
    // Less than a page is somewhere within one.
    let small = memory.allocate_for_client("a", 100).unwrap();
    assert_eq!(used(), ((1 << 20) + 100, (1 << 20) + 100));
    assert_eq!(memory.get_resource_usage(), used());
    drop((block, small));
    assert_eq!(used(), (0, 0));
}

#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "spills or measures pages")]
fn a_block_outlives_its_client_and_its_memory() {
    let (memory, clock) = timed(TOTAL, |builder| builder);
    let client = memory.register("a", Enterprise).unwrap();
    let mut blocks: Vec<MemoryBlock> = (0..2)
        .map(|_| memory.allocate_for_client("a", 50_000).unwrap())
        .collect();
    let sums: Vec<u64> = blocks.iter_mut().map(|block| fill(block, 4)).collect();
    memory.remove_client("a").unwrap();
    clock.advance(IDLE);
    assert_eq!(memory.reclaim_unused_memory().spilled_blocks, 2);
    drop(memory);
    for (block, sum) in blocks.iter().zip(sums) {
        assert_eq!(hash(&block.pin().unwrap()), sum);
    }
    assert_eq!(client.usage().live_bytes, 100_000);
    blocks.clear();
    assert_eq!(client.usage().live_bytes, 0);
}

#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "spills or measures pages")]
fn an_idle_block_is_spilled_and_comes_back_as_it_was() {
    let (memory, clock) = timed(TOTAL, |builder| builder);
    let client = memory.register("a", Enterprise).unwrap();
    const SIZE: usize = (8 << 20) + 123;
    let mut block = memory.allocate_for_client("a", SIZE).unwrap();
    let sum = fill(&mut block, 42);
    let resident = |memory: &Memory| memory.snapshot().resident_set_bytes;
    let before = resident(&memory);

    clock.advance(IDLE - Duration::from_nanos(1));
    assert_eq!(memory.reclaim_unused_memory(), ReclaimReport::default());
    clock.advance(Duration::from_nanos(1));
    memory.tick();
    assert_eq!(memory.snapshot().reclaim.spilled_bytes, SIZE as u64);
    // Nothing more to do.
    assert_eq!(memory.reclaim_unused_memory(), ReclaimReport::default());
    assert_eq!(memory.get_client_resource_usage("a").unwrap(), (0, 0));
    assert_eq!(client.usage().charged_bytes, 0, "the charge went back");
    assert_eq!(client.usage().live_allocations, 1);
    assert_eq!(memory.usage().spilled_bytes, SIZE as u64);
    if let (Some(before), Some(after)) = (before, resident(&memory)) {
        assert!(
            after + (7 << 20) < before,
            "{after} of {before} are resident"
        );
    }

    assert_eq!(hash(&block.pin().unwrap()), sum);
    assert_eq!(client.usage().live_bytes, SIZE as u64);
    assert_eq!(memory.usage().spilled_bytes, 0);
    assert_eq!(memory.snapshot().reclaim.restored_bytes, SIZE as u64);
    // It is idle from the end of the last pin.
    assert_eq!(memory.reclaim_unused_memory(), ReclaimReport::default());
    clock.advance(IDLE);
    let expected = report(|r| (r.spilled_blocks, r.spilled_bytes) = (1, SIZE as u64));
    assert_eq!(memory.reclaim_unused_memory(), expected);
    // A spilled block can be freed where it is.
    drop(block);
    assert_eq!(memory.usage().spilled_bytes, 0);
    assert_eq!(client.usage().live_allocations, 0);
}

#[test]
#[serial]
fn a_block_smaller_than_a_page_stays() {
    let (memory, clock) = timed(TOTAL, |builder| builder);
    memory.register("a", Enterprise).unwrap();
    let _block = memory.allocate_for_client("a", 4095).unwrap();
    clock.advance(IDLE);
    assert_eq!(memory.reclaim_unused_memory(), ReclaimReport::default());
}

#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "spills or measures pages")]
fn a_spilled_block_waits_until_its_client_may_have_it_back() {
    let (memory, clock) = timed(TOTAL, |builder| builder);
    let client = client(&memory, "a", 100_000, Enforcement::Strict);
    let mut block = memory.allocate_for_client("a", 60_000).unwrap();
    let sum = fill(&mut block, 6);
    clock.advance(IDLE);
    assert_eq!(memory.reclaim_unused_memory().spilled_blocks, 1);
    let other = memory.allocate_for_client("a", 60_000).unwrap();
    let error = block.pin().unwrap_err();
    let PinError::QuotaExceeded(quota) = &error else {
        panic!("{error}");
    };
    assert_eq!(
        (quota.requested, quota.charged, quota.limit),
        (60_000, 60_000, 100_000)
    );
    assert_eq!(client.usage().live_bytes, 60_000);
    assert_eq!(memory.usage().spilled_bytes, 60_000);
    assert!(block.pin_mut().is_err());
    drop(other);
    assert_eq!(hash(&block.pin().unwrap()), sum);
    assert_eq!(client.usage().live_bytes, 60_000);
}

#[test]
#[serial]
fn a_discardable_block_says_so_until_it_is_renewed_and_a_kept_one_stays() {
    let policy = |reclaim| TierPolicy::new(Limit::Share(0.3)).reclaim(reclaim);
    let (memory, clock) = timed(TOTAL, |builder| {
        builder
            .tier("cache", policy(ReclaimPolicy::Discard))
            .tier("kept", policy(ReclaimPolicy::Keep))
    });
    let cache = memory.register("cache", "cache").unwrap();
    memory.register("kept", "kept").unwrap();
    let mut block = memory.allocate_for_client("cache", 10_000).unwrap();
    let mut kept = memory.allocate_for_client("kept", 10_000).unwrap();
    fill(&mut block, 1);
    let sum = fill(&mut kept, 2);
    clock.advance(IDLE * 10);
    let expected = report(|r| (r.discarded_blocks, r.discarded_bytes) = (1, 10_000));
    assert_eq!(memory.reclaim_unused_memory(), expected);
    assert_eq!(cache.usage().live_bytes, 0);
    for _ in 0..2 {
        assert!(matches!(
            block.pin(),
            Err(PinError::Reclaimed { bytes: 10_000 })
        ));
        assert!(matches!(block.pin_mut(), Err(PinError::Reclaimed { .. })));
    }
    block.renew().unwrap();
    block.renew().unwrap();
    assert_eq!(cache.usage().live_bytes, 10_000);
    assert!(block.pin().unwrap().iter().all(|&byte| byte == 0));
    assert_eq!(hash(&kept.pin().unwrap()), sum);
    assert_eq!(memory.get_resource_usage().0, 20_000);
}

#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "spills or measures pages")]
fn a_pinned_block_is_not_touched_however_old_it_is() {
    let (memory, clock) = timed(TOTAL, |builder| builder);
    memory.register("a", Enterprise).unwrap();
    let mut block = memory.allocate_for_client("a", 10_000).unwrap();
    fill(&mut block, 1);
    let pins = [block.pin().unwrap(), block.pin().unwrap()];
    clock.advance(IDLE * 100);
    assert_eq!(memory.reclaim_unused_memory(), ReclaimReport::default());
    let [first, second] = pins;
    drop(first);
    assert_eq!(memory.reclaim_unused_memory(), ReclaimReport::default());
    drop(second);
    assert_eq!(memory.reclaim_unused_memory(), ReclaimReport::default());
    clock.advance(IDLE);
    assert_eq!(memory.reclaim_unused_memory().spilled_blocks, 1);
}

#[test]
#[serial]
fn nothing_is_lost_while_threads_pin_and_others_reclaim() {
    let now = TierPolicy::new(Limit::Unlimited).idle_after(Duration::ZERO);
    let (memory, _clock) = timed(TOTAL, |builder| builder.tier("hasty", now));
    memory.register("a", "hasty").unwrap();
    let stop = AtomicBool::new(false);
    let restored = AtomicU64::new(0);
    std::thread::scope(|threads| {
        let mut pinning = Vec::new();
        for seed in 1..=3_u64 {
            let (memory, restored) = (&memory, &restored);
            pinning.push(threads.spawn(move || {
                let mut block = memory.allocate_for_client("a", 20_000).unwrap();
                let mut sum = fill(&mut block, seed);
                for round in 0..300 {
                    if round % 3 == 0 {
                        sum = fill(&mut block, seed + round);
                    }
                    let pin = block.pin().unwrap();
                    assert_eq!(hash(&pin), sum);
                    std::thread::yield_now();
                    assert_eq!(hash(&pin), sum);
                    restored.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        for _ in 0..2 {
            threads.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    memory.reclaim_unused_memory();
                }
            });
        }
        let ended: Vec<_> = pinning.into_iter().map(|thread| thread.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    // Where nothing can be spilled every attempt fails, and harms nobody.
    #[cfg(not(tiered_allocator_portable))]
    assert_eq!(memory.snapshot().reclaim.failed_blocks, 0);
    assert_eq!(memory.get_resource_usage(), (0, 0));
    assert_eq!(memory.usage().spilled_bytes, 0);
}

/// An idle block that cannot be written to `dir` stays where it is.
fn stays_without(dir: &Path) {
    let (memory, clock) = timed(TOTAL, |builder| builder.spill_dir(dir));
    let client = memory.register("a", Enterprise).unwrap();
    let mut block = memory.allocate_for_client("a", 10_000).unwrap();
    let sum = fill(&mut block, 3);
    clock.advance(IDLE);
    for failures in 1..=2 {
        let expected = report(|r| r.failed_blocks = 1);
        assert_eq!(
            memory.reclaim_unused_memory(),
            expected,
            "{}",
            dir.display()
        );
        assert_eq!(memory.snapshot().reclaim.failed_blocks, failures);
    }
    assert_eq!(client.usage().live_bytes, 10_000);
    assert_eq!(memory.usage().spilled_bytes, 0);
    assert_eq!(hash(&block.pin().unwrap()), sum);
}

#[test]
#[serial]
fn without_a_place_to_spill_to_blocks_stay() {
    stays_without(Path::new("/nonexistent/spill"));
    // A file is no directory.
    stays_without(&std::env::current_exe().unwrap());
    // Nobody may write there, whoever runs the test.
    if cfg!(target_os = "linux") {
        stays_without(Path::new("/proc"));
    }
}

#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "spills or measures pages")]
fn a_limited_spill_area_takes_the_lowest_tier_first() {
    let (memory, clock) = timed(TOTAL, |builder| builder.spill_limit_bytes(25_000));
    let blocks = [Enterprise, Basic, Premium].map(|tier| {
        memory.register(tier.name(), tier).unwrap();
        let mut block = memory.allocate_for_client(tier.name(), 10_000).unwrap();
        let sum = fill(&mut block, tier as u64 + 1);
        (block, sum)
    });
    clock.advance(IDLE);
    let expected = report(|r| {
        (r.spilled_blocks, r.spilled_bytes, r.failed_blocks) = (2, 20_000, 1);
    });
    assert_eq!(memory.reclaim_unused_memory(), expected);
    let live = |name| memory.client_usage(name).unwrap().live_bytes;
    assert_eq!(
        (live("Basic"), live("Premium"), live("Enterprise")),
        (0, 0, 10_000)
    );
    // Room that comes back is used.
    assert_eq!(hash(&blocks[1].0.pin().unwrap()), blocks[1].1);
    let expected = report(|r| (r.spilled_blocks, r.spilled_bytes) = (1, 10_000));
    assert_eq!(memory.reclaim_unused_memory(), expected);
    assert_eq!((live("Basic"), live("Enterprise")), (10_000, 0));
    for (block, sum) in &blocks {
        assert_eq!(hash(&block.pin().unwrap()), *sum);
    }
}

#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "spills or measures pages")]
fn the_book_of_free_spill_space_is_not_the_clients() {
    let (memory, clock) = timed(TOTAL, |builder| builder);
    let client = memory.register("a", Premium).unwrap();
    let mut blocks = [10_000; 2].map(|len| memory.allocate_for_client("a", len).unwrap());
    fill(&mut blocks[0], 1);
    fill(&mut blocks[1], 2);
    clock.advance(IDLE);
    assert_eq!(memory.reclaim_unused_memory().spilled_blocks, 2);
    // Afterwards the first block's place in the file is free, the second's is not.
    let _scope = client.enter();
    drop(blocks[0].pin().unwrap());
    let usage = client.usage();
    assert_eq!((usage.live_bytes, usage.block_bytes), (10_000, 10_000));
}
