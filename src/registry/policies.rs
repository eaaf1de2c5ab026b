//! From names and shares to bytes: the tiers of one memory, and the limits of
//! a client by its tier and its own overrides.

use super::budget::{MAX_TIERS, UNLIMITED};
use super::slot::Limits;
use super::tier::{Enforcement, Limit, SubscriptionTier, Tier, TierPolicy};
use crate::ledger::whole::{WholeMutex, WholeMutexGuard, WholeRwLock};
use std::sync::Arc;

/// A configuration that cannot work. Nothing was changed.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A memory without memory.
    #[error("the total is 0 bytes: a memory needs something to hand out")]
    ZeroTotal,
    /// A figure beyond what an address space holds.
    #[error("{what} is {bytes} bytes, beyond the {limit} that one process can address")]
    TooLarge {
        /// Which figure.
        what: &'static str,
        /// What was given.
        bytes: u64,
        /// The largest that is accepted.
        limit: u64,
    },
    /// A share that is not between 0 and 1.
    #[error("{what} is a share of {share}: shares go from 0.0 to 1.0")]
    ShareOutOfRange {
        /// Which figure.
        what: &'static str,
        /// What was given.
        share: f64,
    },
    /// A limit that nothing could fit in.
    #[error("{what} is 0 bytes: nothing could ever be allocated")]
    ZeroLimit {
        /// Which figure.
        what: &'static str,
    },
    /// More guaranteed than allowed.
    #[error("the guarantee of {guarantee} bytes is above the max of {max} bytes")]
    GuaranteeAboveMax {
        /// Guaranteed bytes.
        guarantee: u64,
        /// Allowed bytes.
        max: u64,
    },
    /// A tier that this memory does not have.
    #[error("there is no tier `{name}` in this memory: define it with MemoryBuilder::tier")]
    UnknownTier {
        /// The name asked for.
        name: String,
    },
    /// More tiers than a memory can have.
    #[error("a memory can have {limit} tiers")]
    TooManyTiers {
        /// The most there can be.
        limit: usize,
    },
    /// An interval of zero would never let the reclaimer rest.
    #[error("{what} is 0: the reclaimer needs time between two passes")]
    ZeroInterval {
        /// Which interval.
        what: &'static str,
    },
}

/// The tier of a client and what it has of its own.
///
/// ```
/// use tiered_allocator::{ClientOptions, Limit, Memory, SubscriptionTier};
///
/// let memory = Memory::new(1 << 30);
/// let options = ClientOptions::new(SubscriptionTier::Premium)
///     .max(Limit::Bytes(64 << 20))
///     .guarantee(Limit::Bytes(16 << 20));
/// memory.register("acme", options)?;
/// # Ok::<(), tiered_allocator::RegisterError>(())
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct ClientOptions {
    pub(crate) tier: Tier,
    pub(crate) max: Option<Limit>,
    pub(crate) soft: Option<Limit>,
    pub(crate) guarantee: Option<Limit>,
    pub(crate) enforcement: Option<Enforcement>,
}

impl ClientOptions {
    /// Everything as the tier has it.
    pub fn new(tier: impl Into<Tier>) -> ClientOptions {
        ClientOptions {
            tier: tier.into(),
            max: None,
            soft: None,
            guarantee: None,
            enforcement: None,
        }
    }

    /// The most that this client may have.
    pub fn max(mut self, max: Limit) -> ClientOptions {
        self.max = Some(max);
        self
    }

    /// From here on this client is asked to give back.
    pub fn soft(mut self, soft: Limit) -> ClientOptions {
        self.soft = Some(soft);
        self
    }

    /// Reserved for this client.
    pub fn guarantee(mut self, guarantee: Limit) -> ClientOptions {
        self.guarantee = Some(guarantee);
        self
    }

    /// What happens beyond this client's `max`.
    pub fn enforcement(mut self, enforcement: Enforcement) -> ClientOptions {
        self.enforcement = Some(enforcement);
        self
    }

    fn mask(&self) -> u8 {
        u8::from(self.max.is_some())
            | u8::from(self.soft.is_some()) << 1
            | u8::from(self.guarantee.is_some()) << 2
            | u8::from(self.enforcement.is_some()) << 3
    }
}

impl<T: Into<Tier>> From<T> for ClientOptions {
    fn from(tier: T) -> ClientOptions {
        ClientOptions::new(tier)
    }
}

