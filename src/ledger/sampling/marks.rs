//! Where the next mark lies on the calling thread's line of bytes, and what
//! happens to a block that is hit.

use super::samples::{self, FRAMES};
use super::watch::{self, watches};
use crate::ledger::thread;
use crate::owner::Tag;
use crate::registry::slot::Slot;
use crate::sync::thread_local;
use core::cell::Cell;

/// The calling thread's place on its line.
struct Line {
    /// The profile that `left` belongs to.
    epoch: Cell<u32>,
    /// Whether the thread is taking a sample right now.
    busy: Cell<bool>,
    /// Bytes to the next mark.
    left: Cell<u64>,
    random: Cell<u64>,
}

thread_local! {
    static LINE: Line = const {
        Line {
            epoch: Cell::new(0),
            busy: Cell::new(false),
            left: Cell::new(0),
            random: Cell::new(0),
        }
    };
}

/// A block of `size` bytes has been charged to `slot`, whose tag is `tag`.
/// Answers the tag that the block gets.
#[inline]
pub(crate) fn new_block(slot: &'static Slot, tag: Tag, size: u64) -> Tag {
    if !watches(slot) {
        return tag;
    }
    match LINE.with(|line| line.pass(size)) {
        Some(mark) => take(tag, size, mark),
        None => tag,
    }
}

/// A block of `slot` of `size` bytes with this tag has been charged `growth`
/// bytes more. Answers the tag that it gets.
#[cold]
pub(crate) fn grown(slot: &'static Slot, tag: Tag, size: u64, growth: u64) -> Tag {
    if tag.sample().is_some() {
        samples::resized(tag, size + growth);
        return tag;
    }
    if !watches(slot) {
        return tag;
    }
    match LINE.with(|line| line.pass(growth)) {
        Some(mark) => take(tag, size + growth, size + mark),
        None => tag,
    }
}

impl Line {
    /// Goes on by `bytes`. Where the first mark in them lies, if one does.
    #[inline]
    fn pass(&self, bytes: u64) -> Option<u64> {
        if self.epoch.get() != watch::epoch() {
            if self.busy.get() {
                return None;
            }
            self.begin();
        }
        let left = self.left.get();
        if bytes <= left {
            self.left.set(left - bytes);
            return None;
        }
        if self.busy.get() {
            return None;
        }
        // Marks are independent: where the next one after the block lies is
        // drawn afresh, whatever others lie in it.
        self.left.set(self.draw());
        Some(left)
    }

    #[cold]
    fn begin(&self) {
        let (epoch, seed) = watch::join();
        self.epoch.set(epoch);
        self.random.set(seed);
        self.left.set(self.draw());
    }

    /// Bytes before the next mark: 0 or more, `n` or more with the probability
    /// `exp(-n/T)`.
    fn draw(&self) -> u64 {
        let random = self.random.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.random.set(random);
        distance(random, watch::sample_bytes())
    }
}

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
/// Generators", 2014), then the exponential distribution by inversion.
fn distance(random: u64, mean: u64) -> u64 {
    let mixed = (random ^ random >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    let mixed = mixed ^ mixed >> 31;
    // Over (0, 1].
    let uniform = ((mixed >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    (-uniform.ln() * mean as f64) as u64
}

/// Takes the sample. No lock is held; only addresses are collected.
#[cold]
#[inline(never)]
fn take(tag: Tag, size: u64, mark: u64) -> Tag {
    let mut stack = [0; FRAMES];
    let mut depth = 0;
    LINE.with(|line| line.busy.set(true));
    // Should the unwinder allocate, nobody is charged and nothing sampled.
    let entered = thread::enter_unattributed();
    // SAFETY: the unwinding itself needs no synchronisation but the system's
    // own; what must not run at once is the symbolisation, of which there is
    // none here (documentation of `backtrace::trace_unsynchronized`).
    unsafe {
        backtrace::trace_unsynchronized(|frame| {
            if let Some(place) = stack.get_mut(depth) {
                *place = frame.ip() as usize;
                depth += 1;
            }
            depth < FRAMES
        });
    }
    thread::leave(&entered);
    LINE.with(|line| line.busy.set(false));
    let claimed = samples::claim(tag, watch::epoch(), size, mark, &stack[..depth]);
    claimed.unwrap_or_else(|| {
        watch::count_dropped();
        tag
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_between_marks_are_exponential() {
        const MEAN: u64 = 4096;
        const DRAWS: u64 = 100_000;
        let draws = (1..=DRAWS).map(|n| distance(n.wrapping_mul(0x9E37_79B9_7F4A_7C15), MEAN));
        let mut sum = 0;
        let mut beyond = [0_u64; 3];
        for drawn in draws {
            sum += drawn;
            for (multiple, beyond) in beyond.iter_mut().enumerate() {
                *beyond += u64::from(drawn >= (multiple as u64 + 1) * MEAN);
            }
        }
        // Standard errors: 0.3 % of the mean, 0.0015 of each share.
        let mean = sum as f64 / DRAWS as f64;
        assert!((mean / MEAN as f64 - 1.0).abs() < 0.015, "{mean}");
        for (multiple, beyond) in beyond.into_iter().enumerate() {
            let share = beyond as f64 / DRAWS as f64;
            let right = (-(multiple as f64 + 1.0)).exp();
            assert!((share - right).abs() < 0.007, "{share} instead of {right}");
        }
    }
}
