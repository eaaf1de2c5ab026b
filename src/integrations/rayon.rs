//! rayon: pools and parallel iterators in a client's scope.
//!
//! A worker runs pieces of whatever is queued, so a scope around the call does
//! not reach the pieces that other workers steal. Three ways take the client
//! along:
//!
//! - [`ParInClientExt::in_client`] for a chain of parallel iterators;
//! - [`Client::bind`] for closures:
//!   `rayon::join(client.bind(a), client.bind(b))`, `pool.spawn(client.bind(f))`;
//! - [`install`] for a piece of work that starts on a pool.
//!
//! A worker that waits, in a `join` say, runs other pieces meanwhile, on top
//! of the scope it waits in. Bound pieces have a scope of their own; a piece
//! that nobody bound is charged to whoever waits below it. So in a pool that
//! clients share, bind everything, the host's own work with
//! [`untracked`].
//!
//! ```
//! use tiered_allocator::{Client, Memory, SubscriptionTier};
//!
//! let memory = Memory::new(1 << 30);
//! let client = memory.register("acme", SubscriptionTier::Basic)?;
//! let (left, right) = rayon::join(
//!     client.bind(|| vec![1, 2, 3]),
//!     client.bind(|| vec![4, 5]),
//! );
//! # #[global_allocator]
//! # static HEAP: tiered_allocator::TieredAllocator = tiered_allocator::TieredAllocator::system();
//! assert_eq!(client.usage().live_bytes, 20);
//! # drop((left, right));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::client::{Client, OverQuota, untracked};
use ::rayon::ThreadPool;
use ::rayon::iter::ParallelIterator;
use ::rayon::iter::plumbing::{Consumer, Folder, Reducer, UnindexedConsumer};

/// Runs `work` on a worker of `pool` in a scope of `client`, and waits for it.
/// The end is a safe point, as with [`Client::run`]. What `work` leaves to
/// other workers needs a scope of its own; see the module's description.
///
/// ```
/// use rayon::prelude::*;
/// use tiered_allocator::integrations::rayon::{self as tenant, ParInClientExt};
/// use tiered_allocator::{Client, Memory, SubscriptionTier};
///
/// let memory = Memory::new(1 << 30);
/// let client = memory.register("acme", SubscriptionTier::Basic)?;
/// let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
/// let texts: Vec<String> = tenant::install(&client, &pool, || {
///     let numbers = (0..100).into_par_iter().in_client(&client);
///     numbers.map(|number| number.to_string()).collect()
/// })?;
/// assert_eq!(texts[99], "99");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`OverQuota`], with what the work returned, if the client is over its
/// quota when the work ends.
pub fn install<R, F>(client: &Client, pool: &ThreadPool, work: F) -> Result<R, OverQuota<R>>
where
    F: FnOnce() -> R + Send,
    R: Send,
{
    // The pool's queue may grow here, and outlives the work.
    untracked(|| pool.install(|| client.run(work)))
}

/// Puts a chain of parallel iterators into a client's scope.
pub trait ParInClientExt: ParallelIterator {
    /// Charges what the chain allocates from here on to `client`, on whichever
    /// worker it runs: the closures of later `map`, `filter`, `fold`, `reduce`
    /// and so on. Earlier ones, and what is put together in the end on the
    /// calling thread (the vector of a `collect`), are charged to whoever is
    /// current there.
    ///
    /// Costs a scope for each item, about 20 ns. Is no safe point:
    /// [`Client::checkpoint`] in a `try_for_each` is one, the end of
    /// [`install`] and of [`Client::run`] are others.
    ///
    /// ```
    /// use rayon::prelude::*;
    /// use tiered_allocator::integrations::rayon::ParInClientExt;
    /// use tiered_allocator::{Client, Memory, SubscriptionTier};
    ///
    /// let memory = Memory::new(1 << 30);
    /// let client = memory.register("acme", SubscriptionTier::Basic)?;
    /// let digits: usize = (0..1000)
    ///     .into_par_iter()
    ///     .in_client(&client)
    ///     .map(|number: u32| number.to_string())
    ///     .map(|text| text.len())
    ///     .sum();
    /// assert_eq!(digits, 2890);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// The order of the items is kept. Adaptors that need their number
    /// (`enumerate`, `zip`, `rev`) come before this one: they take the items
    /// out one by one, and the rest of the chain would run outside the scope.
    fn in_client(self, client: &Client) -> ParInClient<Self> {
        ParInClient {
            base: self,
            client: client.clone(),
        }
    }
}

