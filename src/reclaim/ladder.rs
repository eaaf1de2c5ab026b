//! Who gives way first: pure choice, no clocks, no threads.
//!
//! A [`Goal`] says how much is wanted, from whom it may be taken and how
//! urgently. What could be taken comes as plain figures, and what is to be
//! taken goes out as places in them. Two rules hold everywhere:
//!
//! - Nobody gives below its guarantee: a victim's [`Standing::borrowed`] is all
//!   that counts, and what goes beyond it is no gain.
//! - The order is the tier's precedence, then the overage ratio: how much of
//!   what a client may borrow it has borrowed.

use crate::registry::reclaimers::Urgency;
use core::cmp::{Ordering, Reverse};
use core::time::Duration;

/// Less is not worth the trouble, unless less is wanted.
const MIN_WORTH_BYTES: u64 = 64 * 1024;

/// What is known of a block when victims are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Candidate {
    /// The precedence of the owner's tier: lower gives way first.
    pub(super) precedence: u8,
    pub(super) idle_for: Duration,
    /// How long the tier lets a block be idle.
    pub(super) idle_after: Duration,
    pub(super) bytes: u64,
}

/// The candidates that are due, in the order in which they give way: lowest
/// precedence first, then the longest idle, then the largest.
pub(super) fn due(candidates: &[Candidate]) -> Vec<usize> {
    let mut due: Vec<usize> = (0..candidates.len())
        .filter(|&at| candidates[at].idle_for >= candidates[at].idle_after)
        .collect();
    due.sort_by_key(|&at| {
        let candidate = &candidates[at];
        (
            candidate.precedence,
            Reverse(candidate.idle_for),
            Reverse(candidate.bytes),
        )
    });
    due
}

/// What is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Goal {
    pub(super) wanted_bytes: u64,
    pub(super) urgency: Urgency,
    /// Only tiers of a lower precedence give; `None`: all do.
    pub(super) below: Option<u8>,
}

impl Goal {
    fn min_worth(&self) -> u64 {
        MIN_WORTH_BYTES.min(self.wanted_bytes)
    }

    fn may_take_from(&self, standing: &Standing) -> bool {
        self.below.is_none_or(|below| standing.precedence < below)
    }

    /// How long a block must have been idle to be taken for this goal.
    pub(super) fn idle_after(&self, idle_after: Duration) -> Duration {
        match self.urgency {
            Urgency::Idle | Urgency::Low => idle_after,
            Urgency::High => idle_after / 8,
            Urgency::Critical => Duration::ZERO,
        }
    }
}

/// Where a client stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Standing {
    pub(super) precedence: u8,
    /// What it has beyond its guarantee.
    pub(super) borrowed: u64,
    /// What it may have beyond its guarantee.
    pub(super) may_borrow: u64,
    /// How far it is above its soft limit.
    pub(super) above_soft: u64,
}

/// The order in which clients give way: lowest precedence first, then the
/// greatest overage ratio, then the most borrowed.
pub(super) fn gives_way_before(one: &Standing, other: &Standing) -> Ordering {
    // one.borrowed / one.may_borrow against the other's, without a division.
    let ratio =
        |a: &Standing, b: &Standing| u128::from(a.borrowed) * u128::from(b.may_borrow.max(1));
    one.precedence
        .cmp(&other.precedence)
        .then_with(|| ratio(other, one).cmp(&ratio(one, other)))
        .then_with(|| other.borrowed.cmp(&one.borrowed))
}

/// An idle block, and which client's it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct IdleBlock {
    /// Its owner's place among the standings.
    pub(super) client: usize,
    pub(super) bytes: u64,
    pub(super) idle_for: Duration,
    pub(super) idle_after: Duration,
}

/// The blocks that may be taken for a goal, in order, each with what it gains
/// after those before it. Not cut off at the goal: one that turns out to be
/// pinned, or that cannot be written out, leaves a gap.
pub(super) fn blocks(
    goal: &Goal,
    standings: &[Standing],
    blocks: &[IdleBlock],
) -> Vec<(usize, u64)> {
    let mut order: Vec<usize> = (0..blocks.len())
        .filter(|&at| goal.may_take_from(&standings[blocks[at].client]))
        .filter(|&at| blocks[at].idle_for >= goal.idle_after(blocks[at].idle_after))
        .collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&blocks[a], &blocks[b]);
        gives_way_before(&standings[a.client], &standings[b.client])
            .then_with(|| b.idle_for.cmp(&a.idle_for))
            .then_with(|| b.bytes.cmp(&a.bytes))
    });
    let mut borrowed: Vec<u64> = standings.iter().map(|client| client.borrowed).collect();
    let mut taken = Vec::new();
    for at in order {
        let left = &mut borrowed[blocks[at].client];
        let gain = blocks[at].bytes.min(*left);
        if gain > 0 && gain >= goal.min_worth() {
            *left -= gain;
            taken.push((at, gain));
        }
    }
    taken
}

