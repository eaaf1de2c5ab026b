//! Scopes: whose allocations a stretch of code makes, however they nest, end
//! and unwind.

mod common;

use common::{Bytes, quiet};
use serial_test::serial;
use std::sync::Barrier;
use tiered_allocator::{
    Client, Memory, MemoryBlock, Pin, PinMut, Snapshot, SubscriptionTier, TieredAllocator,
    untracked,
};

use SubscriptionTier::Basic;

const fn needs_send_and_sync<T: Send + Sync>() {}

const _: () = {
    needs_send_and_sync::<Memory>();
    needs_send_and_sync::<Client>();
    needs_send_and_sync::<MemoryBlock>();
    needs_send_and_sync::<Pin<'static>>();
    needs_send_and_sync::<PinMut<'static>>();
    needs_send_and_sync::<Snapshot>();
    needs_send_and_sync::<TieredAllocator>();
};

/// Compiles for a type that is not `Send` alone: for others both
/// implementations apply, and nobody knows which.
trait NotSend<Which> {
    fn is_not_send() {}
}

struct Neither;
struct Sendable;

impl<T> NotSend<Neither> for T {}
impl<T: Send> NotSend<Sendable> for T {}

const _: fn() = || <tiered_allocator::Scope as NotSend<_>>::is_not_send();

fn current() -> Option<u32> {
    Client::current().map(|client| client.id().index())
}

fn clients<const N: usize>(memory: &Memory) -> [Client; N] {
    core::array::from_fn(|number| memory.register(&format!("c{number}"), Basic).unwrap())
}

#[test]
#[serial]
fn the_innermost_scope_counts() {
    assert!(TieredAllocator::is_installed());
    let memory = quiet(1 << 30);
    let [a, b] = clients(&memory);
    assert!(Client::current().is_none());
    let outer = a.enter();
    assert_eq!(Client::current(), Some(a.clone()));
    let first = Bytes::new(100);
    {
        let _inner = b.enter();
        assert_eq!(Client::current(), Some(b.clone()));
        let second = Bytes::new(1000);
        assert_eq!((a.usage().live_bytes, b.usage().live_bytes), (100, 1000));
        // Freed in whose scope ever: it is refunded to its owner.
        drop(first);
        assert_eq!((a.usage().live_bytes, b.usage().live_bytes), (0, 1000));
        drop(second);
    }
    assert_eq!(Client::current(), Some(a.clone()));
    drop(outer);
    assert!(Client::current().is_none());
}

#[test]
#[serial]
fn scopes_nest_deeper_than_any_are_remembered() {
    let memory = quiet(1 << 30);
    let clients: [Client; 7] = clients(&memory);
    fn descend(clients: &[Client], depth: usize) {
        let client = &clients[depth % clients.len()];
        let before = current();
        let scope = client.enter();
        assert_eq!(Client::current().as_ref(), Some(client));
        if depth < 200 {
            descend(clients, depth + 1);
        }
        assert_eq!(Client::current().as_ref(), Some(client));
        drop(scope);
        assert_eq!(current(), before);
    }
    descend(&clients, 0);
    assert!(Client::current().is_none());
}

#[test]
#[serial]
fn scopes_may_be_left_in_any_order() {
    let memory = quiet(1 << 30);
    let [a, b, c] = clients(&memory);
    let [first, second, third] = [a.enter(), b.enter(), c.enter()];
    drop(second);
    assert_eq!(Client::current(), Some(c.clone()));
    drop(third);
    assert_eq!(Client::current(), Some(a.clone()));
    drop(first);
    assert!(Client::current().is_none());

    let [first, second] = [a.enter(), b.enter()];
    drop(first);
    assert_eq!(Client::current(), Some(b.clone()));
    let third = c.enter();
    drop(second);
    assert_eq!(Client::current(), Some(c));
    drop(third);
    assert!(Client::current().is_none());
}

/// A `Vec` drops its first element first.
#[test]
#[serial]
fn many_scopes_left_in_the_order_of_entry_leave_nothing_behind() {
    let memory = quiet(1 << 30);
    let clients: [Client; 3] = clients(&memory);
    for count in [2, 31, 32, 33, 34, 40, 100] {
        for reverse in [false, true] {
            let mut scopes = Vec::with_capacity(count);
            for number in 0..count {
                scopes.push(clients[number % 3].enter());
            }
            assert_eq!(Client::current(), Some(clients[(count - 1) % 3].clone()));
            if reverse {
                scopes.reverse();
            }
            drop(scopes);
            assert!(Client::current().is_none(), "{count} scopes");
            let _scope = clients[0].enter();
            let _inner = clients[1].enter();
            assert_eq!(Client::current(), Some(clients[1].clone()));
        }
        assert!(Client::current().is_none());
    }
    // No scope is left that would keep them.
    let indices = clients.each_ref().map(|client| client.id().index());
    for client in &clients {
        memory.remove_client(&client.name().unwrap()).unwrap();
    }
    assert!(memory.snapshot().retired.is_empty());
    let again: [Client; 3] = self::clients(&memory);
    assert!(
        again
            .iter()
            .all(|client| indices.contains(&client.id().index()))
    );
}

