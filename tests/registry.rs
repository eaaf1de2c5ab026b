//! Clients come and go: names, ids, and what is left of a removed client.

mod common;

use common::{Bytes, client, quiet, timed};
use serial_test::serial;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use tiered_allocator::{
    Client, ClientUsage, DeallocateReason, Enforcement, Memory, RegisterError, SubscriptionTier,
    TieredAllocator, UnknownClient,
};

use SubscriptionTier::{Basic, Enterprise, Premium};

/// Registers until `index` is handed out again; the clients made on the way
/// stay, so that each index comes up once.
fn next_with_index(memory: &Memory, index: u32) -> Client {
    for number in 0..10_000 {
        let client = memory.register(&format!("probe-{number}"), Basic).unwrap();
        if client.id().index() == index {
            return client;
        }
    }
    panic!("index {index} was not used again");
}

#[test]
#[serial]
fn clients_are_found_by_name_until_they_are_removed() {
    assert!(TieredAllocator::is_installed());
    let memory = quiet(1 << 30);
    let a = memory.register("a", Basic).unwrap();
    let b = memory.add_client("b", Premium).unwrap();
    assert_ne!(a.id(), b.id());
    assert_eq!(memory.client("a").unwrap(), a);
    assert_eq!(memory.client_count(), 2);
    assert_eq!(b.tier().unwrap().name(), "Premium");
    assert_eq!(a.name().as_deref(), Some("a"));

    memory.remove_client("a").unwrap();
    assert_eq!(memory.client_count(), 1);
    assert_eq!(memory.client("a").unwrap_err().name, "a");
    assert!(!a.is_active());
    assert!(b.is_active());
    // The name is free at once, and means another client.
    let again = memory.register("a", Enterprise).unwrap();
    assert_ne!(again.id(), a.id());
}

#[test]
#[serial]
fn a_name_is_taken_once_and_the_refusal_changes_nothing() {
    let memory = quiet(1 << 30);
    let a = memory.register("a", Basic).unwrap();
    let before = memory.snapshot();
    let refused = memory.add_client("a", Enterprise);
    assert!(refused.is_err() && !refused.is_ok());
    let error = refused.into_result().unwrap_err();
    assert_eq!(error, RegisterError::Duplicate { name: "a".into() });
    assert_eq!(a.tier().unwrap().name(), "Basic");
    let after = memory.snapshot();
    assert_eq!((after.clients, after.tiers), (before.clients, before.tiers));
}

#[test]
#[serial]
fn names_may_be_empty_long_and_of_any_script() {
    let memory = quiet(1 << 30);
    let long = "n".repeat(100_000);
    for name in ["", " ", "客户", long.as_str()] {
        let client = memory.register(name, Basic).unwrap();
        assert_eq!(client.name().as_deref(), Some(name));
        assert_eq!(memory.client(name).unwrap(), client);
    }
    assert_eq!(memory.client_count(), 4);
}

#[test]
#[serial]
fn unknown_names_are_errors_that_name_them() {
    let memory = quiet(1 << 30);
    memory.register("known", Basic).unwrap();
    let says = |error: UnknownClient| assert!(error.to_string().contains("`nobody`"), "{error}");
    says(memory.client("nobody").unwrap_err());
    says(memory.remove_client("nobody").unwrap_err());
    says(memory.client_usage("nobody").unwrap_err());
    says(memory.get_client_resource_usage("nobody").unwrap_err());
    says(memory.update_client_usage("nobody").unwrap_err());
    let error = memory.rename_client("nobody", "somebody").unwrap_err();
    assert!(error.to_string().contains("`nobody`"), "{error}");
    assert!(memory.client("somebody").is_err());
    let taken = memory.rename_client("nobody", "known").unwrap_err();
    assert!(matches!(taken, RegisterError::Duplicate { .. }));
}

