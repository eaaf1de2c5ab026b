//! Pressure stall information, from recorded files and from the kernel.

use std::fs;
use std::time::Duration;
use tempfile::TempDir;
use tiered_allocator::pressure::{
    Figures, Pressure, PressureError, PressureSource, PressureWaker, Psi, Urgency,
};

const CALM: &str = "some avg10=0.00 avg60=0.12 avg300=3.00 total=1000001\n\
                    full avg10=0.00 avg60=0.00 avg300=99.99 total=0\n";

fn figures() -> Figures {
    let mut figures = Figures::default();
    figures.charged_bytes = 1000;
    figures
}

/// A pressure file with these averages of 10 seconds.
fn stalls(some: &str, full: &str) -> String {
    format!(
        "some avg10={some} avg60=0.00 avg300=0.00 total=5\n\
         full avg10={full} avg60=0.00 avg300=0.00 total=5\n"
    )
}

fn deaf() -> PressureWaker {
    PressureWaker::new(|| {})
}

#[test]
fn averages_and_totals_are_read() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("memory.pressure");
    fs::write(&path, CALM).unwrap();
    let read = Psi::at(&path).stalls().unwrap();
    assert_eq!(
        (read.some.avg10, read.some.avg60, read.some.avg300),
        (0.0, 0.12, 3.0)
    );
    assert_eq!(read.some.total, Duration::from_micros(1_000_001));
    assert_eq!(read.full.avg300, 99.99);
}

#[test]
fn what_is_not_understood_is_an_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("memory.pressure");
    for text in [
        "",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        "some avg10=x avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        "some avg10=NaN avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        "some avg10=101 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        "some avg60=0.00 avg10=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=-1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    ] {
        fs::write(&path, text).unwrap();
        let read = Psi::at(&path).read(&figures());
        assert!(
            matches!(read, Err(PressureError::Malformed { .. })),
            "{text:?}: {read:?}"
        );
    }
}

#[test]
fn stalls_begin_above_the_high_mark_and_end_at_the_low_one() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("memory.pressure");
    let mut psi = Psi::at(&path).marks(0.2, 0.1).unwrap();
    for (some, full, urgency, excess) in [
        ("20.00", "0.00", Urgency::Idle, 0),
        ("20.01", "0.00", Urgency::High, 50),
        ("20.00", "0.00", Urgency::Low, 0),
        ("60.00", "20.00", Urgency::High, 50),
        ("60.00", "20.01", Urgency::Critical, 100),
        ("10.01", "10.00", Urgency::Low, 0),
        ("10.00", "0.00", Urgency::Idle, 0),
        ("20.00", "0.00", Urgency::Idle, 0),
    ] {
        fs::write(&path, stalls(some, full)).unwrap();
        let read = psi.read(&figures()).unwrap();
        assert_eq!(read, Pressure::new(urgency, excess), "{some} {full}");
    }
}

#[test]
fn triggers_that_the_kernel_would_refuse_are_refused_with_their_figures() {
    let ms = Duration::from_millis;
    for (stall, window) in [(0, 1000), (1001, 1000), (1, 499), (1, 10_001)] {
        let refused = Psi::system().trigger(ms(stall), ms(window)).unwrap_err();
        assert_eq!((refused.stall, refused.window), (ms(stall), ms(window)));
    }
    assert!(Psi::system().trigger(ms(500), ms(500)).is_ok());
    assert!(Psi::system().trigger(ms(1), ms(10_000)).is_ok());
}

/// A plain file takes a trigger and never fires.
#[cfg(all(unix, not(tiered_allocator_portable)))]
#[test]
fn the_trigger_is_written_as_the_kernel_reads_it_and_the_thread_ends_with_the_source() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("memory.pressure");
    fs::write(&path, CALM).unwrap();
    let mut psi = Psi::at(&path)
        .trigger(Duration::from_micros(70_500), Duration::from_millis(1500))
        .unwrap();
    assert!(!psi.is_watching());
    psi.watch(deaf()).unwrap();
    assert!(psi.is_watching());
    let written = fs::read_to_string(&path).unwrap();
    assert!(written.starts_with("some 70500 1500000\0"), "{written:?}");
    fs::write(&path, CALM).unwrap();
    assert_eq!(psi.read(&figures()).unwrap(), Pressure::NONE);
    // A second watch replaces the first; the drop joins the thread.
    psi.watch(deaf()).unwrap();
    assert!(psi.is_watching());
    drop(psi);
}

#[test]
fn without_the_kernels_help_it_says_so_and_reads_on() {
    let dir = TempDir::new().unwrap();
    // A directory cannot be written to, whoever asks.
    let mut psi = Psi::at(dir.path());
    let refused = psi.watch(deaf());
    assert!(
        matches!(refused, Err(PressureError::Io { .. })),
        "{refused:?}"
    );
    assert!(!psi.is_watching());
    let absent = dir.path().join("absent");
    let mut psi = Psi::at(&absent);
    assert!(psi.watch(deaf()).is_err());
    assert!(psi.read(&figures()).is_err());
    fs::write(&absent, CALM).unwrap();
    assert_eq!(psi.read(&figures()).unwrap(), Pressure::NONE);
}

/// What the kernel of this machine says, where it says anything.
#[test]
fn the_kernel_is_understood_and_its_trigger_stops_at_once() {
    let mut psi = Psi::system();
    match psi.stalls() {
        Err(PressureError::Io { .. }) => return,
        stalls => println!("{:?}", stalls.unwrap()),
    }
    match psi.watch(deaf()) {
        Ok(()) => {
            psi.read(&figures()).unwrap();
            assert!(psi.is_watching());
            println!("watching");
        }
        Err(PressureError::Io { source, .. }) => println!("not watching: {source}"),
        Err(other) => panic!("{other}"),
    }
    drop(psi);
    let own = Psi::cgroup().and_then(|psi| psi.stalls());
    println!("cgroup: {own:?}");
    assert!(
        !matches!(own, Err(PressureError::Malformed { .. })),
        "{own:?}"
    );
}
