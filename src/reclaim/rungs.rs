//! The rungs of the ladder, but for the last: taking blocks, asking caches,
//! purging, and seeing in the ledger what that has brought.

use super::callers::Outcome;
use super::climb::{Cause, PressureState};
use super::idle::ReclaimReport;
use super::ladder::{self, Asked, Goal, IdleBlock, Standing};
use super::pressure::Urgency;
use super::thread::Desk;
use crate::client::usage;
use crate::ledger::fork::Cold;
use crate::ledger::{reading, settle, thread};
use crate::memory::{BlockState, Reclaimed};
use crate::registry::ReclaimPolicy;
use crate::registry::budget::{BudgetNode, Refusal};
use crate::registry::events::EventKind;
use crate::registry::policies::NamedPolicy;
use crate::registry::reclaimers::{Called, Entry, ReclaimRequest};
use crate::registry::rungs::Rung;
use crate::registry::slot::Slot;
use crate::sync::Ordering;
use crate::sys;
use std::collections::HashMap;
use std::sync::Arc;

/// The clients that could give something, and where they stand.
pub(super) struct Field {
    standings: Vec<Standing>,
    /// The blocks that are idle now, and their owners' places above.
    idle: Vec<(Arc<BlockState>, usize)>,
    entries: Vec<(Arc<Entry>, usize)>,
}

/// What a client has at the moment, with what is said of it.
pub(super) fn figures(slot: &Slot, bytes: u64) -> Refusal {
    Refusal {
        node: BudgetNode::Client,
        requested: bytes,
        charged: slot.charged(),
        limit: slot.limits().max,
    }
}

impl Desk {
    /// Climbs the ladder until the goal is reached. Answers what was gained.
    pub(super) fn climb(&self, state: &mut PressureState, goal: Goal, cause: Cause) -> u64 {
        let field = self.survey();
        let left = |gained: u64| Goal {
            wanted_bytes: goal.wanted_bytes.saturating_sub(gained),
            ..goal
        };
        let mut gained = self.take_blocks(&goal, &field);
        let mut from_caches = 0;
        for (asked, rung) in [
            (Asked::AboveSoft, Rung::SoftLimitCaches),
            (Asked::Borrowers, Rung::BorrowerCaches),
        ] {
            if gained < goal.wanted_bytes {
                let gave = self.ask_caches(state, &left(gained), &field, asked, rung);
                gained += gave;
                from_caches += gave;
            }
        }
        if from_caches > 0 || cause == Cause::Source {
            self.purge(state);
        }
        let may_stop = match cause {
            Cause::Shortage => true,
            Cause::Source => goal.urgency == Urgency::Critical,
            Cause::Watermarks => false,
        };
        if may_stop && gained < goal.wanted_bytes {
            gained += self.stop_borrowers(state, &left(gained));
        }
        gained
    }

