//! The samples: one record for each sampled block that lives, in chunks that
//! are mapped when profiling starts and never unmapped, since blocks carry
//! their numbers until they are freed.
//!
//! # Orderings
//! A record is written by whoever has the block, so by one thread at a time,
//! and read by reports at any time: a seqlock. `version` is odd while it is
//! written, stored odd before a release fence and even with `Release`; a reader
//! loads it with `Acquire`, copies, and compares after an acquire fence. Chunk
//! pointers are published with `Release` and read with `Acquire`.

use crate::ledger::fork::Cold;
use crate::ledger::thread;
use crate::owner::{INDEX_BITS, Tag};
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Lock, Ordering, fence};
use crate::sys;
use core::ptr;

/// Frames that a sample keeps, innermost first.
pub(crate) const FRAMES: usize = 59;

const CHUNK_BITS: u32 = 10;
const CHUNK_SAMPLES: usize = 1 << CHUNK_BITS;
const CHUNKS: usize = 1 << (INDEX_BITS - CHUNK_BITS);

/// The most samples that there can be.
pub(crate) const MOST: u32 = 1 << INDEX_BITS;

/// No record follows in the list of free ones.
const END: u32 = u32::MAX;

/// Attempts to read a record that its owner keeps writing.
const ATTEMPTS: usize = 64;

/// All zero is a record that is free and has never been used.
#[repr(C)]
struct Sample {
    version: AtomicU32,
    next: AtomicU32,
    /// [`Tag::NONE`] if the record is free.
    owner: AtomicU32,
    epoch: AtomicU32,
    size: AtomicU64,
    /// Where in the block its first mark lies.
    mark: AtomicU64,
    depth: AtomicU32,
    frames: [AtomicUsize; FRAMES],
}

const _: () = assert!(size_of::<Sample>() == 512);

/// A record as a report sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) owner: Tag,
    pub(crate) size: u64,
    depth: usize,
    frames: [usize; FRAMES],
}

impl Seen {
    /// Return addresses, innermost first.
    pub(crate) fn frames(&self) -> &[usize] {
        &self.frames[..self.depth]
    }
}

static CHUNK: [AtomicPtr<[Sample; CHUNK_SAMPLES]>; CHUNKS] =
    [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS];

struct Free {
    first: u32,
    /// Records below have been used.
    fresh: u32,
    taken: u32,
    limit: u32,
}

static FREE: Lock<Free> = Lock::new(Free {
    first: END,
    fresh: 0,
    taken: 0,
    limit: 0,
});

fn record(id: u32) -> Option<&'static Sample> {
    let chunk = CHUNK
        .get((id >> CHUNK_BITS) as usize)?
        .load(Ordering::Acquire);
    // SAFETY: null, or a chunk from `reserve`, zeroed (which is valid) and
    // never unmapped.
    let chunk = unsafe { chunk.as_ref() }?;
    chunk.get(id as usize & (CHUNK_SAMPLES - 1))
}

/// Maps the records for `limit` samples; `false` if there is no memory for
/// them. Samples of earlier profiles count until their blocks are freed.
pub(super) fn reserve(limit: u32) -> bool {
    for chunk in &CHUNK[..(limit as usize).div_ceil(CHUNK_SAMPLES)] {
        if chunk.load(Ordering::Acquire).is_null() {
            let Some(mapped) = sys::map(size_of::<[Sample; CHUNK_SAMPLES]>()) else {
                return false;
            };
            chunk.store(mapped.cast().as_ptr(), Ordering::Release);
        }
    }
    FREE.lock().limit = limit;
    true
}

/// Records that are in use, old profiles' included.
pub(super) fn taken() -> u32 {
    let _cold = Cold::enter(thread::own_table());
    FREE.lock().taken
}

/// A tag for a block that a mark has hit; `None` if there is no record left.
pub(super) fn claim(owner: Tag, epoch: u32, size: u64, mark: u64, stack: &[usize]) -> Option<Tag> {
    let _cold = Cold::enter(thread::own_table());
    let id = take_free()?;
    let sample = record(id)?;
    sample.write(|sample| {
        sample.owner.store(owner.to_bits(), Ordering::Relaxed);
        sample.epoch.store(epoch, Ordering::Relaxed);
        sample.size.store(size, Ordering::Relaxed);
        sample.mark.store(mark, Ordering::Relaxed);
        let depth = stack.len().min(FRAMES);
        sample.depth.store(depth as u32, Ordering::Relaxed);
        for (place, &frame) in sample.frames.iter().zip(stack) {
            place.store(frame, Ordering::Relaxed);
        }
    });
    Some(Tag::of_sample(id))
}

