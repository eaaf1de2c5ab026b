//! Whatever a configuration says: it is refused with an error that has a text,
//! and changes nothing, or it holds and makes sense.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use tiered_allocator::{
    ClientOptions, Enforcement, Limit, Memory, RegisterError, SubscriptionTier, TierPolicy,
};

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Amount {
    Bytes(u64),
    Small(u16),
    Share(f64),
    Percent(u8),
    Unlimited,
}

impl From<Amount> for Limit {
    fn from(amount: Amount) -> Limit {
        match amount {
            Amount::Bytes(bytes) => Limit::Bytes(bytes),
            Amount::Small(bytes) => Limit::Bytes(bytes.into()),
            Amount::Share(share) => Limit::Share(share),
            Amount::Percent(percent) => Limit::Share(f64::from(percent) / 100.0),
            Amount::Unlimited => Limit::Unlimited,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Mode {
    Strict,
    Graceful,
    Observe,
}

impl From<Mode> for Enforcement {
    fn from(mode: Mode) -> Enforcement {
        match mode {
            Mode::Strict => Enforcement::Strict,
            Mode::Graceful => Enforcement::Graceful,
            Mode::Observe => Enforcement::Observe,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Policy {
    max: Amount,
    soft: Option<Amount>,
    guarantee: Option<Amount>,
    aggregate: Option<Amount>,
    overdraft: Option<Amount>,
    precedence: u8,
    mode: Mode,
    idle_after: Duration,
}

impl From<Policy> for TierPolicy {
    fn from(given: Policy) -> TierPolicy {
        let mut policy = TierPolicy::new(given.max.into())
            .precedence(given.precedence)
            .enforcement(given.mode.into())
            .idle_after(given.idle_after);
        if let Some(soft) = given.soft {
            policy = policy.soft(soft.into());
        }
        if let Some(guarantee) = given.guarantee {
            policy = policy.guarantee(guarantee.into());
        }
        if let Some(aggregate) = given.aggregate {
            policy = policy.aggregate(aggregate.into());
        }
        if let Some(overdraft) = given.overdraft {
            policy = policy.overdraft(overdraft.into());
        }
        policy
    }
}

#[derive(Arbitrary, Clone, Debug)]
struct Options<'a> {
    tier: &'a str,
    /// One of the three that are always there, instead of `tier`.
    known: Option<u8>,
    max: Option<Amount>,
    soft: Option<Amount>,
    guarantee: Option<Amount>,
    mode: Option<Mode>,
}

impl From<&Options<'_>> for ClientOptions {
    fn from(given: &Options) -> ClientOptions {
        let mut options = match given.known {
            Some(known) => ClientOptions::new(SubscriptionTier::ALL[usize::from(known % 3)]),
            None => ClientOptions::new(given.tier),
        };
        if let Some(max) = given.max {
            options = options.max(max.into());
        }
        if let Some(soft) = given.soft {
            options = options.soft(soft.into());
        }
        if let Some(guarantee) = given.guarantee {
            options = options.guarantee(guarantee.into());
        }
        if let Some(mode) = given.mode {
            options = options.enforcement(mode.into());
        }
        options
    }
}

#[derive(Arbitrary, Clone, Debug)]
enum Step<'a> {
    Register(&'a str, Options<'a>),
    Remove(&'a str),
    Rename(&'a str, &'a str),
    Configure(&'a str, Options<'a>),
    SetTier(&'a str, &'a str),
    SetPolicy(&'a str, Policy),
    Allocate(&'a str, u16),
}

#[derive(Arbitrary, Clone, Debug)]
struct Setup<'a> {
    total: u64,
    usable: Option<f64>,
    tiers: Vec<(&'a str, Policy)>,
    reclaim_every: Option<Duration>,
    sample_every: Option<Duration>,
    spill_limit: Option<u64>,
    steps: Vec<Step<'a>>,
    name: &'a str,
}

/// All that a refused change must leave as it is.
fn figures(memory: &Memory) -> (u64, u64, usize, Vec<(String, [u64; 3], String)>) {
    let snapshot = memory.snapshot();
    let of = snapshot.clients.iter().map(|client| {
        (
            client.name.to_string(),
            [client.max_bytes, client.soft_bytes, client.guarantee_bytes],
            format!("{} {:?}", client.tier, client.enforcement),
        )
    });
    (
        snapshot.memory.charged_bytes,
        snapshot.memory.overdrawn_bytes,
        memory.client_count(),
        of.collect(),
    )
}

fn make_sense(memory: &Memory) {
    let snapshot = memory.snapshot();
    let memory = snapshot.memory;
    assert!(memory.usable_bytes <= memory.total_bytes);
    assert!(memory.charged_bytes <= memory.usable_bytes);
    let mut reserved = 0_u64;
    for client in &snapshot.clients {
        assert!(client.max_bytes > 0);
        assert!(client.guarantee_bytes <= client.max_bytes);
        assert!(client.soft_bytes <= client.max_bytes && client.soft_bytes > 0);
        reserved = reserved.checked_add(client.guarantee_bytes).unwrap();
    }
    assert!(reserved <= memory.usable_bytes);
}

fn step(memory: &Memory, step: &Step) {
    let before = figures(memory);
    let unchanged = |said: String| {
        assert!(!said.is_empty());
        assert_eq!(figures(memory), before);
    };
    let changed = match step {
        Step::Register(name, options) => memory.register(name, options).map(drop),
        Step::Remove(name) => memory.remove_client(name).map_err(RegisterError::Unknown),
        Step::Rename(name, new) => memory.rename_client(name, new),
        Step::Configure(name, options) => memory
            .client(name)
            .map_err(RegisterError::Unknown)
            .and_then(|client| client.configure(options)),
        Step::SetTier(name, tier) => memory
            .client(name)
            .map_err(RegisterError::Unknown)
            .and_then(|client| client.set_tier(*tier)),
        Step::SetPolicy(tier, policy) => memory
            .set_tier_policy(*tier, (*policy).into())
            .map_err(RegisterError::Config),
        Step::Allocate(name, size) => {
            match memory.allocate_for_client(name, (*size).into()) {
                Ok(block) => memory.deallocate_for_client(name, block).unwrap(),
                Err(error) => unchanged(error.to_string()),
            }
            assert_eq!(figures(memory), before);
            Ok(())
        }
    };
    if let Err(error) = changed {
        unchanged(error.to_string());
    }
    make_sense(memory);
}

fuzz_target!(|setup: Setup| {
    let known = SubscriptionTier::ALL
        .into_iter()
        .find(|tier| tier.name().eq_ignore_ascii_case(setup.name));
    match setup.name.parse::<SubscriptionTier>() {
        Ok(tier) => assert_eq!(Some(tier), known),
        Err(error) => {
            assert_eq!(known, None);
            assert_eq!(error.given, setup.name);
        }
    }
    let mut builder = Memory::builder(setup.total).background(false);
    if let Some(usable) = setup.usable {
        builder = builder.usable(usable);
    }
    for (tier, policy) in setup.tiers {
        builder = builder.tier(tier, policy.into());
    }
    if let Some(every) = setup.reclaim_every {
        builder = builder.reclaim_every(every);
    }
    if let Some(every) = setup.sample_every {
        builder = builder.sample_every(every);
    }
    if let Some(bytes) = setup.spill_limit {
        builder = builder.spill_limit_bytes(bytes);
    }
    match builder.build() {
        Ok(memory) => {
            make_sense(&memory);
            setup.steps.iter().for_each(|each| step(&memory, each));
            memory.tick();
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
