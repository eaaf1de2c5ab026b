//! Side-by-side measurement: many short stints in turn, ratios within a round.
//!
//! A ratio of two figures that were taken minutes apart measures the machine's
//! mood. Here every round runs each candidate once, in rotating order and for
//! a fraction of a time slice, and a ratio is formed within the round; what
//! disturbs one round moves the median little.

use std::time::Instant;

/// A figure and how far it strays: median and median absolute deviation.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    pub median: f64,
    pub mad: f64,
    /// Values behind it.
    pub count: usize,
}

impl Figure {
    /// Standard error of the median, if the values are about normal.
    pub fn error(&self) -> f64 {
        1.25 * 1.48 * self.mad / (self.count as f64).sqrt()
    }

    /// On which side of `goal` it is; `None` if the noise does not tell.
    pub fn is_below(&self, goal: f64) -> Option<bool> {
        let distance = goal - self.median;
        (distance.abs() > 2.0 * self.error()).then_some(distance > 0.0)
    }

    pub fn of(values: &[f64]) -> Figure {
        let middle = median(values.to_vec());
        let deviations = values.iter().map(|value| (value - middle).abs()).collect();
        Figure {
            median: middle,
            mad: median(deviations),
            count: values.len(),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What one candidate did in each round, in the same unit for all.
pub struct Series(pub Vec<f64>);

impl Series {
    pub fn figure(&self) -> Figure {
        Figure::of(&self.0)
    }

    pub fn ratio_to(&self, base: &Series) -> Figure {
        self.against(base, |this, base| this / base)
    }

    pub fn above(&self, base: &Series) -> Figure {
        self.against(base, |this, base| this - base)
    }

    fn against(&self, base: &Series, compare: impl Fn(f64, f64) -> f64) -> Figure {
        let pairs = self.0.iter().zip(&base.0);
        Figure::of(
            &pairs
                .map(|(&this, &base)| compare(this, base))
                .collect::<Vec<_>>(),
        )
    }
}

/// One stint: does some work and answers what it cost, per operation.
pub type Stint<'a> = Box<dyn FnMut() -> f64 + 'a>;

/// Runs all candidates in turn.
pub fn interleave(rounds: usize, mut candidates: Vec<Stint<'_>>) -> Vec<Series> {
    let count = candidates.len();
    let mut series: Vec<Series> = (0..count).map(|_| Series(Vec::new())).collect();
    for stint in &mut candidates {
        stint();
        stint();
    }
    for round in 0..rounds {
        for turn in 0..count {
            let at = (round + turn) % count;
            series[at].0.push(candidates[at]());
        }
    }
    series
}

/// Nanoseconds per operation of `work`, which does `operations` of them.
pub fn time(operations: usize, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / operations as f64
}

/// Processor time of the calling thread in nanoseconds.
pub fn thread_cpu_ns() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writing.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(done, 0);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}