/// Which clients' caches a rung asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    /// Of clients above their soft limit, for what is above it.
    AboveSoft,
    /// Of all that have borrowed.
    Borrowers,
}

/// The clients whose caches to ask, in order, each with the most that it may
/// be asked for. Not cut off at the goal: what a cache gives is seen only when
/// it has given.
pub(super) fn caches(goal: &Goal, standings: &[Standing], asked: Asked) -> Vec<(usize, u64)> {
    let most = |client: &Standing| match asked {
        Asked::AboveSoft => client.above_soft.min(client.borrowed),
        Asked::Borrowers => client.borrowed,
    };
    let mut order: Vec<(usize, u64)> = (0..standings.len())
        .filter(|&at| goal.may_take_from(&standings[at]))
        .map(|at| (at, most(&standings[at])))
        .filter(|&(_, most)| most > 0 && most >= goal.min_worth())
        .collect();
    order.sort_by(|&(a, _), &(b, _)| gives_way_before(&standings[a], &standings[b]));
    order
}

/// The clients to stop, of those that have something to give: the one that
/// gives way first is the first.
pub(super) fn borrowers<T>(goal: &Goal, candidates: impl Iterator<Item = (Standing, T)>) -> Vec<T> {
    let mut order: Vec<(Standing, T)> = candidates
        .filter(|(standing, _)| goal.may_take_from(standing))
        .filter(|(standing, _)| standing.borrowed >= goal.min_worth().max(1))
        .collect();
    order.sort_by(|(one, _), (other, _)| gives_way_before(one, other));
    order.into_iter().map(|(_, client)| client).collect()
}

