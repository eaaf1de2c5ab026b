//! Waiting for what lower tiers have borrowed: calls that may fail and may wait
//! give the reclaimer a moment before they do.

use super::shared::Shared;
use crate::ledger::admit;
use crate::registry::budget::{BudgetNode, Refusal};
use crate::registry::slot::Slot;
use core::time::Duration;
use std::time::Instant;

/// Charges `bytes` to a client by `attempt`. While the memory is full and
/// lower tiers have borrowed that much, waits for the reclaimer and tries
/// again, up to the memory's patience. A refusal is counted once.
pub(super) fn charge(
    shared: &Shared,
    slot: &'static Slot,
    bytes: u64,
    attempt: impl Fn() -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let tree = &shared.tree;
    let mut until = None;
    loop {
        // Relief that is tried between the attempt and the wait counts.
        let relieved = until.map(|_| tree.bell.relieved());
        let refusal = match attempt() {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        let now = Instant::now();
        let is_first = until.is_none();
        let until = *until.get_or_insert(now + shared.patience);
        let may_help = refusal.node == BudgetNode::Memory
            && tree.bell.is_staffed()
            && tree.borrowed_below(slot.tier()) >= bytes;
        match until.saturating_duration_since(now) {
            left if may_help && left > Duration::ZERO => {
                let before = relieved.unwrap_or_else(|| tree.bell.relieved());
                tree.bell.await_relief(before, left, is_first);
            }
            _ => return Err(admit::count_refusal(slot, refusal)),
        }
    }
}
