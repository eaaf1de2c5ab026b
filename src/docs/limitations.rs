//! What is not seen, what it costs, what differs between platforms.
//!
//! # What is not charged
//!
//! - What the inner allocator takes beyond the request: size classes,
//!   fragmentation, caches, and the owner tags themselves. Clients are charged
//!   what was asked for. [`Snapshot`](crate::Snapshot) has the process' resident
//!   set beside the sums.
//! - What does not come through the global allocator: `malloc` in C libraries,
//!   `mmap`, thread stacks, `System` used by name, other processes.
//! - What this crate itself maps: accounts, page map, slots.
//! - What is allocated outside any scope: *unattributed*, counted, bound by no
//!   budget.
//!
//! - To the heap profiler (feature `profile`): what was allocated before it was
//!   started, and blocks of `allocate_for_client`.
//!
//! # What the heap profiler asks for
//!
//! - **While a client is profiled its allocations leave the fast path.** No lock
//!   is taken, but each takes about 190 instructions more.
//! - **A sample unwinds the stack inside the allocation**, with the system's
//!   unwinder. Where that has no lock-free way to find unwinding tables (glibc
//!   before 2.35, other systems) it waits while another thread loads a library.
//!   An unwinder that allocates is not sampled, and nobody pays for it.
//! - **Stacks are cut at 59 calls**, those of the allocator included; functions
//!   without a symbol are shown as addresses.
//! - **Samples' memory stays mapped**: 512 bytes for each of the most that were
//!   ever kept at once. Samples of blocks that outlive their profile count.
//! - **A block from before the start that grows** is estimated by its growth, or
//!   somewhat above.
//!
//! # What cannot be detected
//!
//! - **An overrun that misses the tag.** The tag is behind the user's bytes.
//!   Overwritten, it names no client and the process aborts at the next `free`
//!   or `realloc` of the block; a random value passes for a tag with a
//!   probability of 2⁻¹⁰ at most, and then some other client's books are wrong.
//! - **An overrun of a block of 4 KiB and more.** Nothing of this crate is behind
//!   it that could be found changed.
//! - **A free with another size than the block's**, if what stands there passes
//!   for a tag, or if both sizes have at least 4 KiB: then the difference stays
//!   charged, or is refunded twice.
//! - **A double free of a small block in release builds**, unless the inner
//!   allocator has overwritten the tag. Debug builds erase the tag; cells of the
//!   page map are always erased.
//! - **Who uses a byte.** Who allocates pays, until it is moved with
//!   [`Client::adopt`](crate::Client::adopt) or
//!   [`MemoryBlock::charge_to`](crate::MemoryBlock::charge_to). What a request
//!   leaves in a cache stays charged to its client; see
//!   [`untracked`](crate::untracked). So does what a library makes once for the
//!   process (the seeds of its hashers, a lazy static), if it is first used in a
//!   scope: use it once before.
//! - **Who started a thread or a task.** It starts outside any scope:
//!   [`Client::spawn`](crate::Client::spawn),
//!   [`in_client`](crate::InClientExt::in_client).
//! - **A scope that is leaked** with `mem::forget`: its thread goes on charging
//!   the client, and the client's id is not used again.
//! - **Scopes left out of order**, more than 32 deep. Up to that depth they may
//!   be left in any order.
//!
//! # What limits do not do
//!
//! - **`Strict` on stable Rust aborts infallible code.** A null from `alloc` is
//!   all that the allocator can say, and `Vec::push` answers it with an abort.
//!   With the feature `unwind` and a nightly toolchain such code unwinds to
//!   [`Client::run`](crate::Client::run) or the poll of its future, except while
//!   the thread is panicking already: then the request is granted beyond the
//!   limit.
//! - **`Graceful` is cooperative.** Nothing stops a client between two safe
//!   points. When the headroom is gone it uses what its neighbours have not
//!   taken below their limits (their guarantees stay), which may bring them past
//!   the memory's limit and into an overdraft of their own. When the total is
//!   gone its requests are refused as if it were strict. `TierPolicy::overdraft`
//!   bounds one client's part, at the price that infallible code of its own
//!   aborts there.
//! - **`Observe` has no bound**, not even the memory's total.
//! - **Close to a limit charges are slower.** The batches shrink to nothing
//!   there, and each charge takes the client's lock.
//! - **The soft limit** is looked at by safe points alone, and helps only where
//!   blocks of the client are idle and its tier does not keep them, or where it
//!   offers a cache. It waits 100 ms at most, and not at all without a reclaimer
//!   thread.
//! - **A higher tier is served from the headroom** until lower tiers have given
//!   back. What lower tiers overdraw is not there for it: where they run code
//!   that cannot fail and does not stop, bound them with `TierPolicy::overdraft`.
//!   Tiers of the same precedence have no claim on each other.
//!   A tier whose aggregate limit could bind is lent nothing in this way, and
//!   what is freed for a client that was lent to may be taken by another one of
//!   the same tier.
//! - **A full memory costs.** While it is full of what others have borrowed, each
//!   request that is refused or lent looks through the accounts of all threads for
//!   unused credit: 64 us with 10 clients at work, 2.5 ms with 10,000 (debug
//!   build).
//! - **A fork while the reclaimer climbs** leaves the child without the memory's
//!   sources of pressure, which may have been in use, and without the cache that
//!   was just being asked. Its limits, watermarks and other caches are as before.
//! - **The last rung stops work, it frees nothing.** A client without safe
//!   points, or one that keeps what it holds, gives nothing back; the next one is
//!   asked instead.
//! - **A limit lowered below what is charged** takes nothing back. New charges
//!   are refused until enough was freed.
//! - **The limits of all clients may add up to more than there is.** Only
//!   guarantees are reserved.
//! - **A change of a tier** reaches its clients when they next come to it.
//! - **The crate's own records need memory, too.** Where the inner allocator has
//!   none for a name, a block's record, a snapshot or an error's text, the process
//!   ends as it does in any code that cannot fail. Charging, freeing, scopes,
//!   request budgets, safe points of clients within their quota and
//!   [`Client::adopt`](crate::Client::adopt) take nothing from it.
//! - **Heap memory is never taken from its owner.** Only blocks are, if they
//!   have at least a page, no pin, and were idle for long enough. Caches give
//!   what their callbacks free.
//! - **The last rung looks at every client** once, on the reclaimer's thread.
//!
//! # Figures
//!
//! - They are exact when no thread is working for the client, and otherwise of
//!   no single moment; never negative, never above what is charged.
//! - `peak_bytes` is the highest charge, which includes unused credit of at most
//!   128 KiB a thread, 2 MiB for one that moves as much or whose blocks are
//!   large: an upper bound of the highest live bytes.
//! - `used` counts every live heap byte as resident. Only for blocks is it
//!   measured, in huge pages where transparent ones are set to `always`.
//! - A [`Snapshot`](crate::Snapshot) reads every account of every client: its
//!   cost grows with both. The figures of one client cost a look into each
//!   thread's table, and while it has request budgets a look at every account of
//!   the process.
//! - The latest 1,024 [events](crate::Event) are kept.
//!
//! # What the system says
//!
//! - **A cgroup around the process that no mount shows** is not judged. With
//!   version 1 its limit is known all the same, its memory is not.
//! - **Kernel memory of a cgroup** (page tables, sockets) counts for the kernel
//!   and not for [`Cgroup`](crate::pressure::Cgroup): leave room above the high
//!   mark.
//! - **Stalls have no bytes.** [`Psi`](crate::pressure::Psi) asks for a little at
//!   a time. Triggers need Linux 5.2 and privileges, or a newer kernel and a
//!   window of 2 s; otherwise averages over 10 s are all there is.
//! - **A purge** reaches what the inner allocator will give back: whole free
//!   pages (glibc), nothing that another live thread of mimalloc keeps for
//!   itself, no other thread's jemalloc cache. Allocations on other threads may
//!   wait for it, and with mimalloc a `fork` does.
//!
//! # Spilling
//!
//! - Bytes are written in the clear, to a file without a name that only this
//!   process can open (mode 0600).
//! - The default directory is the system's for temporary files. If that is a
//!   `tmpfs`, the bytes stay in memory and are charged to nobody: choose another
//!   with [`MemoryBuilder::spill_dir`](crate::MemoryBuilder::spill_dir).
//! - Coming back takes a charge. A client that used its budget otherwise gets
//!   [`PinError::QuotaExceeded`](crate::PinError), and the block stays spilled.
//! - A pin of a spilled block reads the whole block, on the calling thread.
//!
//! - A forked child cannot bring back what its parent had spilled, or was about
//!   to bring back: the file is the parent's. What the child spills goes to a
//!   file of its own.
//!
//! # Costs
//!
//! | | |
//! |---|---|
//! | a block below 4 KiB | 4 bytes of the inner allocator |
//! | a block of 4 KiB and more | one cell of 4 bytes in the page map |
//! | the page map | 1 MiB of addresses for each GiB of addresses in which such blocks ever were, physical memory as touched, never unmapped |
//! | a thread | 1 MiB of addresses for its table; one page for each 64 neighbouring clients it works for |
//! | a client | at most 192 bytes, never unmapped, plus its name; used again by later clients |
//! | a memory | one thread, unless built with `background(false)` |
//! | a free of another thread's or another client's block | as any other, once the thread has an account for that client |
//! | a thread that works for more than 16,384 clients in turn | accounts are settled and opened again; where scopes hold all four places that a client may have, each call takes the client's lock |
//!
//! # Numbers
//!
//! At most 4,194,303 clients and request budgets at once, retired ones included;
//! 32 tiers in a
//! memory; 48-bit addresses; generations wrap after 2³² clients on one index.
//!
//! # Platforms
//!
//! - **64-bit Linux and Android**: everything. `membarrier` needs Linux 4.14; if
//!   it is refused, threads hold no credit and every charge takes the client's
//!   lock. A filter that starts to refuse it later leaves credit stranded in its
//!   threads: a request may then be refused although what the threads hold
//!   unused would be enough. Slots of removed clients are used again only when
//!   the threads that worked for them have ended.
//! - **Other Unix**: a full fence in each allocation. The resident set of the
//!   process is not known; space in the spill file is used again, but given back
//!   to the disk only when the memory ends.
//! - **Elsewhere**: what the standard library can do. No spilling (a block whose
//!   tier wants it stays); discarding clears a block but keeps its pages; every
//!   mapped byte counts as resident; thread exit is seen by a thread-local
//!   destructor, so what other destructors do after it is settled call by call.
//! - A process that has used up all `pthread` keys works without accounts: each
//!   call takes the client's lock.
//! - `vfork`, and `clone` without the C library, bypass the hooks around `fork`.
//! - An inner allocator that registers fork handlers of its own, which take its
//!   locks, only after the first [`Memory`](crate::Memory) was built may make
//!   `fork` wait for ever. Those that do so when they are first used are no
//!   problem.
