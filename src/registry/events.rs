//! Evidence: a bounded ring of what budgets refused and lent, and of what the
//! reclaimer took back.
//!
//! Written from the cold path, by any thread, without waiting and without
//! allocating; read by whoever wants to know. Old records make way for new
//! ones, and a reader learns how many it missed.
//!
//! # Orderings
//! Each record has a stamp: odd while it is being written, even (twice its
//! number, plus two) when it is whole. A writer claims the record by
//! compare-and-swap with `Acquire`, fences with `Release` (the odd stamp comes
//! before the fields), writes the fields `Relaxed` and stores the even stamp
//! with `Release`. A reader loads the stamp with `Acquire`, the fields, fences
//! with `Acquire` and compares the stamp. A writer that finds the record taken
//! by another, a whole ring ahead or behind, gives up its own.

use super::budget::{BudgetNode, Refusal};
use crate::sync::{AtomicU64, Ordering, bound, fence};
use std::time::SystemTime;

/// Records that are kept.
pub(crate) const KEPT: usize = bound(1024, 2);

/// Records that may be begun and not written yet: older ones that are not
/// there were given up.
const IN_FLIGHT: u64 = bound(64, 1) as u64;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum EventKind {
    /// A request was refused.
    Refused,
    /// A client went past its limits and draws on the headroom.
    Overdraft,
    /// A safe point ended a client's work because it was over its quota.
    Cancelled,
    /// A client was removed; what it holds is retired.
    Retired,
    /// A removed client's last byte is gone.
    Closed,
    /// A request went past the limits and was granted because the client is
    /// only observed.
    Observed,
    /// An idle block could not be written out and stays in memory:
    /// [`Event::os_error`](crate::Event::os_error) says why, `requested` is its
    /// size, `charged` and `limit` are the spill file's.
    SpillFailed,
    /// The ladder took `requested` bytes from a client.
    Reclaimed,
    /// The ladder asked a client's work to stop; its next safe point does.
    AskedToStop,
    /// A client's reclaimer panicked and is not asked again.
    ReclaimerPanicked,
    /// A client's reclaimer did not answer in time. It is asked again when it
    /// has.
    ReclaimerLate,
    /// Memory became scarce: `requested` bytes are wanted back.
    PressureBegan,
    /// It is no longer.
    PressureEnded,
    /// A client within its limits was lent what lower tiers hold, and they hold
    /// too little to make up for it: nobody is stopped for it.
    Infeasible,
}

const KINDS: [EventKind; 14] = [
    EventKind::Refused,
    EventKind::Overdraft,
    EventKind::Cancelled,
    EventKind::Retired,
    EventKind::Closed,
    EventKind::Observed,
    EventKind::SpillFailed,
    EventKind::Reclaimed,
    EventKind::AskedToStop,
    EventKind::ReclaimerPanicked,
    EventKind::ReclaimerLate,
    EventKind::PressureBegan,
    EventKind::PressureEnded,
    EventKind::Infeasible,
];

const NODES: [BudgetNode; 5] = [
    BudgetNode::Request,
    BudgetNode::Client,
    BudgetNode::Tier,
    BudgetNode::Memory,
    BudgetNode::Removed,
];

/// One record, before its numbers get names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    /// Since 1970, in nanoseconds.
    pub(crate) time_ns: u64,
    pub(crate) kind: EventKind,
    pub(crate) tier: usize,
    pub(crate) index: u32,
    pub(crate) generation: u32,
    pub(crate) refusal: Refusal,
    /// The system's error number; 0 for none.
    pub(crate) os_error: i32,
}

/// `u64` words of one record, behind its stamp.
const WORDS: usize = 6;

#[repr(align(64))]
struct Entry {
    stamp: AtomicU64,
    words: [AtomicU64; WORDS],
}

/// See the module's description.
pub(crate) struct Events {
    /// Records begun so far.
    next: AtomicU64,
    entries: Box<[Entry]>,
}

