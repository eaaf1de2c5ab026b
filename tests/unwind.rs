//! Feature `unwind`: a refused allocation that cannot fail ends the tenant's
//! work, not the process (pitfall 2).

#![cfg(feature = "unwind")]

use serial_test::serial;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use tiered_allocator::{
    Client, ClientOptions, Enforcement, InClientExt, Limit, Memory, SubscriptionTier,
    TieredAllocator,
};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

fn strict(memory: &Memory, name: &str) -> Client {
    let options = ClientOptions::new(SubscriptionTier::Basic)
        .max(Limit::Bytes(1 << 20))
        .enforcement(Enforcement::Strict);
    memory.register(name, options).unwrap()
}

#[test]
#[serial]
fn a_refused_vec_ends_the_run_with_its_figures_and_frees_everything() {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::new(1 << 30);
    let client = strict(&memory, "greedy");
    let error = client
        .run(|| {
            let mut hoard = Vec::new();
            loop {
                hoard.push(vec![0_u8; 10_000]);
            }
        })
        .map(|()| ())
        .unwrap_err();
    assert!(error.output.is_none());
    assert_eq!(&*error.quota.client, "greedy");
    assert_eq!(error.quota.limit, 1 << 20);
    assert!(error.quota.requested > 0);
    assert_eq!(client.usage().live_bytes, 0);
    assert!(Client::current().is_none());
    // The client can go on.
    assert_eq!(client.run(|| vec![1; 100].len()).unwrap(), 100);
}

#[test]
#[serial]
fn a_future_that_is_refused_resolves_to_the_error() {
    let memory = Memory::new(1 << 30);
    let client = strict(&memory, "async");
    let mut future = pin!(
        async {
            let hoard = vec![0_u8; 2 << 20];
            hoard.len()
        }
        .in_client(&client)
    );
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(Err(quota)) = future.as_mut().poll(&mut context) else {
        panic!("the allocation is twice the limit");
    };
    assert_eq!(quota.requested, 2 << 20);
    assert_eq!(client.usage().live_bytes, 0);
}

#[test]
#[serial]
fn growth_by_realloc_is_caught_too() {
    let memory = Memory::new(1 << 30);
    let client = strict(&memory, "growing");
    let ended = client.run(|| {
        let mut text = String::new();
        loop {
            text.push_str("more and more and more and more and more and more");
        }
    });
    let ended: Result<(), _> = ended;
    assert!(ended.unwrap_err().output.is_none());
    assert_eq!(client.usage().live_bytes, 0);
}

#[test]
#[serial]
fn nothing_is_refused_while_the_thread_is_panicking() {
    struct AllocatesOnDrop;
    impl Drop for AllocatesOnDrop {
        fn drop(&mut self) {
            assert!(std::thread::panicking());
            assert_eq!(vec![0_u8; 2 << 20].len(), 2 << 20);
        }
    }
    let memory = Memory::new(1 << 30);
    let client = strict(&memory, "panicking");
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _ = client.run(|| {
            let _guard = AllocatesOnDrop;
            std::panic::resume_unwind(Box::new("its own panic"));
        });
    }));
    assert_eq!(
        panicked.unwrap_err().downcast_ref::<&str>(),
        Some(&"its own panic")
    );
    assert_eq!(client.usage().live_bytes, 0);
}

#[test]
#[serial]
fn an_inner_clients_refusal_ends_the_inner_run_only() {
    let memory = Memory::new(1 << 30);
    let (outer, inner) = (strict(&memory, "outer"), strict(&memory, "inner"));
    let result = outer.run(|| inner.run(|| vec![0_u8; 2 << 20].len()).is_err());
    assert_eq!(result.unwrap(), true);
    // The other way round the refusal belongs to the outer client, whose run
    // is further out.
    let result = outer.run(|| {
        let outer_again = outer.clone();
        inner.run(move || {
            let _scope = outer_again.enter();
            vec![0_u8; 2 << 20].len()
        })
    });
    assert_eq!(&*result.unwrap_err().quota.client, "outer");
}
