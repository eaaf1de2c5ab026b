//! A sampling heap profiler: how many bytes live, by client and call stack
//! (feature `profile`).
//!
//! Off until [`Memory::start_heap_profile`]; then one block in so many bytes is
//! sampled with the stack that allocated it, and stays sampled until it is
//! freed. [`Memory::heap_profile`] adds up what lives, and [`HeapProfile`] goes
//! out as [pprof](HeapProfile::to_pprof) or as a
//! [flame graph](HeapProfile::to_flamegraph).
//!
//! ```
//! use tiered_allocator::profile::ProfileOptions;
//! use tiered_allocator::{Memory, SubscriptionTier, TieredAllocator};
//!
//! #[global_allocator]
//! static HEAP: TieredAllocator = TieredAllocator::system();
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let memory = Memory::new(1 << 30);
//!     let client = memory.register("acme", SubscriptionTier::Premium)?;
//!     memory.start_heap_profile(&ProfileOptions::new().sample_bytes(4096))?;
//!     let kept = client.run(|| vec![0_u8; 1 << 20])?;
//!
//!     let profile = memory.heap_profile(Some(&client))?;
//!     assert_eq!(profile.live_bytes(), 1 << 20);
//!     profile.to_flamegraph(Vec::new())?;
//!     assert!(!profile.to_pprof().is_empty());
//!
//!     drop(kept);
//!     assert_eq!(memory.heap_profile(Some(&client))?.live_bytes(), 0);
//!     memory.stop_heap_profile()?;
//!     Ok(())
//! }
//! ```
//!
//! # What it tells
//! Of the blocks of the heap that were allocated while profiling was on, how
//! many live, and their bytes: estimates without bias, whose standard error is
//! at most `sqrt(sample_bytes * live_bytes)`. A stack of 50 MiB at the default
//! of one sample in 512 KiB is known to 10 %; blocks much larger than
//! `sample_bytes` are exact. What comes and goes is seen as well as what piles
//! up. Charged figures ([`Client::usage`]) are exact as ever.
//!
//! It does not see what was allocated before the start (but for the growth of
//! such blocks), nor the blocks of
//! [`allocate_for_client`](Memory::allocate_for_client), which have a client and no
//! interesting stack. A block that a client [adopts](Client::adopt) is its own
//! from then on, under the stack that allocated it.
//!
//! # What it costs
//! Nothing while it is off. While it is on, an allocation of a profiled client
//! leaves the fast path, takes no lock, and about 190 instructions more; a
//! sample costs the unwinding of its stack, microseconds; 512 bytes of memory
//! for each sample. Symbols are looked up for reports only.
//!
//! The unwinder is the only foreign code that runs inside an allocation, and
//! only there where a sample is taken. Where the C library has no lock-free way
//! to find a frame's unwinding table (glibc before 2.35, other systems) it
//! takes the loader's lock, and waits while another thread loads a library.

mod flamegraph;
mod options;
mod pprof;
mod report;

pub use options::{ProfileError, ProfileOptions};
pub use report::{HeapProfile, ProfileSite, StackFrame};

use crate::client::untracked;
use crate::ledger::sampling;
use crate::{Client, Memory};

impl Memory {
    /// Starts to sample what this memory's clients allocate. What an earlier
    /// profile has sampled is not reported any more.
    ///
    /// One profile can be taken in a process at a time.
    ///
    /// # Errors
    /// An option is out of range, the client is of another memory or removed, a
    /// profile is being taken, or there is no memory for the samples. Nothing is
    /// changed then.
    pub fn start_heap_profile(&self, options: &ProfileOptions) -> Result<(), ProfileError> {
        untracked(|| options::start(self, options))
    }

    /// Stops sampling. What is sampled can be reported until it is freed, or
    /// until the next start.
    ///
    /// # Errors
    /// No profile of this memory is being taken.
    pub fn stop_heap_profile(&self) -> Result<(), ProfileError> {
        if sampling::stop(self.tree()) {
            Ok(())
        } else {
            Err(ProfileError::NotStarted)
        }
    }

    /// Whether a profile of this memory is being taken.
    pub fn is_heap_profiling(&self) -> bool {
        sampling::figures(self.tree()).is_some_and(|figures| figures.running)
    }

    /// What lives, by client and call stack, most bytes first: of one client
    /// (its request budgets included) or of all.
    ///
    /// Looks up symbols, which may take seconds the first time. To be called
    /// from a thread that can wait.
    ///
    /// # Errors
    /// No profile of this memory has been started since another's, or the
    /// client is of another memory or gone.
    pub fn heap_profile(&self, client: Option<&Client>) -> Result<HeapProfile, ProfileError> {
        untracked(|| report::take(self, client))
    }
}
