//! Parallel work on rayon: charged to its client to the byte on whichever
//! worker it runs, and workers belong to nobody afterwards.

#[path = "support/tenants.rs"]
mod tenants;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serial_test::serial;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use tenants::{client, is_current, live, memory};
use tiered_allocator::integrations::rayon::{self as tenant, ParInClientExt};
use tiered_allocator::{Client, ClientOptions, Limit, SubscriptionTier, TieredAllocator};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const WORKERS: usize = 3;

fn pool() -> ThreadPool {
    let builder = ThreadPoolBuilder::new().num_threads(WORKERS);
    builder.build().unwrap()
}

fn assert_workers_belong_to_nobody(pool: &ThreadPool) {
    let current = pool.broadcast(|_| Client::current());
    assert_eq!(current, vec![None; WORKERS]);
}

/// Each item waits until every worker has one, so all of them take part.
#[test]
#[serial]
fn every_worker_charges_the_client_of_the_chain() {
    let memory = memory();
    let client = client(&memory, "parallel");
    let pool = pool();
    let barrier = Barrier::new(WORKERS);
    let made: Vec<_> = pool.install(|| {
        let items = (0..WORKERS).into_par_iter().with_max_len(1);
        let made = items.in_client(&client).map(|item| {
            barrier.wait();
            assert!(is_current(&client));
            (thread::current().id(), vec![0_u8; 1000 + item])
        });
        made.collect()
    });
    assert!((1..WORKERS).all(|at| made[at..].iter().all(|other| other.0 != made[at - 1].0)));
    assert_eq!(live(&client), 3 * 1000 + 3);
    assert_workers_belong_to_nobody(&pool);
    drop(made);
    assert_eq!(live(&client), 0);
}

#[test]
#[serial]
fn the_chain_is_charged_from_the_adaptor_on() {
    let memory = memory();
    let client = client(&memory, "downstream");
    let pool = pool();
    let made: Vec<_> = pool.install(|| {
        let numbers = (0..1000_usize).into_par_iter();
        let before = numbers.map(|number| {
            assert!(Client::current().is_none());
            (number, vec![0_u8; 50])
        });
        let after = before.in_client(&client).map(|(number, before)| {
            assert!(is_current(&client));
            (number, before, vec![0_u8; 70])
        });
        after.collect()
    });
    assert!(made.iter().enumerate().all(|(at, item)| item.0 == at));
    assert_eq!(live(&client), 70 * 1000);
    drop(made);
    assert_eq!(live(&client), 0);
}

#[test]
#[serial]
fn folds_and_reductions_are_the_clients_as_a_whole() {
    let memory = memory();
    let client = client(&memory, "folds");
    let pool = pool();
    let folded: Vec<usize> = pool.install(|| {
        let numbers = (0..10_000_usize).into_par_iter().filter(|n| n % 3 != 0);
        let folded = numbers.in_client(&client).fold(Vec::new, |mut some, n| {
            assert!(is_current(&client));
            some.push(n);
            some
        });
        folded.reduce(Vec::new, |mut left, mut right| {
            assert!(is_current(&client));
            left.append(&mut right);
            left
        })
    });
    let expected: Vec<usize> = (0..10_000).filter(|n| n % 3 != 0).collect();
    assert_eq!(folded, expected);
    assert_eq!(live(&client), folded.capacity() * size_of::<usize>());
    drop(folded);
    assert_eq!(live(&client), 0);
}

/// A source that cannot be indexed drives the other half of the plumbing.
#[test]
#[serial]
fn sources_without_an_index_and_early_ends_leave_nothing_behind() {
    let memory = memory();
    let client = client(&memory, "bridged");
    let pool = pool();
    let seen = AtomicUsize::new(0);
    for needle in [0, 17, 4999] {
        let found = pool.install(|| {
            let texts = (0..5000).par_bridge().in_client(&client);
            let texts = texts.map(|number| {
                assert!(is_current(&client));
                seen.fetch_add(1, Ordering::Relaxed);
                format!("number {number}")
            });
            texts.find_any(|text| *text == format!("number {needle}"))
        });
        let found = found.unwrap();
        assert_eq!(live(&client), found.capacity());
        drop(found);
        assert_eq!(live(&client), 0);
        assert_workers_belong_to_nobody(&pool);
    }
    assert!(seen.load(Ordering::Relaxed) >= 3);
    assert_eq!(client.usage().live_allocations, 0);
}

