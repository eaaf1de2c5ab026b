//! Futures and blocking work on tokio: charged to their client to the byte,
//! wherever they run, and however they end.

#[path = "support/tenants.rs"]
mod tenants;

use serial_test::serial;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use tenants::{client, is_current, live, memory};
use tiered_allocator::integrations::tokio as tenant;
use tiered_allocator::{
    Client, ClientOptions, InClientExt, Limit, Memory, SubscriptionTier, TieredAllocator,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Barrier, oneshot};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const KIB: usize = 1024;
const MIB: u64 = 1 << 20;

fn small(memory: &Memory, name: &str, max: usize) -> Client {
    let options = ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(max as u64));
    memory.register(name, options).unwrap()
}

fn runtime(workers: usize) -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(1)
        .enable_time()
        .build()
        .unwrap()
}

/// Goes to the end of the worker's queue. `tokio::task::yield_now` does, too,
/// by way of a list of the worker's that grows in the scope of whoever yields;
/// where bytes are counted exactly, that would be one of them.
async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Sets its flag when it is dropped.
struct OnDrop(Arc<AtomicBool>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
#[serial]
fn tasks_that_move_between_workers_are_charged_to_the_byte() {
    const TASKS: usize = 24;
    let memory = memory();
    let clients = ["a", "b", "c"].map(|name| client(&memory, name));
    let runtime = runtime(3);
    let barrier = Arc::new(Barrier::new(TASKS + 1));
    let held = |task: usize| 100 * (task + 1);
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let client = clients[task % 3].clone();
            let barrier = Arc::clone(&barrier);
            let mine = client.clone();
            let work = async move {
                let mut kept: Vec<Vec<u8>> = Vec::with_capacity(10);
                for round in 0..200 {
                    assert!(is_current(&mine));
                    let scratch = vec![round as u8; 7 * KIB];
                    yield_now().await;
                    drop(scratch);
                    if kept.len() < 10 {
                        kept.push(Vec::with_capacity(held(task)));
                    }
                }
                barrier.wait().await;
                barrier.wait().await;
                kept.len()
            };
            runtime.spawn(work.in_client(&client))
        })
        .collect();
    runtime.block_on(async {
        barrier.wait().await;
        for (number, client) in clients.iter().enumerate() {
            let spine = 10 * size_of::<Vec<u8>>();
            let own = (0..TASKS).filter(|task| task % 3 == number);
            let expected: usize = own.map(|task| 10 * held(task) + spine).sum();
            assert_eq!(live(client), expected);
        }
        barrier.wait().await;
        for task in tasks {
            assert_eq!(task.await.unwrap(), Ok(10));
        }
    });
    for client in &clients {
        assert_eq!(live(client), 0);
        assert_eq!(client.usage().refusals, 0);
    }
}

/// As above, but every poll is on another thread for certain.
#[test]
#[serial]
fn a_future_polled_on_a_new_thread_each_time_stays_exact() {
    let memory = memory();
    let client = client(&memory, "migrant");
    let mine = client.clone();
    let work = async move {
        let mut kept: Vec<Box<[u8; 1000]>> = Vec::with_capacity(64);
        for _ in 0..64 {
            assert!(is_current(&mine));
            kept.push(Box::new([1; 1000]));
            yield_now().await;
        }
        kept
    };
    let mut future = Box::pin(work.in_client(&client));
    let spine = 64 * size_of::<Box<[u8; 1000]>>();
    for poll in 1..=64 {
        future = thread::spawn(move || {
            let mut context = Context::from_waker(Waker::noop());
            assert!(future.as_mut().poll(&mut context).is_pending());
            assert!(Client::current().is_none());
            future
        })
        .join()
        .unwrap();
        assert_eq!(live(&client), poll * 1000 + spine);
    }
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(Ok(kept)) = future.as_mut().poll(&mut context) else {
        panic!("64 rounds are over");
    };
    assert_eq!(live(&client), 64 * 1000 + spine);
    drop(kept);
    assert_eq!(live(&client), 0);
}

#[test]
#[serial]
fn nested_futures_charge_the_innermost_client() {
    let memory = memory();
    let (outer, inner) = (client(&memory, "outer"), client(&memory, "inner"));
    let runtime = runtime(2);
    let (in_outer, in_inner) = (outer.clone(), inner.clone());
    let work = async move {
        let before = vec![0_u8; 100];
        let nested = async {
            let first = vec![0_u8; 2000];
            yield_now().await;
            assert!(is_current(&in_inner));
            (first, vec![0_u8; 3000])
        };
        let nested = nested.in_client(&in_inner).await.unwrap();
        assert!(is_current(&in_outer));
        (before, nested, vec![0_u8; 10])
    };
    let made = runtime.block_on(runtime.spawn(work.in_client(&outer)));
    assert_eq!((live(&outer), live(&inner)), (110, 5000));
    drop(made);
    assert_eq!((live(&outer), live(&inner)), (0, 0));
}