/// Whether so much could be had at all if everybody concerned gave all that it
/// has borrowed. If not, nobody is harmed for it.
pub(super) fn is_feasible(wanted: u64, borrowed: u64) -> bool {
    wanted <= borrowed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(precedence: u8, idle_s: u64, bytes: u64) -> Candidate {
        Candidate {
            precedence,
            idle_for: Duration::from_secs(idle_s),
            idle_after: Duration::from_secs(300),
            bytes,
        }
    }

    #[test]
    fn the_lowest_tier_gives_way_first_then_the_longest_idle_then_the_largest() {
        let candidates = [
            candidate(30, 900, 1),
            candidate(10, 400, 1),
            candidate(10, 500, 1),
            candidate(10, 500, 9),
            candidate(20, 300, 1),
        ];
        assert_eq!(due(&candidates), [3, 2, 1, 4, 0]);
    }

    #[test]
    fn what_is_not_idle_for_long_enough_stays() {
        assert_eq!(due(&[candidate(10, 299, 1)]), [] as [usize; 0]);
        assert_eq!(due(&[candidate(10, 300, 1)]), [0]);
    }

    const MIB: u64 = 1 << 20;

    fn goal(wanted_bytes: u64, urgency: Urgency, below: Option<u8>) -> Goal {
        Goal {
            wanted_bytes,
            urgency,
            below,
        }
    }

    fn standing(precedence: u8, borrowed: u64, may_borrow: u64) -> Standing {
        Standing {
            precedence,
            borrowed,
            may_borrow,
            above_soft: 0,
        }
    }

    fn block(client: usize, bytes: u64, idle_s: u64) -> IdleBlock {
        IdleBlock {
            client,
            bytes,
            idle_for: Duration::from_secs(idle_s),
            idle_after: Duration::from_secs(80),
        }
    }

    #[test]
    fn blocks_go_by_tier_then_overage_then_idle_time_until_it_is_enough() {
        let clients = [
            standing(20, 50 * MIB, 100 * MIB),
            standing(10, 10 * MIB, 100 * MIB),
            standing(10, 90 * MIB, 100 * MIB),
        ];
        let idle = [
            block(0, 8 * MIB, 900),
            block(1, 8 * MIB, 900),
            block(2, 8 * MIB, 90),
            block(2, 8 * MIB, 100),
        ];
        let any = goal(1 << 40, Urgency::Low, None);
        let order = [3, 2, 1, 0].map(|at| (at, 8 * MIB));
        assert_eq!(blocks(&any, &clients, &idle), order);
    }

    #[test]
    fn the_more_urgent_the_less_idle_a_block_must_be() {
        let clients = [standing(10, 50 * MIB, 100 * MIB)];
        let idle = [block(0, MIB, 0), block(0, MIB, 10), block(0, MIB, 80)];
        let taken = |urgency| places_of(blocks(&goal(1 << 40, urgency, None), &clients, &idle));
        assert_eq!(taken(Urgency::Low), [2]);
        assert_eq!(taken(Urgency::High), [2, 1]);
        assert_eq!(taken(Urgency::Critical), [2, 1, 0]);
    }

    #[test]
    fn nobody_gives_below_its_guarantee_or_for_a_tier_below_its_own() {
        let clients = [
            standing(10, 3 * MIB, 100 * MIB),
            standing(20, 50 * MIB, 100 * MIB),
            standing(30, 50 * MIB, 100 * MIB),
        ];
        let idle = [
            block(0, 2 * MIB, 900),
            block(0, 2 * MIB, 900),
            block(0, 2 * MIB, 900),
            block(1, 2 * MIB, 900),
            block(2, 2 * MIB, 900),
        ];
        // The third block of the first client gains nothing any more.
        let everything = goal(1 << 40, Urgency::Low, None);
        let gains: u64 = blocks(&everything, &clients, &idle)
            .iter()
            .map(|(_, gain)| gain)
            .sum();
        assert_eq!(gains, 7 * MIB);
        let for_premium = goal(1 << 40, Urgency::Low, Some(20));
        assert_eq!(
            blocks(&for_premium, &clients, &idle),
            [(0, 2 * MIB), (1, MIB)]
        );
        assert_eq!(
            caches(&for_premium, &clients, Asked::Borrowers),
            [(0, 3 * MIB)]
        );
        assert_eq!(
            borrowers(&goal(1, Urgency::High, Some(10)), places(&clients)),
            [] as [u32; 0]
        );
    }

    fn places_of(taken: Vec<(usize, u64)>) -> Vec<usize> {
        taken.into_iter().map(|(at, _)| at).collect()
    }

    fn places(clients: &[Standing]) -> impl Iterator<Item = (Standing, u32)> {
        clients.iter().copied().zip(0..)
    }

    #[test]
    fn crumbs_are_left_unless_crumbs_are_wanted() {
        let clients = [standing(10, 50 * MIB, 100 * MIB)];
        let idle = [block(0, 4096, 900)];
        let taken = |wanted| {
            places_of(blocks(
                &goal(wanted, Urgency::Critical, None),
                &clients,
                &idle,
            ))
        };
        assert_eq!(taken(MIB), [] as [usize; 0]);
        assert_eq!(taken(4096), [0]);
    }

    #[test]
    fn caches_above_their_soft_limit_are_asked_for_what_is_above_it() {
        let soft = |above_soft, borrowed| Standing {
            above_soft,
            ..standing(10, borrowed, 100 * MIB)
        };
        let clients = [
            soft(0, 50 * MIB),
            soft(5 * MIB, 40 * MIB),
            soft(9 * MIB, 2 * MIB),
        ];
        let any = goal(1 << 40, Urgency::High, None);
        assert_eq!(
            caches(&any, &clients, Asked::AboveSoft),
            [(1, 5 * MIB), (2, 2 * MIB)]
        );
        assert_eq!(caches(&any, &clients, Asked::Borrowers).len(), 3);
    }

    #[test]
    fn the_worst_borrower_is_of_the_lowest_tier_and_has_the_greatest_share() {
        let clients = [
            standing(20, 99 * MIB, 100 * MIB),
            standing(10, 30 * MIB, 100 * MIB),
            standing(10, 20 * MIB, 40 * MIB),
            standing(0, 0, 100 * MIB),
        ];
        let any = goal(MIB, Urgency::Critical, None);
        assert_eq!(borrowers(&any, places(&clients)), [2, 1, 0]);
    }

    proptest! {
        /// Whatever the figures: no client gives more than it borrowed, no
        /// tier at or above the goal's gives, and the lower tiers give first.
        #[test]
        fn the_rules_hold_for_any_figures(
            wanted in 1u64..1 << 40,
            below in proptest::option::of(0u8..4),
            clients in proptest::collection::vec((0u8..4, 0u64..1 << 32, 0u64..1 << 32), 1..8),
            idle in proptest::collection::vec((0usize..8, 1u64..1 << 30, 0u64..200), 0..32),
        ) {
            let clients: Vec<Standing> =
                clients.iter().map(|&(p, b, m)| standing(p, b, m)).collect();
            let idle: Vec<IdleBlock> = idle
                .iter()
                .map(|&(client, bytes, s)| block(client % clients.len(), bytes, s))
                .collect();
            let goal = goal(wanted, Urgency::High, below);
            let taken = blocks(&goal, &clients, &idle);
            for (at, client) in clients.iter().enumerate() {
                let own = taken.iter().filter(|(taken, _)| idle[*taken].client == at);
                let gain: u64 = own.map(|(_, gain)| gain).sum();
                prop_assert!(gain <= client.borrowed);
                prop_assert!(gain == 0 || below.is_none_or(|below| client.precedence < below));
            }
            prop_assert!(taken.iter().all(|&(at, gain)| gain > 0 && gain <= idle[at].bytes));
            let precedences = taken.iter().map(|&(at, _)| clients[idle[at].client].precedence);
            prop_assert!(precedences.is_sorted());
            let order = caches(&goal, &clients, Asked::Borrowers);
            prop_assert!(order.is_sorted_by_key(|&(at, _)| clients[at].precedence));
            prop_assert!(order.iter().all(|&(at, most)| most <= clients[at].borrowed));
        }
    }
}
