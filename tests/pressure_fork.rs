//! A watching source across `fork`: the child has no thread to stop.
#![cfg(all(target_os = "linux", not(tiered_allocator_portable)))]

use std::time::Duration;
use tiered_allocator::TieredAllocator;
use tiered_allocator::pressure::{PressureSource, PressureWaker, Psi};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

#[test]
fn a_child_that_drops_the_source_leaves_its_parent_watching() {
    assert!(TieredAllocator::is_installed());
    // A plain file takes the trigger and never fires.
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut psi = Psi::at(file.path());
    psi.watch(PressureWaker::new(|| {})).unwrap();
    let mut psi = Some(psi);
    // SAFETY: the child drops a value and ends without running anything else.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: a child that waits for ever is ended by the alarm.
        unsafe { libc::alarm(60) };
        drop(psi.take());
        // SAFETY: as above.
        unsafe { libc::_exit(7) };
    }
    let mut status = -1;
    // SAFETY: our child, and a status of ours.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 7 << 8, "the child's end");
    // A thread that was told to stop would need a moment to do so: the longer
    // this looks, the more it sees.
    for _ in 0..200 {
        assert!(psi.as_ref().is_some_and(Psi::is_watching));
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(psi);
}
