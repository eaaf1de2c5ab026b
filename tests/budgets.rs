//! Request budgets: a limit for one piece of a client's work.

use serial_test::serial;
use std::alloc::{GlobalAlloc, Layout};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use tiered_allocator::{
    BudgetNode, Client, ClientOptions, Enforcement, InClientExt, Limit, Memory, SubscriptionTier,
    TieredAllocator, untracked,
};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

fn client(memory: &Memory, max: u64, enforcement: Enforcement) -> Client {
    let options = ClientOptions::new(SubscriptionTier::Enterprise)
        .max(Limit::Bytes(max))
        .enforcement(enforcement);
    memory.register("acme", options).unwrap()
}

fn live(client: &Client) -> u64 {
    client.usage().live_bytes
}

/// Allocates one-byte-aligned blocks of `size` until one is refused.
fn fill(size: usize, most: usize) -> Vec<(*mut u8, Layout)> {
    let layout = Layout::from_size_align(size, 1).unwrap();
    let mut blocks = tiered_allocator::untracked(|| Vec::with_capacity(most));
    while blocks.len() < most {
        // SAFETY: the size is not zero.
        let block = unsafe { HEAP.alloc(layout) };
        if block.is_null() {
            break;
        }
        blocks.push((block, layout));
    }
    blocks
}

fn free(blocks: Vec<(*mut u8, Layout)>) {
    for (block, layout) in blocks {
        // SAFETY: from `fill`, with its layout.
        unsafe { HEAP.dealloc(block, layout) };
    }
}

#[test]
#[serial]
fn a_budget_is_exact_and_its_bytes_are_the_clients_too() {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::new(1 << 30);
    let client = client(&memory, 1 << 20, Enforcement::Strict);
    let budget = client.budget(10_000).unwrap();
    let scope = budget.enter();
    let blocks = fill(100, 200);
    drop(scope);
    assert_eq!(blocks.len(), 100);
    assert_eq!((live(&budget), live(&client)), (10_000, 10_000));
    assert_eq!(budget.usage().peak_bytes, 10_000);
    assert_eq!(budget.usage().refusals, 1);
    // The client itself is not refused.
    let own = client.run(|| vec![0_u8; 100_000]).unwrap();
    assert_eq!(live(&client), 110_000);
    free(blocks);
    assert_eq!((live(&budget), live(&client)), (0, 100_000));
    drop(own);
    drop(budget);
    assert_eq!(live(&client), 0);
    assert_eq!(client.usage().live_allocations, 0);
    assert_eq!(client.usage().total_bytes, 110_000);
}

#[test]
#[serial]
fn the_client_bounds_all_its_budgets_together() {
    let memory = Memory::new(1 << 30);
    let client = client(&memory, 30_000, Enforcement::Strict);
    let first = client.budget(20_000).unwrap();
    let second = client.budget(20_000).unwrap();
    let scope = first.enter();
    let mut blocks = fill(100, 200);
    drop(scope);
    let scope = second.enter();
    blocks.extend(fill(100, 200));
    drop(scope);
    assert_eq!((live(&first), live(&second)), (20_000, 10_000));
    assert_eq!(live(&client), 30_000);
    free(blocks);
    // Credit left in one budget is no obstacle to the other, or the client.
    let scope = client.enter();
    let blocks = fill(100, 300);
    drop(scope);
    assert_eq!(blocks.len(), 300);
    free(blocks);
}

#[test]
#[serial]
fn budgets_nest_and_the_tightest_decides() {
    let memory = Memory::new(1 << 30);
    let client = client(&memory, 1 << 20, Enforcement::Strict);
    let outer = client.budget(10_000).unwrap();
    let inner = outer.budget(50_000).unwrap();
    let scope = inner.enter();
    let blocks = fill(1000, 20);
    drop(scope);
    assert_eq!(blocks.len(), 10);
    assert_eq!(
        (live(&inner), live(&outer), live(&client)),
        (10_000, 10_000, 10_000)
    );
    free(blocks);
    drop(outer);
    // The inner one goes on, within the client.
    let scope = inner.enter();
    let blocks = fill(1000, 40);
    drop(scope);
    assert_eq!(blocks.len(), 40);
    free(blocks);
    drop(inner);
    assert_eq!(live(&client), 0);
}

#[test]
#[serial]
fn what_outlives_a_budget_is_the_clients() {
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    let client = client(&memory, 1 << 20, Enforcement::Strict);
    let budget = client.budget(10_000).unwrap();
    let index = budget.id().index();
    let mut kept = budget.run(|| vec![1_u8; 5_000]).unwrap();
    drop(budget);
    assert_eq!(live(&client), 5_000);
    // It may grow past the budget's limit now.
    client.run(|| kept.resize(50_000, 1)).unwrap();
    assert_eq!(live(&client), kept.capacity() as u64);
    drop(kept);
    assert_eq!(live(&client), 0);
    // Then the id is used again.
    let again: Vec<_> = (0..8).map(|_| client.budget(1).unwrap()).collect();
    assert!(again.iter().any(|budget| budget.id().index() == index));
    drop(again);
    assert_eq!(live(&client), 0);
}