impl<I: ParallelIterator> ParInClientExt for I {}

/// See [`ParInClientExt::in_client`].
#[derive(Clone, Debug)]
#[must_use = "parallel iterators do nothing unless driven"]
pub struct ParInClient<I> {
    base: I,
    client: Client,
}

impl<I: ParallelIterator> ParallelIterator for ParInClient<I> {
    type Item = I::Item;

    fn drive_unindexed<C: UnindexedConsumer<I::Item>>(self, consumer: C) -> C::Result {
        let consumer = Scoped::new(consumer, &self.client);
        self.base.drive_unindexed(consumer)
    }

    fn opt_len(&self) -> Option<usize> {
        self.base.opt_len()
    }
}

/// A consumer, folder or reducer of the rest of the chain, each step of which
/// is taken in the client's scope.
struct Scoped<T> {
    base: T,
    client: Client,
}

impl<T> Scoped<T> {
    fn new(base: T, client: &Client) -> Scoped<T> {
        Scoped {
            base,
            client: client.clone(),
        }
    }

    /// Takes a step from one part of the chain to the next.
    #[inline]
    fn step<U>(self, step: impl FnOnce(T) -> U) -> Scoped<U> {
        let _scope = self.client.enter();
        Scoped {
            base: step(self.base),
            client: self.client,
        }
    }

    /// Takes the last step.
    #[inline]
    fn finish<U>(self, step: impl FnOnce(T) -> U) -> U {
        let _scope = self.client.enter();
        step(self.base)
    }
}

impl<Item, C: Consumer<Item>> Consumer<Item> for Scoped<C> {
    type Folder = Scoped<C::Folder>;
    type Reducer = Scoped<C::Reducer>;
    type Result = C::Result;

    fn split_at(self, index: usize) -> (Self, Self, Self::Reducer) {
        let Scoped { base, client } = self;
        let _scope = client.enter();
        let (left, right, reducer) = base.split_at(index);
        (
            Scoped::new(left, &client),
            Scoped::new(right, &client),
            Scoped::new(reducer, &client),
        )
    }

    fn into_folder(self) -> Self::Folder {
        self.step(C::into_folder)
    }

    fn full(&self) -> bool {
        self.base.full()
    }
}

impl<Item, C: UnindexedConsumer<Item>> UnindexedConsumer<Item> for Scoped<C> {
    fn split_off_left(&self) -> Self {
        let _scope = self.client.enter();
        Scoped::new(self.base.split_off_left(), &self.client)
    }

    fn to_reducer(&self) -> Self::Reducer {
        let _scope = self.client.enter();
        Scoped::new(self.base.to_reducer(), &self.client)
    }
}

// `consume_iter` is the default one on purpose: the downstream folder's own
// would run the upstream part of the chain inside the scope.
impl<Item, F: Folder<Item>> Folder<Item> for Scoped<F> {
    type Result = F::Result;

    #[inline]
    fn consume(self, item: Item) -> Self {
        self.step(|folder| folder.consume(item))
    }

    fn complete(self) -> F::Result {
        self.finish(F::complete)
    }

    fn full(&self) -> bool {
        self.base.full()
    }
}

impl<R, Base: Reducer<R>> Reducer<R> for Scoped<Base> {
    fn reduce(self, left: R, right: R) -> R {
        self.finish(|reducer| reducer.reduce(left, right))
    }
}
