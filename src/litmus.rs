//! The asymmetric fence on the machine itself: the one thing that no model
//! shows. An owner charges (a store, a compiler fence, a load) while a revoker
//! bars the account, fences and looks at the balance; the pattern is known as
//! "store buffering". With `membarrier` the two never both get the same bytes.
//! Without it (an ordinary full fence on the revoker's side alone) they do, if
//! the owner's store is slow to leave its processor; how often is reported and
//! not asserted, as it depends on the machine.
//!
//! `LITMUS_SECONDS` makes it longer.

use crate::ledger::account::Account;
use crate::owner::Tag;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence, spin_loop};
use crate::sys;
use std::time::{Duration, Instant};

/// Stores that each charge has to wait behind: the owner's processor keeps
/// them in order, and each goes to a line that is in no cache.
const SLOW_STORES: usize = 12;
const FAR_LINES: usize = 1 << 20;
const LINE_WORDS: usize = 8;

#[repr(align(128))]
struct Lane(AtomicU32);

struct Bench {
    account: Account,
    /// Rounds that the owner, and the revoker, have come to.
    owner: Lane,
    revoker: Lane,
    owner_done: Lane,
    revoker_done: Lane,
    far: Box<[AtomicU64]>,
}

#[derive(Debug, Default)]
struct Counts {
    rounds: u64,
    /// The charge stood, and was not seen to.
    both: u64,
    charged: u64,
}

/// Binds the calling thread to one of the processors that it may run on.
fn pin_to(number: usize) {
    // SAFETY: the set is ours, of the size that is passed; the calls touch
    // nothing else.
    unsafe {
        let mut allowed: libc::cpu_set_t = core::mem::zeroed();
        let size = size_of::<libc::cpu_set_t>();
        if libc::sched_getaffinity(0, size, &mut allowed) != 0 {
            return;
        }
        let cpus: Vec<usize> = (0..libc::CPU_SETSIZE as usize)
            .filter(|&cpu| libc::CPU_ISSET(cpu, &allowed))
            .collect();
        let mut one: libc::cpu_set_t = core::mem::zeroed();
        libc::CPU_SET(cpus[number % cpus.len()], &mut one);
        libc::sched_setaffinity(0, size, &one);
    }
}

fn await_round(lane: &Lane, round: u32) {
    for spins in 0_u64.. {
        if lane.0.load(Ordering::Acquire) >= round {
            return;
        }
        if spins % 4096 == 4095 {
            sys::yield_now();
        }
        spin_loop();
    }
}

fn next(random: &mut u64) -> usize {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    (*random >> 11) as usize
}

fn linger(random: &mut u64, most: usize) {
    for _ in 0..next(random) % most {
        spin_loop();
    }
}

/// Rounds until the time is over, or `most`; the revoker's fence is `fence`.
fn race(time: Duration, most: u32, fence: impl Fn() + Sync) -> Counts {
    let bench = Bench {
        account: Account::nobody(),
        owner: Lane(AtomicU32::new(0)),
        revoker: Lane(AtomicU32::new(0)),
        owner_done: Lane(AtomicU32::new(0)),
        revoker_done: Lane(AtomicU32::new(0)),
        far: (0..FAR_LINES * LINE_WORDS)
            .map(|_| AtomicU64::new(1))
            .collect(),
    };
    bench.account.claim(Tag::of(1), 1);
    const STOP: u32 = u32::MAX;
    let charged = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin_to(0);
            let mut random = 0x9E37_79B9_7F4A_7C15;
            for round in 1.. {
                // Nobody looks at the account of the last round any more.
                await_round(&bench.revoker_done, round - 1);
                bench.account.place(0, 100, 100);
                let lines: [usize; SLOW_STORES] =
                    core::array::from_fn(|_| next(&mut random) % FAR_LINES * LINE_WORDS);
                bench.owner.0.store(round, Ordering::Release);
                await_round(&bench.revoker, round);
                if bench.revoker.0.load(Ordering::Relaxed) == STOP {
                    return;
                }
                linger(&mut random, 128);
                for line in lines {
                    bench.far[line].store(round.into(), Ordering::Relaxed);
                }
                let stands = bench.account.charge(60);
                if !stands {
                    bench.account.withdraw(60);
                }
                charged.store(stands.into(), Ordering::Relaxed);
                bench.owner_done.0.store(round, Ordering::Release);
            }
        });
        let revoker = scope.spawn(|| {
            pin_to(1);
            let mut random = 0xD1B5_4A32_D192_ED03;
            let mut counts = Counts::default();
            let started = Instant::now();
            for round in 1..=most {
                await_round(&bench.owner, round);
                if round % 64 == 0 && started.elapsed() > time {
                    break;
                }
                bench.revoker.0.store(round, Ordering::Release);
                linger(&mut random, 256);
                bench.account.bar();
                fence();
                let seized = bench.account.seize();
                await_round(&bench.owner_done, round);
                let stands = charged.load(Ordering::Relaxed) == 1;
                counts.rounds += 1;
                counts.charged += u64::from(stands);
                counts.both += u64::from(stands && seized > 40);
                bench.revoker_done.0.store(round, Ordering::Release);
            }
            bench.revoker.0.store(STOP, Ordering::Release);
            counts
        });
        revoker.join().unwrap()
    })
}

#[test]
fn with_membarrier_a_charge_is_seen_or_sees_the_bar() {
    if !sys::heavy_fence_available() {
        println!("membarrier is refused here: nobody has credit, nothing to race for");
        return;
    }
    let seconds = std::env::var("LITMUS_SECONDS").ok();
    let seconds: Option<u64> = seconds.and_then(|text| text.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(1));
    let most = seconds.map_or(100_000, |_| u32::MAX - 1);
    let off = race(time, most, || fence(Ordering::SeqCst));
    println!("without membarrier: {off:?}");
    let on = race(time, most, || assert!(sys::heavy_fence()));
    println!("with membarrier: {on:?}");
    assert!(on.rounds > 0);
    assert_eq!(on.both, 0, "{on:?}");
}
