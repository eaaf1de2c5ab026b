//! The two steps that every allocation and every free take, as few
//! instructions as the processor has for them.
//!
//! A compiler keeps a relaxed load apart from the comparison that uses it, and
//! a load and a store around an addition apart from the flags that it leaves.
//! On x86-64 that is 3 of 22 instructions, so there the steps are written out.
//! The other `processor` says the same without assembly; Miri and the models run
//! it, and so does every system that needs a real fence between the steps.
//!
//! # Orderings
//! Naturally aligned words are loaded and stored whole on x86-64, so each
//! access is what a `Relaxed` one would be. The block clobbers memory: it is
//! the light fence, and the store comes before the load in program order, which
//! is all that the membarrier proof in `docs/orderings.rs` asks of the owner.

#[cfg(not(all(
    target_arch = "x86_64",
    target_pointer_width = "64",
    any(target_os = "linux", target_os = "android"),
    not(any(miri, tiered_allocator_fence, tiered_allocator_portable)),
    not(all(test, any(tiered_allocator_loom, tiered_allocator_shuttle))),
)))]
mod processor {
    use crate::ledger::account::{Account, add};
    use crate::sync::{Ordering, light_fence, load_own_u64};

    /// Adds to the balance, then compares it with the ceiling. Whether it is
    /// below.
    #[inline(always)]
    pub(in crate::ledger) fn add_and_compare(account: &Account, size: u64) -> bool {
        add(&account.balance, size);
        light_fence();
        account.balance.load(Ordering::Relaxed) < account.ceiling.load(Ordering::Relaxed)
    }

    /// Takes off the balance. Whether it is still above the floor.
    #[inline(always)]
    pub(in crate::ledger) fn subtract_and_test(account: &Account, size: u64) -> bool {
        add(&account.balance, size.wrapping_neg());
        // SAFETY: the caller owns the account (its tag was compared, so it is
        // not the one that fresh threads share), and nobody else stores to
        // `balance`. A plain load is compared in memory, in one instruction.
        let balance = unsafe { load_own_u64(&account.balance) };
        balance as i64 >= 0
    }
}

#[cfg(all(
    target_arch = "x86_64",
    target_pointer_width = "64",
    any(target_os = "linux", target_os = "android"),
    not(any(miri, tiered_allocator_fence, tiered_allocator_portable)),
    not(all(test, any(tiered_allocator_loom, tiered_allocator_shuttle))),
))]
mod processor {
    use crate::ledger::account::Account;
    use core::arch::asm;
    use core::mem::offset_of;

    /// See the other `processor`.
    #[inline(always)]
    pub(in crate::ledger) fn add_and_compare(account: &Account, size: u64) -> bool {
        // SAFETY: loads and stores of two atomics behind a valid reference, as
        // `Relaxed` ones would be; nothing else is touched but flags and a
        // register that is given up.
        unsafe {
            asm!(
                "add qword ptr [{account} + {balance}], {size}",
                "mov {loaded}, qword ptr [{account} + {ceiling}]",
                "cmp qword ptr [{account} + {balance}], {loaded}",
                "jae {too_high}",
                account = in(reg) account,
                size = in(reg) size,
                balance = const offset_of!(Account, balance),
                ceiling = const offset_of!(Account, ceiling),
                loaded = out(reg) _,
                too_high = label { return false },
                options(nostack),
            );
        }
        true
    }

    /// See the other `processor`.
    #[inline(always)]
    pub(in crate::ledger) fn subtract_and_test(account: &Account, size: u64) -> bool {
        // SAFETY: as above, of one atomic.
        unsafe {
            asm!(
                "sub qword ptr [{account} + {balance}], {size}",
                "js {below}",
                account = in(reg) account,
                size = in(reg) size,
                balance = const offset_of!(Account, balance),
                below = label { return false },
                options(nostack),
            );
        }
        true
    }
}

pub(super) use processor::{add_and_compare, subtract_and_test};
