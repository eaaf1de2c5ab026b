//! High and low marks with hysteresis, and the two sources that need nothing
//! else: [`Watermarks`] and [`ResidentSet`]. Pure arithmetic.

use super::{Figures, Pressure, PressureError, PressureSource, Urgency};

/// Marks that cannot work: both are shares from 0.0 to 1.0, and `high` is
/// above `low`.
#[derive(Clone, Copy, PartialEq, Debug, thiserror::Error)]
#[error("marks of {high} (high) and {low} (low): shares with 0.0 <= low < high <= 1.0 are needed")]
#[non_exhaustive]
pub struct MarksError {
    /// Where pressure was to begin.
    pub high: f64,
    /// Where it was to end.
    pub low: f64,
}

/// Two shares of something.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Marks {
    high: f64,
    low: f64,
}

impl Marks {
    /// Marks that are known to be right.
    pub(super) const fn known(high: f64, low: f64) -> Marks {
        assert!(0.0 <= low && low < high && high <= 1.0);
        Marks { high, low }
    }

    fn high_of(self, whole: u64) -> u64 {
        share(whole, self.high)
    }

    pub(super) fn new(high: f64, low: f64) -> Result<Marks, MarksError> {
        // Also false for what is not a number.
        if 0.0 <= low && low < high && high <= 1.0 {
            Ok(Marks { high, low })
        } else {
            Err(MarksError { high, low })
        }
    }

    /// The middle between the high mark and the whole.
    pub(super) fn near_full(self) -> f64 {
        f64::midpoint(self.high, 1.0)
    }
}

/// Beyond 2^53 bytes it is rounded, never past the whole.
fn share(whole: u64, share: f64) -> u64 {
    ((whole as f64 * share) as u64).min(whole)
}

/// Whether pressure has begun and not ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Hysteresis {
    on: bool,
}

impl Hysteresis {
    /// Judges `used` bytes of a `whole`: begins above the high mark, wants
    /// bytes down to the low one, ends there. Critical from the share
    /// `critical` on.
    pub(super) fn judge(&mut self, marks: Marks, used: u64, whole: u64, critical: f64) -> Pressure {
        let (high, low) = (marks.high_of(whole), share(whole, marks.low));
        if used > high {
            self.on = true;
        } else if used <= low {
            self.on = false;
        }
        if !self.on {
            return Pressure::NONE;
        }
        let urgency = if used >= share(whole, critical) {
            Urgency::Critical
        } else if used > high {
            Urgency::High
        } else {
            Urgency::Low
        };
        Pressure::new(urgency, used.saturating_sub(low))
    }
}

/// Charged bytes against the usable part.
///
/// `Low` on the way down between the marks, `High` above the high mark,
/// `Critical` when all of the usable part is charged.
#[derive(Clone, Debug)]
pub struct Watermarks {
    marks: Marks,
    state: Hysteresis,
}

impl Watermarks {
    /// Pressure begins above `high` and wants bytes down to `low`, both shares
    /// of the usable part.
    ///
    /// # Errors
    /// Unless `0.0 <= low < high <= 1.0`.
    pub fn new(high: f64, low: f64) -> Result<Watermarks, MarksError> {
        Ok(Watermarks {
            marks: Marks::new(high, low)?,
            state: Hysteresis::default(),
        })
    }
}

impl Watermarks {
    /// Where pressure begins, of `usable_bytes`.
    pub(crate) fn high_bytes(&self, usable_bytes: u64) -> u64 {
        self.marks.high_of(usable_bytes)
    }
}

impl Default for Watermarks {
    /// 0.9 and 0.8.
    fn default() -> Watermarks {
        Watermarks {
            marks: Marks::known(0.9, 0.8),
            state: Hysteresis::default(),
        }
    }
}

impl PressureSource for Watermarks {
    fn name(&self) -> &'static str {
        "watermarks"
    }

    fn read(&mut self, figures: &Figures) -> Result<Pressure, PressureError> {
        let (used, whole) = (figures.charged_bytes, figures.usable_bytes);
        Ok(self.state.judge(self.marks, used, whole, 1.0))
    }
}

/// The process' resident set against the memory's total.
///
/// Counts what the ledger does not: rounding and caches of the inner
/// allocator, stacks, code, C libraries. All of that is unattributed. The
/// system counts pages of mapped files, too, as long as they are in memory.
#[derive(Clone, Debug)]
pub struct ResidentSet {
    marks: Marks,
    state: Hysteresis,
}

