//! `fork` while other threads are in the middle of a memory's own work: its
//! clients, its blocks, its reclaimer. The child can go on with all of it.
#![cfg(all(target_os = "linux", not(tiered_allocator_portable)))]

mod common;
#[path = "support/forked.rs"]
mod forked;
#[path = "support/shortage.rs"]
mod shortage;
#[path = "support/until.rs"]
mod until;

use forked::in_a_child;
use serial_test::serial;
use shortage::{BLOCK, MIB, all_of, count, strict};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tiered_allocator::clock::ManualClock;
use tiered_allocator::pressure::{Figures, Pressure, PressureError, PressureSource};
use tiered_allocator::{EventKind, Memory, MemoryBlock, SubscriptionTier};
use until::{Stops, until};

const LEN: usize = 1 << 16;
const LONG: Duration = Duration::from_secs(3600);

/// One of everything that a memory offers.
fn use_all(memory: &Memory, clock: &ManualClock, name: &str) {
    memory.add_client(name, SubscriptionTier::Premium).unwrap();
    let client = memory.client(name).unwrap();
    let mut block = memory.allocate_for_client(name, LEN).unwrap();
    block.pin_mut().unwrap().fill(3);
    clock.advance(LONG);
    memory.tick();
    memory.reclaim_unused_memory();
    let pin = block.pin().unwrap();
    assert!(pin.iter().all(|&byte| byte == 3));
    assert_eq!(client.usage().live_bytes, LEN as u64);
    drop(pin);
    client.set_tier(SubscriptionTier::Enterprise).unwrap();
    memory.deallocate_for_client(name, block).unwrap();
    assert_eq!(client.usage().live_bytes, 0);
    assert!(memory.snapshot().clients.iter().any(|c| *c.name == *name));
    let new_name = format!("{name}, renamed");
    memory.rename_client(name, &new_name).unwrap();
    memory.remove_client(&new_name).unwrap();
}

#[test]
#[serial]
fn a_child_goes_on_with_whatever_other_threads_did_with_the_memory() {
    const FORKS: usize = 100;
    const BLOCKS: usize = 8;
    let (memory, clock) = common::timed(1 << 30, |builder| builder);
    memory.add_client("c", SubscriptionTier::Premium).unwrap();
    let client = memory.client("c").unwrap();
    let blocks: Vec<MemoryBlock> = (0..BLOCKS)
        .map(|_| {
            let mut block = memory.allocate_for_client("c", LEN).unwrap();
            block.pin_mut().unwrap().fill(5);
            block
        })
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let going = || !stop.load(Ordering::Relaxed);
        let (memory, clock, blocks) = (&memory, &clock, &blocks);
        scope.spawn(move || {
            while going() {
                use_all(memory, clock, "busy");
            }
        });
        scope.spawn(move || {
            while going() {
                clock.advance(LONG);
                memory.reclaim_unused_memory();
                for block in blocks {
                    let _ = block.pin();
                }
            }
        });
        let _stops = Stops(&stop);
        let mut were_at_hand = 0;
        for _ in 0..FORKS {
            in_a_child(|| {
                // Each is there with what was written, or in a file that is the
                // parent's; and charged if it is there.
                let at_hand = blocks.iter().filter(|block| match block.pin() {
                    Ok(pin) => {
                        assert!(pin.iter().all(|&byte| byte == 5));
                        true
                    }
                    Err(error) => {
                        assert!(error.to_string().contains("fork"), "{error}");
                        assert_eq!(block.resident_bytes(), 0);
                        false
                    }
                });
                let at_hand = at_hand.count();
                assert_eq!(client.usage().live_bytes, (at_hand * LEN) as u64);
                use_all(memory, clock, "child");
            });
            were_at_hand += blocks.iter().filter(|block| block.pin().is_ok()).count();
        }
        assert_eq!(were_at_hand, FORKS * BLOCKS, "the parent has them all");
    });
    assert!(blocks.iter().all(|block| block.pin().is_ok()));
    assert_eq!(client.usage().live_bytes, (BLOCKS * LEN) as u64);
    drop(blocks);
    assert_eq!(client.usage().live_bytes, 0);
}

/// Notes what a lock of `std` shows while it is held.
#[derive(Default)]
struct Watches {
    is_locked: bool,
    text: String,
}

impl std::fmt::Write for Watches {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        self.text.push_str(part);
        self.is_locked |= part == "data";
        Ok(())
    }
}

