//! The last rung: the worst borrowers are asked to stop, and go on when the
//! pressure is over.

use super::climb::PressureState;
use super::ladder::{self, Goal};
use super::rungs::figures;
use super::thread::Desk;
use crate::client::Client;
use crate::registry::events::EventKind;
use crate::registry::rungs::Rung;
use crate::registry::slot::Slot;
use crate::registry::{Enforcement, REGISTRY};
use crate::sync::Ordering;
use core::time::Duration;

/// A client that was asked to stop.
#[derive(Clone, Copy)]
pub(super) struct Stopped {
    slot: &'static Slot,
    generation: u32,
    since: Duration,
    borrowed: u64,
}

impl Desk {
    /// Asks the worst borrowers to stop, as many as hold what is wanted, and
    /// others in place of those that had their time. Answers what those that
    /// are asked have given back.
    pub(super) fn stop_borrowers(&self, state: &mut PressureState, goal: &Goal) -> u64 {
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
            self.record(
                slot,
                EventKind::AskedToStop,
                figures(slot, goal.wanted_bytes),
            );
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
    pub(super) fn let_all_go_on(&self, state: &mut PressureState) {
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
