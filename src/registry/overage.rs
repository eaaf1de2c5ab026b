//! The overage curve: how long a safe point waits above the soft limit. Pure.

use core::time::Duration;

/// The longest that one safe point waits.
pub(crate) const LONGEST: Duration = Duration::from_millis(100);

/// How long a client waits that has `charged` bytes, between its soft limit
/// and its `max`: nothing at the soft limit, [`LONGEST`] at `max`, quadratic
/// between. Nothing at all if nothing of it could be reclaimed meanwhile.
pub(crate) fn pause(charged: u64, soft: u64, max: u64, reclaimable: u64) -> Duration {
    if reclaimable == 0 || charged <= soft {
        return Duration::ZERO;
    }
    let span = max.saturating_sub(soft).max(1);
    let over = ((charged - soft) as f64 / span as f64).min(1.0);
    LONGEST.mul_f64(over * over)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_is_quadratic_and_capped() {
        assert_eq!(pause(100, 100, 200, 1), Duration::ZERO);
        assert_eq!(pause(150, 100, 200, 1), LONGEST / 4);
        assert_eq!(pause(200, 100, 200, 1), LONGEST);
        assert_eq!(pause(u64::MAX, 100, 200, 1), LONGEST);
        assert_eq!(pause(101, 100, 100, 1), LONGEST);
    }

    /// Pitfall 24: a wait that nothing can end.
    #[test]
    fn nobody_waits_when_nothing_can_be_reclaimed() {
        assert_eq!(pause(200, 100, 200, 0), Duration::ZERO);
    }

    #[test]
    fn more_overage_never_waits_less() {
        let pauses: Vec<Duration> = (0..300)
            .map(|charged| pause(charged, 100, 200, 1))
            .collect();
        assert!(pauses.is_sorted());
    }
}