#[test]
#[serial]
fn joined_futures_of_two_clients_do_not_mix() {
    let memory = memory();
    let (a, b) = (client(&memory, "a"), client(&memory, "b"));
    let hoard = |mine: Client, size: usize| async move {
        let mut kept = Vec::with_capacity(20);
        for _ in 0..20 {
            assert!(is_current(&mine));
            kept.push(vec![0_u8; size]);
            yield_now().await;
        }
        kept
    };
    let spine = 20 * size_of::<Vec<u8>>();
    let joined = async {
        let (a_kept, b_kept) = tokio::join!(
            hoard(a.clone(), 50).in_client(&a),
            hoard(b.clone(), 70).in_client(&b),
        );
        assert!(Client::current().is_none());
        assert_eq!((live(&a), live(&b)), (1000 + spine, 1400 + spine));
        drop((a_kept, b_kept));
    };
    runtime(2).block_on(joined);
    assert_eq!((live(&a), live(&b)), (0, 0));
}

#[test]
#[serial]
fn the_loser_of_a_select_gives_everything_back() {
    let memory = memory();
    let (winner, loser) = (client(&memory, "winner"), client(&memory, "loser"));
    let selected = async {
        let wait = async {
            let _kept = vec![0_u8; 100 * KIB];
            std::future::pending::<()>().await;
        };
        let mut wait = Box::pin(wait.in_client(&loser));
        let win = async {
            let text = vec![0_u8; 33];
            yield_now().await;
            text
        };
        let text = tokio::select! {
            biased;
            _ = &mut wait => unreachable!("it waits for ever"),
            text = win.in_client(&winner) => text.unwrap(),
        };
        assert_eq!((live(&winner), live(&loser)), (33, 100 * KIB));
        drop(wait);
        assert!(Client::current().is_none());
        text
    };
    let text = runtime(1).block_on(selected);
    assert_eq!((live(&winner), live(&loser)), (33, 0));
    drop(text);
    assert_eq!(live(&winner), 0);
}

#[test]
#[serial]
fn an_aborted_task_gives_everything_back() {
    let memory = memory();
    let client = client(&memory, "aborted");
    let runtime = runtime(2);
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (started, has_started) = oneshot::channel();
            let work = async move {
                let _kept = vec![0_u8; 5 * KIB];
                started.send(()).unwrap();
                std::future::pending::<()>().await;
            };
            let _runtime = runtime.enter();
            (tenant::spawn(&client, work), has_started)
        })
        .collect();
    runtime.block_on(async {
        for (task, has_started) in tasks {
            has_started.await.unwrap();
            assert!(live(&client) >= 5 * KIB);
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }
    });
    drop(runtime);
    assert_eq!(live(&client), 0);
}

#[test]
#[serial]
fn a_panicking_poll_leaves_the_worker_with_nobody() {
    let memory = memory();
    let client = client(&memory, "panics");
    let runtime = runtime(1);
    for round in 0..10 {
        let task = async move {
            let _kept = vec![0_u8; 3 * KIB];
            if round % 2 == 0 {
                yield_now().await;
            }
            resume_unwind(Box::new("as asked"));
        };
        runtime.block_on(async {
            let error = tenant::spawn(&client, task).await.unwrap_err();
            assert!(error.is_panic());
            // The runtime has one worker: this is where the task panicked.
            let current = tokio::spawn(async { Client::current() });
            assert_eq!(current.await.unwrap(), None);
        });
    }
    drop(runtime);
    assert_eq!(live(&client), 0);
}

#[test]
#[serial]
fn a_panic_that_the_host_catches_restores_the_outer_client() {
    let memory = memory();
    let (outer, inner) = (client(&memory, "outer"), client(&memory, "inner"));
    let runtime = runtime(1);
    let _scope = outer.enter();
    let poll = AssertUnwindSafe(|| {
        let work = async {
            let _kept = [0_u8; 100].to_vec();
            resume_unwind(Box::new("as asked"));
        };
        runtime.block_on(work.attributed_to(&inner))
    });
    let caught: Result<(), _> = catch_unwind(poll);
    assert!(caught.is_err());
    assert!(is_current(&outer));
    drop(caught);
    assert_eq!(live(&inner), 0);
}

