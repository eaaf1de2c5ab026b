//! A memory's figures as Prometheus reads them.

mod common;
#[path = "support/exported.rs"]
mod exported;

use common::{Bytes, quiet};
use exported::{PREFIX, enterprise, thirty_that_hold_more_and_more};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use serial_test::serial;
use std::collections::{BTreeMap, BTreeSet};
use tiered_allocator::integrations::metrics::MetricsExporter;
use tiered_allocator::{
    Client, Enforcement, Limit, Memory, ReclaimPolicy, Rung, SubscriptionTier, TierPolicy,
    TieredAllocator,
};

/// A recorder of this test alone.
struct Scrape {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl Scrape {
    fn new() -> Scrape {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        Scrape { recorder, handle }
    }

    fn text(&self, exporter: &mut MetricsExporter) -> String {
        metrics::with_local_recorder(&self.recorder, || exporter.publish());
        self.handle.render()
    }

    /// Series (name and labels) to values.
    fn values(&self, exporter: &mut MetricsExporter) -> BTreeMap<String, f64> {
        let text = self.text(exporter);
        let lines = text.lines().filter(|line| line.starts_with(PREFIX));
        let pairs = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (
                series[PREFIX.len()..].to_owned(),
                value.parse::<f64>().unwrap(),
            )
        });
        pairs.collect()
    }
}

fn of_client(name: &str, client: &str, tier: &str) -> String {
    format!("client_{name}{{client=\"{client}\",tier=\"{tier}\"}}")
}

fn own_series(values: &BTreeMap<String, f64>) -> BTreeSet<&str> {
    let series = values
        .keys()
        .filter(|key| key.starts_with("client_live_bytes"));
    series
        .map(|key| key.split('"').nth(1).unwrap())
        .filter(|&client| client != "other")
        .collect()
}

/// One allocation of the client that is made and gone.
fn allocate_once(client: &Client) {
    drop(Bytes::of(client, 64).unwrap());
}

#[test]
#[serial]
fn every_name_has_help_and_type_and_a_value() {
    assert!(TieredAllocator::is_installed());
    let memory = quiet(1 << 30);
    let acme = enterprise(&memory, "acme");
    let held = Bytes::of(&acme, 1000).unwrap();
    let text = Scrape::new().text(&mut MetricsExporter::new(&memory));
    let names: BTreeSet<&str> = MetricsExporter::names().collect();
    assert_eq!(names.len(), MetricsExporter::names().count());
    for name in &names {
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        let kind = match name.ends_with("_total") {
            true => "counter",
            false => "gauge",
        };
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        let valued = |line: &&str| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        let told = text.lines().filter(valued).count();
        let maybe_not = cfg!(not(target_os = "linux")) && name.contains("resident");
        assert!(told > 0 || maybe_not, "{name}");
    }
    // And nothing that is not on the list.
    let exposed = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split(' ').next().unwrap());
    assert!(exposed.clone().all(|name| names.contains(name)), "{text}");
    assert!(exposed.count() >= names.len() - 2);
    drop(held);
}

