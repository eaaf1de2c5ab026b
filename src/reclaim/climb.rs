//! Under pressure: who is short, what the sources say, and the climb up the
//! ladder until it is enough.
//!
//! Three things make the reclaimer climb. A client of a higher tier was lent
//! out of the headroom what lower tiers have borrowed (a *shortage*): they are
//! to give it back. The ledger is above its high watermark: everybody gives
//! back what can be spared. The system is short (a *source* says so): likewise,
//! and the inner allocator returns its free pages. What to take from whom is
//! chosen by [`super::ladder`]; here it is done and measured.

use super::callers::Callers;
use super::ladder::{self, Asked, Goal};
use super::pressure::{Figures, Pressure, PressureSource, PressureWaker, Urgency, Watermarks};
use super::stop::Stopped;
use super::thread::Desk;
use crate::client::{Client, ClientId};
use crate::ledger::fork::Cold;
use crate::ledger::{settle, thread};
use crate::registry::REGISTRY;
use crate::registry::budget::{MAX_TIERS, Refusal};
use crate::registry::events::EventKind;
use crate::registry::rungs::Rung;
use crate::registry::slot::{Slot, State};
use crate::sync::Ordering;
use crate::sys;
use core::time::Duration;
use std::collections::HashSet;

/// Under pressure the reclaimer looks again after this long, and after twice
/// as long each time that it gained nothing.
const FIRST_PACE: Duration = Duration::from_millis(10);

/// What made the reclaimer climb.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    Shortage,
    Watermarks,
    Source,
}

/// What the reclaimer remembers from one look to the next.
pub(super) struct PressureState {
    watermarks: Watermarks,
    sources: Vec<Box<dyn PressureSource>>,
    pub(super) callers: Callers,
    pub(super) stopped: Vec<Stopped>,
    /// Clients that were asked to stop during this pressure and gave nothing.
    pub(super) tried: HashSet<ClientId>,
    /// A refused request that clients were asked to stop for: its bytes, whose
    /// it was, and until when they are.
    refused: Option<(u64, u32, Duration)>,
    /// Since when clients of each tier have been short.
    short_since: [Option<Duration>; MAX_TIERS],
    pace: Option<Duration>,
    pub(super) last_purge: Option<Duration>,
}

impl PressureState {
    pub(super) fn new(watermarks: Watermarks, sources: Vec<Box<dyn PressureSource>>) -> Self {
        PressureState {
            watermarks,
            sources,
            callers: Callers::default(),
            stopped: Vec::new(),
            tried: HashSet::new(),
            refused: None,
            short_since: [None; MAX_TIERS],
            pace: None,
            last_purge: None,
        }
    }

    /// What a forked child takes over: not the thread that makes the calls. It
    /// looks at once who is short; the parent may have been about to.
    pub(super) fn inherit(&mut self) -> PressureState {
        PressureState {
            callers: Callers::default(),
            sources: core::mem::take(&mut self.sources),
            stopped: core::mem::take(&mut self.stopped),
            tried: core::mem::take(&mut self.tried),
            watermarks: self.watermarks.clone(),
            pace: Some(FIRST_PACE),
            ..*self
        }
    }

    /// For a forked child to which nothing of it has come.
    pub(super) fn anew(watermarks: Watermarks) -> PressureState {
        PressureState {
            pace: Some(FIRST_PACE),
            ..PressureState::new(watermarks, Vec::new())
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
        // Otherwise somebody is at it, possibly this very thread, further up.
        self.with_pressure(|state| self.relieve_with(state, pressed));
    }

    fn relieve_with(&self, state: &mut PressureState, pressed: bool) {
        let mut gained = 0;
        if pressed {
            gained += self.relieve_soft_limits(state);
        }
        let (short, from_shortage) = self.relieve_shortages(state);
        gained += from_shortage;
        let (mut marks, system) = self.read_sources(state);
        if !marks.is_none() && settle::collect_all(&self.shared.tree) {
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
        // No client's and no tier's.
        tree.events
            .leave(kind, usize::from(u16::MAX), 0, 0, tree.figures(wanted), 0);
    }

    // --- causes ---------------------------------------------------------------

    fn figures(&self, resident_set_bytes: Option<u64>) -> Figures {
        let all = self.shared.tree.figures(0);
        Figures {
            total_bytes: self.shared.total_bytes,
            usable_bytes: all.limit,
            charged_bytes: all.charged,
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
        settle::collect_all(&self.shared.tree);
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
        let mut refused = tree.short.take_refused();
        let is_new = refused.is_some();
        let earlier = state.refused.take();
        if tree.short.is_empty() && earlier.is_none() {
            self.note_relief(state, &[0; MAX_TIERS]);
            return (false, 0);
        }
        let now = self.shared.now();
        let until = match earlier {
            Some((bytes, client, until)) if !is_new => {
                refused = (now <= until).then_some((bytes, client));
                until
            }
            _ => now.saturating_add(self.ladder.cancel.unwrap_or_default()),
        };
        let wanted = refused;
        let mut short = self.cover_shortages();
        if refused.is_some() || short.iter().any(|&bytes| bytes > 0) {
            // What nobody uses is no reason to take anything from anybody.
            settle::collect_all(tree);
            short = self.cover_shortages();
        }
        self.note_relief(state, &short);
        let mut order: Vec<usize> = (0..MAX_TIERS).collect();
        order.sort_by_key(|&tier| core::cmp::Reverse(tree.tiers[tier].precedence()));
        let mut gained = 0;
        for tier in order {
            let own = tree.tiers[tier].precedence();
            let asked = refused.take_if(|&mut (_, client)| self.is_of_tier(client, tier));
            let asked = asked.map_or(0, |asked| self.feasible_part(tier, short[tier], asked));
            if asked > 0 && self.ladder.cancel.is_some() {
                state.refused = wanted.map(|(bytes, client)| (bytes, client, until));
            }
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
        if state.stopped.is_empty() {
            state.refused = None;
        }
        (is_short || state.refused.is_some(), gained)
    }

    fn is_of_tier(&self, client: u32, tier: usize) -> bool {
        let tree = &self.shared.tree;
        REGISTRY
            .slot(client)
            .is_some_and(|slot| slot.is_in(tree) && slot.tier() == tier)
    }

    /// What is missing for a refused request, on top of what was lent and of
    /// what is free by now: all of it, or nothing if it cannot be had. Nobody
    /// is harmed for what cannot be reached.
    fn feasible_part(&self, tier: usize, lent: u64, (bytes, client): (u64, u32)) -> u64 {
        let tree = &self.shared.tree;
        let missing = bytes.saturating_sub(tree.room(tier));
        if ladder::is_feasible(lent.saturating_add(missing), tree.borrowed_below(tier)) {
            return missing;
        }
        if let Some(slot) = REGISTRY.slot(client) {
            self.record(slot, EventKind::Infeasible, tree.figures(bytes));
        }
        0
    }

    pub(super) fn record(&self, slot: &'static Slot, kind: EventKind, figures: Refusal) {
        if slot.is_in(&self.shared.tree) {
            let client = Client::new(slot, slot.generation());
            client.locked(|locked| locked.record(kind, figures));
        }
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
}
