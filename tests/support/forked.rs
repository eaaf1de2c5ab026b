//! Work in a forked process, which must come to its end.

/// Seconds after which a child that hangs is ended by the system.
const WATCHDOG_S: libc::c_uint = 60;

/// What a child answers that has done all its work, and none that ended
/// otherwise.
const DONE: libc::c_int = 7;

/// Forks; the child runs `work` and must come to its end.
#[track_caller]
pub fn in_a_child(work: impl FnOnce()) {
    // SAFETY: the child calls what the tests are about and `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: ends this process if it hangs.
        unsafe { libc::alarm(WATCHDOG_S) };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: no destructors, no handlers of the parent.
        unsafe { libc::_exit(if done.is_ok() { DONE } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(waited, child);
    assert_eq!(status, DONE << 8, "the child ended with {status:#x}");
}
