//! Sources of pressure drive the ladder: read when it is time, believed when
//! they can tell, and followed up to the purge and the last rung.

mod common;

use common::{Bytes, offer, timed};
use serial_test::serial;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tiered_allocator::clock::ManualClock;
use tiered_allocator::pressure::{
    Figures, Pressure, PressureError, PressureSource, PressureWaker, Urgency,
};
use tiered_allocator::purge::{Purge, Purged};
use tiered_allocator::{Client, Memory, Rung, SubscriptionTier, TieredAllocator};

use SubscriptionTier::{Basic, Enterprise};

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// Says what it is told to say, and remembers what it was asked with.
#[derive(Clone, Default)]
struct Switch {
    says: Arc<Mutex<Option<Pressure>>>,
    reads: Arc<AtomicUsize>,
    figures: Arc<Mutex<Figures>>,
}

impl Switch {
    fn set(&self, urgency: Urgency, mib: u64) {
        *self.says.lock().unwrap() = Some(Pressure::new(urgency, mib * MIB));
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }
}

impl PressureSource for Switch {
    fn name(&self) -> &'static str {
        "switch"
    }

    fn read(&mut self, figures: &Figures) -> Result<Pressure, PressureError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        *self.figures.lock().unwrap() = *figures;
        Ok(self.says.lock().unwrap().unwrap_or(Pressure::NONE))
    }
}

struct Broken;

impl PressureSource for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn read(&mut self, _: &Figures) -> Result<Pressure, PressureError> {
        Err(PressureError::Unknown("anything"))
    }

    fn watch(&mut self, _: PressureWaker) -> Result<(), PressureError> {
        Err(PressureError::Unknown("when"))
    }
}

struct Panics;

impl PressureSource for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }

    fn read(&mut self, _: &Figures) -> Result<Pressure, PressureError> {
        panic!("a broken source")
    }
}

#[derive(Clone, Default)]
struct Counted(Arc<AtomicU64>);

impl Purge for Counted {
    fn purge(&self) -> io::Result<Purged> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(Purged::Asked)
    }
}

struct Setup {
    memory: Memory,
    clock: Arc<ManualClock>,
    switch: Switch,
    purge: Counted,
    client: Client,
    cache: Arc<Mutex<Vec<Bytes>>>,
}

fn setup() -> Setup {
    let (switch, purge) = (Switch::default(), Counted::default());
    let (memory, clock) = timed(1000 * MIB, |builder| {
        builder
            .pressure_source(Panics)
            .pressure_source(switch.clone())
            .pressure_source(Broken)
            .purge(purge.clone())
    });
    let client = memory.register("a", Basic).unwrap();
    let block = || Bytes::of(&client, 64 * 1024).unwrap();
    let cache = offer(&client, (0..40 * 16).map(|_| block()).collect());
    Setup {
        memory,
        clock,
        switch,
        purge,
        client,
        cache,
    }
}

impl Setup {
    fn cached_mib(&self) -> u64 {
        self.cache.lock().unwrap().len() as u64 / 16
    }
}

#[test]
#[serial]
fn a_source_is_read_when_its_time_has_come_with_the_ledgers_figures() {
    assert!(TieredAllocator::is_installed());
    let setup = setup();
    setup.memory.tick();
    assert_eq!(setup.switch.reads(), 0);
    setup.clock.advance(SECOND);
    setup.memory.tick();
    setup.memory.tick();
    assert_eq!(setup.switch.reads(), 1);
    let figures = *setup.switch.figures.lock().unwrap();
    assert_eq!(figures.total_bytes, 1000 * MIB);
    assert_eq!(figures.usable_bytes, 800 * MIB);
    assert!((40 * MIB..42 * MIB).contains(&figures.charged_bytes));
    #[cfg(all(target_os = "linux", not(tiered_allocator_portable)))]
    assert!(figures.resident_set_bytes.is_some_and(|bytes| bytes > MIB));
    // Nothing was wanted, so nothing was done.
    assert_eq!(setup.cached_mib(), 40);
    assert_eq!(setup.purge.0.load(Ordering::SeqCst), 0);
    // The others could not tell, which is counted and harms nobody.
    assert_eq!(setup.memory.snapshot().reclaim.failed_sources, 2);
}

#[test]
#[serial]
fn what_a_source_wants_is_taken_and_the_allocator_purged_no_more_often_than_told() {
    let setup = setup();
    setup.switch.set(Urgency::High, 10);
    setup.clock.advance(SECOND);
    setup.memory.tick();
    assert_eq!(setup.cached_mib(), 30);
    assert_eq!(setup.purge.0.load(Ordering::SeqCst), 1);
    assert!(setup.memory.snapshot().reclaim.under_pressure);
    setup.clock.advance(SECOND / 2);
    setup.memory.tick();
    assert_eq!(setup.purge.0.load(Ordering::SeqCst), 1);
    setup.clock.advance(SECOND / 2);
    setup.memory.tick();
    assert_eq!(setup.purge.0.load(Ordering::SeqCst), 2);
    // High is no reason to stop anybody.
    assert!(setup.client.checkpoint().is_ok());
    setup.switch.set(Urgency::Idle, 0);
    setup.clock.advance(SECOND);
    setup.memory.tick();
    let reclaim = setup.memory.snapshot().reclaim;
    assert!(!reclaim.under_pressure);
    assert_eq!(reclaim.rungs[Rung::Purge as usize].climbed, 2);
    assert_eq!(reclaim.stopped_clients, 0);
}

