//! [`Psi`]: the kernel's pressure stall information.
//!
//! The file is read for its averages. Where the kernel lets us, a trigger is
//! written to it as well, and a thread of the source's own waits for the kernel
//! to say that tasks stall now: averages lag behind by seconds.

use super::hierarchy::{malformed, read, unified_group};
use super::marks::{Hysteresis, Marks};
use super::{Figures, MarksError, Pressure, PressureError, PressureSource, PressureWaker, Urgency};
use crate::sync::{AtomicBool, Ordering};
use crate::sys::{self, Roused};
use core::time::Duration;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

/// How much of the time tasks stalled.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
#[non_exhaustive]
pub struct Stall {
    /// Of the last 10 seconds, in percent.
    pub avg10: f64,
    /// Of the last 60 seconds, in percent.
    pub avg60: f64,
    /// Of the last 300 seconds, in percent.
    pub avg300: f64,
    /// All time together.
    pub total: Duration,
}

/// What a pressure file says.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
#[non_exhaustive]
pub struct Stalls {
    /// At least one task stalled.
    pub some: Stall,
    /// All tasks that had something to do stalled at once.
    pub full: Stall,
}

/// A trigger that the kernel would refuse: windows go from 500 ms to 10 s, and
/// a stall is neither nothing nor longer than its window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a stall of {stall:?} in {window:?}: 0 < stall <= window, 500 ms <= window <= 10 s")]
#[non_exhaustive]
pub struct TriggerError {
    /// Stalled time in the window.
    pub stall: Duration,
    /// The window.
    pub window: Duration,
}

/// Tasks that stall for memory: `/proc/pressure/memory`, or `memory.pressure`
/// of a cgroup (Linux 4.20, with `CONFIG_PSI`).
///
/// - `Low`, no bytes: `some` was above the high mark and is not yet at the low
///   one.
/// - `High`, a twentieth of what is charged: `some` is above the high mark, or
///   the trigger fired since the last reading.
/// - `Critical`, a tenth of what is charged: `full` is above the high mark.
///
/// Stalls say that memory is short, not how much of it: the source asks for a
/// little, and again while they go on. The averages are those of 10 seconds.
///
/// With a reclaimer thread, the kernel is asked to wake it when tasks stalled
/// for 150 ms within a second. Where only privileged processes may have such a
/// window, it is twice that within two seconds. Where the kernel refuses
/// altogether, that is reported and the averages remain.
///
/// ```
/// use std::time::Duration;
/// use tiered_allocator::pressure::Psi;
///
/// let psi = Psi::system()
///     .marks(0.2, 0.1)? // of the time
///     .trigger(Duration::from_millis(100), Duration::from_secs(1))?;
/// match psi.stalls() {
///     Ok(stalls) => println!("{} % of the last 10 s", stalls.some.avg10),
///     Err(reason) => println!("no pressure files here: {reason}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Psi {
    path: PathBuf,
    marks: Marks,
    state: Hysteresis,
    trigger: Trigger,
    watcher: Option<Watcher>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Trigger {
    stall: Duration,
    window: Duration,
}

/// Without privileges, windows are multiples of this.
const SHARED_WINDOW: Duration = Duration::from_secs(2);

impl Trigger {
    /// As the kernel wants it: microseconds, and a zero byte at the end.
    fn text(self) -> String {
        let (stall, window) = (self.stall.as_micros(), self.window.as_micros());
        format!("some {stall} {window}\0")
    }

    /// The same share of a window that needs no privileges.
    fn unprivileged(self) -> Trigger {
        let windows = self.window.as_micros().div_ceil(SHARED_WINDOW.as_micros());
        let window = SHARED_WINDOW * windows as u32;
        Trigger {
            stall: self
                .stall
                .mul_f64(window.as_secs_f64() / self.window.as_secs_f64()),
            window,
        }
    }
}

impl Psi {
    /// The whole system's.
    pub fn system() -> Psi {
        Psi::at("/proc/pressure/memory")
    }

