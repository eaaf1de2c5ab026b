//! Clients come and go, and their slots are used again: `registry/slot`,
//! `ledger/retire`.

use super::{Bytes, check, close, memory, strict};
use crate::registry::slot::State;
use shuttle::thread;

const MAX: u64 = 6400;

/// A client is removed while a thread is on its way into its scope, and a new
/// one gets the slot as soon as it is free.
#[test]
fn what_a_stale_handle_does_is_never_charged_to_the_next_client() {
    check("scopes and reuse", || {
        let memory = memory(1 << 20);
        let old = strict(&memory, "old", MAX);
        let worker = {
            let old = old.clone();
            thread::spawn(move || {
                let first = Bytes::of(&old, 10);
                let second = Bytes::of(&old, 20);
                drop(first);
                drop(second);
                // All of its own, or nothing any more: never the next one's.
                let usage = old.usage();
                assert_ne!(usage.live_bytes, 7, "{usage:?}");
                assert_ne!(usage.total_bytes, 7, "{usage:?}");
            })
        };
        memory.remove_client("old").unwrap();
        let new = strict(&memory, "new", MAX);
        let block = Bytes::of(&new, 7).unwrap();
        for _ in 0..2 {
            let usage = new.usage();
            assert_eq!((usage.live_bytes, usage.total_bytes), (7, 7), "{usage:?}");
        }
        worker.join().unwrap();
        let usage = new.usage();
        assert_eq!((usage.live_bytes, usage.total_bytes), (7, 7), "{usage:?}");
        drop(block);
        close(&memory, &new, "new");
        assert_ne!(
            old.slot().state(),
            State::Retired,
            "nothing keeps the old one"
        );
    });
}

/// The same for blocks, which hold the slot without its lock: Dekker's pattern
/// of `hold` and `is_held`.
#[test]
fn a_slot_that_is_held_is_not_given_to_the_next_client() {
    check("holds and reuse", || {
        let memory = memory(1 << 20);
        let old = strict(&memory, "old", MAX);
        let holder = {
            let old = old.clone();
            thread::spawn(move || {
                if let Some(hold) = old.held() {
                    for _ in 0..2 {
                        assert_eq!(old.slot().generation(), old.id().generation());
                        assert_ne!(old.slot().state(), State::Free);
                    }
                    drop(hold);
                }
            })
        };
        memory.remove_client("old").unwrap();
        let new = strict(&memory, "new", MAX);
        holder.join().unwrap();
        close(&memory, &new, "new");
        memory.reclaim_unused_memory();
        assert_ne!(
            old.slot().state(),
            State::Retired,
            "nothing keeps the old one"
        );
    });
}

/// The last byte is freed elsewhere while somebody looks whether the client
/// can be closed.
#[test]
fn a_client_is_closed_after_its_last_free_and_not_before() {
    check("close and remote free", || {
        let memory = memory(1 << 20);
        let old = strict(&memory, "old", MAX);
        let block = Bytes::of(&old, 10).unwrap();
        let freed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let remote = {
            let freed = freed.clone();
            thread::spawn(move || {
                freed.store(true, std::sync::atomic::Ordering::SeqCst);
                drop(block);
            })
        };
        memory.remove_client("old").unwrap();
        for _ in 0..2 {
            memory.reclaim_unused_memory();
            let is_closed = old.slot().state() == State::Free;
            assert!(!is_closed || freed.load(std::sync::atomic::Ordering::SeqCst));
        }
        remote.join().unwrap();
        memory.reclaim_unused_memory();
        assert_eq!(old.slot().state(), State::Free);
        assert_eq!(
            old.slot()
                .settled()
                .plus(crate::ledger::reading::accounts(old.slot()))
                .net,
            0
        );
    });
}

/// A request budget ends while its scope is open and is closed when it is not.
#[test]
fn a_request_budget_leaves_its_bytes_to_its_client() {
    check("request budgets", || {
        let memory = memory(1 << 20);
        let client = strict(&memory, "acme", MAX);
        let budget = client.budget(1000).unwrap();
        let request = (*budget).clone();
        let worker = thread::spawn(move || {
            let block = Bytes::of(&request, 30);
            let after = Bytes::of(&request, 40);
            drop(block);
            after
        });
        drop(budget);
        memory.reclaim_unused_memory();
        let left = worker.join().unwrap();
        // Entered after the budget was closed, the scope charged nobody.
        let bytes = client.usage().live_bytes;
        assert!(bytes == 0 || bytes == 40, "{bytes}");
        drop(left);
        assert_eq!(client.usage().live_bytes, 0);
        memory.reclaim_unused_memory();
        close(&memory, &client, "acme");
    });
}