#[test]
#[serial]
fn two_clients_in_one_chain_each_pay_their_part() {
    let memory = memory();
    let (a, b) = (client(&memory, "a"), client(&memory, "b"));
    let made: Vec<_> = pool().install(|| {
        let firsts = (0..500_usize).into_par_iter().in_client(&a).map(|_| {
            assert!(is_current(&a));
            vec![0_u8; 11]
        });
        let seconds = firsts.in_client(&b).map(|first| {
            assert!(is_current(&b));
            (first, vec![0_u8; 13])
        });
        seconds.collect()
    });
    assert_eq!((live(&a), live(&b)), (5500, 6500));
    drop(made);
    assert_eq!((live(&a), live(&b)), (0, 0));
}

/// Splits down to leaves, each half for another client than its parent. While
/// a worker waits in `join` it runs others' pieces on top of its own.
fn split(clients: &[Client], depth: usize, at: usize, leaf_bytes: usize) -> Vec<Vec<u8>> {
    if depth == 0 {
        return vec![vec![0_u8; leaf_bytes]];
    }
    let before = Client::current();
    let [left, right] = [2 * at, 2 * at + 1].map(|next| {
        let client = &clients[next % clients.len()];
        client.bind(move || {
            assert!(is_current(client));
            let made = split(clients, depth - 1, next, leaf_bytes);
            assert!(is_current(client));
            made
        })
    });
    let (mut left, mut right) = rayon::join(left, right);
    assert_eq!(Client::current(), before);
    left.append(&mut right);
    left
}

#[test]
#[serial]
fn scopes_are_left_in_order_on_workers_that_steal() {
    const DEPTH: usize = 12;
    let memory = memory();
    let clients = ["a", "b", "c", "d"].map(|name| client(&memory, name));
    let pool = pool();
    let made = pool.install(|| split(&clients, DEPTH, 1, 100));
    assert_eq!(made.len(), 1 << DEPTH);
    assert_workers_belong_to_nobody(&pool);
    let held: usize = clients.iter().map(live).sum();
    assert!(held >= 100 << DEPTH, "{held}");
    let made_bytes: Vec<u64> = clients.iter().map(|c| c.usage().total_bytes).collect();
    assert!(made_bytes.iter().all(|&bytes| bytes > 100 << (DEPTH - 3)));
    drop(made);
    drop(pool);
    for client in &clients {
        assert_eq!(live(client), 0);
    }
}

#[test]
#[serial]
fn a_panic_in_the_chain_leaves_the_workers_with_nobody() {
    let memory = memory();
    let client = client(&memory, "panics");
    let pool = pool();
    for bad in [0, 50, 99] {
        let chain = AssertUnwindSafe(|| {
            pool.install(|| {
                let numbers = (0..100).into_par_iter().in_client(&client);
                numbers.for_each(|number| {
                    let _kept = Box::new([0_u8; 100]);
                    if number == bad {
                        resume_unwind(Box::new("as asked"));
                    }
                });
            });
        });
        assert!(catch_unwind(chain).is_err());
        assert_workers_belong_to_nobody(&pool);
        assert!(Client::current().is_none());
        assert_eq!(live(&client), 0);
    }
}

#[test]
#[serial]
fn installed_work_is_charged_and_ends_at_a_safe_point() {
    let memory = memory();
    let options = ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(64 << 10));
    let client = memory.register("small", options).unwrap();
    let pool = pool();
    let fits = tenant::install(&client, &pool, || {
        assert!(is_current(&client));
        vec![0_u8; 1000]
    });
    assert_eq!(live(&client), 1000);
    assert_eq!(fits.unwrap().len(), 1000);
    let over = tenant::install(&client, &pool, || vec![0_u8; 100 << 10]).unwrap_err();
    assert_eq!(over.quota.limit, 64 << 10);
    assert_eq!(over.output.unwrap().len(), 100 << 10);
    assert_workers_belong_to_nobody(&pool);
    assert_eq!(live(&client), 0);
}

#[test]
#[serial]
fn spawned_pieces_take_their_client_along() {
    let memory = memory();
    let clients = ["a", "b"].map(|name| client(&memory, name));
    let pool = pool();
    let (sender, receiver) = mpsc::channel();
    for number in 0..100_usize {
        let client = clients[number % 2].clone();
        let sender = sender.clone();
        let work = move || vec![Client::current().unwrap().id(); 10];
        let bound = client.bind(work);
        pool.spawn(move || sender.send((number, bound())).unwrap());
    }
    drop(sender);
    let made: Vec<_> = receiver.into_iter().collect();
    assert_eq!(made.len(), 100);
    for (number, ids) in &made {
        assert!(ids.iter().all(|&id| id == clients[number % 2].id()));
    }
    for client in &clients {
        assert_eq!(live(client), 50 * 10 * size_of_val(&client.id()));
    }
    drop(made);
    assert_workers_belong_to_nobody(&pool);
    for client in &clients {
        assert_eq!(live(client), 0);
    }
}
