//! quick_cache: a `sync::Cache` that gives back its coldest entries.
//!
//! ```
//! use std::sync::Arc;
//! use quick_cache::{Weighter, sync::Cache};
//! use tiered_allocator::{Memory, SubscriptionTier, integrations};
//!
//! #[derive(Clone)]
//! struct Bytes;
//!
//! impl Weighter<u64, Arc<[u8]>> for Bytes {
//!     fn weight(&self, _key: &u64, page: &Arc<[u8]>) -> u64 {
//!         page.len() as u64
//!     }
//! }
//!
//! let memory = Memory::new(1 << 30);
//! let client = memory.register("acme", SubscriptionTier::Basic)?;
//! let pages = Arc::new(client.run(|| Cache::with_weighter(10_000, 50 << 20, Bytes))?);
//! let guard = integrations::quick_cache::offer(&client, &pages, 1)?;
//!
//! client.run(|| pages.insert(1, Arc::from([0; 4096])))?;
//! # drop(guard);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What counts
//!
//! The ledger believes what it sees: only what was allocated in a scope of the
//! client counts as given back by it. So a client has a cache of its own and
//! inserts inside its scope. An entry that another client's scope allocated
//! goes back to that client: its bytes are free all the same, but the cache
//! looks as if it had given nothing, and is asked less and less often.
//!
//! An entry held elsewhere too, by an `Arc` say or by a `Lifecycle` that keeps
//! what was evicted, is freed when the last holder lets go of it. Pinned
//! entries stay. The cache's own tables do not shrink.
//!
//! # What a call costs the cache
//!
//! Its capacity is lowered for the length of the call, which is how a
//! quick_cache is asked to evict, and put back before the call ends. Inserts of
//! other threads meet the lower one meanwhile; do not resize the cache
//! yourself at the same time. The keys that it remembers of entries evicted
//! before (ghosts) are forgotten in proportion, and rounding leaves it room for
//! a few less of them in each shard each time. For a cache of few and large
//! entries under frequent pressure that adds up: give it ten times the
//! `estimated_items_capacity`, or take an
//! LRU (the feature `lru`), which has no such memory to lose.

use super::share;
use crate::client::{Client, RegisterError};
use crate::registry::reclaimers::ReclaimerGuard;
use ::quick_cache::sync::Cache;
use ::quick_cache::{Lifecycle, Weighter};
use core::hash::{BuildHasher, Hash};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

/// Weight that a shard is left at least, or an eighth of what it can hold if
/// that is less: the shares of hot entries and of ghosts are kept as whole
/// numbers that scale with the capacity, and would be lost near zero.
const LEAST_SHARD_WEIGHT: u64 = 4096;

/// Offers `cache` as memory of `client` that can be given back: under pressure
/// its coldest entries are evicted until they weighed as much as is wanted, and
/// more by as much as its shards are filled unevenly. While the urgency is
/// [`Low`](crate::pressure::Urgency::Low), half of that is evicted.
///
/// `weight_bytes` are the heap bytes that one unit of the cache's weight stands
/// for: 1 if its weighter counts bytes, the mean size of an entry if it counts
/// entries. 0 is taken as 1.
///
/// The cache holds as much afterwards as before: it fills again when entries
/// are inserted. See the module's description for what it forgets.
///
/// The cache is held by a `Weak`: it is dropped when its owners drop it (but for
/// the `Arc`'s few bytes, which go with the guard), and
/// gives nothing from then on. It is registered until the guard is dropped, so
/// the guard belongs beside the cache.
///
/// # Errors
/// The client was removed.
pub fn offer<K, V, W, B, L>(
    client: &Client,
    cache: &Arc<Cache<K, V, W, B, L>>,
    weight_bytes: u64,
) -> Result<ReclaimerGuard, RegisterError>
where
    K: Eq + Hash + 'static,
    V: Clone + 'static,
    W: Weighter<K, V> + Clone + 'static,
    B: BuildHasher + Clone + 'static,
    L: Lifecycle<K, V> + Clone + 'static,
    Cache<K, V, W, B, L>: Send + Sync,
{
    let cache = Arc::downgrade(cache);
    let weight_bytes = weight_bytes.max(1);
    client.register_reclaimer(move |request| {
        let Some(cache) = cache.upgrade() else {
            return 0;
        };
        let wanted = share::of(&request).div_ceil(weight_bytes);
        evict(&cache, wanted).saturating_mul(weight_bytes)
    })
}