impl Events {
    pub(crate) fn new() -> Events {
        let entry = |_| Entry {
            stamp: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; WORDS],
        };
        Events {
            next: AtomicU64::new(0),
            entries: (0..KEPT).map(entry).collect(),
        }
    }

    /// Leaves a record of something that happens now.
    pub(crate) fn leave(
        &self,
        kind: EventKind,
        tier: usize,
        index: u32,
        generation: u32,
        refusal: Refusal,
        os_error: i32,
    ) {
        let time_ns = SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(0, |time| time.as_nanos() as u64);
        self.write(Record {
            time_ns,
            kind,
            tier,
            index,
            generation,
            refusal,
            os_error,
        });
    }

    fn write(&self, record: Record) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = &self.entries[number as usize % KEPT];
        let before = entry.stamp.load(Ordering::Relaxed);
        let writing = 2 * number + 1;
        if before & 1 == 1 || before > writing {
            return;
        }
        if entry
            .stamp
            .compare_exchange(before, writing, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return;
        }
        fence(Ordering::Release);
        for (word, value) in entry.words.iter().zip(pack(&record)) {
            word.store(value, Ordering::Relaxed);
        }
        entry.stamp.store(writing + 1, Ordering::Release);
    }

    /// The records from number `from` on that are still there, oldest first,
    /// with their numbers, and the number to go on from.
    pub(crate) fn read(&self, from: u64) -> (Vec<(u64, Record)>, u64) {
        let next = self.next.load(Ordering::Acquire);
        let first = from.max(next.saturating_sub(KEPT as u64));
        let mut records = Vec::new();
        for number in first..next {
            match self.record(number) {
                Some(record) => records.push((number, record)),
                // Somebody is writing it at this moment: the next read has it.
                None if next - number <= IN_FLIGHT && !self.is_past(number) => {
                    return (records, number);
                }
                None => {}
            }
        }
        (records, next)
    }

    /// Whether the place of this record has gone to a later one.
    fn is_past(&self, number: u64) -> bool {
        let stamp = self.entries[number as usize % KEPT]
            .stamp
            .load(Ordering::Relaxed);
        stamp > 2 * number + 2
    }

    fn record(&self, number: u64) -> Option<Record> {
        let entry = &self.entries[number as usize % KEPT];
        let whole = 2 * number + 2;
        if entry.stamp.load(Ordering::Acquire) != whole {
            return None;
        }
        let words = core::array::from_fn(|at| entry.words[at].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (entry.stamp.load(Ordering::Relaxed) == whole)
            .then(|| unpack(words))
            .flatten()
    }
}

fn pack(record: &Record) -> [u64; WORDS] {
    let kind = KINDS.iter().position(|&kind| kind == record.kind);
    let node = NODES.iter().position(|&node| node == record.refusal.node);
    let what = kind.unwrap_or(0) as u64
        | (node.unwrap_or(0) as u64) << 8
        | u64::from(record.tier as u16) << 16
        | u64::from(record.os_error as u32) << 32;
    [
        record.time_ns,
        what,
        u64::from(record.index) | u64::from(record.generation) << 32,
        record.refusal.requested,
        record.refusal.charged,
        record.refusal.limit,
    ]
}

fn unpack(words: [u64; WORDS]) -> Option<Record> {
    let [time_ns, what, who, requested, charged, limit] = words;
    Some(Record {
        time_ns,
        kind: *KINDS.get((what & 0xff) as usize)?,
        tier: usize::from((what >> 16) as u16),
        index: who as u32,
        generation: (who >> 32) as u32,
        refusal: Refusal {
            node: *NODES.get((what >> 8 & 0xff) as usize)?,
            requested,
            charged,
            limit,
        },
        os_error: (what >> 32) as i32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u64) -> Record {
        Record {
            time_ns: number,
            kind: KINDS[number as usize % KINDS.len()],
            tier: number as usize % 32,
            index: number as u32,
            generation: !number as u32,
            refusal: Refusal {
                node: NODES[number as usize % NODES.len()],
                requested: number,
                charged: number.wrapping_mul(3),
                limit: u64::MAX - number,
            },
            os_error: number as i32,
        }
    }

    #[test]
    fn records_come_back_as_they_were_left() {
        let events = Events::new();
        for number in 0..100 {
            events.write(record(number));
        }
        let (read, next) = events.read(10);
        assert_eq!(next, 100);
        assert_eq!(read.len(), 90);
        assert!(read.iter().all(|(number, left)| *left == record(*number)));
    }

    #[test]
    fn the_oldest_make_way_and_the_reader_sees_the_gap() {
        let events = Events::new();
        for number in 0..KEPT as u64 + 50 {
            events.write(record(number));
        }
        let (read, _) = events.read(0);
        assert_eq!(read.len(), KEPT);
        assert_eq!(read[0].0, 50);
    }

    #[test]
    fn a_record_in_the_making_is_left_for_the_next_read() {
        let events = Events::new();
        events.write(record(0));
        // Another thread has begun number 1 and is not done.
        events.next.fetch_add(1, Ordering::Relaxed);
        events.write(record(2));
        assert_eq!(events.read(0).1, 1);
        assert_eq!(events.read(1), (Vec::new(), 1));
        // It never will be: the reader goes on.
        for number in 3..3 + IN_FLIGHT {
            events.write(record(number));
        }
        let (read, next) = events.read(1);
        assert_eq!(read.first().map(|(number, _)| *number), Some(2));
        assert_eq!(next, 3 + IN_FLIGHT);
    }

    #[test]
    fn a_record_is_never_torn() {
        let events = Events::new();
        std::thread::scope(|scope| {
            for thread in 0..3u64 {
                let events = &events;
                scope.spawn(move || {
                    for number in 0..50_000 {
                        events.write(record(number * 3 + thread));
                    }
                });
            }
            let events = &events;
            scope.spawn(move || {
                for _ in 0..50 {
                    for (_, read) in events.read(0).0 {
                        assert_eq!(read, record(read.time_ns));
                    }
                }
            });
        });
        assert_eq!(events.read(0).1, 150_000);
    }
}