    /// Who could give something, as of now.
    pub(super) fn survey(&self) -> Field {
        let mut field = Field {
            standings: Vec::new(),
            idle: Vec::new(),
            entries: Vec::new(),
        };
        let mut places: HashMap<u32, usize> = HashMap::new();
        let mut place_of = |slot: &'static Slot| {
            *places.entry(slot.index()).or_insert_with(|| {
                field.standings.push(self.standing(slot));
                field.standings.len() - 1
            })
        };
        for block in self.shared.blocks() {
            if block.is_idle() {
                let place = place_of(block.owner());
                field.idle.push((block, place));
            }
        }
        for entry in self.shared.tree.reclaimers.all() {
            let place = place_of(entry.slot);
            field.entries.push((entry, place));
        }
        field
    }

    pub(super) fn standing(&self, slot: &'static Slot) -> Standing {
        let limits = slot.limits();
        Standing {
            precedence: self.shared.tree.tiers[slot.tier()].precedence(),
            borrowed: slot.borrowed(),
            may_borrow: limits.max.saturating_sub(limits.guarantee),
            above_soft: slot.above_soft(),
        }
    }

    /// The first rung.
    fn take_blocks(&self, goal: &Goal, field: &Field) -> u64 {
        let now = self.shared.now();
        let policies = self.shared.tree.policies.all();
        let tier_of = |block: &BlockState| policies.get(block.owner().tier());
        let may_take = |tier: &NamedPolicy| tier.policy.reclaim != ReclaimPolicy::Keep;
        let mut blocks = Vec::new();
        let mut idle = Vec::new();
        for (block, place) in &field.idle {
            let Some(tier) = tier_of(block).filter(|&tier| may_take(tier)) else {
                continue;
            };
            blocks.push((block, tier.policy.reclaim));
            idle.push(IdleBlock {
                client: *place,
                bytes: block.len() as u64,
                idle_for: block.idle_for(now),
                idle_after: tier.policy.idle_after,
            });
        }
        if idle.is_empty() || goal.wanted_bytes == 0 {
            return 0;
        }
        let mut report = ReclaimReport::default();
        let mut gained = 0;
        for (at, _) in ladder::blocks(goal, &field.standings, &idle) {
            let is_late = self.shared.now().saturating_sub(now) > self.ladder.blocks;
            if gained >= goal.wanted_bytes || is_late {
                break;
            }
            let (block, policy) = blocks[at];
            let owner = block.owner();
            let borrowed = owner.borrowed();
            let bytes = block.len() as u64;
            // What the owner is guaranteed by now is not thrown away, nor taken
            // for no gain.
            let spares = match policy {
                ReclaimPolicy::Discard => borrowed < bytes,
                _ => borrowed == 0,
            };
            if spares {
                continue;
            }
            let done = block.reclaim(now, goal.idle_after(idle[at].idle_after), policy);
            report.add(done, bytes);
            if matches!(done, Reclaimed::Spilled | Reclaimed::Discarded) {
                let gain = bytes.min(borrowed);
                gained += gain;
                self.note_reclaimed(owner, gain);
            }
        }
        self.count(&report);
        self.shared.counts.climbed(Rung::IdleBlocks, gained);
        gained
    }

    fn note_reclaimed(&self, slot: &'static Slot, bytes: u64) {
        self.record(slot, EventKind::Reclaimed, figures(slot, bytes));
    }

    /// The second and third rung.
    pub(super) fn ask_caches(
        &self,
        state: &mut PressureState,
        goal: &Goal,
        field: &Field,
        asked: Asked,
        rung: Rung,
    ) -> u64 {
        let order = ladder::caches(goal, &field.standings, asked);
        let began = self.shared.now();
        let mut gained = 0;
        let mut has_asked = false;
        for (place, most) in order {
            let mut client_gave = 0;
            let entries = field.entries.iter().filter(|(_, at)| *at == place);
            for (entry, _) in entries {
                let is_late = self.shared.now().saturating_sub(began) > self.ladder.caches;
                let wanted_bytes =
                    (most - client_gave.min(most)).min(goal.wanted_bytes.saturating_sub(gained));
                if wanted_bytes == 0 || is_late {
                    break;
                }
                if entry.rests() || !entry.claim() {
                    continue;
                }
                has_asked = true;
                let gave = self.ask(state, goal, entry, wanted_bytes);
                client_gave += gave;
                gained += gave;
            }
        }
        if has_asked {
            self.shared.counts.climbed(rung, gained);
        }
        gained
    }

    /// Calls one cache, and sees in the ledger what that has brought.
    fn ask(
        &self,
        state: &mut PressureState,
        goal: &Goal,
        entry: &Arc<Entry>,
        wanted_bytes: u64,
    ) -> u64 {
        let slot = entry.slot;
        let live = || {
            let _cold = Cold::enter(thread::attached());
            usage(slot, reading::of(slot)).live_bytes
        };
        let request = ReclaimRequest {
            client: entry.client(),
            wanted_bytes,
            urgency: goal.urgency,
            deadline: self.ladder.call,
        };
        let before = live();
        let outcome = state.callers.call(entry, request, self.background);
        // What was freed is credit of the thread that freed it until then.
        settle::collect_with_budgets(slot);
        let gave = before.saturating_sub(live());
        let counts = &self.shared.counts;
        let (kind, count) = match outcome {
            Outcome::Called(Called::Answered(_)) => {
                entry.judge(gave);
                if gave > 0 {
                    self.note_reclaimed(slot, gave);
                }
                return gave;
            }
            Outcome::Called(Called::Gone) => return gave,
            Outcome::Called(Called::Panicked) => {
                (EventKind::ReclaimerPanicked, &counts.panicked_reclaimers)
            }
            Outcome::Late => (EventKind::ReclaimerLate, &counts.late_reclaimers),
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.record(slot, kind, figures(slot, wanted_bytes));
        gave
    }

    /// The fourth rung: free pages go back to the system.
    fn purge(&self, state: &mut PressureState) {
        let now = self.shared.now();
        let is_due = state
            .last_purge
            .is_none_or(|last| now.saturating_sub(last) >= self.ladder.purge_every);
        let Some(purge) = self.purge.as_ref().filter(|_| is_due) else {
            return;
        };
        state.last_purge = Some(now);
        let before = sys::resident_set_bytes().unwrap_or(0);
        let purge = std::panic::AssertUnwindSafe(|| purge.purge().is_ok());
        if std::panic::catch_unwind(purge).unwrap_or(false) {
            let after = sys::resident_set_bytes().unwrap_or(before);
            let fell = before.saturating_sub(after);
            self.shared.counts.climbed(Rung::Purge, fell);
        }
    }
}