#[test]
#[serial]
fn handles_and_blocks_survive_a_rename() {
    let memory = quiet(1 << 30);
    let old = memory.register("old", Basic).unwrap();
    let block = memory.allocate_for_client("old", 10_000).unwrap();
    let bytes = Bytes::of(&old, 777).unwrap();
    memory.rename_client("old", "new").unwrap();

    assert_eq!(old.name().as_deref(), Some("new"));
    assert_eq!(memory.client("new").unwrap(), old);
    assert!(memory.client("old").is_err());
    assert_eq!(memory.client_usage("new").unwrap().live_bytes, 10_777);
    assert_eq!(&*memory.snapshot().clients[0].name, "new");
    let more = Bytes::of(&old, 23).unwrap();
    assert_eq!(old.usage().live_bytes, 10_800);

    // Under the old name the block is nobody's, under the new one it is at home.
    let refused = memory.deallocate_for_client("old", block).unwrap_err();
    assert!(matches!(refused.reason, DeallocateReason::UnknownClient(_)));
    memory.deallocate_for_client("new", refused.block).unwrap();
    drop((bytes, more));
    assert_eq!(old.usage().live_bytes, 0);

    memory.register("other", Basic).unwrap();
    let taken = memory.rename_client("new", "other").unwrap_err();
    assert_eq!(
        taken,
        RegisterError::Duplicate {
            name: "other".into()
        }
    );
    assert_eq!(memory.client("new").unwrap(), old);
}

#[test]
#[serial]
fn a_client_may_be_renamed_to_its_own_name_which_changes_nothing() {
    let memory = quiet(1 << 30);
    let same = memory.register("same", Basic).unwrap();
    let held = Bytes::of(&same, 777).unwrap();
    let before = memory.snapshot().clients;
    memory.rename_client("same", "same").unwrap();
    assert_eq!(memory.snapshot().clients, before);
    assert_eq!(memory.client("same").unwrap(), same);
    assert_eq!(memory.client_count(), 1);
    drop(held);
    memory.remove_client("same").unwrap();
    let unknown = memory.rename_client("same", "same").unwrap_err();
    assert!(matches!(unknown, RegisterError::Unknown(_)), "{unknown:?}");
}

/// What keeps a removed client's id from being used again.
fn kept_by<T>(hold: impl FnOnce(&Memory, &Client) -> T, bytes: u64) {
    let memory = quiet(1 << 30);
    let client = memory.register("gone", Basic).unwrap();
    let id = client.id();
    let held = hold(&memory, &client);
    memory.remove_client("gone").unwrap();

    let snapshot = memory.snapshot();
    assert!(snapshot.clients.is_empty());
    assert_eq!(snapshot.retired.len(), 1, "visible while something is left");
    assert_eq!(snapshot.retired[0].id, id);
    assert_eq!(&*snapshot.retired[0].name, "gone");
    assert_eq!(snapshot.retired[0].usage.live_bytes, bytes);
    assert_eq!(memory.get_resource_usage().0, bytes);
    // Nobody gets the index meanwhile, however often it is asked for.
    for number in 0..20 {
        let other = memory.register(&format!("other-{number}"), Basic).unwrap();
        assert_ne!(other.id().index(), id.index());
    }
    drop(held);
    let next = next_with_index(&memory, id.index());
    assert!(next.id().generation() > id.generation());
    assert!(memory.snapshot().retired.is_empty());
    assert_eq!(next.usage(), ClientUsage::default());
}

#[test]
#[serial]
fn a_heap_block_keeps_a_removed_client() {
    kept_by(|_, client| Bytes::of(client, 100), 100);
    kept_by(|_, client| Bytes::of(client, 100_000), 100_000);
}

#[test]
#[serial]
fn a_memory_block_keeps_a_removed_client() {
    kept_by(
        |memory, _| memory.allocate_for_client("gone", 5000).unwrap(),
        5000,
    );
}

#[test]
#[serial]
fn an_open_scope_keeps_a_removed_client() {
    kept_by(|_, client| client.enter(), 0);
}

#[test]
#[serial]
fn a_leaked_scope_keeps_a_removed_client_until_its_thread_ends() {
    struct Leaking(
        Option<std::thread::JoinHandle<()>>,
        std::sync::mpsc::Sender<()>,
    );
    impl Drop for Leaking {
        fn drop(&mut self) {
            let _ = self.1.send(());
            self.0.take().unwrap().join().unwrap();
        }
    }
    kept_by(
        |_, client| {
            let client = client.clone();
            let (entered, is_entered) = channel();
            let (end, ends) = channel::<()>();
            let thread = std::thread::spawn(move || {
                core::mem::forget(client.enter());
                tiered_allocator::untracked(|| {
                    entered.send(()).unwrap();
                    let _ = ends.recv();
                });
            });
            is_entered.recv().unwrap();
            Leaking(Some(thread), end)
        },
        0,
    );
}