    /// That of the process' own cgroup.
    ///
    /// # Errors
    /// There is no hierarchy of version 2, or it is not visible.
    pub fn cgroup() -> Result<Psi, PressureError> {
        Psi::cgroup_at("/")
    }

    /// As [`Psi::cgroup`], with `proc` and the mounts below the directory
    /// `root`.
    ///
    /// # Errors
    /// As there.
    pub fn cgroup_at(root: impl AsRef<Path>) -> Result<Psi, PressureError> {
        let group = unified_group(root.as_ref())?
            .ok_or(PressureError::Unknown("the pressure in a cgroup"))?;
        Ok(Psi::at(group.levels[0].join("memory.pressure")))
    }

    /// What this file says. Marks of 0.1 and 0.05.
    pub fn at(path: impl Into<PathBuf>) -> Psi {
        Psi {
            path: path.into(),
            marks: Marks::known(0.1, 0.05),
            state: Hysteresis::default(),
            trigger: Trigger {
                stall: Duration::from_millis(150),
                window: Duration::from_secs(1),
            },
            watcher: None,
        }
    }

    /// Pressure begins above `high` and ends at `low`, both shares of the time.
    ///
    /// # Errors
    /// Unless `0.0 <= low < high <= 1.0`.
    pub fn marks(mut self, high: f64, low: f64) -> Result<Psi, MarksError> {
        self.marks = Marks::new(high, low)?;
        Ok(self)
    }