#[test]
#[serial]
fn the_figures_are_those_of_the_snapshot() {
    let trial = TierPolicy::new(Limit::Bytes(1 << 20)).aggregate(Limit::Bytes(8 << 20));
    let memory = Memory::builder(1 << 30)
        .background(false)
        .tier("trial", trial)
        .build()
        .unwrap();
    let acme = enterprise(&memory, "acme");
    let held = Bytes::of(&acme, 1000).unwrap();
    assert!(Bytes::of(&acme, 2 << 20).is_none());
    let block = memory.allocate_for_client("acme", 8192).unwrap();
    let usage = acme.usage();
    let values = Scrape::new().values(&mut MetricsExporter::new(&memory));
    for (name, expected) in [
        ("live_bytes", 9192),
        ("block_bytes", 8192),
        ("charged_bytes", usage.charged_bytes),
        ("peak_bytes", usage.peak_bytes),
        ("limit_bytes", 1 << 20),
        ("soft_limit_bytes", 1 << 20),
        ("guarantee_bytes", 0),
        ("overdrawn_bytes", 0),
        ("live_allocations", 2),
        ("allocated_bytes_total", usage.total_bytes),
        ("allocations_total", 2),
        ("refusals_total", 1),
        ("observed_breaches_total", 0),
        ("stall_seconds_total", 0),
    ] {
        let series = of_client(name, "acme", "Enterprise");
        assert_eq!(values.get(&series), Some(&(expected as f64)), "{series}");
    }
    for (series, expected) in [
        ("tier_limit_bytes{tier=\"trial\"}", 8 << 20),
        (
            "tier_limit_bytes{tier=\"Basic\"}",
            memory.usage().usable_bytes,
        ),
        ("tier_clients{tier=\"Enterprise\"}", 1),
        (
            "tier_charged_bytes{tier=\"Enterprise\"}",
            usage.charged_bytes,
        ),
        ("memory_total_bytes", 1 << 30),
        ("memory_charged_bytes", usage.charged_bytes),
        ("memory_retired_clients", 0),
    ] {
        assert_eq!(values.get(series), Some(&(expected as f64)), "{series}");
    }
    assert!(values["unattributed_bytes"] > 0.0);
    drop((held, block));
}

#[test]
#[serial]
fn an_unlimited_client_is_bound_by_the_total() {
    let memory = quiet(1 << 30);
    let options = tiered_allocator::ClientOptions::new(SubscriptionTier::Basic)
        .max(Limit::Unlimited)
        .enforcement(Enforcement::Observe);
    memory.register("free", options).unwrap();
    let values = Scrape::new().values(&mut MetricsExporter::new(&memory));
    let series = of_client("limit_bytes", "free", "Basic");
    assert_eq!(values[&series], f64::from(1 << 30));
}

#[test]
#[serial]
fn the_number_of_series_is_bounded_and_the_sums_are_whole() {
    let memory = quiet(1 << 30);
    let held = thirty_that_hold_more_and_more(&memory);
    let scrape = Scrape::new();
    let mut exporter = MetricsExporter::new(&memory).top(3);
    let values = scrape.values(&mut exporter);
    let top = BTreeSet::from(["client 27", "client 28", "client 29"]);
    assert_eq!(own_series(&values), top);
    let sum = |name: &str| {
        let of_all = values.iter().filter(|(series, _)| series.starts_with(name));
        of_all.map(|(_, value)| value).sum::<f64>()
    };
    assert_eq!(sum("client_live_bytes"), 10_000.0 * (30 * 31 / 2) as f64);
    assert_eq!(sum("client_allocations_total"), 30.0);
    let rest = of_client("live_bytes", "other", "Enterprise");
    assert_eq!(values[&rest], 10_000.0 * (27 * 28 / 2) as f64);
    drop(held);
    // Without any of their own, the tiers' sums are left.
    let values = Scrape::new().values(&mut MetricsExporter::new(&memory).top(0));
    assert!(own_series(&values).is_empty());
    assert_eq!(
        values[&of_client("allocations_total", "other", "Enterprise")],
        30.0
    );
}

