//! Waiting that turns into a failure, not into a hang.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// No test waits this long for anything that is going to happen.
const ENOUGH: Duration = Duration::from_secs(600);

/// Gives the processor away until `is_so`; fails when it never is. `what` says
/// what did not come about.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < ENOUGH, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// Tells threads to stop when it ends, however that is: a scope of threads
/// waits for them also when its test fails.
pub struct Stops<'a>(pub &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
