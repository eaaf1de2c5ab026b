//! The last rung: the worst borrowers are asked to stop, and go on when the
//! pressure is over.

use super::climb::PressureState;
use super::ladder::{self, Goal};
use super::rungs::figures;
use super::thread::Desk;
use crate::client::Client;
use crate::registry::Enforcement;
use crate::registry::events::EventKind;
use crate::registry::rungs::Rung;
use crate::sync::Ordering;
use core::time::Duration;

/// A client that was asked to stop.
pub(super) struct Stopped {
    client: Client,
    since: Duration,
    borrowed: u64,
}

impl Stopped {
    fn is_gone(&self) -> bool {
        self.client.slot().generation() != self.client.id().generation()
    }

    /// What it has given back since this was asked last.
    fn take_given(&mut self) -> u64 {
        if self.is_gone() {
            return 0;
        }
        let borrowed = self.client.slot().borrowed();
        let given = self.borrowed.saturating_sub(borrowed);
        self.borrowed = self.borrowed.min(borrowed);
        given
    }

    fn let_go_on(&self) {
        if !self.is_gone() {
            self.client.slot().ask_to_stop(false);
        }
    }
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
        for mut stopped in core::mem::take(&mut state.stopped) {
            gave += self.count_given(&mut stopped);
            let borrowed = stopped.client.slot().borrowed();
            let had_its_time = now.saturating_sub(stopped.since) > patience;
            if stopped.is_gone() || borrowed == 0 || had_its_time {
                stopped.let_go_on();
                state.tried.insert(stopped.client.id());
            } else {
                held += borrowed;
                state.stopped.push(stopped);
            }
        }
        let wanted = goal.wanted_bytes.saturating_sub(gave);
        if held >= wanted {
            return gave;
        }
        for client in self.borrowers(state, goal) {
            if held >= wanted {
                break;
            }
            let slot = client.slot();
            let borrowed = slot.borrowed();
            held += borrowed;
            slot.ask_to_stop(true);
            self.record(
                slot,
                EventKind::AskedToStop,
                figures(slot, goal.wanted_bytes),
            );
            let counts = &self.shared.counts;
            counts.stopped_clients.fetch_add(1, Ordering::Relaxed);
            counts.climbed(Rung::Cancel, 0);
            state.stopped.push(Stopped {
                client,
                since: now,
                borrowed,
            });
        }
        gave
    }

    fn count_given(&self, stopped: &mut Stopped) -> u64 {
        let given = stopped.take_given();
        if given > 0 {
            self.shared.counts.gained(Rung::Cancel, given);
        }
        given
    }

    /// Those that could be asked to stop, the worst first: the one walk over
    /// all clients, on the last rung alone.
    fn borrowers(&self, state: &PressureState, goal: &Goal) -> Vec<Client> {
        let may_be_asked = |client: &Client| {
            let slot = client.slot();
            !slot.is_asked_to_stop()
                && !state.tried.contains(&client.id())
                && slot.limits().enforcement != Enforcement::Observe
        };
        let names = self.shared.names();
        let candidates = names
            .values()
            .filter_map(|&id| Client::with_id(id))
            .filter(may_be_asked)
            .map(|client| (self.standing(client.slot()), client));
        ladder::borrowers(goal, candidates)
    }

    /// In a forked child that does not know who was asked to stop.
    pub(super) fn let_everybody_go_on(&self) {
        let go_on = |client: Client| client.slot().ask_to_stop(false);
        let names = self.shared.names();
        names
            .values()
            .filter_map(|&id| Client::with_id(id))
            .for_each(go_on);
        drop(names);
        self.shared.retired().into_iter().for_each(go_on);
    }

    /// The pressure is over.
    pub(super) fn let_all_go_on(&self, state: &mut PressureState) {
        for mut stopped in state.stopped.drain(..) {
            self.count_given(&mut stopped);
            stopped.let_go_on();
        }
        state.tried.clear();
    }
}