#[test]
#[serial]
fn counters_only_grow_while_clients_move_and_leave() {
    let memory = quiet(1 << 30);
    let clients = ["a", "b", "c"].map(|name| enterprise(&memory, name));
    let scrape = Scrape::new();
    let mut exporter = MetricsExporter::new(&memory).top(1);
    let mut before: BTreeMap<String, f64> = BTreeMap::new();
    let mut made = 0;
    for round in 0..30 {
        // Another one is at the top each time.
        let held = Bytes::of(&clients[round % 3], 300_000).unwrap();
        made += 1;
        for client in &clients {
            allocate_once(client);
            made += 1;
        }
        let values = scrape.values(&mut exporter);
        for (series, value) in before.iter().filter(|(key, _)| key.contains("_total")) {
            assert!(values[series] >= *value, "{series} in round {round}");
        }
        let total: f64 = values
            .iter()
            .filter(|(series, _)| series.starts_with("client_allocations_total"))
            .map(|(_, value)| value)
            .sum();
        assert_eq!(total, f64::from(made), "round {round}");
        before = values;
        drop(held);
    }
    // One is removed while it holds something: it counts in the rest.
    let held = Bytes::of(&clients[0], 500).unwrap();
    made += 1;
    memory.remove_client("a").unwrap();
    let values = scrape.values(&mut exporter);
    let total: f64 = ["a", "b", "c", "other"]
        .iter()
        .filter_map(|name| values.get(&of_client("allocations_total", name, "Enterprise")))
        .sum();
    assert_eq!(total, f64::from(made));
    assert_eq!(
        values[&of_client("live_bytes", "other", "Enterprise")],
        500.0
    );
    assert_eq!(values["memory_retired_clients"], 1.0);
    drop(held);
    // Another of the same name begins where the series is, and adds to it.
    let series = of_client("allocations_total", "a", "Enterprise");
    let again = enterprise(&memory, "a");
    let held = Bytes::of(&again, 300_000).unwrap();
    let grown = scrape.values(&mut exporter);
    assert_eq!(grown[&series], values[&series] + 1.0);
    drop(held);
}

#[test]
#[serial]
fn what_left_the_top_shows_nothing_any_more() {
    let memory = quiet(1 << 30);
    let first = enterprise(&memory, "first");
    let second = enterprise(&memory, "second");
    let scrape = Scrape::new();
    let mut exporter = MetricsExporter::new(&memory).top(1);
    let small = Bytes::of(&first, 10_000).unwrap();
    let values = scrape.values(&mut exporter);
    assert_eq!(
        values[&of_client("live_bytes", "first", "Enterprise")],
        10_000.0
    );
    let large = Bytes::of(&second, 500_000).unwrap();
    let values = scrape.values(&mut exporter);
    let gauges = values
        .iter()
        .filter(|(series, _)| series.contains("\"first\"") && !series.contains("_total"));
    assert_eq!(gauges.clone().count(), 10);
    assert!(gauges.clone().all(|(_, value)| *value == 0.0));
    assert_eq!(
        values[&of_client("live_bytes", "other", "Enterprise")],
        10_000.0
    );
    // Renamed, and moved to another tier.
    memory.rename_client("second", "third").unwrap();
    let values = scrape.values(&mut exporter);
    assert_eq!(
        values[&of_client("live_bytes", "second", "Enterprise")],
        0.0
    );
    assert_eq!(
        values[&of_client("live_bytes", "third", "Enterprise")],
        500_000.0
    );
    second.set_tier(SubscriptionTier::Premium).unwrap();
    let values = scrape.values(&mut exporter);
    assert_eq!(values[&of_client("live_bytes", "third", "Enterprise")], 0.0);
    assert_eq!(
        values[&of_client("live_bytes", "third", "Premium")],
        500_000.0
    );
    drop((small, large));
}

