//! How it works, with diagrams.
//!
//! Names in `code` that are no links are private; each is in the file that the
//! text names.
//!
//! # Layers
//!
//! ```text
//!   TieredAllocator          Client  Scope  InClient     Memory  MemoryBlock     Snapshot  Event
//!   allocator.rs             client/                     memory/  reclaim/       telemetry/
//!        |                       |                           |                       |
//!        +-----------+-----------+---------------------------+-----------------------+
//!                    v
//!   ledger/     accounts, threads, and the cold path between them and the budgets
//!                    |
//!          +---------+----------+
//!          v                    v
//!   registry/  slots, tiers,    owner/  tags and the page map
//!              the tree of budgets
//!          +---------+----------+
//!                    v
//!   sync.rs  atomics, fences, the short lock       sys/  the operating system
//! ```
//!
//! Three rules keep the allocator out of trouble. It never allocates from
//! itself: tables, leaves and slots are mapped from the system. It never calls
//! the inner allocator under a lock that an allocation takes. And it takes a second slot's lock only
//! upwards, a request budget's before its client's.
//!
//! # The way of an allocation
//!
//! ```text
//!   Vec::push
//!      |  __rust_alloc(size, align)
//!      v
//!   +-----------------------------------------------------------------+
//!   | 1  the thread's current account         one thread-local load   |
//!   | 2  balance += size                      one store               |
//!   |    balance >= ceiling? ---- yes ---> withdraw, cold path ----+  |
//!   |    allocated += size, allocs += 1       statistics           |  |
//!   +---------|----------------------------------------------------|--+
//!             |                                   admitted         |
//!             |<---------------------------------------------------+
//!             |                                                    | refused
//!   +---------v-------------------------------------+              v
//!   | 3  the inner allocator: size + 4 if < 4 KiB   |            null
//!   |    null? --> undo the charge, return null     |
//!   | 4  owner tag: behind the block if < 4 KiB,    |
//!   |    else in the cell of its page               |
//!   +---------|-------------------------------------+
//!             v
//!       the address, exactly as the inner allocator gave it
//! ```
//!
//! `dealloc` goes the other way: the tag names the owner; its account is the
//! current one, or the one at the owner's home in the thread's table, or else
//! found (or opened) in the cold path; `balance -= size`, and a balance that
//! falls below zero goes to the cold path, too. `realloc` charges the growth to
//! the block's owner first, whoever is current, and refunds a shrinkage last.
//! Refused, it leaves block, tag and books as they were.
//!
//! # The window of an account
//!
//! An account is what one thread knows about one client, one cache line
//! (`ledger/account.rs`). It has a balance inside a window:
//!
//! ```text
//!   0                       balance                    window = ceiling - 1
//!   |--------------------------|------------------------------|
//!   |     frees move it left <-+-> allocations move it right  |
//!   |                          |<--------- credit ----------->|
//!   below 0: give credit back                    above: draw credit
//!
//!   the thread's net bytes with the client     offset + balance
//!   what it has drawn from the budget          offset + window
//!   unused credit                              window - balance
//! ```
//!
//! Net bytes may be negative: a thread that frees what others allocate. Credit
//! is not. When the cold path draws or returns credit it moves the window:
//! room for `batch` bytes of allocations on the right and as much for frees on
//! the left. `batch` is 64 KiB at first, or 32 blocks of the size at hand, and
//! doubles each time the thread has used it up in one direction, to 1 MiB at
//! most; and it is 1/64 of the room left in the client's budgets at most. So a
//! thread whose net bytes swing widely soon swings within its window, one that
//! does little holds little, the last bytes of a budget are handed out one
//! request at a time, and a thread's credit never exceeds 2 MiB.
//!
//! # How a request that meets the ceiling is decided
//!
//! ```text
//!   charge_cold
//!      |  first allocation of the thread? --> give it a table, try again
//!      v
//!   lock the client's slot
//!      |  removed? ------------------------> Strict: null; else charged to nobody
//!      v
//!   fits within client, tier and memory? --> yes: charge, move the window
//!      |  no
//!      |-- larger than the limit ----> nobody is disturbed
//!      |-- the client's own limit ---> would the credit of its other threads
//!      |                               make it fit? take it back, try again
//!      |-- with request budgets -----> take back the credit of the client and
//!      |                               its budgets, try again
//!      |-- tier or memory -----------> take back the credit of all clients of
//!      |                               the memory, try again; nobody draws ahead
//!      |                               meanwhile
//!      v
//!   enforcement:  Strict    null
//!                 Graceful  past a request budget, within the client's limits;
//!                           else what does not fit out of the headroom, then
//!                           out of what is free below, at most `overdraft`;
//!                           else, and for callers that get an error: refused
//!                 Observe   charge whatever the limits say, and count it
//! ```
//!
//! Each refusal is counted and leaves an event.
//!
//! # The tree of budgets
//!
//! ```text
//!   total
//!   +----------------------------------------+------------------+
//!   | usable (80 %)                    root  | headroom (20 %)  |
//!   +----------------------------------------+------------------+
//!          ^  max(guarantee, charged - overdrawn)     ^ overdrawn
//!          |                                          |
//!   +------+------+  aggregate limits                 |
//!   | tier | tier |                                   |
//!   +------+------+                                   |
//!      ^       ^                                      |
//!   +--+--+ +--+--+  max, guarantee                   |
//!   |slot | |slot | ----------------------------------+
//!   +-----+ +-----+
//!      ^ charged = settled net + what the threads have drawn
//!   +--+------+---------+
//!   | account | account |   one for each thread that works for the client
//!   +---------+---------+
//! ```
//!
//! A request budget is a slot below a client's (or below another request
//! budget's). What is charged to it is charged to the slots above by the same
//! step, under their locks; it has a limit but reserves nothing, and once it has
//! ended only the client's limits bind what still lives of it.
//!
//! What the upper nodes hold for a client is the greater of its guarantee and
//! its charge. So a guarantee is reserved at registration, and a charge within
//! it cannot be refused by tier or memory. What is freed pays overdrafts back
//! first, and a safe point moves out of the overdraft what has come to fit.
//!
//! A charge goes upward by compare-and-swap, tier before root, and back if the
//! root refuses. While such a charge may still be taken back it could be in the
//! way of another one that fits; each limited tier therefore counts charges
//! begun and open, and a refusal that overlapped with one is tried again.
//!
//! # Owner tags and the page map
//!
//! ```text
//!   a block below 4 KiB                    a block of 4 KiB and more
//!   +------------------------+-----+       address >> 12 = page
//!   | the user's bytes       | tag |         |
//!   +------------------------+-----+         v
//!                                          root: 2^18 entries, static
//!   tag                                      | page >> 18
//!   31        30 .. 22       21 .. 0         v
//!   +---------+-------------+-------+      leaf: 2^18 tags, 1 MiB, mapped when
//!   | sampled | check bits  | index |      first used, covers 1 GiB
//!   +---------+-------------+-------+
//! ```
//!
//! Two blocks of at least 4 KiB cannot start in the same page, so a cell belongs
//! to one block. The check bits follow from the index; a tag in which they do
//! not agree ends the process. So does, for a page-mapped block, an empty cell:
//! it was freed before.
//!
//! A leaf may have to be mapped when a block moves to a new range of addresses,
//! and after a `realloc` it is too late to fail. So a `realloc` that ends in the
//! page map takes a spare leaf first, or copies by hand.
//!
//! # A heap profile
//!
//! Off, it is nothing: no path tests for it. On (feature `profile`), the
//! accounts of the profiled clients have a ceiling of 0, so that each charge
//! comes to the cold path, and there, before any lock:
//!
//! ```text
//!   charge_cold --> within the account's window, and not barred? --> the cold
//!      |            (publish, then check, as on the fast path)  no   path as ever
//!      | yes                                                            |
//!      v                                                                |
//!   the thread's line of bytes:  ----------x-------------x------> <-----+ admitted
//!   goes on by `size`             marks, one in `sample_bytes` on average
//!      |
//!      | a mark lies in the block
//!      v
//!   unwind (addresses only) --> a record: owner, size, place of the mark, stack
//!      |                            ^
//!      v                            | the block's tag: the sampled bit, and the
//!   the block ----------------------+ number of the record as its index
//! ```
//!
//! A sampled block's tag equals no account's. So its free, and a realloc of
//! it, come to where the owner of a block not at hand is looked up; the record
//! names the owner there, follows the size, and goes with the block. Records
//! are mapped at the start and looked at by number: no address is searched for.
//! Why the estimate has no bias, and how far it may be off, is argued at the
//! top of `ledger/sampling/mod.rs`.
//!
//! # The life of a client's id
//!
//! ```text
//!              register: generation + 1, guarantee charged
//!   +------+ -----------------------------------------------> +--------+
//!   | Free |                                                  | Active |
//!   +------+                                                  +--------+
//!      ^                                                          |
//!      | nothing left: live bytes 0,                              | remove_client, or the
//!      | charged 0, no scope, no hold                             | memory's end: no new
//!      |                      +---------+                         | charges; guarantee and
//!      +--------------------- | Retired | <-----------------------+ unused credit go back
//!                             +---------+
//! ```
//!
//! A slot is never unmapped: a late free may write to it at any time. Nothing
//! tells when a retired client's last byte goes, since that would cost every
//! free something. Retired clients are looked at a few at a time whenever one is
//! registered or removed, and all of them by the reclaimer; ended request
//! budgets when the next one is made. The accounts of
//! a closed client stay where they are; the next generation starts from the
//! negated sum of what they show.
//!
//! A handle ([`Client`](crate::Client)) is a slot and a generation. It keeps
//! nothing alive, and one of an older generation finds nothing.
//!
//! # The life of a thread
//!
//! ```text
//!   +-------+   first allocation    +----------+   thread exit   +----------+
//!   | fresh | --------------------> | attached | --------------> | detached |
//!   +-------+                       | (table)  |                 +----------+
//!       |                           +----------+                      ^
//!       +-- no memory for a table, or no exit hook to be had ---------+
//! ```
//!
//! The thread-local is `const`-initialised and has no destructor, so that access
//! never fails. A fresh thread points to one static account that belongs to
//! nobody and whose ceiling is zero: its first allocation goes to the cold path
//! without a test on the fast one. A table has 16,384 places of 64 bytes; a
//! client's home is its index modulo that, and the next three are tried. If
//! none is free, an account that no scope points to is settled and makes room;
//! if there is none either, the thread charges that client without an account.
//!
//! At thread exit the accounts are settled into their slots, unused credit goes
//! back, and the table goes to the next thread. A detached thread (in
//! destructors that run later still) settles each call with the slots directly.
//! Scopes entered before its exit are void then.
//!
//! # A fork
//!
//! A child inherits one thread and the locks of all. So everybody announces the
//! cold path, `fork` waits until nobody else is in it, and in the child the
//! accounts of the threads that are gone are settled. The forking thread itself
//! goes on: other libraries' fork handlers may allocate. The reclaimer thread is not there
//! in the child; `tick` and `reclaim_unused_memory` do its work.
//!
//! The same holds for what a memory keeps beside the books, its names, blocks,
//! policies: their locks (`ledger/whole.rs`) are taken inside the cold path. It
//! cannot hold for what takes long. So a block's bytes are written and read
//! without a lock, and what the reclaimer remembers is locked while callbacks of
//! the host's run, but belongs to one process: if a child finds either in the
//! middle of something, nobody is at it any more. The block is where its move had
//! come to, and the child's reclaimer begins anew.
//!
//! # The life of a block
//!
//! ```text
//!                     pin, pin_mut: any number of readers or one writer
//!                          ^ v
//!   allocate_for_client --> resident --spill----> spilled ----pin---> resident
//!      (charged)            (charged) \           (not charged)       (charged again,
//!                                      \                               or PinError)
//!                                       discard-> discarded --renew-> resident, zeroed
//! ```
//!
//! Pages come from the system, not from the global allocator, so that they can
//! be given back alone. Whether the bytes are there and whether a pin lives is
//! decided under one lock: a pinned block is never touched. While they are written
//! or read the block is on its way, and a pin waits for its arrival.
//!
//! A block counts as spilled when the system says that its bytes are on the
//! disk (`fdatasync`). Until then they are in memory, so a full disk, an I/O
//! error and a full spill area cost nothing but an event
//! ([`SpillFailed`](crate::EventKind::SpillFailed)).
//!
//! # When memory is short
//!
//! An allocation never waits, so nothing can be taken from anybody for it in
//! time. What it can be is lent:
//!
//! ```text
//!  Enterprise, within its max           usable part is full
//!        |  charge                      of what Basic has borrowed
//!        v                                       |
//!  root says no --- take back unused credit --- root says no
//!        |
//!        +--> lent from the headroom at once (`Reach::Ahead`), if lower tiers
//!        |    have borrowed that much and not yet been asked for it
//!        +--> noted in `Short`, and the reclaimer is unparked: no lock, no wait
//!                                                |
//!   reclaimer: takes it back from lower tiers, then moves the loan from the
//!   headroom to the usable part (`cover_overdraft`). Until that is done, what
//!   lower tiers free goes nowhere else, and they keep no credit.
//! ```
//!
//! So the headroom is what a higher tier lives on between its request and the
//! reclaimer's answer. A client that is lent to in this way is not over its
//! quota; once half of the headroom is used its safe points wait, longer and
//! longer, and calls that can fail wait for [`MemoryBuilder::patience`].
//!
//! [`MemoryBuilder::patience`]: crate::MemoryBuilder::patience
//!
//! Three causes make the reclaimer climb its ladder: such a shortage; the
//! ledger above its high watermark; a source that says that the system is short
//! ([`pressure`](crate::pressure)). The rungs, each only if those before were
//! not enough, each with its deadline ([`Ladder`](crate::Ladder)):
//!
//! 1. Idle blocks. The more urgent, the less idle they must have been.
//! 2. Caches of clients above their soft limit.
//! 3. Caches of borrowers.
//! 4. The inner allocator's free pages ([`Purge`](crate::purge::Purge)).
//! 5. For a shortage, or at the system's limit: the worst borrower is asked to
//!    stop, which it does at its next safe point. If it has given nothing back
//!    by its deadline it may go on, and the next one is asked. When the pressure
//!    is over everybody goes on.
//!
//! Who gives way is chosen by pure functions (`reclaim/ladder.rs`): the lowest
//! precedence first, then the greatest share of what a client may borrow; never
//! below a guarantee; for a shortage only tiers below the one that is short; and
//! nobody for a request that could not be met even so. What a callback says it
//! freed is not believed: the ledger is read before and after. Callbacks run on
//! a thread apart, which is left behind when one hangs.
