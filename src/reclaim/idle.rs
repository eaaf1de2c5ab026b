//! One pass over the idle blocks: those whose time has come, or those of
//! clients above their soft limit.

use super::ladder::{Candidate, due};
use super::thread::Desk;
use crate::memory::{BlockState, Reclaimed};
use crate::sync::Ordering;
use core::time::Duration;
use std::sync::Arc;

/// What one pass over the idle blocks did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ReclaimReport {
    /// Blocks written to the spill file.
    pub spilled_blocks: u64,
    /// Their bytes.
    pub spilled_bytes: u64,
    /// Blocks thrown away, as their policy allows.
    pub discarded_blocks: u64,
    /// Their bytes.
    pub discarded_bytes: u64,
    /// Blocks that could not be written out and stay in memory.
    pub failed_blocks: u64,
}

impl ReclaimReport {
    pub(super) fn add(&mut self, done: Reclaimed, bytes: u64) {
        match done {
            Reclaimed::Spilled => {
                self.spilled_blocks += 1;
                self.spilled_bytes += bytes;
            }
            Reclaimed::Discarded => {
                self.discarded_blocks += 1;
                self.discarded_bytes += bytes;
            }
            Reclaimed::Failed => self.failed_blocks += 1,
            Reclaimed::Left => {}
        }
    }
}

/// Which idle blocks a pass takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Urge {
    /// Those whose tier's idle time is over.
    Due,
    /// Those of clients above their soft limit, until they are below.
    Relief,
}

fn is_above_soft(block: &BlockState) -> bool {
    block.owner().above_soft() > 0 || block.owner().overdrawn() > 0
}

impl Desk {
    pub(super) fn reclaim_idle(&self, urge: Urge) -> ReclaimReport {
        let now = self.shared.now();
        let policies = self.shared.tree.policies.all();
        let blocks: Vec<Arc<BlockState>> = self.shared.blocks();
        let mut idle = Vec::new();
        let mut candidates = Vec::new();
        for block in blocks.iter().filter(|block| block.is_idle()) {
            let Some(tier) = policies.get(block.owner().tier()) else {
                continue;
            };
            let idle_after = match urge {
                Urge::Due => tier.policy.idle_after,
                Urge::Relief if is_above_soft(block) => Duration::ZERO,
                Urge::Relief => continue,
            };
            idle.push((block, tier.policy.reclaim, idle_after));
            candidates.push(Candidate {
                precedence: tier.policy.precedence,
                idle_for: block.idle_for(now),
                idle_after,
                bytes: block.len() as u64,
            });
        }
        let mut report = ReclaimReport::default();
        for at in due(&candidates) {
            let (block, policy, idle_after) = idle[at];
            if urge == Urge::Relief && !is_above_soft(block) {
                continue;
            }
            report.add(block.reclaim(now, idle_after, policy), block.len() as u64);
        }
        self.count(&report);
        self.shared.counts.passes.fetch_add(1, Ordering::Relaxed);
        self.shared.sweep_all();
        report
    }

    pub(super) fn count(&self, report: &ReclaimReport) {
        let counts = &self.shared.counts;
        for (count, done) in [
            (&counts.spilled_bytes, report.spilled_bytes),
            (&counts.spilled_blocks, report.spilled_blocks),
            (&counts.discarded_bytes, report.discarded_bytes),
            (&counts.discarded_blocks, report.discarded_blocks),
            (&counts.failed_spills, report.failed_blocks),
        ] {
            count.fetch_add(done, Ordering::Relaxed);
        }
    }
}
