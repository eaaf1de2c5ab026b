//! Under pressure: who is short, what the sources say, and the climb up the
//! ladder until it is enough.
//!
//! Three things make the reclaimer climb. A client of a higher tier was lent
//! out of the headroom what lower tiers have borrowed (a *shortage*): they are
//! to give it back. The ledger is above its high watermark: everybody gives
//! back what can be spared. The system is short (a *source* says so): likewise,
//! and the inner allocator returns its free pages. What to take from whom is
//! chosen by [`super::ladder`]; here it is done and measured.

use super::callers::{Callers, Outcome};
use super::idle::ReclaimReport;
use super::ladder::{self, Asked, Goal, IdleBlock, Standing};
use super::pressure::{Figures, Pressure, PressureSource, PressureWaker, Urgency, Watermarks};
use super::thread::Desk;
use crate::client::{Client, usage};
use crate::ledger::fork::Cold;
use crate::ledger::{grant, reading, thread};
use crate::memory::{BlockState, Reclaimed};
use crate::registry::budget::{BudgetNode, MAX_TIERS, Refusal};
use crate::registry::events::EventKind;
use crate::registry::policies::NamedPolicy;
use crate::registry::reclaimers::{Called, Entry, ReclaimRequest};
use crate::registry::rungs::Rung;
use crate::registry::slot::{Slot, State};
use crate::registry::{Enforcement, REGISTRY, ReclaimPolicy};
use crate::sys;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Under pressure the reclaimer looks again after this long, and after twice
/// as long each time that it gained nothing.
const FIRST_PACE: Duration = Duration::from_millis(10);

/// What made the reclaimer climb.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cause {
    Shortage,
    Watermarks,
    Source,
}

/// A client that was asked to stop.
#[derive(Clone, Copy)]
struct Stopped {
    slot: &'static Slot,
    generation: u32,
    since: Duration,
    borrowed: u64,
}

/// What the reclaimer remembers from one look to the next.
pub(super) struct PressureState {
    watermarks: Watermarks,
    sources: Vec<Box<dyn PressureSource>>,
    callers: Callers,
    stopped: Vec<Stopped>,
    /// Clients that were asked to stop during this pressure and gave nothing.
    tried: Vec<(u32, u32)>,
    /// Since when clients of each tier have been short.
    short_since: [Option<Duration>; MAX_TIERS],
    pace: Option<Duration>,
    last_purge: Option<Duration>,
}

impl PressureState {
    pub(super) fn new(watermarks: Watermarks, sources: Vec<Box<dyn PressureSource>>) -> Self {
        PressureState {
            watermarks,
            sources,
            callers: Callers::default(),
            stopped: Vec::new(),
            tried: Vec::new(),
            short_since: [None; MAX_TIERS],
            pace: None,
            last_purge: None,
        }
    }

    pub(super) fn has_sources(&self) -> bool {
        !self.sources.is_empty()
    }

    /// When to look again although nobody has called; `None`: not at all.
    pub(super) fn pace(&self) -> Option<Duration> {
        self.pace
    }

    /// Lets the sources wake the reclaimer.
    pub(super) fn start_watching(&mut self, desk: &Desk, waker: &PressureWaker) {
        for source in &mut self.sources {
            if source.watch(waker.clone()).is_err() {
                desk.count_failed_source();
            }
        }
    }
}

/// The clients that could give something, and where they stand.
struct Field {
    slots: Vec<&'static Slot>,
    standings: Vec<Standing>,
    blocks: Vec<Arc<BlockState>>,
    /// The blocks that are idle now, and their owners' places above.
    idle: Vec<(Arc<BlockState>, usize)>,
    entries: Vec<(Arc<Entry>, usize)>,
}

impl Desk {
    /// Has allocations call the reclaimer when the ledger gets above its high
    /// watermark.
    pub(super) fn arm(&self) {
        let tree = &self.shared.tree;
        tree.set_alarm(self.ladder.watermarks.high_bytes(tree.root.limit()));
    }