/// Answers the weight that went.
fn evict<K, V, W, B, L>(cache: &Cache<K, V, W, B, L>, wanted: u64) -> u64
where
    K: Eq + Hash,
    V: Clone,
    W: Weighter<K, V> + Clone,
    B: BuildHasher + Clone,
    L: Lifecycle<K, V> + Clone,
{
    let capacity = cache.capacity();
    let before = cache.weight();
    let lowered = lowered(capacity, cache.num_shards() as u64, before, wanted);
    if wanted == 0 || lowered >= capacity.min(before) {
        return 0;
    }
    // Weighing and dropping entries is the user's code and may panic, after
    // which the cache's locks may, too.
    let set = |capacity| catch_unwind(AssertUnwindSafe(|| cache.set_capacity(capacity)));
    let evicted = set(lowered);
    let restored = set(capacity);
    if let Err(panic) = evicted.and(restored) {
        resume_unwind(panic);
    }
    before.saturating_sub(cache.weight())
}

/// The capacity at which a cache of this weight has evicted what is wanted.
fn lowered(capacity: u64, shards: u64, weight: u64, wanted: u64) -> u64 {
    let least = LEAST_SHARD_WEIGHT.saturating_mul(shards).min(capacity / 8);
    weight.saturating_sub(wanted).max(least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::quick_cache::OptionsBuilder;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Clone)]
    struct Own;

    impl Weighter<u64, u64> for Own {
        fn weight(&self, _key: &u64, weight: &u64) -> u64 {
            *weight
        }
    }

    #[test]
    fn a_cache_that_counts_small_keeps_an_eighth() {
        assert_eq!(lowered(800, 4, 800, u64::MAX), 100);
        assert_eq!(lowered(1 << 30, 4, 1 << 20, u64::MAX), 4 * 4096);
        assert_eq!(lowered(1 << 30, 4, 1 << 20, 1 << 19), 1 << 19);
        assert_eq!(lowered(0, 1, 0, 1), 0);
    }

    proptest! {
        /// Whatever is wanted: the capacity is what it was, what went is what
        /// the cache lost, and it is all that was wanted or all but the least.
        #[test]
        fn what_is_wanted_goes_and_the_capacity_stays(
            capacity in 0u64..1 << 24,
            shards in 1usize..9,
            entries in proptest::collection::vec(1u64..1 << 16, 0..400),
            wanted in proptest::collection::vec(0u64..1 << 22, 1..4),
        ) {
            let options = OptionsBuilder::new()
                .shards(shards)
                .estimated_items_capacity(400)
                .weight_capacity(capacity)
                .build()
                .unwrap();
            let cache = Cache::with_options(
                options,
                Own,
                std::hash::RandomState::new(),
                ::quick_cache::sync::DefaultLifecycle::default(),
            );
            for (key, weight) in entries.into_iter().enumerate() {
                cache.insert(key as u64, weight);
            }
            let capacity = cache.capacity();
            for wanted in wanted {
                let before = cache.weight();
                let went = evict(&cache, wanted);
                prop_assert_eq!(cache.capacity(), capacity);
                prop_assert_eq!(cache.weight() + went, before);
                let shards = cache.num_shards() as u64;
                let least = LEAST_SHARD_WEIGHT * shards;
                // A capacity is whole in each shard.
                prop_assert!(went + shards > wanted.min(before.saturating_sub(least)));
            }
        }
    }

    #[test]
    fn a_panic_of_a_weighter_is_the_callers_and_aborts_nothing() {
        #[derive(Clone)]
        struct Fails(Arc<AtomicBool>);

        impl Weighter<u64, u64> for Fails {
            fn weight(&self, _key: &u64, weight: &u64) -> u64 {
                assert!(!self.0.load(Ordering::Relaxed), "the weighter fails");
                *weight
            }
        }

        let fails = Arc::new(AtomicBool::new(false));
        let cache = Cache::with_weighter(100, 1 << 20, Fails(Arc::clone(&fails)));
        (0..100).for_each(|key| cache.insert(key, 1 << 13));
        fails.store(true, Ordering::Relaxed);
        let evicted = catch_unwind(AssertUnwindSafe(|| evict(&cache, 1 << 19)));
        assert!(evicted.is_err());
    }
}