impl ResidentSet {
    /// Pressure begins above `high` and wants bytes down to `low`, both shares
    /// of the memory's total.
    ///
    /// # Errors
    /// Unless `0.0 <= low < high <= 1.0`.
    pub fn new(high: f64, low: f64) -> Result<ResidentSet, MarksError> {
        Ok(ResidentSet {
            marks: Marks::new(high, low)?,
            state: Hysteresis::default(),
        })
    }
}

impl Default for ResidentSet {
    /// 0.9 and 0.8.
    fn default() -> ResidentSet {
        ResidentSet {
            marks: Marks::known(0.9, 0.8),
            state: Hysteresis::default(),
        }
    }
}

impl PressureSource for ResidentSet {
    fn name(&self) -> &'static str {
        "resident set"
    }

    /// # Errors
    /// [`PressureError::Unknown`] where the system does not tell the resident
    /// set.
    fn read(&mut self, figures: &Figures) -> Result<Pressure, PressureError> {
        let resident = figures
            .resident_set_bytes
            .ok_or(PressureError::Unknown("the resident set of a process"))?;
        let total = figures.total_bytes;
        Ok(self.state.judge(self.marks, resident, total, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(charged_bytes: u64, resident_set_bytes: Option<u64>) -> Figures {
        Figures {
            total_bytes: 1000,
            usable_bytes: 800,
            charged_bytes,
            resident_set_bytes,
        }
    }

    #[test]
    fn pressure_begins_above_the_high_mark_and_ends_at_the_low_one() {
        let mut marks = Watermarks::new(0.75, 0.5).unwrap();
        let mut read = |charged| marks.read(&figures(charged, None)).unwrap();
        let steps = [
            (0, Urgency::Idle, 0),
            (600, Urgency::Idle, 0),
            (601, Urgency::High, 201),
            (600, Urgency::Low, 200),
            (401, Urgency::Low, 1),
            (400, Urgency::Idle, 0),
            (600, Urgency::Idle, 0),
            (799, Urgency::High, 399),
            (800, Urgency::Critical, 400),
            (u64::MAX, Urgency::Critical, u64::MAX - 400),
            (500, Urgency::Low, 100),
            (0, Urgency::Idle, 0),
        ];
        for (charged, urgency, excess) in steps {
            assert_eq!(read(charged), Pressure::new(urgency, excess), "{charged}");
        }
    }

    #[test]
    fn the_resident_set_is_measured_against_the_total_whatever_is_charged() {
        let mut source = ResidentSet::new(0.75, 0.5).unwrap();
        let mut read = |resident| source.read(&figures(0, Some(resident))).unwrap();
        assert_eq!(read(750), Pressure::NONE);
        assert_eq!(read(751), Pressure::new(Urgency::High, 251));
        assert_eq!(read(501), Pressure::new(Urgency::Low, 1));
        assert_eq!(read(500), Pressure::NONE);
        assert_eq!(figures(300, Some(501)).unattributed_bytes(), Some(201));
        assert_eq!(figures(502, Some(501)).unattributed_bytes(), Some(0));
    }

    #[test]
    fn a_resident_set_that_nobody_tells_is_an_error() {
        let read = ResidentSet::default().read(&figures(0, None));
        assert!(matches!(read, Err(PressureError::Unknown(_))), "{read:?}");
    }

    #[test]
    fn marks_that_cannot_work_are_refused_with_their_figures() {
        for (high, low) in [
            (0.5, 0.5),
            (0.5, 0.6),
            (1.1, 0.5),
            (0.5, -0.1),
            (f64::NAN, 0.5),
            (0.5, f64::NAN),
        ] {
            let refused = Watermarks::new(high, low).unwrap_err();
            assert_eq!(refused.high.to_bits(), high.to_bits());
            assert_eq!(refused.low.to_bits(), low.to_bits());
            assert!(ResidentSet::new(high, low).is_err());
        }
        assert!(Watermarks::new(1.0, 0.0).is_ok());
    }

    #[test]
    fn the_largest_figures_do_not_overflow() {
        let marks = Marks::known(1.0, 0.9);
        let mut state = Hysteresis::default();
        let none = state.judge(marks, u64::MAX, u64::MAX, 1.0);
        assert_eq!(none, Pressure::NONE);
        assert_eq!(state.judge(marks, 0, 0, 1.0), Pressure::NONE);
        assert_eq!(state.judge(marks, 1, 0, 1.0).urgency, Urgency::Critical);
    }
}
