//! [`Purge`]: asking an inner allocator to give free pages back to the system.

use std::alloc::System;
use std::io;

/// What a purge did, as far as the allocator tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Purged {
    /// Pages were given back.
    Released,
    /// There was nothing to give back.
    Nothing,
    /// Done; how much it was, the allocator does not tell.
    Asked,
}

/// An allocator that can be asked to give its free pages back to the system.
///
/// A free makes memory reusable for the process; it stays resident until the
/// inner allocator gives the pages back, which it does late or, between blocks
/// that live on, never by itself. The reclaimer asks when giving back what
/// clients held was not enough.
///
/// | inner allocator | asked with | reaches |
/// |---|---|---|
/// | [`System`] on glibc | `malloc_trim` | the whole free pages of every arena |
/// | mimalloc (feature `mimalloc`) | `mi_collect` | free pages of the process' arenas and of the calling thread; not what other threads keep for themselves |
/// | jemalloc (feature `jemalloc`) | `arena.all.purge` | the dirty and muzzy pages of every arena; not what other threads' caches hold |
///
/// A purge takes milliseconds, more for a large heap, and holds locks of the
/// inner allocator meanwhile, for which allocations on other threads may wait.
///
/// # Contract for implementors
/// A purge is called by the reclaimer's thread or by whoever calls
/// [`Memory::tick`](crate::Memory::tick), never from inside an allocation:
/// there the allocator's locks may be held already. It may allocate. It must
/// not panic. Another thread may `fork` at any moment: locks that a purge takes
/// must be reset or taken by fork handlers, as the C libraries and jemalloc do
/// for theirs.
///
/// ```
/// use tiered_allocator::TieredAllocator;
/// use tiered_allocator::purge::Purge;
///
/// #[global_allocator]
/// static HEAP: TieredAllocator = TieredAllocator::system();
///
/// fn main() {
///     match HEAP.purge() {
///         Ok(done) => println!("{done:?}"),
///         Err(reason) => println!("not here: {reason}"),
///     }
/// }
/// ```
pub trait Purge: Send + Sync {
    /// Gives free pages back to the system.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the allocator cannot be asked, or
    /// what it says. Nothing was lost, and less or nothing was given back.
    fn purge(&self) -> io::Result<Purged>;
}

impl<P: Purge + ?Sized> Purge for &P {
    fn purge(&self) -> io::Result<Purged> {
        (**self).purge()
    }
}

impl<P: Purge + ?Sized> Purge for Box<P> {
    fn purge(&self) -> io::Result<Purged> {
        (**self).purge()
    }
}

impl<P: Purge + ?Sized> Purge for std::sync::Arc<P> {
    fn purge(&self) -> io::Result<Purged> {
        (**self).purge()
    }
}

/// The inner allocator's.
impl<A: Purge> Purge for crate::TieredAllocator<A> {
    fn purge(&self) -> io::Result<Purged> {
        self.inner().purge()
    }
}

/// `malloc_trim(0)` with glibc, unsupported elsewhere. `fork` takes the arenas'
/// locks itself.
impl Purge for System {
    fn purge(&self) -> io::Result<Purged> {
        match crate::sys::trim_heap() {
            Some(true) => Ok(Purged::Released),
            Some(false) => Ok(Purged::Nothing),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// `mi_collect`. mimalloc has no fork handlers: a `fork` waits for the purge.
#[cfg(feature = "mimalloc")]
impl Purge for mimalloc::MiMalloc {
    fn purge(&self) -> io::Result<Purged> {
        use crate::ledger::{fork::Cold, thread};
        // No lock of ours is held, and mimalloc does not come back to us.
        let _no_fork = Cold::enter(thread::attached());
        crate::sys::collect_mimalloc();
        Ok(Purged::Asked)
    }
}

/// `thread.tcache.flush` and `arena.all.purge`. jemalloc's fork handlers take
/// its locks. (To keep `fork` waiting here could deadlock with them: they may
/// run first and hold what the purge waits for.)
#[cfg(feature = "jemalloc")]
impl Purge for tikv_jemallocator::Jemalloc {
    fn purge(&self) -> io::Result<Purged> {
        crate::sys::purge_jemalloc().map(|()| Purged::Asked)
    }
}
