//! Adding up what a client has, from its totals and every thread's accounts.
//!
//! At rest the sums are exact. While threads run, a block that passes from one
//! thread to another could be seen freed but not allocated; so the freed bytes
//! are added up first and the allocated ones afterwards, and a reading is
//! never negative. It is never above `charged` either.

use super::account::Account;
use super::table;
use crate::registry::REGISTRY;
use crate::registry::slot::{Slot, Totals};
use crate::sync::{bound, spin_loop};

/// What a client has, at one moment as far as running threads allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Reading {
    pub(crate) live_bytes: u64,
    pub(crate) live_blocks: u64,
    pub(crate) allocated_bytes: u64,
    pub(crate) allocations: u64,
}

/// Accounts of one client that a reading notes on its way.
const NOTED: usize = bound(8, 2);

/// Attempts without the slot's lock before it is taken.
const ATTEMPTS: usize = bound(16, 2);

/// Reads one client.
pub(crate) fn of(slot: &'static Slot) -> Reading {
    for _ in 0..ATTEMPTS {
        if let Some(sequence) = slot.quiet_sequence() {
            let reading = add_up(slot);
            if slot.unchanged_since(sequence) {
                return reading;
            }
        }
        spin_loop();
    }
    let _locked = slot.lock();
    add_up(slot)
}

fn add_up(slot: &'static Slot) -> Reading {
    let accounts = || accounts_with_budgets(slot);
    let settled = slot.settled();
    let mut freed = settled.allocated.wrapping_sub(settled.net as u64);
    let mut frees = settled.frees;
    // Accounts come and go under the slot's lock only, so the second walk
    // would find the same ones; mostly they are few, and noted.
    let mut noted = [None; NOTED];
    let mut found = 0;
    for account in accounts() {
        if let Some(note) = noted.get_mut(found) {
            *note = Some(account);
        }
        found += 1;
        freed = freed.wrapping_add(account.freed());
        frees = frees.wrapping_add(account.totals().frees);
    }
    let mut allocated = settled.allocated;
    let mut allocs = settled.allocs;
    let mut add = |account: &Account| {
        allocated = allocated.wrapping_add(account.allocated());
        allocs = allocs.wrapping_add(account.allocs());
    };
    if found <= NOTED {
        noted.into_iter().flatten().for_each(&mut add);
    } else {
        accounts().for_each(&mut add);
    }
    let live = (allocated.wrapping_sub(freed) as i64).max(0) as u64;
    let live_bytes = if slot.is_unattributed() {
        live
    } else {
        live.min(slot.charged())
    };
    Reading {
        live_bytes,
        live_blocks: (allocs.wrapping_sub(frees) as i64).max(0) as u64,
        allocated_bytes: allocated,
        allocations: allocs,
    }
}

/// The accounts of a slot and of the request budgets below it. Looks at every
/// account of the process if there are such budgets.
fn accounts_with_budgets(slot: &'static Slot) -> impl Iterator<Item = &'static Account> {
    let wide = slot.has_children();
    table::owned().flat_map(move |table| {
        let own = if wide { None } else { table.find(slot.tag()) };
        let all = wide.then(|| table.accounts()).into_iter().flatten();
        let below = all.filter_map(move |(_, account)| {
            let owner = REGISTRY.slot(account.tag().index()?)?;
            owner.is_within(slot).then_some(account)
        });
        own.into_iter().chain(below)
    })
}

/// The sum over all accounts of the threads, under the slot's lock.
pub(crate) fn accounts(slot: &Slot) -> Totals {
    let tag = slot.tag();
    table::owned()
        .filter_map(|table| table.find(tag))
        .fold(Totals::default(), |sum, account| sum.plus(account.totals()))
}

/// Blocks that the calling thread has ever charged to client 0.
pub(crate) fn of_calling_thread() -> u64 {
    match super::thread::attached() {
        Some(table) => table.home(super::thread::UNATTRIBUTED).allocs(),
        None => crate::registry::REGISTRY
            .slot(0)
            .map_or(0, |slot| slot.settled().allocs),
    }
}