#[test]
#[serial]
fn a_future_that_goes_over_its_quota_is_dropped_in_the_same_poll() {
    let memory = memory();
    let client = small(&memory, "small", 64 * KIB);
    let dropped = Arc::new(AtomicBool::new(false));
    let flag = OnDrop(Arc::clone(&dropped));
    let work = async move {
        let _flag = flag;
        let _kept = vec![0_u8; 200 * KIB];
        std::future::pending::<()>().await;
    };
    let mut future = Box::pin(work.in_client(&client));
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(Err(quota)) = future.as_mut().poll(&mut context) else {
        panic!("the client is over its quota");
    };
    assert!(dropped.load(Ordering::SeqCst));
    assert_eq!(live(&client), 0);
    assert_eq!((&*quota.client, quota.limit), ("small", 64 * KIB as u64));
    assert!(quota.charged >= 200 * KIB as u64);
    assert!(client.checkpoint().is_ok());
}

#[test]
#[serial]
fn tasks_of_a_client_over_its_quota_end_and_others_go_on() {
    let memory = memory();
    let greedy = small(&memory, "greedy", 64 * KIB);
    let modest = small(&memory, "modest", 64 * KIB);
    let runtime = runtime(2);
    runtime.block_on(async {
        let waits = || async {
            loop {
                yield_now().await;
            }
        };
        let bystander: tokio::task::JoinHandle<Result<(), _>> = tenant::spawn(&greedy, waits());
        let hog = tenant::spawn(&greedy, async {
            let mut kept = Vec::new();
            loop {
                kept.push(vec![0_u8; 4 * KIB]);
                yield_now().await;
            }
        });
        let hog: Result<Result<(), _>, _> = hog.await;
        assert!(hog.unwrap().is_err());
        // Whether the bystander met the same moment or not, it can be ended.
        bystander.abort();
        drop(bystander.await);
        let sum = tenant::spawn(&modest, async {
            let mut sum = 0;
            for round in 0..100 {
                let kept = vec![round; 4 * KIB];
                yield_now().await;
                sum += kept.iter().sum::<u64>() / (4 * KIB as u64);
            }
            sum
        });
        assert_eq!(sum.await.unwrap(), Ok(4950));
    });
    drop(runtime);
    assert_eq!((live(&greedy), live(&modest)), (0, 0));
    assert_eq!(modest.usage().refusals, 0);
    assert!(modest.usage().peak_bytes <= 64 * KIB as u64);
}

#[test]
#[serial]
fn a_future_of_a_client_over_its_quota_is_not_even_begun() {
    let memory = memory();
    let client = small(&memory, "full", 64 * KIB);
    let hoard = client.bind(|| vec![0_u8; 100 * KIB])();
    let begun = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&begun);
    let work = async move { flag.store(true, Ordering::SeqCst) };
    let runtime = runtime(1);
    let result = runtime.block_on(async { tenant::spawn(&client, work).await.unwrap() });
    assert!(result.is_err());
    assert!(!begun.load(Ordering::SeqCst));
    drop(hoard);
    drop(runtime);
    assert_eq!(live(&client), 0);
}

/// Pitfalls 15 and 20: the pool's threads have the client, and only meanwhile.
#[test]
#[serial]
fn blocking_threads_have_the_client_while_they_work_for_it() {
    let memory = memory();
    let client = client(&memory, "blocking");
    let runtime = runtime(1);
    runtime.block_on(async {
        // The pool has one thread, so all of this is on the same.
        let bare = || tokio::task::spawn_blocking(|| (Client::current(), thread::current().id()));
        let (current, id) = bare().await.unwrap();
        assert!(current.is_none());

        let made = tenant::spawn_blocking(&client, || (Client::current(), vec![0_u8; 12_345]));
        let (current, bytes) = made.await.unwrap().unwrap();
        assert_eq!(current.as_ref(), Some(&client));
        assert!(live(&client) >= 12_345);
        drop(bytes);
        assert_eq!(bare().await.unwrap(), (None, id));

        let panics = tenant::spawn_blocking(&client, || {
            let _kept = vec![0_u8; 777];
            resume_unwind(Box::new("as asked"))
        });
        let panics: Result<Result<(), _>, _> = panics.await;
        assert!(panics.unwrap_err().is_panic());
        assert_eq!(bare().await.unwrap(), (None, id));
    });
    drop(runtime);
    assert_eq!(live(&client), 0);
}

#[test]
#[serial]
fn blocking_work_over_the_quota_says_so_and_keeps_its_output() {
    let memory = memory();
    let client = small(&memory, "small", 64 * KIB);
    let runtime = runtime(1);
    let work = || vec![7_u8; 200 * KIB];
    let over = runtime.block_on(async { tenant::spawn_blocking(&client, work).await.unwrap() });
    let over = over.unwrap_err();
    assert_eq!(over.quota.limit, 64 * KIB as u64);
    assert_eq!(over.output.as_ref().unwrap().len(), 200 * KIB);
    drop(over);
    drop(runtime);
    assert_eq!(live(&client), 0);
}

