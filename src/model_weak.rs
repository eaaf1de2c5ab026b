//! Single protocols of the real code under `loom`: two threads, every
//! execution that the C11 memory model allows (up to a number of preemptions),
//! stale loads included. What needs whole threads, with their scopes and their
//! end, is in `model`.
//!
//! A word is made known to `loom` by its first access, which must come before
//! all others: so what the threads will do is done once before they start.
//!
//! `loom` lets a load be stale but runs each thread's accesses in program
//! order, and a read-modify-write always meets the newest value; so it does
//! not show what comes of stores that overtake loads.

use crate::ledger::account::Account;
use crate::ledger::table;
use crate::ledger::{reading, revoke, settle};
use crate::owner::{Tag, page_map};
use crate::registry::budget::{BudgetNode, Reach, Refusal};
use crate::registry::events::{EventKind, Events};
use crate::registry::slot::{Limits, Slot, State, Totals};
use crate::registry::tree::Tree;
use crate::registry::{Enforcement, REGISTRY};
use crate::sync::real::begin_execution;
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Explores `body` with at most `MODEL_PREEMPTIONS` (2 if not set)
/// preemptions in an execution.
fn check(name: &str, body: impl Fn() + Send + Sync + 'static) {
    // Idle tables and the like are one process's: one test at a time.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let preemptions = std::env::var("MODEL_PREEMPTIONS").ok();
    let preemptions = preemptions.and_then(|text| text.parse().ok()).unwrap_or(2);
    let executions = Arc::new(AtomicUsize::new(0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    let counted = Arc::clone(&executions);
    builder.check(move || {
        begin_execution();
        counted.fetch_add(1, Relaxed);
        body();
    });
    let executions = executions.load(Relaxed);
    println!("{name}: all {executions} executions with {preemptions} preemptions");
}

/// A client of a tree, with one account in the table of one thread.
struct Client {
    tree: Arc<Tree>,
    slot: &'static Slot,
    generation: u32,
    account: &'static Account,
}

fn limits(max: u64) -> Limits {
    Limits {
        max,
        soft: max,
        guarantee: 0,
        overdraft: 0,
        enforcement: Enforcement::Strict,
    }
}

/// The client has `max` bytes, and its account has drawn all of them.
fn client(max: u32) -> Client {
    let tree = Arc::new(Tree::new(u64::from(max), 0));
    let slot = REGISTRY.acquire().unwrap();
    let mut locked = slot.lock();
    let generation = locked
        .open("acme".into(), tree.clone(), 0, limits(max.into()))
        .unwrap();
    let table = table::acquire().unwrap();
    let (place, account) = table.place_for(slot.tag()).unwrap();
    account.claim(slot.tag(), generation);
    table.set_used(place, true);
    locked.charge(max.into(), None, Reach::Limits).unwrap();
    account.place(0, max.into(), max);
    drop(locked);
    Client {
        tree,
        slot,
        generation,
        account,
    }
}

/// What an owner does on the fast path, and when it meets the ceiling.
fn charge(account: &Account, size: u64) -> bool {
    let charged = account.charge(size);
    if !charged {
        account.withdraw(size);
    }
    charged
}

/// Takes back what is unused while `owner` works, which answers what it has in
/// the end: the books must say the same.
fn revoke_beside(
    slot: &'static Slot,
    account: &'static Account,
    owner: impl FnOnce() -> i64 + Send + 'static,
) {
    let owner = thread::spawn(owner);
    let mut locked = slot.lock();
    settle::collect(&mut locked);
    drop(locked);
    let net = owner.join().unwrap();
    assert!(account.credit() >= 0, "{} beyond", account.credit());
    assert_eq!(account.net(), net);
    assert_eq!(slot.charged() as i64, account.net() + account.credit());
}

/// Publish, then check: an owner charges, a revoker takes what is unused.
#[test]
fn a_charge_and_a_revocation_never_both_get_the_same_bytes() {
    check("charge and revoke", || {
        let Client { slot, account, .. } = client(100);
        revoke_beside(
            slot,
            account,
            move || if charge(account, 60) { 60 } else { 0 },
        );
    });
}

/// The same, with frees, whose balance nobody checks.
#[test]
fn what_is_freed_during_a_revocation_is_credit_or_was_taken() {
    check("charge, free and revoke", || {
        let Client { slot, account, .. } = client(100);
        assert!(account.charge(60));
        revoke_beside(slot, account, move || {
            account.refund(60);
            if charge(account, 90) { 90 } else { 0 }
        });
    });
}

/// A scope that is entered while its client is removed.
#[test]
fn a_removal_sees_the_scope_or_the_scope_is_turned_away() {
    check("enter and remove", || {
        let client = client(100);
        let (slot, account) = (client.slot, client.account);
        assert!(account.pin(client.generation));
        account.unpin();
        let scope = thread::spawn(move || account.pin(client.generation));
        let mut locked = slot.lock();
        locked.retire();
        revoke::for_removal(&mut locked);
        let seen = revoke::is_entered(&locked);
        drop(locked);
        let entered = scope.join().unwrap();
        assert!(seen || !entered);
        assert_eq!((slot.charged(), account.credit()), (0, 0));
    });
}

/// Dekker's pattern of holds and state; the slot is used again at once.
#[test]
fn a_slot_that_is_held_is_neither_closed_nor_used_again() {
    check("hold, close, open", || {
        let client = client(100);
        let (slot, generation) = (client.slot, client.generation);
        let mut locked = slot.lock();
        settle::collect(&mut locked);
        assert!(!locked.is_held());
        drop(locked);
        slot.hold();
        assert!(slot.is_active(generation));
        slot.release();
        let holder = thread::spawn(move || {
            slot.hold();
            slot.is_active(generation)
        });
        let mut locked = slot.lock();
        locked.retire();
        let closed = !locked.is_held();
        if closed {
            let threads = reading::accounts(slot);
            let dropped = locked.close(threads);
            let tree = client.tree.clone();
            locked.open("next".into(), tree, 0, limits(100)).unwrap();
            drop(dropped);
        }
        drop(locked);
        let held = holder.join().unwrap();
        assert!(
            !(held && closed),
            "the next client's slot is held for the last"
        );
        assert_eq!(slot.state() == State::Active, closed);
    });
}

/// A thread ends: what its account holds moves to the slot's totals. Whoever
/// found the sequence the same before and after has found all of it, once.
#[test]
fn a_reading_that_nobody_disturbed_finds_settled_bytes_once() {
    check("settle and read", || {
        let Client { slot, account, .. } = client(100);
        assert!(account.charge(60) && !account.is_pinned());
        slot.settle(Totals::default());
        let read = move || {
            let sequence = slot.quiet_sequence()?;
            let net = slot.settled().net + account.net();
            slot.unchanged_since(sequence).then_some(net)
        };
        assert_eq!(read(), Some(60));
        let end = thread::spawn(move || {
            let locked = slot.lock();
            slot.settle(account.totals());
            account.clear();
            drop(locked);
        });
        assert!(matches!(read(), None | Some(60)));
        end.join().unwrap();
        assert_eq!(read(), Some(60));
    });
}

/// A tier lets a charge pass that the root refuses; until it is taken back the
/// tier looks full, which is no reason to refuse what fits.
#[test]
fn a_charge_that_is_taken_back_refuses_nobody_else() {
    check("rollback", || {
        let tree = Arc::new(Tree::new(100, 0));
        tree.tiers[0].set_limit(90);
        tree.charge(1, 60, Reach::Limits).unwrap();
        tree.charge(0, 1, Reach::Limits).unwrap();
        tree.refund(0, 1);
        let hopeless = {
            let tree = tree.clone();
            thread::spawn(move || {
                assert!(tree.charge(0, 80, Reach::Limits).is_err());
            })
        };
        tree.charge(0, 30, Reach::Limits).expect("30 of 40 fit");
        tree.refund(0, 30);
        hopeless.join().unwrap();
        assert_eq!((tree.tiers[0].charged(), tree.root.charged()), (0, 60));
    });
}

/// Two charges of which one fits.
#[test]
fn the_last_bytes_are_given_to_one() {
    check("last bytes", || {
        let tree = Arc::new(Tree::new(100, 0));
        tree.tiers[0].set_limit(90);
        tree.charge(0, 1, Reach::Limits).unwrap();
        tree.refund(0, 1);
        let charge = |bytes| {
            let tree = tree.clone();
            move || tree.charge(0, bytes, Reach::Limits).is_ok()
        };
        let other = thread::spawn(charge(50));
        let one = charge(60)();
        let other = other.join().unwrap();
        assert!(one ^ other, "one of them, and not both");
        assert_eq!(tree.root.charged(), if one { 60 } else { 50 });
        assert_eq!(tree.tiers[0].charged(), tree.root.charged());
    });
}

fn refusal(number: u64) -> Refusal {
    Refusal {
        node: BudgetNode::Client,
        requested: number,
        charged: number + 1000,
        limit: number + 2000,
    }
}

/// The ring has two places: the writer goes round while somebody reads.
#[test]
fn a_record_is_whole_or_not_there() {
    check("the event ring", || {
        let events = Arc::new(Events::new());
        let leave = |events: &Events, number: u64| {
            events.leave(EventKind::Refused, 0, number as u32, 1, refusal(number), 0);
        };
        for number in 0..2 {
            leave(&events, number);
        }
        assert_eq!(events.read(0).0.len(), 2);
        let writer = {
            let events = events.clone();
            thread::spawn(move || leave(&events, 2))
        };
        let (records, next) = events.read(0);
        for (number, record) in records {
            assert!(number < next);
            assert_eq!(u64::from(record.index), number);
            assert_eq!(record.refusal, refusal(number));
        }
        writer.join().unwrap();
    });
}

/// Two writers lap each other at one place: one of them gives up.
#[test]
fn two_writers_never_mix_their_records() {
    check("writers of one record", || {
        let events = Arc::new(Events::new());
        let leave = |events: &Events, number: u64| {
            events.leave(EventKind::Refused, 0, number as u32, 1, refusal(number), 0);
        };
        for number in 0..2 {
            leave(&events, number);
        }
        assert_eq!(events.read(0).0.len(), 2);
        let writer = {
            let events = events.clone();
            thread::spawn(move || leave(&events, 10))
        };
        leave(&events, 20);
        leave(&events, 21);
        writer.join().unwrap();
        for (_, record) in events.read(0).0 {
            assert_eq!(record.refusal, refusal(u64::from(record.index)));
        }
    });
}

/// Two threads are the first to need a leaf: both find their cells in it.
#[test]
fn two_threads_that_make_one_leaf_both_find_their_cells() {
    check("a leaf of the page map", || {
        let base = (1 << 17) << 30;
        assert_eq!(page_map::get(base), Tag::NONE);
        let own = move |number: usize| {
            let (address, tag) = (base + (number << 12), Tag::of(number as u32 + 1));
            assert!(page_map::set(address, tag));
            assert_eq!(page_map::get(address), tag);
        };
        let other = thread::spawn(move || own(1));
        own(0);
        other.join().unwrap();
        assert_eq!(page_map::get(base), Tag::of(1));
        assert_eq!(page_map::get(base + 0x1000), Tag::of(2));
    });
}