#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "spills or measures pages")]
fn a_spilled_block_keeps_a_removed_client_and_comes_back() {
    let (memory, clock) = timed(1 << 30, |builder| builder);
    let client = memory.register("gone", Basic).unwrap();
    let mut block = memory.allocate_for_client("gone", 8192).unwrap();
    block.pin_mut().unwrap().fill(7);
    clock.advance(std::time::Duration::from_secs(300));
    assert_eq!(memory.reclaim_unused_memory().spilled_bytes, 8192);
    memory.remove_client("gone").unwrap();
    assert_eq!(memory.snapshot().retired[0].usage.live_bytes, 0);
    assert!(block.pin().unwrap().iter().all(|&byte| byte == 7));
    assert_eq!(memory.snapshot().retired[0].usage.live_bytes, 8192);
    let index = client.id().index();
    drop(block);
    let next = next_with_index(&memory, index);
    assert!(next.id().generation() > client.id().generation());
}

#[test]
#[serial]
fn an_old_handle_never_touches_the_client_that_has_its_index_now() {
    let memory = quiet(1 << 30);
    let old = memory.register("old", Basic).unwrap();
    drop(Bytes::of(&old, 500));
    memory.remove_client("old").unwrap();
    let new = next_with_index(&memory, old.id().index());
    let held = Bytes::of(&new, 300).unwrap();
    let usage = new.usage();
    assert_eq!(usage.live_bytes, 300);

    let unattributed = memory.snapshot().unattributed_bytes;
    let stray = Bytes::of(&old, 1 << 20).unwrap();
    {
        let _scope = old.enter();
        assert!(Client::current().is_none());
    }
    assert_eq!(new.usage().live_bytes, 300);
    // The test harness' own threads may free a little meanwhile.
    assert!(memory.snapshot().unattributed_bytes >= unattributed + (1 << 20) - 50_000);
    drop(stray);

    assert_eq!(old.usage(), ClientUsage::default());
    assert_eq!(old.checkpoint(), Ok(()));
    assert_eq!(old.run(|| 1), Ok(1));
    assert_eq!((old.name(), old.tier()), (None, None));
    assert!(!old.is_active());
    assert_eq!(old.set_tier(Enterprise), Err(RegisterError::Removed));
    assert_eq!(old.configure(Enterprise), Err(RegisterError::Removed));
    assert_eq!(old.limits(), (0, 0, 0));
    assert_eq!(old.enforcement(), Enforcement::Strict);
    assert_ne!(old, new);
    assert!(!format!("{old:?}").contains("probe"));
    assert_eq!(new.tier().unwrap().name(), "Basic");
    assert_eq!(new.usage().live_bytes, 300);
    drop(held);
}

#[test]
#[serial]
fn an_old_handle_is_not_marked_by_the_overdraft_of_the_new_client() {
    let memory = quiet(100 << 20);
    let old = memory.register("old", Basic).unwrap();
    memory.remove_client("old").unwrap();
    let new = next_with_index(&memory, old.id().index());
    let held = Bytes::of(&new, 9 << 20).unwrap();
    assert!(new.checkpoint().is_err());
    assert_eq!(old.checkpoint(), Ok(()));
    drop(held);
    assert_eq!(new.checkpoint(), Ok(()));
}

/// Threads allocate in open scopes while their client is removed. Answers what
/// was granted after the removal, and what is charged to the client then.
fn removed_under(enforcement: Enforcement) -> (usize, u64) {
    const THREADS: usize = 3;
    let memory = quiet(1 << 30);
    let client = client(&memory, "removed", 1 << 20, enforcement);
    let id = client.id();
    let (removed, ready) = (AtomicBool::new(false), AtomicUsize::new(0));
    let entered = Barrier::new(THREADS + 1);
    let (granted, left) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut live = 0;
    std::thread::scope(|threads| {
        for _ in 0..THREADS {
            threads.spawn(|| {
                let mut held = Vec::with_capacity(64);
                let scope = client.enter();
                entered.wait();
                while !removed.load(Ordering::Acquire) {
                    for _ in 0..64 {
                        held.extend(Bytes::new(100));
                    }
                    held.clear();
                    ready.fetch_add(1, Ordering::Relaxed);
                }
                for _ in 0..64 {
                    held.extend(Bytes::new(100));
                }
                granted.fetch_add(held.len(), Ordering::Relaxed);
                left.fetch_add(1, Ordering::Release);
                while left.load(Ordering::Acquire) <= THREADS {
                    std::thread::yield_now();
                }
                drop(held);
                drop(scope);
            });
        }
        entered.wait();
        while ready.load(Ordering::Relaxed) < 50 {
            std::thread::yield_now();
        }
        memory.remove_client("removed").unwrap();
        removed.store(true, Ordering::Release);
        while left.load(Ordering::Acquire) < THREADS {
            std::thread::yield_now();
        }
        live = memory.snapshot().retired[0].usage.live_bytes;
        left.fetch_add(1, Ordering::Release);
    });
    let next = next_with_index(&memory, id.index());
    assert!(next.id().generation() > id.generation());
    (granted.into_inner(), live)
}