/// A tier with its place in the tree.
#[derive(Clone, Debug)]
pub(crate) struct NamedPolicy {
    pub(crate) name: Arc<str>,
    pub(crate) policy: TierPolicy,
}

/// The tiers of one memory. A tier, once defined, stays.
pub(crate) struct Policies {
    pub(crate) usable_bytes: u64,
    pub(crate) headroom_bytes: u64,
    tiers: WholeRwLock<Vec<NamedPolicy>>,
    changing: WholeMutex<()>,
}

/// The largest amount that a configuration may name.
pub(crate) const LARGEST: u64 = isize::MAX as u64;

impl Policies {
    pub(crate) fn new(usable_bytes: u64, headroom_bytes: u64) -> Policies {
        let tiers = SubscriptionTier::ALL.map(|tier| NamedPolicy {
            name: tier.name().into(),
            policy: tier.into(),
        });
        Policies {
            usable_bytes,
            headroom_bytes,
            tiers: WholeRwLock::new(tiers.into()),
            changing: WholeMutex::new(()),
        }
    }

    /// Held while a client's tier or limits change: one change at a time.
    pub(crate) fn change(&self) -> WholeMutexGuard<'_, ()> {
        self.changing.lock()
    }

    /// All tiers, as long as nobody else knows of them.
    pub(crate) fn first(&mut self) -> &[NamedPolicy] {
        self.tiers.get_mut()
    }

    fn read<T>(&self, use_tiers: impl FnOnce(&[NamedPolicy]) -> T) -> T {
        use_tiers(&self.tiers.read())
    }

    /// All tiers, in the order of their places in the tree.
    pub(crate) fn all(&self) -> Vec<NamedPolicy> {
        self.read(<[NamedPolicy]>::to_vec)
    }

    pub(crate) fn at(&self, place: usize) -> Option<NamedPolicy> {
        self.read(|tiers| tiers.get(place).cloned())
    }

    /// The place of a tier.
    pub(crate) fn find(&self, tier: &Tier) -> Result<(usize, TierPolicy), ConfigError> {
        self.read(|tiers| {
            tiers
                .iter()
                .position(|known| *known.name == *tier.name())
                .map(|place| (place, tiers[place].policy))
        })
        .ok_or_else(|| ConfigError::UnknownTier {
            name: tier.name().to_owned(),
        })
    }

    /// Defines a tier or changes it; answers its place and aggregate limit.
    pub(crate) fn define(
        &self,
        tier: &Tier,
        policy: TierPolicy,
    ) -> Result<(usize, u64), ConfigError> {
        let aggregate = self.amount("the tier's aggregate limit", policy.aggregate)?;
        self.limits(&policy, &ClientOptions::new(tier.clone()))?;
        let mut tiers = self.tiers.write();
        let known = tiers.iter().position(|known| *known.name == *tier.name());
        let place = match known {
            Some(place) => place,
            None if tiers.len() == MAX_TIERS => {
                return Err(ConfigError::TooManyTiers { limit: MAX_TIERS });
            }
            None => {
                tiers.push(NamedPolicy {
                    name: tier.shared_name(),
                    policy,
                });
                tiers.len() - 1
            }
        };
        tiers[place].policy = policy;
        Ok((place, aggregate))
    }

    /// Bytes of a limit that must leave room for something.
    fn amount(&self, what: &'static str, limit: Limit) -> Result<u64, ConfigError> {
        match resolve(what, limit, self.usable_bytes)? {
            0 => Err(ConfigError::ZeroLimit { what }),
            bytes => Ok(bytes),
        }
    }

    /// The limits of a client of a tier with this policy.
    pub(crate) fn limits(
        &self,
        policy: &TierPolicy,
        options: &ClientOptions,
    ) -> Result<Limits, ConfigError> {
        let max = self.amount("max", options.max.unwrap_or(policy.max))?;
        let soft = match options.soft.or(policy.soft) {
            Some(soft) => self.amount("the soft limit", soft)?.min(max),
            None => max,
        };
        let guarantee = options.guarantee.unwrap_or(policy.guarantee);
        let guarantee = resolve("the guarantee", guarantee, self.usable_bytes)?;
        if guarantee > max {
            return Err(ConfigError::GuaranteeAboveMax { guarantee, max });
        }
        Ok(Limits {
            max,
            soft,
            guarantee,
            overdraft: resolve("the overdraft", policy.overdraft, self.headroom_bytes)?,
            enforcement: options.enforcement.unwrap_or(policy.enforcement),
        })
    }

    /// The limits of a client that has `old` with these overrides and comes to
    /// a tier with this policy: its own figures stay, the rest changes.
    pub(crate) fn carry_over(
        &self,
        policy: &TierPolicy,
        old: Limits,
        overrides: u8,
    ) -> Result<Limits, ConfigError> {
        let own = |bit: u8, bytes: u64| (overrides & bit != 0).then_some(as_limit(bytes));
        let options = ClientOptions {
            tier: Tier::from(""),
            max: own(1, old.max),
            soft: own(2, old.soft),
            guarantee: own(4, old.guarantee),
            enforcement: (overrides & 8 != 0).then_some(old.enforcement),
        };
        self.limits(policy, &options)
    }
}

