//! Safe points: where a client that took too much stops, or waits a little.

use super::error::QuotaExceeded;
use super::handle::{Client, quota_exceeded};
use crate::ledger::settle;
use crate::registry::events::EventKind;
use crate::registry::{ReclaimPolicy, overage};
use core::time::Duration;
use std::time::Instant;

/// What a client is to do at a safe point.
#[derive(Debug)]
pub(crate) enum SafePoint {
    Go,
    /// Above its soft limit: give the reclaimer a moment.
    Pause(Duration),
    /// Over its quota.
    Stop(QuotaExceeded),
}

impl Client {
    /// A safe point: code that runs for a client calls it where it can stop.
    /// Four loads while the client is below its soft limit.
    ///
    /// Above the soft limit it waits a little, at most 100 ms, while the
    /// reclaimer takes idle blocks of the client and asks its caches: the longer
    /// the closer the client is to its `max`, and not at all if there is
    /// nothing to take or no reclaimer thread. It waits likewise while lower
    /// tiers are to give back what the client was lent in their place, once
    /// more than half of the headroom is used.
    ///
    /// # Errors
    /// The client is over its quota, or the reclaimer needs what it has
    /// borrowed for a client of a higher tier: stop, and free what can be
    /// freed.
    #[inline]
    pub fn checkpoint(&self) -> Result<(), QuotaExceeded> {
        match self.safe_point() {
            SafePoint::Go => Ok(()),
            SafePoint::Stop(quota) => Err(quota),
            SafePoint::Pause(pause) => {
                self.stall(pause);
                Ok(())
            }
        }
    }

    fn stall(&self, pause: Duration) {
        let Ok(tree) = self.tree() else {
            return;
        };
        let start = Instant::now();
        tree.bell.press_and_wait(pause);
        // At least one, so that a wait is seen whatever the clock's grain.
        let waited = start.elapsed().as_nanos().max(1) as u64;
        self.slot().client().count_stalled(waited);
    }

    /// What the client is to do at a safe point, without doing it.
    #[inline]
    pub(crate) fn safe_point(&self) -> SafePoint {
        if !self.slot().needs_attention() || self.slot().generation() != self.id().generation() {
            return SafePoint::Go;
        }
        self.safe_point_cold()
    }

    #[cold]
    fn safe_point_cold(&self) -> SafePoint {
        // The client behind a request budget, or the client itself.
        let client = Client::new(self.slot().client(), self.slot().client().generation());
        if client.slot().is_asked_to_stop()
            && let Some(quota) = client.asked_to_stop()
        {
            return SafePoint::Stop(quota);
        }
        if client.slot().overdrawn() > 0 {
            match client.over_quota() {
                SafePoint::Go => {}
                other => return other,
            }
        }
        // This budget, or one that it is part of.
        let budgets = core::iter::successors(Some(self.slot()), |slot| slot.parent());
        for slot in budgets.filter(|slot| slot.is_over_budget()) {
            let budget = Client::new(slot, slot.generation());
            settle::collect_with_budgets(slot);
            if let Some(quota) = budget.over_budget() {
                budget.locked(|locked| locked.record(EventKind::Cancelled, locked.figures()));
                return SafePoint::Stop(quota);
            }
        }
        client.pause()
    }

    /// How long to wait while others are to give back what this client was
    /// lent: not at all until half of the headroom is used, then longer and
    /// longer, so that they give back faster than it is lent.
    fn pause_ahead(&self) -> SafePoint {
        let Ok(tree) = self.tree() else {
            return SafePoint::Go;
        };
        let headroom = tree.headroom.limit();
        let owed = if tree.bell.is_staffed() {
            tree.overdrawn()
        } else {
            0
        };
        match overage::pause(owed, headroom / 2, headroom, owed) {
            Duration::ZERO => SafePoint::Go,
            pause => SafePoint::Pause(pause),
        }
    }

    /// How long to wait above the soft limit, if at all.
    fn pause(&self) -> SafePoint {
        let slot = self.slot();
        if slot.above_soft() == 0 {
            return SafePoint::Go;
        }
        let limits = slot.limits();
        let could_give = self.could_give_back();
        match overage::pause(slot.charged(), limits.soft, limits.max, could_give) {
            Duration::ZERO => SafePoint::Go,
            pause => SafePoint::Pause(pause),
        }
    }

    /// Bytes of this client that the reclaimer's thread could get: idle blocks,
    /// and what its caches may hold.
    fn could_give_back(&self) -> u64 {
        let Ok(tree) = self.tree() else {
            return 0;
        };
        if !tree.bell.is_staffed() {
            return 0;
        }
        let keeps = tree
            .policies
            .at(self.slot().tier())
            .is_none_or(|tier| tier.policy.reclaim == ReclaimPolicy::Keep);
        let blocks = if keeps {
            0
        } else {
            self.slot().idle_block_bytes()
        };
        let caches = if tree.reclaimers.offers(self.slot()) {
            self.slot().above_soft()
        } else {
            0
        };
        blocks + caches
    }

    /// Asks for relief without waiting for it.
    pub(crate) fn press(&self) {
        if let Ok(tree) = self.tree() {
            tree.bell.press();
        }
    }

    /// What the reclaimer stops the client for, if it still has anything that
    /// it could give back.
    fn asked_to_stop(&self) -> Option<QuotaExceeded> {
        let figures = self.locked(|locked| {
            let tree = locked.tree().filter(|_| self.slot().borrowed() > 0)?;
            let figures = tree.figures(0);
            locked.record(EventKind::Cancelled, figures);
            Some(figures)
        });
        figures
            .flatten()
            .map(|refusal| quota_exceeded(self.slot(), refusal))
    }

    fn over_quota(&self) -> SafePoint {
        // What is lent for bytes that others are to give back stops nobody.
        let is_lent_ahead = self.locked(|locked| {
            locked.cover_overdraft();
            locked.is_lent_ahead()
        });
        if is_lent_ahead == Some(true) {
            return self.pause_ahead();
        }
        settle::collect_with_budgets(self.slot());
        let figures = self.locked(|locked| {
            locked.cover_overdraft();
            (self.slot().overdrawn() > 0).then(|| {
                let figures = locked.excess();
                locked.record(EventKind::Cancelled, figures);
                figures
            })
        });
        match figures.flatten() {
            Some(refusal) => SafePoint::Stop(quota_exceeded(self.slot(), refusal)),
            None => SafePoint::Go,
        }
    }
}