/// What nobody is charged for counts, too: the memory makes room for it.
#[test]
#[serial]
#[cfg(all(target_os = "linux", not(tiered_allocator_portable)))]
fn a_process_that_grows_beyond_the_books_makes_the_clients_give_back() {
    use tiered_allocator::pressure::ResidentSet;

    let purge = Counted::default();
    // Other tests have left something resident, backtraces for instance.
    let resident = Memory::new(MIB).snapshot().resident_set_bytes.unwrap();
    let total = 2 * (resident + 50 * MIB);
    let low = (resident + 30 * MIB) as f64 / total as f64;
    let (memory, clock) = timed(total, |builder| {
        builder
            .pressure_source(ResidentSet::new(0.5, low).unwrap())
            .purge(purge.clone())
    });
    let client = memory.register("a", Basic).unwrap();
    let block = || Bytes::of(&client, 64 * 1024).unwrap();
    let cache = offer(&client, (0..20 * 16).map(|_| block()).collect());
    let cached_mib = || cache.lock().unwrap().len() / 16;
    let look = || {
        clock.advance(SECOND);
        memory.tick();
        memory.snapshot().reclaim.under_pressure
    };
    assert!(!look());
    assert_eq!(cached_mib(), 20);
    // 50 MiB more are too many; none of these is in the books.
    let ballast = vec![1_u8; 100 << 20];
    assert!(look());
    // All that is beyond the client's guarantee.
    assert!(cached_mib() < 5, "{}", cached_mib());
    assert_eq!(purge.0.load(Ordering::SeqCst), 1);
    drop(ballast);
    assert!(!look());
    assert_eq!(memory.snapshot().reclaim.failed_sources, 0);
}

#[test]
#[serial]
fn at_the_systems_limit_the_worst_borrower_is_stopped_and_goes_on_afterwards() {
    let setup = setup();
    let big = setup.memory.register("big", Enterprise).unwrap();
    let _held = Bytes::of(&big, 100 << 20).unwrap();
    let _work = Bytes::of(&setup.client, 20 << 20).unwrap();
    setup.switch.set(Urgency::Critical, 50);
    setup.clock.advance(SECOND);
    setup.memory.tick();
    // All of the cache, and then the work of the lowest tier.
    assert_eq!(setup.cached_mib(), 0);
    assert!(setup.client.checkpoint().is_err());
    assert!(big.checkpoint().is_ok());
    setup.switch.set(Urgency::High, 10);
    setup.clock.advance(SECOND);
    setup.memory.tick();
    assert!(setup.client.checkpoint().is_ok());
}

#[test]
#[serial]
fn a_source_that_notices_by_itself_wakes_the_reclaimer() {
    struct Alarm {
        waker: mpsc::Sender<PressureWaker>,
        read: mpsc::Sender<()>,
    }
    impl PressureSource for Alarm {
        fn name(&self) -> &'static str {
            "alarm"
        }

        fn read(&mut self, _: &Figures) -> Result<Pressure, PressureError> {
            let _ = self.read.send(());
            Ok(Pressure::NONE)
        }

        fn watch(&mut self, waker: PressureWaker) -> Result<(), PressureError> {
            let _ = self.waker.send(waker);
            Ok(())
        }
    }
    let (waker, wakers) = mpsc::channel();
    let (read, reads) = mpsc::channel();
    let memory = Memory::builder(1000 * MIB)
        // Time stands still: only the waker can have it read.
        .clock(Arc::new(ManualClock::default()))
        .pressure_source(Alarm { waker, read })
        .build()
        .unwrap();
    let waker = wakers.recv().unwrap();
    for _ in 0..3 {
        waker.wake();
        reads.recv().unwrap();
    }
    // It outlives the memory and does no harm.
    drop(memory);
    waker.wake();
}

#[test]
#[serial]
fn a_purge_that_fails_or_panics_is_no_gain_and_no_harm() {
    struct Fails(Arc<AtomicU64>);
    impl Purge for Fails {
        fn purge(&self) -> io::Result<Purged> {
            if self.0.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err(io::ErrorKind::Unsupported.into());
            }
            panic!("a broken purge")
        }
    }
    let (switch, calls) = (Switch::default(), Arc::new(AtomicU64::new(0)));
    let (memory, clock) = timed(1000 * MIB, |builder| {
        builder
            .pressure_source(switch.clone())
            .purge(Fails(Arc::clone(&calls)))
    });
    switch.set(Urgency::High, 1);
    for round in 1..=2 {
        clock.advance(SECOND);
        memory.tick();
        assert_eq!(calls.load(Ordering::SeqCst), round);
    }
    assert_eq!(
        memory.snapshot().reclaim.rungs[Rung::Purge as usize].climbed,
        0
    );
}
