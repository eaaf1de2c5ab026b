//! Blocks: pinned and reclaimed, passed on and dropped (`memory/block`).

use super::{check, close, strict};
use crate::{Enforcement, Limit, Memory, PinError, ReclaimPolicy, SubscriptionTier, TierPolicy};
use core::time::Duration;
use shuttle::thread;
use std::sync::Arc;

const BLOCK: usize = 8192;
const MAX: u64 = 4 * BLOCK as u64;

fn memory(policy: ReclaimPolicy) -> Memory {
    let every = TierPolicy::new(Limit::Bytes(MAX))
        .enforcement(Enforcement::Strict)
        .idle_after(Duration::ZERO)
        .reclaim(policy);
    Memory::builder(1 << 20)
        .usable(1.0)
        .background(false)
        .tier(SubscriptionTier::Basic, every)
        .build()
        .unwrap()
}

/// All is given back: nothing charged, nothing idle, nothing in the way.
fn end(memory: &Memory, names: &[&str]) {
    for name in names {
        let client = memory.client(name).unwrap();
        let usage = client.usage();
        assert_eq!((usage.live_bytes, usage.live_allocations), (0, 0), "{name}");
        assert_eq!((usage.charged_bytes, usage.block_bytes), (0, 0), "{name}");
        assert_eq!(client.slot().idle_block_bytes(), 0, "{name}");
        close(memory, &client, name);
    }
}

/// Readers pin and unpin, the reclaimer takes what is idle: what a pin shows
/// is what was written, and the block is charged while it is resident.
#[test]
fn a_pinned_block_is_never_reclaimed_and_a_spilled_one_comes_back() {
    check("pin and spill", || {
        let memory = memory(ReclaimPolicy::Spill);
        let client = strict(&memory, "acme", MAX);
        let mut block = memory.allocate_for_client("acme", BLOCK).unwrap();
        block.pin_mut().unwrap()[BLOCK - 1] = 7;
        let block = Arc::new(block);
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (block, client) = (block.clone(), client.clone());
                thread::spawn(move || {
                    let pin = block.pin().unwrap();
                    assert_eq!(pin[BLOCK - 1], 7);
                    assert!(client.slot().charged() >= BLOCK as u64);
                    assert_eq!(pin[BLOCK - 1], 7);
                })
            })
            .collect();
        for _ in 0..2 {
            memory.reclaim_unused_memory();
        }
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(block.pin().unwrap()[BLOCK - 1], 7);
        drop(block);
        end(&memory, &["acme"]);
    });
}

/// The block passes to another client, is renewed and ends while the
/// reclaimer discards it: whoever has it pays exactly while it is resident.
#[test]
fn a_block_that_changes_hands_while_it_is_discarded_is_charged_once() {
    check("discard, pass on, drop", || {
        let memory = memory(ReclaimPolicy::Discard);
        let _acme = strict(&memory, "acme", MAX);
        let press = strict(&memory, "press", MAX);
        let block = memory.allocate_for_client("acme", BLOCK).unwrap();
        let other = memory.allocate_for_client("acme", BLOCK).unwrap();
        let new_owner = press.clone();
        let owner = thread::spawn(move || {
            let mut block = block;
            block.charge_to(&press).unwrap();
            match block.pin() {
                Ok(pin) => assert_eq!(pin[0], 0),
                Err(PinError::Reclaimed { bytes }) => assert_eq!(bytes, BLOCK),
                Err(error) => panic!("{error}"),
            }
            block.renew().unwrap();
            assert_eq!(press.usage().live_allocations, 1);
            block
        });
        let dropper = thread::spawn(move || drop(other));
        memory.reclaim_unused_memory();
        memory.reclaim_unused_memory();
        let mut block = owner.join().unwrap();
        dropper.join().unwrap();
        block.renew().unwrap();
        let usage = new_owner.usage();
        assert_eq!(
            (usage.live_bytes, usage.block_bytes),
            (BLOCK as u64, BLOCK as u64)
        );
        assert_eq!(new_owner.slot().idle_block_bytes(), BLOCK as u64);
        drop(block);
        end(&memory, &["acme", "press"]);
    });
}

/// The owner's client is removed while a block is made and passed on.
#[test]
fn a_block_of_a_removed_client_is_somebodys_or_was_refused() {
    check("blocks and removal", || {
        let memory = memory(ReclaimPolicy::Keep);
        let acme = strict(&memory, "acme", MAX);
        let _press = strict(&memory, "press", MAX);
        let owner = {
            let (memory, acme) = (memory.clone(), acme.clone());
            thread::spawn(move || {
                let made = memory.allocate_for_client("acme", BLOCK);
                let passed = memory
                    .allocate_for_client("press", BLOCK)
                    .map(|mut block| (block.charge_to(&acme).is_ok(), block));
                if let Ok((moved, block)) = &passed {
                    assert_eq!(block.client() == acme, *moved);
                }
                drop((made, passed));
            })
        };
        memory.remove_client("acme").unwrap();
        let new = strict(&memory, "new", MAX);
        assert_eq!(new.usage().total_allocations, 0, "nobody else's block");
        owner.join().unwrap();
        assert_eq!(new.usage().total_allocations, 0, "nobody else's block");
        end(&memory, &["press", "new"]);
    });
}
