//! The process' heap, and raw blocks of it for tests in which a refusal must
//! be seen and not end the process.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::alloc::{GlobalAlloc, Layout};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tiered_allocator::clock::ManualClock;
use tiered_allocator::{
    Client, ClientOptions, Enforcement, Limit, Memory, MemoryBuilder, ReclaimRequest,
    TieredAllocator,
};

#[global_allocator]
pub static HEAP: TieredAllocator = TieredAllocator::system();

/// A heap block, charged to whoever is current when it is made.
#[derive(Debug)]
pub struct Bytes(*mut u8, Layout);

// SAFETY: a `Bytes` owns its block, and the heap takes it back on any thread.
unsafe impl Send for Bytes {}

impl Bytes {
    pub fn new(size: usize) -> Option<Bytes> {
        let layout = Layout::from_size_align(size, 1).unwrap();
        assert!(size > 0);
        // SAFETY: the size is not zero.
        let at = unsafe { HEAP.alloc(layout) };
        (!at.is_null()).then(|| Bytes(at, layout))
    }

    pub fn size(&self) -> usize {
        self.1.size()
    }

    /// Grows a block whose growth fits.
    pub fn grow(&mut self, size: usize) {
        // SAFETY: a live block with its layout.
        let at = unsafe { HEAP.realloc(self.0, self.1, size) };
        assert!(!at.is_null(), "the growth fits");
        self.0 = at;
        self.1 = Layout::from_size_align(size, 1).unwrap();
    }

    /// As `new`, in a scope of `client`.
    pub fn of(client: &Client, size: usize) -> Option<Bytes> {
        let _scope = client.enter();
        Bytes::new(size)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { HEAP.dealloc(self.0, self.1) };
    }
}

/// Frees blocks of a cache, the newest first, until it is as much as is wanted
/// or none is left; how much it was.
pub fn give(cache: &Mutex<Vec<Bytes>>, request: ReclaimRequest) -> u64 {
    let mut freed = 0;
    while freed < request.wanted_bytes {
        let Some(block) = cache.lock().unwrap().pop() else {
            break;
        };
        freed += block.size() as u64;
    }
    freed
}

/// Registers a cache that gives what it is asked for, for as long as there is
/// its client.
pub fn offer(client: &Client, cache: Vec<Bytes>) -> Arc<Mutex<Vec<Bytes>>> {
    let cache = Arc::new(Mutex::new(cache));
    let own = Arc::clone(&cache);
    client
        .register_reclaimer(move |request| give(&own, request))
        .unwrap()
        .keep();
    cache
}

/// An Enterprise client with this `max` and enforcement.
pub fn client(memory: &Memory, name: &str, max: u64, enforcement: Enforcement) -> Client {
    let options = ClientOptions::new(tiered_allocator::SubscriptionTier::Enterprise)
        .max(Limit::Bytes(max))
        .enforcement(enforcement);
    memory.register(name, options).unwrap()
}

/// A memory without a thread: it does nothing that the test does not ask for.
pub fn quiet(total_bytes: u64) -> Memory {
    Memory::builder(total_bytes)
        .background(false)
        .build()
        .unwrap()
}

/// A quiet memory whose time stands still, and the means to let it pass.
pub fn timed(
    total_bytes: u64,
    configure: impl FnOnce(MemoryBuilder) -> MemoryBuilder,
) -> (Memory, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let builder = Memory::builder(total_bytes)
        .background(false)
        .clock(Arc::clone(&clock));
    (configure(builder).build().unwrap(), clock)
}

/// Somewhere quick to spill to, if there is such a place.
pub fn memory_backed() -> PathBuf {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() {
        shared.to_owned()
    } else {
        std::env::temp_dir()
    }
}

/// The memory, with a heap profile of everything where the feature is there:
/// the figures must be the same.
pub fn profiled(memory: Memory) -> Memory {
    #[cfg(feature = "profile")]
    {
        let options = tiered_allocator::profile::ProfileOptions::new()
            .sample_bytes(64 * 1024)
            .unattributed(true);
        memory.start_heap_profile(&options).unwrap();
    }
    memory
}
