//! The event ring (of two records here) and the page map.

use super::check;
use crate::owner::{Tag, page_map};
use crate::registry::budget::{BudgetNode, Refusal};
use crate::registry::events::{EventKind, Events};
use core::sync::atomic::{AtomicUsize, Ordering};
use shuttle::thread;
use std::sync::Arc;

fn refusal(number: u64) -> Refusal {
    Refusal {
        node: BudgetNode::Client,
        requested: number,
        charged: number + 1000,
        limit: number + 2000,
    }
}

/// Writers lap each other and a reader: what is read is whole, in order, once,
/// and in the end everything that was not overtaken is there.
#[test]
fn a_record_is_whole_or_not_there() {
    check("the event ring", || {
        let events = Arc::new(Events::new());
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let events = events.clone();
                thread::spawn(move || {
                    for turn in 0..4 {
                        let number = writer * 10 + turn;
                        events.leave(EventKind::Refused, 0, number as u32, 1, refusal(number), 0);
                    }
                })
            })
            .collect();
        let mut seen = Vec::new();
        let mut from = 0;
        let mut read = |events: &Events| {
            let (records, next) = events.read(from);
            assert!(next >= from);
            for (number, record) in records {
                assert!((from..next).contains(&number));
                assert_eq!(record.refusal, refusal(u64::from(record.index)));
                assert_eq!((record.kind, record.generation), (EventKind::Refused, 1));
                seen.push((number, record.index));
            }
            from = next;
        };
        for _ in 0..3 {
            read(&events);
        }
        for writer in writers {
            writer.join().unwrap();
        }
        read(&events);
        // The last ones may have been given up; two more would tell.
        assert!(from >= 6, "waits for number {from} of 8");
        assert!(seen.is_sorted_by(|a, b| a.0 < b.0), "{seen:?}");
        // Each writer's own are in the order in which it left them.
        for writer in 0..2 {
            let own = seen.iter().filter(|(_, index)| index / 10 == writer);
            assert!(own.map(|(_, index)| index).is_sorted(), "{seen:?}");
        }
    });
}

/// Two threads are the first to need a leaf: both find their cells.
#[test]
fn two_threads_that_make_one_leaf_both_find_their_cells() {
    // Ranges that no allocation of the process has, a fresh one each time.
    static RANGE: AtomicUsize = AtomicUsize::new(0);
    check("a leaf of the page map", || {
        let range = (1 << 17) + RANGE.fetch_add(1, Ordering::Relaxed) % (1 << 15);
        let base = range << 30;
        let owners: Vec<_> = (0..2)
            .map(|number| {
                thread::spawn(move || {
                    let (address, tag) = (base + (number << 12), Tag::of(number as u32 + 1));
                    assert!(page_map::set(address, tag));
                    assert_eq!(page_map::get(address), tag);
                })
            })
            .collect();
        for owner in owners {
            owner.join().unwrap();
        }
        for number in 0..2 {
            let address = base + (number << 12);
            assert_eq!(page_map::take(address), Tag::of(number as u32 + 1));
            assert_eq!(page_map::get(address), Tag::NONE);
        }
    });
}
