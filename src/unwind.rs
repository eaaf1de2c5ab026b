//! Turning a refused infallible allocation into an unwinding of the tenant's
//! own work (feature `unwind`, nightly Rust).
//!
//! Unwinding out of `GlobalAlloc` is undefined behaviour, but out of the
//! allocation error hook (`std::alloc::set_alloc_error_hook`, unstable) it is
//! not: by then the allocator has returned. The allocator only notes *why* it
//! returned null; if the null reaches the hook, the hook unwinds with a payload
//! that [`Client::run`](crate::Client::run) and
//! [`in_client`](crate::InClientExt::in_client) turn into an error. Nulls of
//! other causes go to the hook that was there before.
//!
//! Without the feature this is a module of the same interface that does
//! nothing.

#[cfg(feature = "unwind")]
pub(crate) use enabled::{catch, forget_refusal, install, must_not_refuse, note_refusal};

#[cfg(not(feature = "unwind"))]
pub(crate) use disabled::{catch, forget_refusal, install, must_not_refuse, note_refusal};

#[cfg(feature = "unwind")]
mod enabled {
    use crate::client::{Client, QuotaExceeded, quota_exceeded, untracked};
    use crate::registry::budget::Refusal;
    use crate::registry::slot::Slot;
    use crate::sync::thread_local;
    use core::alloc::Layout;
    use core::cell::Cell;
    use std::alloc::{set_alloc_error_hook, take_alloc_error_hook};
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::OnceLock;

    thread_local! {
        /// Why the last null of this thread was returned, if by a refusal.
        static REFUSED: Cell<Option<(u32, u32, Refusal)>> = const { Cell::new(None) };
    }

    /// The payload. Whose work is to end, and why.
    struct Unwound {
        client: Client,
        quota: QuotaExceeded,
    }

    type Hook = fn(Layout);
    static PREVIOUS: OnceLock<Hook> = OnceLock::new();

    /// Puts the hook in place, once in a process.
    pub(crate) fn install() {
        PREVIOUS.get_or_init(|| {
            let previous = take_alloc_error_hook();
            set_alloc_error_hook(hook);
            previous
        });
    }

    fn hook(layout: Layout) {
        let refused = REFUSED.take();
        if let Some((index, generation, refusal)) = refused
            && refusal.requested <= layout.size() as u64
            && !std::thread::panicking()
        {
            let payload = untracked(|| payload(index, generation, refusal));
            if let Some(payload) = payload {
                resume_unwind(payload);
            }
        }
        if let Some(previous) = PREVIOUS.get() {
            previous(layout);
        }
    }

    fn payload(index: u32, generation: u32, refusal: Refusal) -> Option<Box<Unwound>> {
        let slot = crate::registry::REGISTRY.slot(index)?;
        Some(Box::new(Unwound {
            client: Client::new(slot, generation),
            quota: quota_exceeded(slot, refusal),
        }))
    }

    /// Remembers that the null about to be returned is a refusal. Client 0 has
    /// no quota, and no `run` that would catch it.
    pub(crate) fn note_refusal(slot: &Slot, refusal: Refusal) {
        let refused = (slot.index(), slot.generation(), refusal);
        REFUSED.set((!slot.is_unattributed()).then_some(refused));
    }

    /// The null about to be returned is not a refusal.
    pub(crate) fn forget_refusal() {
        REFUSED.set(None);
    }

    /// Whether the thread is unwinding: a refusal now would end the process.
    pub(crate) fn must_not_refuse() -> bool {
        std::thread::panicking()
    }

    /// Runs the work of `client`; the error if a refusal unwound it. Other
    /// panics, and those of other clients' scopes outside, go on.
    pub(crate) fn catch<R>(client: &Client, work: impl FnOnce() -> R) -> Result<R, QuotaExceeded> {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(output) => Ok(output),
            Err(payload) => match payload.downcast::<Unwound>() {
                Ok(unwound) if unwound.client == *client => Err(unwound.quota),
                Ok(other) => resume_unwind(other),
                Err(other) => resume_unwind(other),
            },
        }
    }
}

#[cfg(not(feature = "unwind"))]
mod disabled {
    use crate::client::{Client, QuotaExceeded};
    use crate::registry::budget::Refusal;
    use crate::registry::slot::Slot;

    pub(crate) fn install() {}

    pub(crate) fn note_refusal(_: &Slot, _: Refusal) {}

    pub(crate) fn forget_refusal() {}

    pub(crate) fn must_not_refuse() -> bool {
        std::thread::panicking()
    }

    #[inline(always)]
    pub(crate) fn catch<R>(_: &Client, work: impl FnOnce() -> R) -> Result<R, QuotaExceeded> {
        Ok(work())
    }
}