#[test]
#[serial]
fn a_graceful_client_is_cancelled_for_the_budget_alone() {
    let memory = Memory::new(1 << 30);
    let client = client(&memory, 10 << 20, Enforcement::Graceful);
    let budget = client.budget(10_000).unwrap();
    let error = budget.run(|| vec![0_u8; 20_000]).unwrap_err();
    assert_eq!(error.quota.node, BudgetNode::Request);
    assert_eq!(error.quota.limit, 10_000);
    assert_eq!(&*error.quota.client, "acme");
    assert!(client.checkpoint().is_ok());
    drop(error);
    assert!(budget.checkpoint().is_ok());
    assert_eq!(budget.run(|| vec![0_u8; 5_000]).unwrap().len(), 5_000);

    let mut future = pin!(
        async {
            let hoard = vec![0_u8; 20_000];
            std::future::pending::<()>().await;
            drop(hoard);
        }
        .in_client(&budget)
    );
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(Err(quota)) = future.as_mut().poll(&mut context) else {
        panic!("over the budget");
    };
    assert_eq!(quota.node, BudgetNode::Request);
    assert_eq!(live(&client), 0);
    assert_eq!(memory.usage().overdrawn_bytes, 0);
}

#[test]
#[serial]
fn a_client_that_overdraws_cancels_its_budgets() {
    let memory = Memory::new(1 << 30);
    let client = client(&memory, 100_000, Enforcement::Graceful);
    let budget = client.budget(10_000).unwrap();
    let hoard = client.run(|| vec![0_u8; 150_000]).unwrap_err().output;
    let error = budget.checkpoint().unwrap_err();
    assert_eq!(error.node, BudgetNode::Client);
    drop(hoard);
    assert!(budget.checkpoint().is_ok());
}

#[test]
#[serial]
fn a_removed_client_takes_its_budgets_along() {
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    let client = client(&memory, 1 << 20, Enforcement::Strict);
    let budget = client.budget(10_000).unwrap();
    memory.remove_client("acme").unwrap();
    let scope = budget.enter();
    assert!(fill(100, 1).is_empty());
    drop(scope);
    assert!(client.budget(1).is_err());
    drop(budget);
    memory.reclaim_unused_memory();
    memory.reclaim_unused_memory();
    assert!(memory.snapshot().retired.is_empty());
}

/// Many threads, many budgets, blocks that cross between them: to the byte.
#[test]
#[serial]
fn churning_budgets_leave_nothing_behind() {
    const LIMIT: u64 = 200_000;
    let memory = Memory::new(1 << 30);
    let client = client(&memory, LIMIT, Enforcement::Strict);
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Vec<u8>>(16);
    std::thread::scope(|scope| {
        for seed in 1..=4u64 {
            let (client, sender) = (&client, sender.clone());
            scope.spawn(move || {
                let mut random = seed;
                for _ in 0..300 {
                    let budget = client.budget(20_000).unwrap();
                    let scope = budget.enter();
                    for _ in 0..20 {
                        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                        let size = (random >> 40) as usize % 5000 + 1;
                        let mut buffer = Vec::new();
                        if buffer.try_reserve_exact(size).is_ok() && random.is_multiple_of(8) {
                            assert!(live(client) <= LIMIT);
                            drop(sender.try_send(buffer));
                        }
                    }
                    drop(scope);
                }
            });
        }
        drop(sender);
        scope.spawn(move || receiver.into_iter().for_each(drop));
    });
    assert_eq!(live(&client), 0);
    assert_eq!(client.usage().live_allocations, 0);
    let scope = client.enter();
    let blocks = fill(1000, 1000);
    drop(scope);
    assert_eq!(blocks.len() as u64, LIMIT / 1000);
    free(blocks);
}

/// Found by `properties.rs`: the client's own credit was taken back, that of
/// its request budgets was not.
#[test]
#[serial]
fn a_lowered_limit_binds_what_a_request_budget_has_drawn_ahead() {
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    let lowered = |client: &Client, max: u64| {
        untracked(|| {
            let options = ClientOptions::new(SubscriptionTier::Enterprise)
                .max(Limit::Bytes(max))
                .enforcement(Enforcement::Strict);
            client.configure(options).unwrap();
        });
    };
    let client = client(&memory, 10 << 20, Enforcement::Strict);
    let outer = client.budget(9 << 20).unwrap();
    let inner = outer.budget(8 << 20).unwrap();
    for budget in [&outer, &inner] {
        lowered(&client, 10 << 20);
        let scope = budget.enter();
        let held = fill(100, 1);
        assert!(client.usage().charged_bytes > 1100, "credit was drawn");
        lowered(&client, 1000);
        assert_eq!(client.usage().charged_bytes, 100);
        let more = fill(100, 20);
        assert_eq!(more.len(), 9);
        drop(scope);
        free(more);
        free(held);
    }
    assert_eq!(live(&client), 0);
}