/// Somebody may be printing it when another thread forks, however slowly.
#[test]
#[serial]
fn a_pin_is_printed_without_a_lock() {
    let (memory, _) = common::timed(1 << 30, |builder| builder);
    memory.add_client("c", SubscriptionTier::Premium).unwrap();
    let block = memory.allocate_for_client("c", LEN).unwrap();
    let pin = block.pin().unwrap();
    let mut watches = Watches::default();
    std::fmt::Write::write_fmt(&mut watches, format_args!("{pin:?}")).unwrap();
    assert!(watches.text.contains("whereabouts"), "{}", watches.text);
    assert!(!watches.is_locked, "{}", watches.text);
}

/// Says that it is being read, and does not come back before it may.
struct Waits {
    is_read: Sender<()>,
    may_go_on: Receiver<()>,
}

impl PressureSource for Waits {
    fn name(&self) -> &'static str {
        "waits"
    }

    fn read(&mut self, _: &Figures) -> Result<Pressure, PressureError> {
        let _ = self.is_read.send(());
        let _ = self.may_go_on.recv();
        Ok(Pressure::NONE)
    }
}

#[test]
#[serial]
fn a_child_of_a_climb_climbs_itself() {
    let (is_read, reading) = channel();
    let (go_on, may_go_on) = channel();
    let source = Waits { is_read, may_go_on };
    let (memory, _) = shortage::timed(|builder| builder.pressure_source(source));
    // What is lent to `high` is in nobody's cache: `low` is asked to stop.
    let low = strict(&memory, "low", SubscriptionTier::Basic);
    let mut held = all_of(&low, 80 * MIB);
    let high = strict(&memory, "high", SubscriptionTier::Enterprise);
    let lent = all_of(&high, 5 * MIB);
    let climb = || memory.tick();
    go_on.send(()).unwrap();
    climb();
    reading.recv().unwrap();
    low.checkpoint().unwrap_err();
    let mut go_on = Some(go_on);
    std::thread::scope(|scope| {
        // Dropped in any case, and then the climb goes on.
        let go_on = go_on.take();
        scope.spawn(climb);
        reading.recv().unwrap();
        in_a_child(|| {
            // Nobody would ever let `low` go on.
            memory.tick();
            let _ = low.checkpoint();
            held.truncate(held.len() - 6 * 16);
            memory.tick();
            assert_eq!(memory.usage().overdrawn_bytes, 0);
            low.checkpoint().unwrap();
            let cache = common::offer(&low, core::mem::take(&mut held));
            let more = all_of(&high, 10 * MIB);
            memory.tick();
            assert_eq!(memory.usage().overdrawn_bytes, 0);
            assert!((cache.lock().unwrap().len() as u64) < 66 * MIB / BLOCK);
            drop(more);
            // A grandchild, too.
            in_a_child(|| memory.tick());
        });
        drop(go_on);
    });
    low.checkpoint().unwrap_err();
    drop((held, lent));
    climb();
    low.checkpoint().unwrap();
}

#[test]
#[serial]
fn a_child_asks_caches_on_a_thread_of_its_own() {
    const FORKS: u64 = 10;
    for fork in 0..FORKS {
        // No call is late, however busy the machine is.
        let patient = shortage::ladder().call(LONG);
        let (memory, _) = shortage::timed(|builder| builder.background(true).ladder(patient));
        let low = strict(&memory, "low", SubscriptionTier::Basic);
        let cache = Arc::new(Mutex::new(all_of(&low, 80 * MIB)));
        let gives = Arc::new(AtomicBool::new(false));
        let calls = Arc::new(AtomicUsize::new(0));
        // Two callbacks: one may be in the middle of a call by the parent when it
        // forks, and stays so in the child.
        for _ in 0..2 {
            let (cache, gives, calls) = (cache.clone(), gives.clone(), calls.clone());
            let give = move |request| {
                calls.fetch_add(1, Ordering::Relaxed);
                match gives.load(Ordering::Relaxed) {
                    true => common::give(&cache, request),
                    false => 0,
                }
            };
            low.register_reclaimer(give).unwrap().keep();
        }
        let high = strict(&memory, "high", SubscriptionTier::Enterprise);
        let _lent = all_of(&high, 5 * MIB);
        until("two calls", || calls.load(Ordering::Relaxed) >= 2);
        // Mostly between two climbs, the parent's thread for calls at hand: at
        // another moment each time, on which nothing else depends.
        std::thread::sleep(Duration::from_millis(fork));
        assert!(memory.usage().overdrawn_bytes >= 5 * MIB);
        in_a_child(|| {
            assert!(!memory.has_reclaimer_thread());
            let late = count(&memory, EventKind::ReclaimerLate);
            gives.store(true, Ordering::Relaxed);
            // Callbacks that gave nothing are left out of some rounds.
            for _ in 0..200 {
                memory.tick();
            }
            assert_eq!(memory.usage().overdrawn_bytes, 0);
            assert_eq!(count(&memory, EventKind::ReclaimerLate), late);
        });
    }
}
