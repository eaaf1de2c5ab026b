//! Every atomic, and why its ordering suffices.
//!
//! # Publish, then check
//!
//! The fast path writes only what belongs to its thread, and yet a charge by
//! another thread may take the credit that it relies on. Two words decide, both
//! in the account: `balance`, stored by the owner alone, and `ceiling`, stored
//! under the lock of the client's slot.
//!
//! ```text
//!   owner                                   revoker (holds the slot's lock)
//!   O1  balance = b + s                     R1  ceiling = 0
//!       light fence                             heavy fence
//!   O2  c = ceiling                         R2  u = balance
//!       b + s < c: the charge stands            window = min(u, window)
//!       else: balance = b (withdraw)            the rest goes back to the budget
//!                                           R3  ceiling = window + 1
//! ```
//!
//! **Claim.** If the charge stands, the revoker leaves its bytes alone: it is
//! impossible that O2 reads a ceiling from before R1 *and* R2 reads a balance
//! from before O1.
//!
//! **With `membarrier`** the light fence is a compiler fence and the heavy one
//! is a full fence followed by `MEMBARRIER_CMD_PRIVATE_EXPEDITED`. By
//! membarrier(2), when the call returns every running thread of the process has
//! passed through a state in which all its memory accesses were in program
//! order; a thread that was not running passed a full barrier when it was
//! switched out, and passes another when it comes back. So there is a point P
//! in the owner's program order, inside the revoker's call. The compiler fence
//! keeps O1 before O2 in program order. Either
//!
//! - O1 is before P. Its store was visible when the call returned, so R2 reads
//!   it or a later one; or
//! - O1, and with it O2, is after P. R1 was visible when the call began, so O2
//!   reads it or a later one.
//!
//! **With real fences** (other systems, `--cfg tiered_allocator_fence`, the
//! portable side) both are `SeqCst` fences, and this is the store-buffering
//! pattern that two such fences forbid: whichever comes first in their total
//! order, the thread of the other one reads what was stored before it.
//!
//! All single accesses can then be `Relaxed`. Four things remain.
//!
//! *A withdrawn charge.* O2 may read the zero, while R2 reads the balance that
//! the owner is about to withdraw. Above the window it shows as negative credit,
//! and the revoker waits for the withdrawal, which needs no lock. It waits for a
//! bounded time; if the owner does not run at all, its whole window counts as
//! used, which is safe. Within the window the revoker takes too little: the
//! owner keeps the credit for just the charge it is making, which the cold path
//! will grant it from there. That is the same as if it had come first.
//! `withdraw` stores with `Release` and `seize` loads with `Acquire`, so that a
//! withdrawal that is seen brings everything before it along.
//!
//! *Frees meanwhile.* They lower the balance and never look at the ceiling. The
//! window was set to what R2 read, so what is freed afterwards is credit inside
//! the window, and drawn as far as the budget knows.
//!
//! *The owner's cold path* moves balance, offset, window and ceiling under the
//! slot's lock, so never at the same time as a revoker.
//!
//! *A watched account* (a heap profile) has a ceiling of 0 all the time. Its
//! owner's O2 is a load of `window`, in which R1 sets the bit `BARRED` and R3
//! clears it: one word for both, and the claim and its proof are the same.
//!
//! **Where `membarrier` is refused** (a seccomp filter) nobody could take credit
//! back, so nobody gets any: the window is empty, each charge goes through the
//! slot's lock, and nothing above is needed for exactness. If it is refused only
//! later, credit drawn before stays where it is until its owner comes by.
//!
//! # Entering a scope
//!
//! The same argument with other words: the owner stores `pins + 1`, fences
//! lightly, loads `generation`; a removal stores "no generation", fences
//! heavily, and then looks at `pins`. Either the scope finds itself turned away,
//! or the removal finds the pin and keeps the slot until it is gone. `unpin`
//! stores with `Release` and `is_pinned` loads with `Acquire`: whoever sees no
//! pin sees all that the scope did.
//!
//! # The account nobody has
//!
//! A fresh thread's account is a static that all fresh threads share, and they
//! do store to its balance. What their racing attempts add up to there means
//! nothing: no balance is below its ceiling of zero, so each of them is turned to
//! the cold path.
//!
//! # Everything else
//!
//! | where | words | ordering | because |
//! |---|---|---|---|
//! | `ledger/account.rs` | `allocated`, `allocs`, `frees` | `Relaxed`, `allocated` read with `Acquire` | one writer; a reader loads `allocated` before `balance`, so what it takes for freed is never more than was |
//! | | `tag` | `Release` to claim, `Relaxed` to read | the owner reads its own; others look for the account under the slot's lock |
//! | `ledger/revoke.rs` | credit, before anybody is barred | with the slot's `sequence`, else under its lock | between a charge and the new window the bytes are in the budget and in no account; overlooked, they would make a false refusal |
//! | `ledger/table.rs` | list of tables, `next` | `Release` / `Acquire` | a table is complete before it is reachable; the list only grows |
//! | | `used` bits | `Relaxed` | stored by the owner under the lock of the slot that comes or goes, which whoever needs the truth holds |
//! | | `spare_leaf`, `owned` | `Relaxed` | the owner's; handed on under the lock of the list of idle tables |
//! | `ledger/sampling/watch.rs` | the plan, `TREE` | plan `Relaxed`, then `TREE` with `Release`; read with `Acquire` | who sees a profile sees its plan. Ceilings are stored under the slot's lock after that, so a window that is moved later takes it into account; client 0's accounts are made without the lock, against a heavy fence |
//! | `ledger/sampling/samples.rs` | chunks | `Release` / `Acquire` | a record is zeroed before it is reachable |
//! | | `version` | odd, release fence; even with `Release`; read with `Acquire`, acquire fence | a seqlock a record; its one writer is whoever has the block |
//! | `ledger/fork.rs` | `cold`, `TABLELESS`, `FORKING` | `SeqCst` fences | Dekker's pattern: announce, fence, look; either the thread sees the fork or the fork sees the thread. Leaving stores with `Release`, waiting loads with `Acquire` |
//! | `registry/slot.rs` | everything written under the lock | `Relaxed` | the lock orders it |
//! | | `state`, `generation` | `Release` / `Acquire` | read without the lock by handles, the state first: a generation that is still the old one then says whose state it was |
//! | | `parent`, `children` | `Release` / `Acquire` to come and go | a request budget has its parent before its first account, and loses it after the last is barred |
//! | | `sequence` | odd, release fence; even with `Release`; read with `Acquire`, acquire fence | a seqlock: a torn set of figures is noticed. The figures are atomics, so no figure is torn |
//! | | `holds` | `SeqCst` fences | Dekker's pattern against `state`: add, fence, look at the state; store the state, fence, look at the holds |
//! | | settled totals | `Relaxed` read-modify-writes | sums; nobody derives anything else from them |
//! | `registry/{budget,tree}.rs` | `charged`, `limit`, `lent` | `Relaxed` | each decision is one compare-and-swap of one word, whose modification order says who got the last bytes; they publish nothing else |
//! | | `charged` and `tentative` of a tier | `charged` up with `Release`, loaded with `Acquire`; `tentative` begins with `Acquire`, ends with `Release` | what is seen in `charged` has begun, and what has ended is gone from it: so a refusal that a charge caused which is taken back is noticed |
//! | | `waiting` | `SeqCst` to begin, `Relaxed` to end and to look | set before the walk that takes credit back; that walk takes each slot's lock, so whoever draws credit later sees it |
//! | `registry/table.rs` | chunks, `len` | `Release` / `Acquire` | slots are initialised before they are reachable |
//! | `registry/events.rs` | `stamp` | claimed with `Acquire`, release fence; even with `Release`; read with `Acquire`, acquire fence | a seqlock a record; a writer that meets another gives up its own |
//! | `owner/page_map.rs` | leaf pointers | `Release` / `Acquire` | a leaf's zeroes are there before it is |
//! | | cells | `Relaxed` | whoever passes a block to another thread orders the two already |
//! | `memory/block/state.rs` | `pins` | counted under the lock; down with `Release`, the reclaimer reads with `Acquire` | no pin means that all writes through pins are seen |
//! | | `idle_since`, `resident_bytes` | `Relaxed` | figures |
//! | | `is_owed` | `Relaxed` | the mover's while the block is on its way; read by whoever ends the move, the mover or a child after the fork |
//! | `registry/bell.rs` | `alarm`, `pressed` | `Release` / `Acquire` | the reclaimer sees why it was called |
//! | `sys/unix.rs` | the state of the `membarrier` registration | `Relaxed` | each thread may find out by itself |
//! | | the exit hook | `Release` / `Acquire` | one function, stored before the key is armed |
//!
//! # Figures that are read while threads run
//!
//! Live bytes are the difference of two sums over many accounts, and a block may
//! pass from one thread to another between two of them. So everything freed is
//! added up first and everything allocated afterwards: a block seen freed is
//! seen allocated, and the difference is never negative. It is cut off at
//! `charged`. Accounts that are being settled meanwhile would be missed or
//! counted twice; the slot's sequence shows that, and after 16 attempts the lock
//! is taken.
//!
//! # What is checked, and by what
//!
//! `scripts/model.sh` runs the real code, not a copy of it: `sync.rs` hands out
//! a checker's atomics, locks and threads in place of the real ones.
//!
//! | | `loom`: all executions of two threads, weak memory | `shuttle`: many schedules of whole threads, sequentially consistent |
//! |---|---|---|
//! | publish, then check | charge, free and withdraw against `revoke` | two owners, revokers of one client and of a memory, a limit that moves: no byte over, none refused that fits, all of it there afterwards |
//! | scopes and removal | `pin` against `for_removal` | scopes of a stale handle while the slot goes to the next client; request budgets |
//! | `holds` and `state` | `hold`, `is_active` against `is_held`, `close`, `open` | the same through handles and blocks |
//! | the slot's sequence | one account settled under one reading | eviction, thread exit and a remote free under readings |
//! | budgets | a charge that is taken back; the last bytes | the same with three threads, and loans |
//! | leaves of the page map | two threads make one | the same |
//! | the event ring | a reader, and a second writer, of a place that is written anew | two writers that go round twice |
//! | blocks | | pin, spill, discard, renew, pass on, drop, removal of the owner |
//!
//! What this does not show. Tables are small under a checker (four accounts a
//! thread, two events, few attempts), and so are the tests: two to four threads
//! and a handful of steps. `shuttle` takes samples. `loom` stops at a number of
//! preemptions, lets loads be stale but runs stores in program order, and gives
//! each read-modify-write the newest value; that a leaf's zeroes are there before
//! the leaf is the kernel's and the `Release` store's doing, not the model's.
//! `fork` and the inner allocators are not modelled: `tests/fork*.rs` fork at many
//! moments.
//!
//! No model knows the asymmetric fence: in both, `light_fence` and `heavy_fence`
//! are full (`SeqCst`) fences. That a compiler fence and `membarrier` do as well
//! rests on the argument above and is tried on the machine (`litmus.rs`): an
//! owner's charge, behind stores that are slow to drain, races with a revoker,
//! and with `membarrier` the two never get the same bytes.
