//! lru: an `LruCache` behind a mutex that gives back its oldest entries.
//!
//! ```
//! use std::num::NonZeroUsize;
//! use std::sync::{Arc, Mutex};
//! use lru::LruCache;
//! use tiered_allocator::{Memory, SubscriptionTier, integrations};
//!
//! let memory = Memory::new(1 << 30);
//! let client = memory.register("acme", SubscriptionTier::Basic)?;
//! let capacity = NonZeroUsize::new(10_000).unwrap();
//! let pages: Arc<Mutex<LruCache<u64, Vec<u8>>>> =
//!     Arc::new(Mutex::new(client.run(|| LruCache::new(capacity))?));
//! let guard = integrations::lru::offer(&client, &pages, |_, page| page.capacity() as u64)?;
//!
//! client.run(|| pages.lock().unwrap().put(1, vec![0; 4096]))?;
//! # drop(guard);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What counts
//!
//! The ledger believes what it sees: only what was allocated in a scope of the
//! client counts as given back by it. So a client has a cache of its own and
//! puts its entries there inside its scope. An entry that another client's
//! scope allocated goes back to that client: its bytes are free all the same,
//! but the cache looks as if it had given nothing, and is asked less and less
//! often. Several clients' entries in one cache need one that is allocated
//! [`untracked`](crate::untracked), or none that is offered.
//!
//! An entry held elsewhere too, by an `Arc` say, is freed when the last holder
//! lets go of it.

use super::share;
use crate::client::{Client, RegisterError};
use crate::registry::reclaimers::{ReclaimRequest, ReclaimerGuard};
use ::lru::LruCache;
use core::hash::{BuildHasher, Hash};
use core::time::Duration;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Instant;

/// Offers `cache` as memory of `client` that can be given back: under pressure
/// its least recently used entries are dropped until they weighed, by `weigh`
/// (bytes of a key and a value on the heap), as much as is wanted. While the
/// urgency is [`Low`](crate::pressure::Urgency::Low), half of that.
///
/// The cache's capacity stays as it is: it fills again when entries are put
/// there. The lock is taken for one entry at a time, and entries are dropped
/// outside it; a cache that stays locked for half of what the ladder waits
/// ([`ReclaimRequest::deadline`]) is left alone, as is a poisoned one.
///
/// The cache is held by a `Weak`: it is dropped when its owners drop it (but for
/// the `Arc`'s few bytes, which go with the guard), and
/// gives nothing from then on. It is registered until the guard is dropped, so
/// the guard belongs beside the cache.
///
/// # Errors
/// The client was removed.
pub fn offer<K, V, S>(
    client: &Client,
    cache: &Arc<Mutex<LruCache<K, V, S>>>,
    mut weigh: impl FnMut(&K, &V) -> u64 + Send + 'static,
) -> Result<ReclaimerGuard, RegisterError>
where
    K: Hash + Eq + Send + 'static,
    V: Send + 'static,
    S: BuildHasher + Send + 'static,
{
    let cache = Arc::downgrade(cache);
    client.register_reclaimer(move |request| {
        cache
            .upgrade()
            .map_or(0, |cache| evict(&cache, &request, &mut weigh))
    })
}

fn evict<K: Hash + Eq, V, S: BuildHasher>(
    cache: &Mutex<LruCache<K, V, S>>,
    request: &ReclaimRequest,
    weigh: &mut impl FnMut(&K, &V) -> u64,
) -> u64 {
    let wanted_bytes = share::of(request);
    let mut freed_bytes: u64 = 0;
    while freed_bytes < wanted_bytes {
        let coldest = lock(cache, request.deadline / 2).and_then(|mut cache| cache.pop_lru());
        let Some((key, value)) = coldest else {
            break;
        };
        freed_bytes = freed_bytes.saturating_add(weigh(&key, &value));
    }
    freed_bytes
}

/// Not for ever: the thread that asks may itself hold the lock, further out.
fn lock<T>(cache: &Mutex<T>, patience: Duration) -> Option<MutexGuard<'_, T>> {
    let mut began = None;
    loop {
        match cache.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(_)) => return None,
            Err(TryLockError::WouldBlock) => {}
        }
        if began.get_or_insert_with(Instant::now).elapsed() >= patience {
            return None;
        }
        std::thread::yield_now();
    }
}
