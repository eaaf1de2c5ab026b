//! Accounts that come and go: evicted from a thread's table (which has four
//! places here), settled at the thread's end, while others read the client's
//! figures and free its blocks.

use super::{Bytes, check, close, memory, strict};
use shuttle::thread;

const MAX: u64 = 6400;

/// The base block lives all the time; whatever the accounts do, nobody reads
/// less than it, nor more than the limit.
#[test]
fn a_reading_never_misses_what_moves_from_an_account_to_the_totals() {
    check("eviction and exit, read", || {
        let memory = memory(1 << 20);
        let names = ["acme", "b", "c", "d"];
        let clients = names.map(|name| strict(&memory, name, MAX));
        let acme = clients[0].clone();
        let base = Bytes::of(&acme, 100).unwrap();
        let (send, receive) = shuttle::sync::mpsc::channel::<Bytes>();
        let worker = {
            let clients = clients.clone();
            thread::spawn(move || {
                send.send(Bytes::of(&clients[0], 40).unwrap()).unwrap();
                // Client 0 and these fill the table: acme's account goes.
                for other in &clients[1..] {
                    drop(Bytes::of(other, 8));
                }
                drop(Bytes::of(&clients[0], 50));
            })
        };
        let reader = {
            let acme = acme.clone();
            thread::spawn(move || {
                for _ in 0..3 {
                    let usage = acme.usage();
                    assert!(usage.live_bytes >= 100, "{usage:?}");
                    assert!(usage.live_bytes <= 100 + 40 + 50, "{usage:?}");
                    assert!(usage.live_allocations >= 1, "{usage:?}");
                }
            })
        };
        // A remote free, by a thread that never was in acme's scope.
        let remote = thread::spawn(move || drop(receive.recv().unwrap()));
        for task in [worker, reader, remote] {
            task.join().unwrap();
        }
        let usage = acme.usage();
        assert_eq!((usage.live_bytes, usage.live_allocations), (100, 1));
        assert_eq!(usage.total_bytes, 190);
        drop(base);
        for (client, name) in clients.iter().zip(names) {
            assert_eq!(client.usage().live_bytes, 0);
            close(&memory, client, name);
        }
    });
}

/// A scope keeps its account while the thread runs out of places, and the
/// revoker of another thread meets accounts that move.
#[test]
fn an_eviction_gives_back_credit_that_another_thread_needs() {
    check("eviction and revoke", || {
        let memory = memory(1 << 20);
        let names = ["acme", "b", "c", "d"];
        let clients = names.map(|name| strict(&memory, name, MAX));
        let worker = {
            let clients = clients.clone();
            thread::spawn(move || {
                let scope = clients[1].enter();
                drop(Bytes::of(&clients[0], 40));
                drop(Bytes::of(&clients[2], 8));
                drop(Bytes::of(&clients[3], 8));
                drop(Bytes::of(&clients[0], 40));
                let in_scope = Bytes::new(24);
                drop(scope);
                let outside = Bytes::new(16);
                let live = |at: usize| clients[at].usage().live_bytes;
                assert_eq!((live(1), live(2), live(3)), (24, 0, 0));
                drop((in_scope, outside));
            })
        };
        // Fits beside the worker's 40 bytes, never with its credit.
        let most = Bytes::of(&clients[0], MAX as usize - 40);
        assert!(most.is_some(), "credit is no reason to refuse");
        drop(most);
        worker.join().unwrap();
        for (client, name) in clients.iter().zip(names) {
            let all = Bytes::of(client, MAX as usize).expect("all of it is free");
            drop(all);
            close(&memory, client, name);
        }
    });
}