    /// The kernel wakes the reclaimer when tasks stalled for `stall` within a
    /// `window`.
    ///
    /// # Errors
    /// Unless `0 < stall <= window` and the window has 500 ms to 10 s.
    pub fn trigger(mut self, stall: Duration, window: Duration) -> Result<Psi, TriggerError> {
        let windows = Duration::from_millis(500)..=Duration::from_secs(10);
        // The kernel counts microseconds.
        if stall < Duration::from_micros(1) || stall > window || !windows.contains(&window) {
            return Err(TriggerError { stall, window });
        }
        self.trigger = Trigger { stall, window };
        Ok(self)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read (`Unsupported` or not there without `CONFIG_PSI`), or
    /// says something else.
    pub fn stalls(&self) -> Result<Stalls, PressureError> {
        let text = read(&self.path)?;
        parse(&text).ok_or_else(|| malformed(&self.path, "`some` and `full` averages", &text))
    }

    /// Whether the kernel was asked to wake the reclaimer and still will.
    pub fn is_watching(&self) -> bool {
        self.watcher
            .as_ref()
            .is_some_and(|watcher| !watcher.signals.gone.load(Ordering::Acquire))
    }

    fn io(&self, source: io::Error) -> PressureError {
        PressureError::Io {
            path: self.path.clone(),
            source,
        }
    }

    /// The file, with the trigger in it. It lasts while the file is open.
    fn armed(&self) -> io::Result<File> {
        if !sys::WAITS_FOR_PRIORITY {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut file = File::options().read(true).write(true).open(&self.path)?;
        match file.write_all(self.trigger.text().as_bytes()) {
            Err(refused) if refused.kind() == io::ErrorKind::InvalidInput => {
                file.write_all(self.trigger.unprivileged().text().as_bytes())?;
            }
            done => done?,
        }
        Ok(file)
    }
}

impl PressureSource for Psi {
    fn name(&self) -> &'static str {
        "psi"
    }

    fn read(&mut self, figures: &Figures) -> Result<Pressure, PressureError> {
        let mut fired = false;
        if let Some(watcher) = &self.watcher {
            // Relaxed: the bell that brought us here orders what matters, and
            // a firing that is missed wakes us again.
            fired = watcher.signals.fired.swap(false, Ordering::Relaxed);
            if watcher.signals.gone.load(Ordering::Acquire) {
                self.watcher = None;
                return Err(self.io(io::Error::new(
                    io::ErrorKind::NotConnected,
                    "the trigger is gone: from now on only its averages are read",
                )));
            }
        }
        let stalls = self.stalls()?;
        // In hundredths of a percent, as the kernel tells them.
        let share = |percent: f64| (percent * 100.0).round() as u64;
        let some = self
            .state
            .judge(self.marks, share(stalls.some.avg10), 10_000, 1.0);
        // No memory of its own: whether all tasks stall is asked anew each time.
        let full = Hysteresis::default().judge(self.marks, share(stalls.full.avg10), 10_000, 1.0);
        let charged = figures.charged_bytes;
        Ok(if !full.is_none() {
            Pressure::new(Urgency::Critical, charged / 10)
        } else if fired || some.urgency >= Urgency::High {
            Pressure::new(Urgency::High, charged / 20)
        } else {
            Pressure::new(some.urgency, 0)
        })
    }

    /// # Errors
    /// The kernel has no such file, does not let this process write to it, or
    /// knows no triggers.
    fn watch(&mut self, waker: PressureWaker) -> Result<(), PressureError> {
        self.watcher = None;
        let watcher = self
            .armed()
            .and_then(|file| Watcher::start(file, waker))
            .map_err(|refused| self.io(refused))?;
        self.watcher = Some(watcher);
        Ok(())
    }
}

fn parse(text: &str) -> Option<Stalls> {
    let stall = |name: &str| {
        let mut fields = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?
            .split_ascii_whitespace();
        let mut field = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=');
        let percent = |text: &str| {
            let value: f64 = text.parse().ok()?;
            (0.0..=100.0).contains(&value).then_some(value)
        };
        Some(Stall {
            avg10: percent(field("avg10")?)?,
            avg60: percent(field("avg60")?)?,
            avg300: percent(field("avg300")?)?,
            total: Duration::from_micros(field("total")?.parse().ok()?),
        })
    };
    Some(Stalls {
        some: stall("some")?,
        full: stall("full")?,
    })
}

#[derive(Debug, Default)]
struct Signals {
    /// Since the last reading.
    fired: AtomicBool,
    /// The thread has ended by itself.
    gone: AtomicBool,
}

/// The thread that waits for the trigger. It ends when this is dropped.
#[derive(Debug)]
struct Watcher {
    signals: Arc<Signals>,
    stop: PipeWriter,
    thread: Option<JoinHandle<()>>,
    /// The process that has the thread: a forked child has none, but shares
    /// the pipe.
    process: u32,
}

impl Watcher {
    fn start(file: File, waker: PressureWaker) -> io::Result<Watcher> {
        let signals = Arc::new(Signals::default());
        let (listen, stop) = io::pipe()?;
        let thread = {
            let signals = Arc::clone(&signals);
            std::thread::Builder::new()
                .name("tiered-psi".to_owned())
                .spawn(move || serve(&file, &listen, &signals, &waker))?
        };
        Ok(Watcher {
            signals,
            stop,
            thread: Some(thread),
            process: sys::process_id(),
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if self.process != sys::process_id() {
            core::mem::forget(thread);
            return;
        }
        // Fails only if the thread, which holds the other end, is gone.
        let _ = self.stop.write_all(&[0]);
        // A waker may hold the last handle of what owns the source.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}

/// The thread's whole life.
fn serve(file: &File, stop: &PipeReader, signals: &Signals, waker: &PressureWaker) {
    /// Also when the waker panics.
    struct Gone<'signals>(&'signals Signals);
    impl Drop for Gone<'_> {
        fn drop(&mut self) {
            self.0.gone.store(true, Ordering::Release);
        }
    }
    let _gone = Gone(signals);
    // An error, too, leaves nothing to wait for.
    while let Ok(roused) = sys::wait_for_priority(file, stop) {
        match roused {
            Roused::Priority => {
                signals.fired.store(true, Ordering::Relaxed);
                waker.wake();
            }
            Roused::Stopped => return,
            Roused::Gone => break,
        }
    }
    // The reclaimer reads the source and hears that it is gone.
    signals.gone.store(true, Ordering::Release);
    waker.wake();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_needs_privileges_becomes_one_that_does_not() {
        let shared = |stall, window| {
            let trigger = Trigger {
                stall: Duration::from_millis(stall),
                window: Duration::from_millis(window),
            };
            let text = trigger.unprivileged().text();
            text.trim_end_matches('\0').to_owned()
        };
        assert_eq!(shared(150, 1000), "some 300000 2000000");
        assert_eq!(shared(100, 2000), "some 100000 2000000");
        assert_eq!(shared(300, 3000), "some 400000 4000000");
        assert_eq!(shared(10_000, 10_000), "some 10000000 10000000");
    }

    #[cfg(all(unix, not(tiered_allocator_portable)))]
    mod watching {
        use super::super::*;
        use std::net::{TcpListener, TcpStream};
        use std::os::fd::OwnedFd;
        use std::sync::mpsc;

        /// A file that can have priority data, and who sends them.
        fn wire() -> (File, TcpStream) {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (far, _) = listener.accept().unwrap();
            (File::from(OwnedFd::from(near)), far)
        }

        /// A source with a calm file, and what tells that it was woken.
        fn watching(file: File) -> (Psi, mpsc::Receiver<()>, tempfile::NamedTempFile) {
            let averages = tempfile::NamedTempFile::new().unwrap();
            let calm = "avg10=0.00 avg60=0.00 avg300=0.00 total=0";
            std::fs::write(averages.path(), format!("some {calm}\nfull {calm}\n")).unwrap();
            let (woken, wait) = mpsc::channel();
            let waker = PressureWaker::new(move || {
                let _ = woken.send(());
            });
            let mut psi = Psi::at(averages.path());
            psi.watcher = Some(Watcher::start(file, waker).unwrap());
            (psi, wait, averages)
        }

        fn figures() -> Figures {
            Figures {
                charged_bytes: 1000,
                ..Figures::default()
            }
        }

        #[test]
        fn a_trigger_that_fires_wakes_and_counts_as_pressure_whatever_the_averages_say() {
            let (file, kernel) = wire();
            let (mut psi, woken, _averages) = watching(file);
            assert_eq!(psi.read(&figures()).unwrap(), Pressure::NONE);
            sys::send_urgent(&kernel);
            woken.recv().unwrap();
            let pressure = psi.read(&figures()).unwrap();
            assert_eq!(pressure, Pressure::new(Urgency::High, 50));
            assert!(psi.is_watching());
        }

        #[test]
        fn a_trigger_that_is_gone_wakes_once_and_the_averages_remain() {
            let (file, kernel) = io::pipe().unwrap();
            let (mut psi, woken, _averages) = watching(File::from(OwnedFd::from(file)));
            drop(kernel);
            // The last message comes before the thread drops the waker.
            assert!(woken.recv().is_ok());
            assert!(woken.recv().is_err());
            assert!(!psi.is_watching());
            let told = psi.read(&figures());
            assert!(matches!(told, Err(PressureError::Io { .. })), "{told:?}");
            assert_eq!(psi.read(&figures()).unwrap(), Pressure::NONE);
        }

        #[test]
        fn the_thread_ends_with_its_source() {
            let (file, _kernel) = wire();
            let (psi, woken, _averages) = watching(file);
            drop(psi);
            // It held the other end.
            assert!(
                woken
                    .try_recv()
                    .is_err_and(|e| e == mpsc::TryRecvError::Disconnected)
            );
        }

        #[test]
        fn a_waker_that_panics_ends_the_thread_and_nothing_else() {
            let (file, kernel) = wire();
            let averages = tempfile::NamedTempFile::new().unwrap();
            let mut psi = Psi::at(averages.path());
            let waker = PressureWaker::new(|| panic!("a waker that must not"));
            psi.watcher = Some(Watcher::start(file, waker).unwrap());
            sys::send_urgent(&kernel);
            while psi.is_watching() {
                std::thread::yield_now();
            }
            assert!(psi.read(&figures()).is_err());
        }
    }
}
