//! Request budgets: a limit for one piece of a client's work.

use super::error::{QuotaExceeded, RegisterError};
use super::handle::{Client, quota_exceeded};
use crate::ledger::fork::Cold;
use crate::ledger::{retire, thread};
use crate::registry::budget::{BudgetNode, Refusal};
use crate::registry::{Exhausted, REGISTRY};
use core::ops::Deref;

/// Ended budgets looked at whenever a new one is made.
const SWEEP: usize = 2;

/// A short-lived account inside a client, with a limit, a peak and a usage of
/// its own. What is charged to it is charged to the client too.
///
/// It is used like a client (it dereferences to one): `run`, `enter`,
/// `checkpoint`, `usage`, `in_client`, and a budget within the budget. When it
/// is dropped, what still lives of it is bound by the client alone, and so are
/// the futures, threads and bound closures made with it that go on. Other
/// handles cloned from it should not be entered afterwards: once nothing of the
/// budget is left, they charge nobody.
///
/// ```
/// use tiered_allocator::{Memory, SubscriptionTier};
///
/// let memory = Memory::new(1 << 30);
/// let client = memory.register("acme", SubscriptionTier::Basic)?;
/// let budget = client.budget(1 << 20)?;
/// let page = budget.run(|| "rendered within one MiB".to_owned())?;
/// assert!(budget.usage().peak_bytes <= 1 << 20);
/// # drop(page);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "the budget ends when it is dropped"]
pub struct Budget {
    account: Client,
    client: Client,
}

impl Budget {
    /// The client, or the budget, that this one is part of.
    pub fn parent(&self) -> &Client {
        &self.client
    }
}

impl Deref for Budget {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.account
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        retire::end_budget(self.account.slot(), self.account.id().generation());
    }
}

impl Client {
    /// A budget of `bytes` for one piece of this client's work. Cheaper than a
    /// client: it has no name and no place in the memory's books, and reserves
    /// nothing. What happens beyond it is what happens beyond the client's
    /// `max`: see [`Enforcement`](crate::Enforcement).
    ///
    /// # Errors
    /// The client was removed, every id is in use, or the system has no memory.
    pub fn budget(&self, bytes: u64) -> Result<Budget, RegisterError> {
        let _hold = self.held().ok_or(RegisterError::Removed)?;
        let _cold = Cold::enter(thread::attached());
        let tree = self.tree()?;
        retire::sweep_ended(&tree, SWEEP);
        let slot = REGISTRY.acquire().map_err(|exhausted| match exhausted {
            Exhausted::Ids(limit) => RegisterError::IdsExhausted { limit },
            Exhausted::Memory => RegisterError::OutOfMemory,
        })?;
        let generation = slot.lock().open_budget(self.slot(), Some(tree), bytes);
        Ok(Budget {
            account: Client::new(slot, generation),
            client: self.clone(),
        })
    }

    /// The error if this is a request budget that holds more than it may.
    pub(super) fn over_budget(&self) -> Option<QuotaExceeded> {
        let slot = self.slot();
        slot.is_over_budget().then(|| {
            quota_exceeded(
                slot,
                Refusal {
                    node: BudgetNode::Request,
                    requested: 0,
                    charged: slot.charged(),
                    limit: slot.limits().max,
                },
            )
        })
    }
}