#[test]
#[serial]
fn a_name_is_data() {
    let memory = quiet(1 << 30);
    let hostile = "a\"} 1\ntiered_allocator_memory_total_bytes 0 # \\";
    let _hostile = enterprise(&memory, hostile);
    // One that is named as the rest is part of it.
    let other = enterprise(&memory, "other");
    let held = Bytes::of(&other, 100).unwrap();
    let scrape = Scrape::new();
    let mut exporter = MetricsExporter::new(&memory);
    let text = scrape.text(&mut exporter);
    let totals = text
        .lines()
        .filter(|line| line.starts_with("tiered_allocator_memory_total_bytes"));
    assert_eq!(
        totals.collect::<Vec<_>>(),
        ["tiered_allocator_memory_total_bytes 1073741824"]
    );
    assert!(text.contains(r#"client="a\"} 1\ntiered_allocator_memory_total_bytes 0 # \\""#));
    let values = scrape.values(&mut exporter);
    assert_eq!(
        values[&of_client("live_bytes", "other", "Enterprise")],
        100.0
    );
    drop(held);
}

#[test]
#[serial]
fn memories_are_told_apart_by_a_label() {
    let scrape = Scrape::new();
    for (name, total) in [("east", 1 << 20), ("west", 1 << 30)] {
        let memory = quiet(total);
        scrape.text(&mut MetricsExporter::new(&memory).label("memory", name));
    }
    let text = scrape.handle.render();
    for line in [
        "tiered_allocator_memory_total_bytes{memory=\"east\"} 1048576",
        "tiered_allocator_memory_total_bytes{memory=\"west\"} 1073741824",
    ] {
        assert!(text.lines().any(|other| other == line), "{text}");
    }
}

#[test]
#[serial]
fn what_was_reclaimed_is_told() {
    let clock = std::sync::Arc::new(tiered_allocator::clock::ManualClock::default());
    let caches = TierPolicy::new(Limit::Bytes(1 << 20))
        .reclaim(ReclaimPolicy::Discard)
        .idle_after(std::time::Duration::ZERO);
    let memory = Memory::builder(1 << 30)
        .background(false)
        .clock(clock)
        .tier("caches", caches)
        .build()
        .unwrap();
    memory.register("cache", "caches").unwrap();
    let block = memory.allocate_for_client("cache", 64 << 10).unwrap();
    assert_eq!(memory.reclaim_unused_memory().discarded_blocks, 1);
    let values = Scrape::new().values(&mut MetricsExporter::new(&memory));
    assert_eq!(values["discarded_bytes_total"], f64::from(64 << 10));
    assert_eq!(values["spilled_bytes_total"], 0.0);
    let rungs = values
        .keys()
        .filter(|key| key.starts_with("reclaimed_bytes_total"));
    let named = |rung: Rung| format!("reclaimed_bytes_total{{rung=\"{}\"}}", rung.name());
    assert!(
        Rung::ALL
            .iter()
            .all(|&rung| values.contains_key(&named(rung)))
    );
    assert_eq!(rungs.count(), Rung::ALL.len());
    assert_eq!(values["reclaim_passes_total"], 1.0);
    drop(block);
}

#[test]
#[serial]
fn publishing_in_a_scope_charges_nobody() {
    let memory = quiet(1 << 30);
    let acme = enterprise(&memory, "acme");
    let scrape = Scrape::new();
    let mut exporter = MetricsExporter::new(&memory);
    metrics::with_local_recorder(&scrape.recorder, || {
        let _scope = acme.enter();
        exporter.publish();
    });
    assert_eq!(acme.usage().total_allocations, 0);
}

/// Every string of a JSON value under this key, at any depth.
fn strings_under<'a>(value: &'a serde_json::Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, field) in fields {
                if name == key
                    && let Some(text) = field.as_str()
                {
                    found.push(text);
                }
                strings_under(field, key, found);
            }
        }
        serde_json::Value::Array(items) => {
            for item in items {
                strings_under(item, key, found);
            }
        }
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_what_is_published() {
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../examples/grafana/tiered_allocator.json")).unwrap();
    for key in [
        "title",
        "uid",
        "schemaVersion",
        "panels",
        "templating",
        "time",
    ] {
        assert!(!dashboard[key].is_null(), "{key}");
    }
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels
        .iter()
        .map(|panel| panel["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids.len(), panels.len(), "ids of panels are unique");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().unwrap();
        assert!(!panel["targets"].as_array().unwrap().is_empty(), "{title}");
        assert!(panel["gridPos"]["w"].as_u64().unwrap() <= 24, "{title}");
    }
    let mut queries = Vec::new();
    strings_under(&dashboard, "expr", &mut queries);
    strings_under(&dashboard, "query", &mut queries);
    assert!(queries.len() >= 10);
    let names: BTreeSet<&str> = MetricsExporter::names().collect();
    let mut asked = BTreeSet::new();
    for query in queries {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        asked.extend(words.filter(|word| word.starts_with(PREFIX)));
    }
    let unknown: Vec<_> = asked.difference(&names).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(asked.len() >= 15, "{asked:?}");
}
