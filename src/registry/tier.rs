//! Tiers: names, and the policy that a name stands for.

use super::budget::UNLIMITED;
use core::fmt;
use core::str::FromStr;
use core::time::Duration;
use std::sync::Arc;

/// The subscription levels that every memory knows, in rising order.
///
/// ```
/// use tiered_allocator::SubscriptionTier;
///
/// assert!(SubscriptionTier::Basic < SubscriptionTier::Enterprise);
/// assert_eq!("premium".parse(), Ok(SubscriptionTier::Premium));
/// assert_eq!(SubscriptionTier::Premium.to_string(), "Premium");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum SubscriptionTier {
    /// A tenth of the usable memory, first to give back what it borrowed.
    Basic,
    /// A fifth of the usable memory.
    Premium,
    /// Half of the usable memory, last to give back.
    Enterprise,
}

impl SubscriptionTier {
    /// All three, in rising order.
    pub const ALL: [SubscriptionTier; 3] = [
        SubscriptionTier::Basic,
        SubscriptionTier::Premium,
        SubscriptionTier::Enterprise,
    ];

    /// The name, as [`Display`](fmt::Display) writes it.
    pub const fn name(self) -> &'static str {
        match self {
            SubscriptionTier::Basic => "Basic",
            SubscriptionTier::Premium => "Premium",
            SubscriptionTier::Enterprise => "Enterprise",
        }
    }
}

impl fmt::Display for SubscriptionTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is none of the subscription tiers.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{given}` is not a subscription tier: use Basic, Premium or Enterprise")]
#[non_exhaustive]
pub struct ParseTierError {
    /// What was given.
    pub given: String,
}

impl FromStr for SubscriptionTier {
    type Err = ParseTierError;

    /// Upper and lower case are the same.
    fn from_str(given: &str) -> Result<Self, Self::Err> {
        SubscriptionTier::ALL
            .into_iter()
            .find(|tier| tier.name().eq_ignore_ascii_case(given))
            .ok_or_else(|| ParseTierError {
                given: given.to_owned(),
            })
    }
}

/// The tier of a client, by name: a [`SubscriptionTier`] or one that
/// [`MemoryBuilder::tier`](crate::MemoryBuilder::tier) defined.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Tier(Arc<str>);

impl Tier {
    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// The tier of this name; allocates nothing, so nobody is charged.
    pub(crate) fn sharing(name: Arc<str>) -> Tier {
        Tier(name)
    }
}

impl From<SubscriptionTier> for Tier {
    fn from(tier: SubscriptionTier) -> Tier {
        Tier(tier.name().into())
    }
}

impl From<&str> for Tier {
    fn from(name: &str) -> Tier {
        Tier(name.into())
    }
}

impl From<String> for Tier {
    fn from(name: String) -> Tier {
        Tier(name.into())
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An amount of memory, absolute or relative to the memory's usable part.
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub enum Limit {
    /// So many bytes.
    Bytes(u64),
    /// This share, from 0.0 to 1.0: of the memory's usable part, or for an
    /// overdraft of its headroom.
    Share(f64),
    /// No limit of its own; the budgets above still hold.
    Unlimited,
}

impl Limit {
    /// The amount in bytes for a memory with `usable_bytes`, or `None` if the
    /// share is not one.
    pub(crate) fn resolve(self, usable_bytes: u64) -> Option<u64> {
        match self {
            Limit::Bytes(bytes) => Some(bytes),
            Limit::Unlimited => Some(UNLIMITED),
            Limit::Share(share) if (0.0..=1.0).contains(&share) => {
                // A total beyond 2^53 may round up on its way to `f64`.
                Some(((usable_bytes as f64 * share) as u64).min(usable_bytes))
            }
            Limit::Share(_) => None,
        }
    }
}

/// What happens to a request beyond a client's `max`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
#[repr(u8)]
pub enum Enforcement {
    /// Granted out of the memory's headroom, and the client is over its quota
    /// until it has given back: [`Client::run`](crate::Client::run) ends with
    /// an error and [`Client::checkpoint`](crate::Client::checkpoint) returns
    /// one. Refused only when the overdraft or the headroom is used up.
    Graceful = 2,
    /// Refused, to the byte: `alloc` returns null. `try_reserve`, fallible
    /// collections and `allocate_for_client` see a clean error; infallible
    /// code aborts the process, as it does on any refused allocation.
    Strict = 0,
    /// Granted, counted, reported: for finding the right limits first.
    Observe = 1,
}

impl Enforcement {
    pub(crate) fn from_bits(bits: u8) -> Enforcement {
        match bits {
            1 => Enforcement::Observe,
            2 => Enforcement::Graceful,
            _ => Enforcement::Strict,
        }
    }
}

/// What the reclaimer does with the physical memory of an idle block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum ReclaimPolicy {
    /// Writes it to an unlinked temporary file and brings it back at the next
    /// pin. Nothing is lost.
    Spill,
    /// Throws it away; the next pin says so. For caches.
    Discard,
    /// Leaves it where it is.
    Keep,
}

/// What a tier's clients may have and how they are treated.
///
/// ```
/// use std::time::Duration;
/// use tiered_allocator::{Enforcement, Limit, Memory, TierPolicy};
///
/// let trial = TierPolicy::new(Limit::Bytes(16 << 20))
///     .enforcement(Enforcement::Strict)
///     .idle_after(Duration::from_secs(30));
/// let memory = Memory::builder(1 << 30).tier("trial", trial).build()?;
/// memory.register("visitor", "trial")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TierPolicy {
    pub(crate) max: Limit,
    pub(crate) soft: Option<Limit>,
    pub(crate) guarantee: Limit,
    pub(crate) aggregate: Limit,
    pub(crate) overdraft: Limit,
    pub(crate) precedence: u8,
    pub(crate) enforcement: Enforcement,
    pub(crate) idle_after: Duration,
    pub(crate) reclaim: ReclaimPolicy,
}

