//! Who gives way first: pure choice, no clocks, no threads.

use core::time::Duration;

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
pub(super) fn victims(candidates: &[Candidate]) -> Vec<usize> {
    let mut due: Vec<usize> = (0..candidates.len())
        .filter(|&at| candidates[at].idle_for >= candidates[at].idle_after)
        .collect();
    due.sort_by_key(|&at| {
        let candidate = &candidates[at];
        (
            candidate.precedence,
            core::cmp::Reverse(candidate.idle_for),
            core::cmp::Reverse(candidate.bytes),
        )
    });
    due
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(victims(&candidates), [3, 2, 1, 4, 0]);
    }

    #[test]
    fn what_is_not_idle_for_long_enough_stays() {
        assert_eq!(victims(&[candidate(10, 299, 1)]), [] as [usize; 0]);
        assert_eq!(victims(&[candidate(10, 300, 1)]), [0]);
    }
}