fn take_free() -> Option<u32> {
    let mut free = FREE.lock();
    if free.taken >= free.limit {
        return None;
    }
    let id = match free.first {
        END => {
            free.fresh += 1;
            free.fresh - 1
        }
        id => {
            free.first = record(id)?.next.load(Ordering::Relaxed);
            id
        }
    };
    free.taken += 1;
    Some(id)
}

/// The sample of a block, if its tag is that of one.
fn sample_of(tag: Tag) -> Option<(u32, &'static Sample)> {
    let id = tag.sample()?;
    let sample = record(id)?;
    (sample.owner() != Tag::NONE).then_some((id, sample))
}

/// The tag of the owner. A tag that is not a sample's, or of one that is gone,
/// is answered as it is.
pub(crate) fn plain(tag: Tag) -> Tag {
    sample_of(tag).map_or(tag, |(_, sample)| sample.owner())
}

/// A block goes, and its sample with it. Answers the owner's tag.
pub(crate) fn freed(tag: Tag) -> Tag {
    let Some((id, sample)) = sample_of(tag) else {
        return tag;
    };
    let _cold = Cold::enter(thread::own_table());
    let owner = sample.owner();
    sample.write(|sample| sample.owner.store(Tag::NONE.to_bits(), Ordering::Relaxed));
    let mut free = FREE.lock();
    sample.next.store(free.first, Ordering::Relaxed);
    free.first = id;
    free.taken -= 1;
    owner
}

/// A sampled block has grown to `size` bytes.
pub(super) fn resized(tag: Tag, size: u64) {
    if let Some((_, sample)) = sample_of(tag) {
        let _cold = Cold::enter(thread::own_table());
        sample.write(|sample| sample.size.store(size, Ordering::Relaxed));
    }
}

/// A block has shrunk to `size` bytes. Answers its tag from now on: the
/// owner's, if the mark was in the bytes that are gone.
pub(crate) fn shrunk(tag: Tag, size: u64) -> Tag {
    match sample_of(tag) {
        Some((_, sample)) if sample.mark.load(Ordering::Relaxed) < size => {
            resized(tag, size);
            tag
        }
        _ => freed(tag),
    }
}

/// A block passes to another owner. Answers its tag from now on.
pub(crate) fn passed(tag: Tag, owner: Tag) -> Tag {
    let Some((_, sample)) = sample_of(tag) else {
        return owner;
    };
    let _cold = Cold::enter(thread::own_table());
    sample.write(|sample| sample.owner.store(owner.to_bits(), Ordering::Relaxed));
    tag
}

impl Sample {
    fn owner(&self) -> Tag {
        Tag::from_bits(self.owner.load(Ordering::Relaxed))
    }

    /// The caller has the block, and is in the cold path.
    fn write(&self, change: impl FnOnce(&Sample)) {
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        change(self);
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    /// What the record says of a live block of this profile, together with
    /// what `look` made of it at that time.
    fn read<T>(&self, epoch: u32, look: impl Fn(&Seen) -> Option<T>) -> Option<(Seen, T)> {
        for _ in 0..ATTEMPTS {
            let version = self.version.load(Ordering::Acquire);
            if version & 1 != 0 {
                sys::yield_now();
                continue;
            }
            let seen = Seen {
                owner: self.owner(),
                size: self.size.load(Ordering::Relaxed),
                depth: (self.depth.load(Ordering::Relaxed) as usize).min(FRAMES),
                frames: core::array::from_fn(|at| self.frames[at].load(Ordering::Relaxed)),
            };
            let is_ours = seen.owner != Tag::NONE && self.epoch.load(Ordering::Relaxed) == epoch;
            let looked = if is_ours { look(&seen) } else { None };
            fence(Ordering::Acquire);
            if self.version.load(Ordering::Relaxed) == version {
                return looked.map(|looked| (seen, looked));
            }
        }
        None
    }
}

/// The live samples of a profile for which `look` has an answer. It is asked
/// while the block lives, so that the owner's slot is still the owner's.
pub(crate) fn read_all<T>(epoch: u32, look: impl Fn(&Seen) -> Option<T>) -> Vec<(Seen, T)> {
    let fresh = {
        let _cold = Cold::enter(thread::own_table());
        FREE.lock().fresh
    };
    (0..fresh)
        .filter_map(|id| record(id)?.read(epoch, &look))
        .collect()
}
