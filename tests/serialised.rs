//! What leaves the process as JSON: field names that others rely on.

use serde_json::{Value, json};
use tiered_allocator::{
    AllocateError, ClientOptions, Enforcement, Limit, Memory, ReclaimPolicy, SubscriptionTier,
    Tier, TierPolicy,
};

/// A memory with one client that was refused something, and one that was
/// removed and still holds a block.
fn told() -> (Memory, tiered_allocator::MemoryBlock, AllocateError) {
    let trial = TierPolicy::new(Limit::Bytes(1 << 20)).aggregate(Limit::Bytes(8 << 20));
    let memory = Memory::builder(1 << 30)
        .background(false)
        .tier("trial", trial)
        .build()
        .unwrap();
    let options = ClientOptions::new(SubscriptionTier::Premium)
        .max(Limit::Bytes(4 << 20))
        .soft(Limit::Bytes(2 << 20))
        .guarantee(Limit::Bytes(1 << 20))
        .enforcement(Enforcement::Strict);
    memory.register("acme \"quoted\"", options).unwrap();
    let refused = memory
        .allocate_for_client("acme \"quoted\"", 5 << 20)
        .unwrap_err();
    memory.register("gone", "trial").unwrap();
    let block = memory.allocate_for_client("gone", 4096).unwrap();
    memory.remove_client("gone").unwrap();
    (memory, block, refused)
}

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(|key| &**key)
        .collect()
}

#[test]
fn a_snapshot_has_the_documented_fields() {
    let (memory, block, _) = told();
    let snapshot = memory.snapshot();
    let text = serde_json::to_string(&snapshot).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    for field in [
        "memory",
        "clients",
        "retired",
        "tiers",
        "unattributed_bytes",
        "unattributed_allocations",
        "resident_set_bytes",
        "unattributed_resident_bytes",
        "reclaim",
    ] {
        assert!(keys(&value).contains(&field), "{field}");
    }
    let client = &value["clients"][0];
    for (field, expected) in [
        ("id", json!(snapshot.clients[0].id.to_string())),
        ("name", json!("acme \"quoted\"")),
        ("tier", json!("Premium")),
        ("used_bytes", json!(0)),
        ("max_bytes", json!(4 << 20)),
        ("soft_bytes", json!(2 << 20)),
        ("guarantee_bytes", json!(1 << 20)),
        ("enforcement", json!("strict")),
    ] {
        assert_eq!(client[field], expected, "{field}");
    }
    for (field, expected) in [
        ("live_bytes", 0),
        ("block_bytes", 0),
        ("live_allocations", 0),
        ("charged_bytes", 0),
        ("peak_bytes", 0),
        ("overdrawn_bytes", 0),
        ("total_bytes", 0),
        ("total_allocations", 0),
        ("refusals", 1),
        ("observed_breaches", 0),
        ("stalled_ns", 0),
    ] {
        assert_eq!(client["usage"][field], json!(expected), "{field}");
    }
    assert_eq!(value["retired"][0]["usage"]["block_bytes"], json!(4096));
    let tier = &value["tiers"].as_array().unwrap()[3];
    assert_eq!(tier["name"], "trial");
    assert_eq!(tier["charged_bytes"], json!(4096));
    assert_eq!(tier["limit_bytes"], json!(8 << 20));
    assert_eq!(tier["clients"], json!(0));
    assert_eq!(value["tiers"][0]["limit_bytes"], Value::Null);
    assert_eq!(tier["borrowed_bytes"], json!(4096));
    assert_eq!(tier["overdrawn_bytes"], json!(0));
    for field in ["shortages", "reliefs", "total_ns", "longest_ns"] {
        assert_eq!(tier["relief"][field], json!(0), "{field}");
    }
    let reclaim = [
        "spilled_bytes",
        "spilled_blocks",
        "restored_bytes",
        "restored_blocks",
        "restore_time_ns",
        "longest_restore_ns",
        "discarded_bytes",
        "discarded_blocks",
        "failed_blocks",
        "passes",
        "stopped_clients",
        "panicked_reclaimers",
        "late_reclaimers",
        "failed_sources",
    ];
    assert_eq!(value["reclaim"]["under_pressure"], json!(false));
    assert_eq!(
        value["reclaim"]["rungs"][0],
        json!({"rung": "idle_blocks", "climbed": 0, "reclaimed_bytes": 0})
    );
    for field in reclaim {
        assert_eq!(value["reclaim"][field], json!(0), "{field}");
    }
    for (field, expected) in [
        ("total_bytes", 1 << 30),
        ("usable_bytes", snapshot.memory.usable_bytes),
        ("charged_bytes", (1 << 20) + 4096),
        ("overdrawn_bytes", 0),
        ("spilled_bytes", 0),
    ] {
        assert_eq!(value["memory"][field], json!(expected), "{field}");
    }
    drop(block);
}

#[test]
fn an_event_says_who_what_when_and_how_much() {
    let (memory, _block, _) = told();
    let (events, _) = memory.events(0);
    let event = serde_json::to_value(&events[0]).unwrap();
    let at = events[0].time.duration_since(std::time::UNIX_EPOCH);
    for (field, expected) in [
        ("number", json!(0)),
        ("at_unix_ms", json!(at.unwrap().as_millis() as u64)),
        ("kind", json!("refused")),
        ("client", json!(events[0].client.to_string())),
        ("name", json!("acme \"quoted\"")),
        ("tier", json!("Premium")),
        ("requested_bytes", json!(5 << 20)),
        ("charged_bytes", json!(0)),
        ("limit_bytes", json!(4 << 20)),
        ("node", json!("client")),
        ("os_error", Value::Null),
    ] {
        assert_eq!(event[field], expected, "{field}");
    }
    assert_eq!(keys(&event).len(), 11);
}

#[test]
fn a_refusal_can_be_sent_to_the_tenant() {
    let (_memory, _block, refused) = told();
    let AllocateError::QuotaExceeded(quota) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(
        serde_json::to_value(&quota).unwrap(),
        json!({
            "client": "acme \"quoted\"",
            "tier": "Premium",
            "requested_bytes": 5 << 20,
            "charged_bytes": 0,
            "limit_bytes": 4 << 20,
            "node": "client",
        })
    );
}

#[test]
fn names_of_tiers_and_policies_are_stable() {
    assert_eq!(json!(SubscriptionTier::Basic), json!("Basic"));
    assert_eq!(json!(Tier::from("trial")), json!("trial"));
    assert_eq!(json!(Enforcement::Graceful), json!("graceful"));
    assert_eq!(json!(Enforcement::Observe), json!("observe"));
    assert_eq!(json!(ReclaimPolicy::Spill), json!("spill"));
    let (memory, _block, _) = told();
    let report = serde_json::to_value(memory.reclaim_unused_memory()).unwrap();
    assert_eq!(report["spilled_blocks"], json!(0));
}
