//! The tree's charges and refunds, taken back where an upper node refuses.

use super::check;
use crate::registry::budget::Reach;
use crate::registry::tree::Tree;
use shuttle::thread;
use std::sync::Arc;

/// The root refuses what the tier let pass: until that is taken back the tier
/// looks full, which is no reason to refuse what fits.
#[test]
fn a_charge_that_is_taken_back_refuses_nobody_else() {
    check("rollback", || {
        let tree = Arc::new(Tree::new(100, 0));
        tree.tiers[0].set_limit(90);
        tree.charge(1, 60, Reach::Limits).unwrap();
        let hopeless: Vec<_> = [80, 70]
            .map(|bytes| {
                let tree = tree.clone();
                thread::spawn(move || {
                    for _ in 0..2 {
                        assert!(tree.charge(0, bytes, Reach::Limits).is_err());
                    }
                })
            })
            .into();
        for _ in 0..2 {
            tree.charge(0, 30, Reach::Limits).expect("30 of 40 fit");
            assert!(tree.root.charged() <= 100);
            tree.refund(0, 30);
        }
        for task in hopeless {
            task.join().unwrap();
        }
        assert_eq!((tree.tiers[0].charged(), tree.root.charged()), (0, 60));
    });
}

/// Charges, loans and refunds of three threads: no node passes its limit, and
/// at rest the sums are what was not given back.
#[test]
fn racing_charges_and_loans_stay_within_the_total_and_add_up() {
    check("charges and loans", || {
        let tree = Arc::new(Tree::new(100, 20));
        tree.tiers[0].set_limit(90);
        let tasks: Vec<_> = (0..3)
            .map(|task| {
                let tree = tree.clone();
                thread::spawn(move || {
                    let bytes = 30 + task;
                    let charged = tree.charge(0, bytes, Reach::Limits).is_ok();
                    let lent = tree.charge(0, bytes, Reach::Headroom).is_ok();
                    assert!(tree.tiers[0].charged() <= 90);
                    assert!(tree.root.charged() <= 100);
                    assert!(tree.headroom.charged() <= 20);
                    if lent {
                        tree.repay(bytes);
                    }
                    if charged {
                        tree.refund(0, bytes);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.join().unwrap();
        }
        assert_eq!(tree.charged_and_overdrawn(), (0, 0));
        assert_eq!(tree.tiers[0].charged(), 0);
        tree.charge(0, 90, Reach::Limits).unwrap();
    });
}
