//! Grant, return and revoke while owners run: `ledger/{account,admit,settle,revoke}`.

use super::{Oracle, check, memory, settle, strict};
use shuttle::thread;

/// With so much room a thread draws a hundred bytes ahead.
const MAX: u64 = 6400;

/// Two owners work within their credit, a third needs all the rest: it takes
/// back what they have not used, exactly that, and they go on.
#[test]
fn credit_taken_back_from_running_owners_is_neither_lost_nor_spent_twice() {
    check("credit of one client", || {
        let memory = memory(1 << 20);
        let client = strict(&memory, "acme", MAX);
        let oracle = Oracle::new(MAX);
        let owners: Vec<_> = (0..2)
            .map(|_| {
                let (client, oracle) = (client.clone(), oracle.clone());
                thread::spawn(move || {
                    let _scope = client.enter();
                    let first = oracle.ask(40);
                    drop(oracle.ask(40));
                    let second = oracle.ask(60);
                    drop(first);
                    drop(second);
                })
            })
            .collect();
        // Fits beside the owners' 200 bytes only with their credit, and one
        // byte more fits now and then.
        for size in [MAX as usize - 200, MAX as usize - 199] {
            let _scope = client.enter();
            let _most = oracle.ask(size);
        }
        for owner in owners {
            owner.join().unwrap();
        }
        settle(&memory, client, "acme", MAX);
    });
}

/// Either the owner has its 60 bytes or the revoker all but 59: an owner that
/// is caught between storing its balance and reading its ceiling has both.
#[test]
fn an_owner_and_a_revoker_never_both_have_the_last_bytes() {
    check("the last bytes", || {
        let memory = memory(1 << 20);
        let client = strict(&memory, "acme", MAX);
        let oracle = Oracle::new(MAX);
        let (has_credit, wait) = shuttle::sync::mpsc::channel();
        let owner = {
            let (client, oracle) = (client.clone(), oracle.clone());
            thread::spawn(move || {
                let _scope = client.enter();
                drop(oracle.ask(60));
                has_credit.send(()).unwrap();
                for _ in 0..6 {
                    drop(oracle.ask(60));
                }
            })
        };
        wait.recv().unwrap();
        let scope = client.enter();
        for _ in 0..2 {
            drop(oracle.ask(MAX as usize - 59));
        }
        drop(scope);
        owner.join().unwrap();
        settle(&memory, client, "acme", MAX);
    });
}

/// Both need what the other has drawn: two revokers at once.
#[test]
fn owners_that_revoke_each_other_each_get_what_fits() {
    check("two revokers", || {
        let memory = memory(1 << 20);
        let client = strict(&memory, "acme", MAX);
        let oracle = Oracle::new(MAX);
        let owners: Vec<_> = (0..2)
            .map(|_| {
                let (client, oracle) = (client.clone(), oracle.clone());
                thread::spawn(move || {
                    let _scope = client.enter();
                    let _small = oracle.ask(10);
                    let _half = oracle.ask(MAX as usize / 2 - 10);
                    let _over = oracle.ask(1);
                })
            })
            .collect();
        for owner in owners {
            owner.join().unwrap();
        }
        settle(&memory, client, "acme", MAX);
    });
}

/// The credit that is in the way is another client's: the walk through the
/// whole tree, with everybody barred from drawing ahead meanwhile.
#[test]
fn credit_of_other_clients_is_no_reason_for_a_refusal() {
    check("credit of a memory", || {
        let memory = memory(MAX);
        let clients = ["acme", "press"].map(|name| strict(&memory, name, MAX));
        let oracle = Oracle::new(MAX);
        let owners: Vec<_> = clients
            .iter()
            .map(|client| {
                let (client, oracle) = (client.clone(), oracle.clone());
                thread::spawn(move || {
                    let _scope = client.enter();
                    let first = oracle.ask(30);
                    drop(oracle.ask(MAX as usize / 2 - 30));
                    drop(first);
                    drop(oracle.ask(MAX as usize - 60));
                })
            })
            .collect();
        for owner in owners {
            owner.join().unwrap();
        }
        for (client, name) in clients.into_iter().zip(["acme", "press"]) {
            settle(&memory, client, name, MAX);
        }
    });
}

/// A limit that moves while credit is out: nothing is granted past the higher
/// one, and what was drawn under it is not lost.
#[test]
fn a_limit_that_moves_loses_no_credit() {
    check("a moving limit", || {
        let memory = memory(1 << 20);
        let client = strict(&memory, "acme", MAX);
        let owner = {
            let client = client.clone();
            thread::spawn(move || {
                let _scope = client.enter();
                let first = super::Bytes::new(40);
                drop(super::Bytes::new(40));
                drop(super::Bytes::new(2000));
                drop(first);
            })
        };
        let options = |max| {
            crate::ClientOptions::new(crate::SubscriptionTier::Basic)
                .max(crate::Limit::Bytes(max))
                .enforcement(crate::Enforcement::Strict)
        };
        client.configure(options(20)).unwrap();
        client.configure(options(MAX)).unwrap();
        owner.join().unwrap();
        settle(&memory, client, "acme", MAX);
    });
}