/// Pitfall 18: what the pool keeps is not the client's.
#[test]
#[serial]
fn the_queue_of_the_blocking_pool_is_not_charged() {
    let memory = memory();
    let client = client(&memory, "queued");
    let runtime = runtime(1);
    let scope = client.enter();
    let entered = runtime.enter();
    let tasks: [_; 1000] =
        std::array::from_fn(|number| tenant::spawn_blocking_current(move || number));
    drop((entered, scope));
    for (number, task) in tasks.into_iter().enumerate() {
        assert_eq!(runtime.block_on(task).unwrap().unwrap(), number);
    }
    assert_eq!(live(&client), 0);
}

#[test]
#[serial]
fn a_task_hands_its_client_on_to_what_it_spawns() {
    let memory = memory();
    let client = client(&memory, "parent");
    let runtime = runtime(2);
    runtime.block_on(async {
        let mine = client.clone();
        let parent = tenant::spawn(&client, async move {
            let blocking = tenant::spawn_blocking_current(Client::current);
            assert_eq!(blocking.await.unwrap().unwrap().as_ref(), Some(&mine));
            let child = tenant::spawn_current(async {
                yield_now().await;
                Client::current()
            });
            child.await.unwrap().unwrap()
        });
        assert_eq!(parent.await.unwrap().unwrap().as_ref(), Some(&client));

        let orphan = tenant::spawn_current(async { Client::current() });
        assert_eq!(orphan.await.unwrap(), Ok(None));
        let orphan = tenant::spawn_blocking_current(Client::current);
        assert_eq!(orphan.await.unwrap().unwrap(), None);
    });
    drop(runtime);
    assert_eq!(live(&client), 0);
}

/// A request budget ends with the request; what the request left running is
/// the client's all the same.
#[test]
#[serial]
fn what_outlives_its_request_budget_is_still_charged_to_the_client() {
    let memory = memory();
    let client = client(&memory, "detached");
    let runtime = runtime(1);
    runtime.block_on(async {
        let budget = client.budget(MIB).unwrap();
        let (ended, has_ended) = oneshot::channel();
        let (blocking_ended, blocking_has_ended) = oneshot::channel();
        let (task, blocking) = budget
            .run(|| {
                let task = tenant::spawn_current(async {
                    has_ended.await.unwrap();
                    vec![0_u8; 100 * KIB]
                });
                let blocking = tenant::spawn_blocking_current(|| {
                    blocking_has_ended.blocking_recv().unwrap();
                    vec![0_u8; 200 * KIB]
                });
                (task, blocking)
            })
            .unwrap();
        drop(budget);
        // New budgets sweep ended ones away.
        for _ in 0..100 {
            drop(client.budget(MIB).unwrap());
        }
        ended.send(()).unwrap();
        blocking_ended.send(()).unwrap();
        let made = task.await.unwrap().unwrap();
        let blocking_made = blocking.await.unwrap().unwrap();
        assert!(live(&client) >= 300 * KIB, "{}", live(&client));
        drop((made, blocking_made));
    });
    drop(runtime);
    assert_eq!(live(&client), 0);
}

#[test]
#[serial]
fn the_task_itself_is_charged_to_its_client() {
    let memory = memory();
    let client = client(&memory, "large");
    let runtime = runtime(1);
    let state = [1_u8; 1500];
    runtime.block_on(async {
        let (finish, finished) = oneshot::channel::<()>();
        let task = tenant::spawn(&client, async move {
            finished.await.unwrap();
            state.iter().map(|&byte| usize::from(byte)).sum::<usize>()
        });
        assert!(live(&client) >= 1500);
        finish.send(()).unwrap();
        assert_eq!(task.await.unwrap(), Ok(1500));
    });
    drop(runtime);
    assert_eq!(live(&client), 0);
}

/// What a runtime drops unfinished when it ends is the client's to the end.
#[test]
#[serial]
fn a_runtime_that_ends_with_tasks_left_gives_everything_back() {
    let memory = memory();
    let client = client(&memory, "left");
    let runtime = runtime(2);
    for _ in 0..50 {
        let work: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async {
            let _kept = vec![0_u8; 2 * KIB];
            std::future::pending::<()>().await;
        });
        let _runtime = runtime.enter();
        drop(tenant::spawn(&client, work));
    }
    drop(runtime);
    assert_eq!(live(&client), 0);
    assert_eq!(client.usage().live_allocations, 0);
}