    fn count_failed_source(&self) {
        self.shared
            .counts
            .failed_sources
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Looks at who is short and what the sources say, and does what that asks
    /// for. `pressed`: also for what clients above their soft limit ask.
    pub(super) fn relieve(&self, pressed: bool) {
        let Ok(mut state) = self.pressure.try_lock() else {
            // Somebody is at it, possibly this very thread, further up.
            return;
        };
        let state = &mut *state;
        let mut gained = 0;
        if pressed {
            gained += self.relieve_soft_limits(state);
        }
        let (short, from_shortage) = self.relieve_shortages(state);
        gained += from_shortage;
        let (mut marks, system) = self.read_sources(state);
        if !marks.is_none() && grant::collect_all(&self.shared.tree) {
            marks = self.read_watermarks(state);
        }
        let ledger = self.goal(marks, Cause::Watermarks);
        if !marks.is_none() {
            gained += self.climb(state, ledger, Cause::Watermarks);
        }
        let critical = system.urgency == Urgency::Critical;
        if !system.is_none() {
            gained += self.climb(state, self.goal(system, Cause::Source), Cause::Source);
        }
        if !short && !critical {
            self.let_all_go_on(state);
        }
        let wanted = marks.worst(system).excess_bytes;
        self.note_pressure(short || !marks.is_none() || !system.is_none(), wanted);
        if marks.is_none() {
            self.arm();
        }
        let longest = self.intervals.watch;
        state.pace = match (short || critical, state.pace) {
            // What the system or the watermarks want has been tried; the next
            // look is when it is due or somebody calls.
            (false, _) => (!marks.is_none() || !system.is_none()).then_some(longest),
            (true, Some(pace)) if gained == 0 => Some((pace * 2).min(longest)),
            (true, _) => Some(FIRST_PACE.min(longest)),
        };
        if state.pace.is_none() {
            state.callers.dismiss();
        }
    }

    fn note_pressure(&self, is_on: bool, wanted: u64) {
        let was_on = self
            .shared
            .counts
            .under_pressure
            .swap(is_on, Ordering::Relaxed);
        let kind = match (was_on, is_on) {
            (false, true) => EventKind::PressureBegan,
            (true, false) => EventKind::PressureEnded,
            _ => return,
        };
        let tree = &self.shared.tree;
        let figures = Refusal {
            node: BudgetNode::Memory,
            requested: wanted,
            charged: tree.charged() + tree.overdrawn(),
            limit: tree.root.limit(),
        };
        // No client's and no tier's.
        tree.events
            .leave(kind, usize::from(u16::MAX), 0, 0, figures, 0);
    }

    // --- causes ---------------------------------------------------------------

    fn figures(&self, resident_set_bytes: Option<u64>) -> Figures {
        let tree = &self.shared.tree;
        Figures {
            total_bytes: self.shared.total_bytes,
            usable_bytes: tree.root.limit(),
            charged_bytes: tree.charged() + tree.overdrawn(),
            resident_set_bytes,
        }
    }

    fn read_watermarks(&self, state: &mut PressureState) -> Pressure {
        let figures = self.figures(None);
        state.watermarks.read(&figures).unwrap_or(Pressure::NONE)
    }

    /// What the watermarks say, and the worst of what the sources say.
    fn read_sources(&self, state: &mut PressureState) -> (Pressure, Pressure) {
        let marks = self.read_watermarks(state);
        if !state.has_sources() {
            return (marks, Pressure::NONE);
        }
        let figures = self.figures(sys::resident_set_bytes());
        let mut system = Pressure::NONE;
        for source in &mut state.sources {
            let read = std::panic::AssertUnwindSafe(|| source.read(&figures));
            match std::panic::catch_unwind(read) {
                Ok(Ok(pressure)) => system = system.worst(pressure),
                Ok(Err(_)) | Err(_) => self.count_failed_source(),
            }
        }
        (marks, system)
    }

    /// What the sources or the watermarks ask for. Nobody can give more than
    /// all have borrowed.
    fn goal(&self, pressure: Pressure, cause: Cause) -> Goal {
        let borrowed: u64 = self.shared.tree.tiers.iter().map(|t| t.borrowed()).sum();
        let wanted_bytes = match cause {
            Cause::Source => pressure.excess_bytes,
            _ => pressure.excess_bytes.min(borrowed),
        };
        Goal {
            wanted_bytes,
            urgency: pressure.urgency,
            below: None,
        }
    }

    /// Asks the caches of clients above their soft limit, which wait for it at
    /// their safe points.
    fn relieve_soft_limits(&self, state: &mut PressureState) -> u64 {
        if self.shared.tree.reclaimers.is_empty() {
            return 0;
        }
        // What nobody uses is not asked for.
        grant::collect_all(&self.shared.tree);
        let goal = Goal {
            wanted_bytes: u64::MAX,
            urgency: Urgency::Low,
            below: None,
        };
        let field = self.survey();
        self.ask_caches(
            state,
            &goal,
            &field,
            Asked::AboveSoft,
            Rung::SoftLimitCaches,
        )
    }

    /// Covers what clients were lent for bytes that lower tiers have borrowed,
    /// taking these back if need be. Answers whether anybody is still short,
    /// and what was gained.
    fn relieve_shortages(&self, state: &mut PressureState) -> (bool, u64) {
        let tree = &self.shared.tree;
        if tree.short.is_empty() {
            self.note_relief(state, &[0; MAX_TIERS]);
            return (false, 0);
        }
        // What nobody uses is no reason to take anything from anybody.
        grant::collect_all(tree);
        let refused = tree.short.take_refused();
        let mut short = self.cover_shortages();
        let precedence = tree.short.precedence();
        let mut order: Vec<usize> = (0..MAX_TIERS).collect();
        order.sort_by_key(|&tier| core::cmp::Reverse(tree.tiers[tier].precedence()));
        self.note_relief(state, &short);
        let mut gained = 0;
        let mut refused_left = refused;
        for tier in order {
            let own = tree.tiers[tier].precedence();
            let asked = if own == precedence {
                core::mem::take(&mut refused_left)
            } else {
                0
            };
            let wanted_bytes = short[tier].saturating_add(asked);
            if wanted_bytes == 0 {
                continue;
            }
            let is_scarce = asked > 0 || tree.headroom_room() < tree.headroom.limit() / 2;
            let goal = Goal {
                wanted_bytes,
                urgency: if is_scarce {
                    Urgency::Critical
                } else {
                    Urgency::High
                },
                below: Some(own),
            };
            gained += self.climb(state, goal, Cause::Shortage);
            short = self.cover_shortages();
        }
        self.note_relief(state, &short);
        let is_short = short.iter().any(|&bytes| bytes > 0);
        if !is_short {
            tree.short.release();
        }
        (is_short, gained)
    }

    /// Moves what fits the limits by now out of the headroom. Answers what is
    /// still lent, by tier.
    fn cover_shortages(&self) -> [u64; MAX_TIERS] {
        let tree = &self.shared.tree;
        let mut lent = [0; MAX_TIERS];
        let mut noted: Vec<&'static Slot> = tree
            .short
            .clients()
            .filter_map(|index| REGISTRY.slot(index))
            .collect();
        noted.sort_by_key(|slot| core::cmp::Reverse(tree.tiers[slot.tier()].precedence()));
        for slot in noted {
            let _cold = Cold::enter(thread::attached());
            let locked = slot.lock();
            let is_ours = slot.state() != State::Free && slot.is_in(tree);
            if is_ours {
                locked.cover_overdraft();
            }
            if is_ours && locked.is_lent_ahead() {
                lent[slot.tier()] += slot.overdrawn();
            } else {
                tree.short.remove(slot.index());
            }
        }
        lent
    }

    /// Keeps the books of how long each tier's clients are short.
    fn note_relief(&self, state: &mut PressureState, short: &[u64; MAX_TIERS]) {
        let now = self.shared.now();
        let mut relief = self.shared.counts.relief();
        for (tier, since) in state.short_since.iter_mut().enumerate() {
            match (*since, short[tier] > 0) {
                (None, true) => {
                    *since = Some(now);
                    relief[tier].shortages += 1;
                }
                (Some(began), false) => {
                    *since = None;
                    let took = now.saturating_sub(began);
                    relief[tier].reliefs += 1;
                    relief[tier].total += took;
                    relief[tier].longest = relief[tier].longest.max(took);
                }
                _ => {}
            }
        }
    }

    // --- the climb ------------------------------------------------------------

    /// Climbs the ladder until the goal is reached. Answers what was gained.
    fn climb(&self, state: &mut PressureState, goal: Goal, cause: Cause) -> u64 {
        let field = self.survey();
        let left = |gained: u64| Goal {
            wanted_bytes: goal.wanted_bytes.saturating_sub(gained),
            ..goal
        };
        let is_feasible = |gained| {
            let tiers = self.shared.tree.tiers.iter();
            let gives = |precedence| goal.below.is_none_or(|below| precedence < below);
            let borrowed = tiers
                .filter(|tier| gives(tier.precedence()))
                .map(|tier| tier.borrowed())
                .sum();
            cause != Cause::Shortage || ladder::is_feasible(&goal, borrowed, gained)
        };
        // The blocks that would be taken count as borrowed until they are.
        let feasible = is_feasible(0);
        let mut gained = self.take_blocks(&goal, &field, feasible);
        if !feasible {
            self.note_infeasible(&goal);
            return gained;
        }
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
        let is_systems = cause == Cause::Source;
        if from_caches > 0 || is_systems {
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

    fn note_infeasible(&self, goal: &Goal) {
        let tree = &self.shared.tree;
        for slot in tree
            .short
            .clients()
            .filter_map(|index| REGISTRY.slot(index))
        {
            let figures = Refusal {
                node: BudgetNode::Memory,
                requested: goal.wanted_bytes,
                charged: tree.charged() + tree.overdrawn(),
                limit: tree.root.limit(),
            };
            let client = Client::new(slot, slot.generation());
            client.locked(|locked| locked.record(EventKind::Infeasible, figures));
        }
    }

    /// Who could give something, as of now.
    fn survey(&self) -> Field {
        let mut field = Field {
            slots: Vec::new(),
            standings: Vec::new(),
            blocks: self.shared.blocks(),
            idle: Vec::new(),
            entries: Vec::new(),
        };
        let mut places: HashMap<u32, usize> = HashMap::new();
        let mut place_of = |slot: &'static Slot| {
            *places.entry(slot.index()).or_insert_with(|| {
                field.slots.push(slot);
                field.standings.push(self.standing(slot));
                field.slots.len() - 1
            })
        };
        for block in field.blocks.iter().filter(|block| block.is_idle()) {
            let place = place_of(block.owner());
            field.idle.push((Arc::clone(block), place));
        }
        for entry in self.shared.tree.reclaimers.all() {
            let place = place_of(entry.slot);
            field.entries.push((entry, place));
        }
        field
    }

    fn standing(&self, slot: &'static Slot) -> Standing {
        let limits = slot.limits();
        Standing {
            precedence: self.shared.tree.tiers[slot.tier()].precedence(),
            borrowed: slot.borrowed(),
            may_borrow: limits.max.saturating_sub(limits.guarantee),
            above_soft: slot.above_soft(),
        }
    }

    /// The first rung. Without a chance to reach the goal only what costs
    /// nothing is taken: nothing is thrown away.
    fn take_blocks(&self, goal: &Goal, field: &Field, feasible: bool) -> u64 {
        let now = self.shared.now();
        let policies = self.shared.tree.policies.all();
        let tier_of = |block: &BlockState| policies.get(block.owner().tier());
        let may_take = |tier: &NamedPolicy| match tier.policy.reclaim {
            ReclaimPolicy::Spill => true,
            ReclaimPolicy::Discard => feasible,
            ReclaimPolicy::Keep => false,
        };
        let mut blocks = Vec::new();
        let mut idle = Vec::new();
        for (block, place) in &field.idle {
            let Some(tier) = tier_of(block).filter(|tier| may_take(tier)) else {
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
        let client = Client::new(slot, slot.generation());
        client.locked(|locked| {
            let figures = Refusal {
                requested: bytes,
                ..locked.figures()
            };
            locked.record(EventKind::Reclaimed, figures);
        });
    }

    /// The second and third rung.
    fn ask_caches(
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
        grant::collect_with_budgets(slot);
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
        let client = Client::new(slot, slot.generation());
        client.locked(|locked| {
            let figures = Refusal {
                requested: wanted_bytes,
                ..locked.figures()
            };
            locked.record(kind, figures);
        });
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

    // --- the last rung --------------------------------------------------------

    /// Asks the worst borrowers to stop, as many as hold what is wanted, and
    /// others in place of those that had their time. Answers what those that
    /// are asked have given back.
    fn stop_borrowers(&self, state: &mut PressureState, goal: &Goal) -> u64 {
        let Some(patience) = self.ladder.cancel else {
            return 0;
        };
        let now = self.shared.now();
        let mut gave = 0;
        let mut held = 0;
        let mut going = Vec::new();
        for mut stopped in core::mem::take(&mut state.stopped) {
            let borrowed = stopped.slot.borrowed();
            let given = stopped.borrowed.saturating_sub(borrowed);
            let is_gone = stopped.slot.generation() != stopped.generation;
            if given > 0 && !is_gone {
                gave += given;
                self.shared.counts.gained(Rung::Cancel, given);
                stopped.borrowed = borrowed;
            }
            let is_over = is_gone || borrowed == 0 || now.saturating_sub(stopped.since) > patience;
            if is_over {
                self.let_go_on(&stopped);
                state.tried.push((stopped.slot.index(), stopped.generation));
            } else {
                held += borrowed;
                going.push(stopped);
            }
        }
        state.stopped = going;
        while held < goal.wanted_bytes.saturating_sub(gave) {
            let Some(slot) = self.worst_borrower(state, goal) else {
                break;
            };
            let stopped = Stopped {
                slot,
                generation: slot.generation(),
                since: now,
                borrowed: slot.borrowed(),
            };
            held += stopped.borrowed;
            slot.ask_to_stop(true);
            let client = Client::new(slot, stopped.generation);
            client.locked(|locked| {
                let figures = Refusal {
                    node: BudgetNode::Memory,
                    requested: goal.wanted_bytes,
                    ..locked.figures()
                };
                locked.record(EventKind::AskedToStop, figures);
            });
            let counts = &self.shared.counts;
            counts.stopped_clients.fetch_add(1, Ordering::Relaxed);
            counts.climbed(Rung::Cancel, 0);
            state.stopped.push(stopped);
        }
        gave
    }

    /// The one walk over all clients, on the last rung alone.
    fn worst_borrower(&self, state: &PressureState, goal: &Goal) -> Option<&'static Slot> {
        let is_new = |slot: &Slot| {
            let asked = (slot.index(), slot.generation());
            !slot.is_asked_to_stop() && !state.tried.contains(&asked)
        };
        let names = self.shared.names();
        let candidates = names
            .values()
            .filter_map(|&id| Client::with_id(id))
            .map(|client| client.slot())
            .filter(|slot| is_new(slot) && slot.limits().enforcement != Enforcement::Observe)
            .map(|slot| (slot.index(), self.standing(slot)));
        let (index, _) = ladder::worst_borrower(goal, candidates)?;
        drop(names);
        REGISTRY.slot(index)
    }

    fn let_go_on(&self, stopped: &Stopped) {
        if stopped.slot.generation() == stopped.generation {
            stopped.slot.ask_to_stop(false);
        }
    }

    /// The pressure is over.
    fn let_all_go_on(&self, state: &mut PressureState) {
        for stopped in state.stopped.drain(..) {
            let given = stopped.borrowed.saturating_sub(stopped.slot.borrowed());
            if stopped.slot.generation() == stopped.generation {
                self.shared.counts.gained(Rung::Cancel, given);
            }
            self.let_go_on(&stopped);
        }
        state.tried.clear();
    }
}