#[test]
#[serial]
fn open_scopes_of_a_removed_strict_client_are_refused() {
    assert_eq!(removed_under(Enforcement::Strict), (0, 0));
}

#[test]
#[serial]
fn open_scopes_of_other_removed_clients_charge_nobody() {
    assert_eq!(removed_under(Enforcement::Graceful), (3 * 64, 0));
    assert_eq!(removed_under(Enforcement::Observe), (3 * 64, 0));
}

#[test]
#[serial]
fn a_dropped_memory_removes_its_clients_but_not_what_they_hold() {
    let memory = quiet(1 << 30);
    let names = ["a", "b", "c"];
    let clients = names.map(|name| memory.register(name, Basic).unwrap());
    let mut block = memory.allocate_for_client("a", 50_000).unwrap();
    let bytes = Bytes::of(&clients[1], 999).unwrap();
    let client = clients[2].clone();
    drop(memory);

    assert!(clients.iter().all(|client| !client.is_active()));
    assert_eq!(clients[0].usage().live_bytes, 50_000);
    assert_eq!(clients[1].usage().live_bytes, 999);
    block.pin_mut().unwrap().fill(3);
    assert!(block.pin().unwrap().iter().all(|&byte| byte == 3));

    // Another memory uses the indices again, each as soon as nothing is left.
    let later = quiet(1 << 30);
    let index = |client: &Client| client.id().index();
    let probes: Vec<Client> = (0..20)
        .map(|n| later.register(&format!("early-{n}"), Basic).unwrap())
        .collect();
    assert!(probes.iter().any(|probe| index(probe) == index(&client)));
    assert!(
        probes
            .iter()
            .all(|probe| index(probe) != index(&clients[0]))
    );
    assert!(
        probes
            .iter()
            .all(|probe| index(probe) != index(&clients[1]))
    );
    drop((block, bytes));
    for client in &clients[..2] {
        let names: Vec<String> = (0..20).map(|n| format!("{}-{n}", index(client))).collect();
        let found = probes.iter().map(index).any(|i| i == index(client))
            || names
                .iter()
                .map(|name| later.register(name, Basic).unwrap())
                .any(|probe| index(&probe) == index(client))
            || later
                .snapshot()
                .clients
                .iter()
                .any(|probe| probe.id.index() == index(client));
        assert!(found, "index {} was not used again", index(client));
    }
}

#[test]
#[serial]
fn memories_share_no_names_budgets_or_ids() {
    let (one, two) = (quiet(10 << 20), quiet(20 << 20));
    let a = one.register("same", Basic).unwrap();
    let b = two.register("same", Basic).unwrap();
    assert_ne!(a.id(), b.id());
    let max = |total: u64| (total as f64 * 0.8) as u64 / 10;
    assert_eq!(a.limits().0, max(10 << 20));
    assert_eq!(b.limits().0, max(20 << 20));
    let block = one.allocate_for_client("same", 100_000).unwrap();
    assert_eq!(one.get_resource_usage().0, 100_000);
    assert_eq!(two.get_resource_usage().0, 0);
    // A block of the same name in another memory is not this memory's.
    let refused = two.deallocate_for_client("same", block).unwrap_err();
    assert!(matches!(refused.reason, DeallocateReason::WrongClient(_)));
    one.deallocate_for_client("same", refused.block).unwrap();
    one.remove_client("same").unwrap();
    assert!(two.client("same").is_ok());
}

/// A name is looked up, its client removed, its index given to another: the
/// block must never be charged to that other client.
#[test]
#[serial]
fn a_block_is_never_charged_to_a_client_that_was_not_named() {
    let memory = quiet(1 << 30);
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for _ in 0..30_000 {
                memory.register("x", Basic).unwrap();
                memory.remove_client("x").unwrap();
                memory.register("y", Basic).unwrap();
                memory.remove_client("y").unwrap();
            }
            stop.store(true, Ordering::Release);
        });
        threads.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                if let Ok(block) = memory.allocate_for_client("x", 64) {
                    assert_eq!(block.client().name().as_deref(), Some("x"));
                    assert_eq!(block.client().usage().block_bytes, 64);
                }
            }
        });
    });
    assert_eq!(memory.get_resource_usage(), (0, 0));
}