/// Which limits of `options` are the client's own, as [`Policies::carry_over`]
/// reads it.
pub(crate) fn override_mask(options: &ClientOptions) -> u8 {
    options.mask()
}

fn as_limit(bytes: u64) -> Limit {
    if bytes == UNLIMITED {
        Limit::Unlimited
    } else {
        Limit::Bytes(bytes)
    }
}

fn resolve(what: &'static str, limit: Limit, whole: u64) -> Result<u64, ConfigError> {
    match (limit, limit.resolve(whole)) {
        (Limit::Unlimited, _) => Ok(UNLIMITED),
        (Limit::Share(share), None) => Err(ConfigError::ShareOutOfRange { what, share }),
        (_, Some(bytes)) if bytes <= LARGEST => Ok(bytes),
        (_, bytes) => Err(ConfigError::TooLarge {
            what,
            bytes: bytes.unwrap_or(UNLIMITED),
            limit: LARGEST,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies() -> Policies {
        Policies::new(1000, 250)
    }

    fn limits(options: ClientOptions) -> Result<Limits, ConfigError> {
        let policies = policies();
        let (_, policy) = policies.find(&options.tier)?;
        policies.limits(&policy, &options)
    }

    #[test]
    fn the_default_tiers_have_a_tenth_a_fifth_and_a_half() {
        for (tier, max) in SubscriptionTier::ALL.into_iter().zip([100, 200, 500]) {
            assert_eq!(limits(tier.into()).unwrap().max, max);
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_figures() {
        let basic = || ClientOptions::new(SubscriptionTier::Basic);
        let zero = limits(basic().max(Limit::Bytes(0))).unwrap_err();
        assert_eq!(zero, ConfigError::ZeroLimit { what: "max" });
        let large = limits(basic().max(Limit::Bytes(u64::MAX))).unwrap_err();
        assert!(matches!(
            large,
            ConfigError::TooLarge {
                bytes: u64::MAX,
                ..
            }
        ));
        let share = limits(basic().max(Limit::Share(1.5))).unwrap_err();
        assert!(matches!(share, ConfigError::ShareOutOfRange { share, .. } if share == 1.5));
        let above = limits(basic().guarantee(Limit::Bytes(101))).unwrap_err();
        assert_eq!(
            above,
            ConfigError::GuaranteeAboveMax {
                guarantee: 101,
                max: 100
            }
        );
        let unknown = limits(ClientOptions::new("gold")).unwrap_err();
        assert!(unknown.to_string().contains("`gold`"));
    }

    #[test]
    fn own_figures_stay_when_the_tier_changes() {
        let policies = policies();
        let options = ClientOptions::new(SubscriptionTier::Basic).soft(Limit::Bytes(30));
        let (_, basic) = policies.find(&options.tier).unwrap();
        let old = policies.limits(&basic, &options).unwrap();
        let (_, premium) = policies.find(&SubscriptionTier::Premium.into()).unwrap();
        let new = policies
            .carry_over(&premium, old, override_mask(&options))
            .unwrap();
        assert_eq!((new.max, new.soft), (200, 30));
    }

    #[test]
    fn tiers_run_out_with_a_clear_answer() {
        let policies = policies();
        let policy = TierPolicy::new(Limit::Bytes(1));
        for number in SubscriptionTier::ALL.len()..MAX_TIERS {
            let name = format!("tier-{number}");
            assert_eq!(policies.define(&name.into(), policy).unwrap().0, number);
        }
        let refused = policies.define(&"one-more".into(), policy).unwrap_err();
        assert_eq!(refused, ConfigError::TooManyTiers { limit: MAX_TIERS });
        // One that exists can still be changed.
        let changed = TierPolicy::new(Limit::Bytes(2));
        assert_eq!(policies.define(&"tier-3".into(), changed).unwrap().0, 3);
    }
}
