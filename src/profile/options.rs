//! What to profile, and why it cannot be.

use crate::ledger::sampling::{self, NotStarted, Plan};
use crate::{Client, ClientId, Memory};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

const SAMPLE_BYTES: u64 = 512 * 1024;
const SAMPLE_BYTES_MAX: u64 = 1 << 40;
const SAMPLES: u32 = 16 * 1024;

/// How to take a heap profile, for [`Memory::start_heap_profile`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ProfileOptions {
    sample_bytes: u64,
    max_samples: u32,
    only: Option<Client>,
    unattributed: bool,
    seed: Option<u64>,
}

impl Default for ProfileOptions {
    fn default() -> Self {
        ProfileOptions::new()
    }
}

impl ProfileOptions {
    /// One sample in 512 KiB, at most 16,384 samples, all clients of the
    /// memory.
    pub fn new() -> ProfileOptions {
        ProfileOptions {
            sample_bytes: SAMPLE_BYTES,
            max_samples: SAMPLES,
            only: None,
            unattributed: false,
            seed: None,
        }
    }

    /// The mean number of allocated bytes from one sample to the next, from 1
    /// (every block) to 2⁴⁰.
    pub fn sample_bytes(mut self, bytes: u64) -> ProfileOptions {
        self.sample_bytes = bytes;
        self
    }

    /// How many live blocks can be sampled at once, from 1 to 4,194,304. Each
    /// reserves 512 bytes of addresses, and uses them when it is taken; they are
    /// not given back. What finds no room is
    /// [counted](super::HeapProfile::dropped_samples).
    pub fn max_samples(mut self, samples: u32) -> ProfileOptions {
        self.max_samples = samples;
        self
    }

    /// One client alone (its request budgets included): the others' allocations
    /// stay on the fast path.
    pub fn only(mut self, client: &Client) -> ProfileOptions {
        self.only = Some(client.clone());
        self
    }

    /// Whether to profile what is allocated outside any scope, too. Of the
    /// whole process, whatever its memories.
    pub fn unattributed(mut self, too: bool) -> ProfileOptions {
        self.unattributed = too;
        self
    }

    /// Draws the sample points from this seed: the same blocks are sampled
    /// whenever one thread allocates the same sizes in the same order. Without
    /// it each profile has a seed of its own.
    pub fn seed(mut self, seed: u64) -> ProfileOptions {
        self.seed = Some(seed);
        self
    }
}

/// The profile was not started, stopped or reported.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// A number of bytes that sampling cannot work with.
    #[error("one sample in {given} bytes: it must be from 1 to {max}")]
    SampleBytes {
        /// What was asked for.
        given: u64,
        /// The most that there can be.
        max: u64,
    },
    /// A number of samples that cannot be kept.
    #[error("at most {given} samples: it must be from 1 to {max}")]
    MaxSamples {
        /// What was asked for.
        given: u32,
        /// The most that there can be.
        max: u32,
    },
    /// The client is not one of this memory's, or removed with nothing left.
    #[error("client {client} is not of this memory")]
    NotOfThisMemory {
        /// The client.
        client: ClientId,
    },
    /// A profile is being taken, of this memory or of another one.
    #[error("a heap profile is being taken already; stop it first")]
    AlreadyRunning,
    /// No profile of this memory was started, or another memory's was since.
    #[error("no heap profile of this memory; start one first")]
    NotStarted,
    /// The system has no memory for so many samples.
    #[error("the system has no memory for {samples} samples")]
    OutOfMemory {
        /// Samples asked for.
        samples: u32,
    },
}

pub(super) fn is_of(memory: &Memory, client: &Client) -> bool {
    let slot = client.slot();
    slot.has_tree(&**memory.tree()) && slot.generation() == client.id().generation()
}

pub(super) fn start(memory: &Memory, options: &ProfileOptions) -> Result<(), ProfileError> {
    if !(1..=SAMPLE_BYTES_MAX).contains(&options.sample_bytes) {
        return Err(ProfileError::SampleBytes {
            given: options.sample_bytes,
            max: SAMPLE_BYTES_MAX,
        });
    }
    if !(1..=sampling::MOST).contains(&options.max_samples) {
        return Err(ProfileError::MaxSamples {
            given: options.max_samples,
            max: sampling::MOST,
        });
    }
    if let Some(client) = options.only.as_ref()
        && !(is_of(memory, client) && client.is_active())
    {
        return Err(ProfileError::NotOfThisMemory {
            client: client.id(),
        });
    }
    let only = options.only.as_ref().map(|client| client.slot().client());
    let plan = Plan {
        sample_bytes: options.sample_bytes,
        max_samples: options.max_samples,
        seed: options
            .seed
            .unwrap_or_else(|| RandomState::new().build_hasher().finish()),
        only: only.map(|slot| (slot, slot.generation())),
        unattributed: options.unattributed,
    };
    sampling::start(memory.tree(), &plan).map_err(|refused| match refused {
        NotStarted::AlreadyRunning => ProfileError::AlreadyRunning,
        NotStarted::OutOfMemory => ProfileError::OutOfMemory {
            samples: options.max_samples,
        },
    })
}
