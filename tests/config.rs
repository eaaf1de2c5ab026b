//! Figures that make no sense are refused with themselves, before anything is
//! made or changed.

use std::time::Duration;
use tiered_allocator::clock::ManualClock;
use tiered_allocator::{
    ClientOptions, ConfigError, Limit, Memory, MemoryBuilder, RegisterError, SubscriptionTier,
    TierPolicy,
};

use SubscriptionTier::Basic;

const LARGEST: u64 = isize::MAX as u64;

fn quiet(total_bytes: u64) -> MemoryBuilder {
    Memory::builder(total_bytes).background(false)
}

fn refused(builder: MemoryBuilder) -> ConfigError {
    builder.build().unwrap_err()
}

fn refused_client(options: ClientOptions) -> ConfigError {
    let memory = quiet(1_000_000).build().unwrap();
    let error = memory.register("a", options).unwrap_err();
    assert_eq!(memory.client_count(), 0);
    match error {
        RegisterError::Config(config) => config,
        other => panic!("not about the configuration: {other}"),
    }
}

#[test]
fn a_total_must_be_there_and_be_addressable() {
    assert_eq!(refused(quiet(0)), ConfigError::ZeroTotal);
    for bytes in [LARGEST + 1, u64::MAX] {
        let error = refused(quiet(bytes));
        let what = "the total";
        let limit = LARGEST;
        assert_eq!(error, ConfigError::TooLarge { what, bytes, limit });
    }
    // A total of which nothing is usable is told so.
    let what = "the usable part";
    assert_eq!(refused(quiet(1)), ConfigError::ZeroLimit { what });
    assert_eq!(
        refused(quiet(99).usable(0.0)),
        ConfigError::ZeroLimit { what }
    );
}

#[test]
fn the_largest_totals_are_split_to_the_byte() {
    for total in [LARGEST, LARGEST - 1, (1 << 53) + 3, (1 << 60) + 129] {
        let memory = quiet(total).usable(1.0).build().unwrap();
        assert_eq!(memory.usage().usable_bytes, total);
        memory.register("a", Basic).unwrap();
        let memory = quiet(total).usable(0.5).build().unwrap();
        assert!(memory.usage().usable_bytes <= total / 2 + 1024);
    }
}

#[test]
fn shares_go_from_none_to_all() {
    for share in [-0.1, 1.000_001, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
        let says = |error: ConfigError| match error {
            ConfigError::ShareOutOfRange { share: said, .. } => {
                assert_eq!(said.to_bits(), share.to_bits());
            }
            other => panic!("{other}"),
        };
        let own = || ClientOptions::new(Basic);
        says(refused(quiet(1000).usable(share)));
        says(refused_client(own().max(Limit::Share(share))));
        says(refused_client(own().soft(Limit::Share(share))));
        says(refused_client(own().guarantee(Limit::Share(share))));
        let policy = TierPolicy::new(Limit::Bytes(1));
        for policy in [
            policy.max(Limit::Share(share)),
            policy.soft(Limit::Share(share)),
            policy.guarantee(Limit::Share(share)),
            policy.aggregate(Limit::Share(share)),
            policy.overdraft(Limit::Share(share)),
        ] {
            says(refused(quiet(1000).tier("t", policy)));
        }
    }
}

#[test]
fn limits_leave_room_for_something_and_fit_an_address_space() {
    let own = || ClientOptions::new(Basic);
    let zero = |what| ConfigError::ZeroLimit { what };
    assert_eq!(refused_client(own().max(Limit::Bytes(0))), zero("max"));
    assert_eq!(refused_client(own().max(Limit::Share(1e-9))), zero("max"));
    let soft = refused_client(own().soft(Limit::Bytes(0)));
    assert_eq!(soft, zero("the soft limit"));
    let nothing = TierPolicy::new(Limit::Bytes(1)).aggregate(Limit::Bytes(0));
    let aggregate = refused(quiet(1000).tier("t", nothing));
    assert_eq!(aggregate, zero("the tier's aggregate limit"));
    for bytes in [u64::MAX, LARGEST + 1] {
        let error = refused_client(own().max(Limit::Bytes(bytes)));
        let limit = LARGEST;
        let what = "max";
        assert_eq!(error, ConfigError::TooLarge { what, bytes, limit });
        assert!(error.to_string().contains(&bytes.to_string()), "{error}");
    }
}

#[test]
fn a_guarantee_is_within_the_max() {
    let options = ClientOptions::new(Basic)
        .max(Limit::Bytes(100))
        .guarantee(Limit::Bytes(101));
    let error = refused_client(options);
    let (guarantee, max) = (101, 100);
    assert_eq!(error, ConfigError::GuaranteeAboveMax { guarantee, max });
    let exact = ClientOptions::new(Basic)
        .max(Limit::Bytes(100))
        .guarantee(Limit::Bytes(100));
    let memory = quiet(1_000_000).build().unwrap();
    assert!(memory.register("a", exact).is_ok());
}

#[test]
fn tiers_are_known_and_not_too_many() {
    let name = "gold".to_owned();
    let error = refused_client(ClientOptions::new("gold"));
    assert_eq!(error, ConfigError::UnknownTier { name });
    let mut builder = quiet(1000);
    for number in 0..30 {
        builder = builder.tier(format!("t{number}"), TierPolicy::new(Limit::Bytes(1)));
    }
    assert_eq!(refused(builder), ConfigError::TooManyTiers { limit: 32 });
}

#[test]
fn intervals_are_not_zero_but_may_be_for_ever() {
    let what = "the reclaim interval";
    let error = refused(quiet(1000).reclaim_every(Duration::ZERO));
    assert_eq!(error, ConfigError::ZeroInterval { what });
    let what = "the sample interval";
    let error = refused(quiet(1000).sample_every(Duration::ZERO));
    assert_eq!(error, ConfigError::ZeroInterval { what });
    let clock = ManualClock::default();
    clock.advance(Duration::from_secs(1));
    let memory = Memory::builder(1 << 20)
        .clock(clock)
        .reclaim_every(Duration::MAX)
        .sample_every(Duration::MAX)
        .build()
        .unwrap();
    for _ in 0..100 {
        memory.tick();
        std::thread::yield_now();
    }
    assert!(memory.has_reclaimer_thread());
}

#[test]
fn a_memory_without_memory_refuses_its_clients() {
    for total in [0, 1, 5] {
        let memory = Memory::new(total);
        let error = memory.add_client("a", Basic).err().unwrap();
        let what = "max";
        assert_eq!(
            error,
            RegisterError::Config(ConfigError::ZeroLimit { what })
        );
    }
}

#[test]
fn a_memory_of_everything_is_bounded_by_the_system() {
    let memory = Memory::new(u64::MAX);
    memory
        .add_client("a", SubscriptionTier::Enterprise)
        .unwrap();
    let block = memory.allocate_for_client("a", 10_000).unwrap();
    assert!(
        memory
            .allocate_for_client("a", isize::MAX as usize)
            .is_err()
    );
    assert_eq!(memory.get_resource_usage().0, 10_000);
    drop(block);
    assert_eq!(memory.get_resource_usage().0, 0);
}