impl TierPolicy {
    /// A policy with this `max` for each client; no guarantee, no aggregate
    /// limit, lowest precedence, graceful with the whole headroom to draw on,
    /// blocks idle after 300 s are spilled.
    pub const fn new(max: Limit) -> TierPolicy {
        TierPolicy {
            max,
            soft: None,
            guarantee: Limit::Bytes(0),
            aggregate: Limit::Unlimited,
            overdraft: Limit::Unlimited,
            precedence: 0,
            enforcement: Enforcement::Graceful,
            idle_after: Duration::from_secs(300),
            reclaim: ReclaimPolicy::Spill,
        }
    }

    /// The most that one client may have.
    pub const fn max(mut self, max: Limit) -> TierPolicy {
        self.max = max;
        self
    }

    /// From here on a client is asked to give back. Default: `max`.
    pub const fn soft(mut self, soft: Limit) -> TierPolicy {
        self.soft = Some(soft);
        self
    }

    /// Reserved for each client when it is registered; never taken from it.
    pub const fn guarantee(mut self, guarantee: Limit) -> TierPolicy {
        self.guarantee = guarantee;
        self
    }

    /// The most that all clients of the tier may have together.
    pub const fn aggregate(mut self, aggregate: Limit) -> TierPolicy {
        self.aggregate = aggregate;
        self
    }

    /// How far past its `max` one graceful client may go, as a share of the
    /// memory's headroom or in bytes. Less than everything means that code
    /// which cannot fail sees a refusal while memory is left.
    pub const fn overdraft(mut self, overdraft: Limit) -> TierPolicy {
        self.overdraft = overdraft;
        self
    }

    /// The higher, the later this tier gives way: idle blocks are taken from
    /// the lowest precedence first.
    pub const fn precedence(mut self, precedence: u8) -> TierPolicy {
        self.precedence = precedence;
        self
    }

    /// What happens beyond `max`.
    pub const fn enforcement(mut self, enforcement: Enforcement) -> TierPolicy {
        self.enforcement = enforcement;
        self
    }

    /// How long a block must not have been pinned before it is reclaimed.
    pub const fn idle_after(mut self, idle_after: Duration) -> TierPolicy {
        self.idle_after = idle_after;
        self
    }

    /// What the reclaimer does with an idle block.
    pub const fn reclaim(mut self, reclaim: ReclaimPolicy) -> TierPolicy {
        self.reclaim = reclaim;
        self
    }
}

impl From<SubscriptionTier> for TierPolicy {
    /// The default policy: `max` is 10 %, 20 % or 50 % of the usable memory.
    fn from(tier: SubscriptionTier) -> TierPolicy {
        let (share, precedence) = match tier {
            SubscriptionTier::Basic => (0.1, 10),
            SubscriptionTier::Premium => (0.2, 20),
            SubscriptionTier::Enterprise => (0.5, 30),
        };
        TierPolicy::new(Limit::Share(share)).precedence(precedence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_in_any_case_and_others_do_not() {
        for tier in SubscriptionTier::ALL {
            assert_eq!(tier.to_string().to_uppercase().parse(), Ok(tier));
        }
        let error = "gold".parse::<SubscriptionTier>().unwrap_err();
        assert!(error.to_string().contains("`gold`"));
    }

    #[test]
    fn shares_resolve_against_the_usable_part_and_nonsense_does_not() {
        assert_eq!(Limit::Share(0.25).resolve(1000), Some(250));
        assert_eq!(Limit::Share(1.0).resolve(1000), Some(1000));
        assert_eq!(Limit::Bytes(7).resolve(1000), Some(7));
        assert_eq!(Limit::Unlimited.resolve(1000), Some(u64::MAX));
        for share in [-0.1, 1.01, f64::NAN, f64::INFINITY] {
            assert_eq!(Limit::Share(share).resolve(1000), None);
        }
    }
}