/// While deep scopes are left in disorder nobody who is not entered is charged.
#[test]
#[serial]
fn deep_disorder_charges_no_client_whose_scopes_are_left() {
    let memory = quiet(1 << 30);
    let [outer, gone, last] = clients(&memory);
    let shallow: Vec<_> = (0..33).map(|_| outer.enter()).collect();
    let deep = gone.enter();
    let deepest = last.enter();
    drop(deep);
    assert_eq!(Client::current(), Some(last.clone()));
    drop(deepest);
    assert_ne!(Client::current(), Some(gone.clone()));
    let bytes = Bytes::new(50);
    assert_eq!(gone.usage().live_bytes, 0);
    drop((bytes, shallow));
    assert!(Client::current().is_none());
}

#[test]
#[serial]
fn run_answers_and_restores() {
    let memory = quiet(1 << 30);
    let [a, b] = clients(&memory);
    let _scope = a.enter();
    let inside = b.run(Client::current).unwrap();
    assert_eq!(inside, Some(b));
    assert_eq!(Client::current(), Some(a));
}

#[test]
#[serial]
fn spawned_work_is_charged_to_the_client_on_its_own_thread() {
    let memory = quiet(1 << 30);
    let [a, b] = clients(&memory);
    let _scope = b.enter();
    let work = a.spawn(|| (Client::current(), Bytes::new(5000).unwrap()));
    let (inside, bytes) = work.unwrap().join().unwrap().unwrap();
    assert_eq!(inside.as_ref(), Some(&a));
    assert_eq!(Client::current(), Some(b));
    assert!(a.usage().live_bytes >= 5000);
    drop(bytes);
    assert!(a.usage().live_bytes < 5000);
}

#[test]
#[serial]
fn untracked_work_is_charged_to_nobody() {
    let memory = quiet(1 << 30);
    let [a] = clients(&memory);
    let _scope = a.enter();
    let bytes = untracked(|| {
        assert!(Client::current().is_none());
        let bytes = Bytes::new(777);
        let _inner = a.enter();
        assert_eq!(Client::current(), Some(a.clone()));
        bytes
    });
    assert_eq!(a.usage().live_bytes, 0);
    assert_eq!(Client::current(), Some(a.clone()));
    drop(bytes);
    assert_eq!(a.usage().live_bytes, 0);
}

#[test]
#[serial]
fn unwinding_ends_scopes() {
    let memory = quiet(1 << 30);
    let [a, b] = clients(&memory);
    let _outer = a.enter();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _inner = b.enter();
        let _run = b.run(|| {
            untracked(|| std::panic::resume_unwind(Box::new(())));
        });
    }));
    assert!(caught.is_err());
    assert_eq!(Client::current(), Some(a));
}

#[test]
#[serial]
fn each_thread_has_scopes_of_its_own() {
    const THREADS: usize = 4;
    let memory = quiet(1 << 30);
    let clients: [Client; THREADS] = clients(&memory);
    let together = Barrier::new(THREADS);
    let _scope = clients[0].enter();
    std::thread::scope(|threads| {
        for number in 0..THREADS {
            let (clients, together) = (&clients, &together);
            threads.spawn(move || {
                let client = &clients[number];
                assert!(Client::current().is_none(), "not the spawner's");
                let scope = client.enter();
                together.wait();
                assert_eq!(Client::current().as_ref(), Some(client));
                let bytes = Bytes::new(1000 + number).unwrap();
                together.wait();
                drop(scope);
                assert!(client.usage().live_bytes >= 1000 + number as u64);
                drop(bytes);
            });
        }
    });
    assert_eq!(Client::current(), Some(clients[0].clone()));
}

#[test]
#[serial]
fn entering_a_removed_client_charges_nobody() {
    let memory = quiet(1 << 30);
    let [a, b] = clients(&memory);
    let bytes = Bytes::of(&a, 300);
    memory.remove_client("c0").unwrap();
    let _outer = b.enter();
    {
        let _scope = a.enter();
        assert!(Client::current().is_none());
        let more = Bytes::new(1000);
        assert_eq!((a.usage().live_bytes, b.usage().live_bytes), (300, 0));
        drop(more);
    }
    assert_eq!(Client::current(), Some(b));
    drop(bytes);
}
