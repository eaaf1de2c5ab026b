//! A memory's figures as OpenTelemetry's SDK collects them.

mod common;
#[path = "support/exported.rs"]
mod exported;

use common::{Bytes, quiet};
use exported::{PREFIX, enterprise, thirty_that_hold_more_and_more};
use metrics_opentelemetry::opentelemetry::KeyValue;
use metrics_opentelemetry::opentelemetry::metrics::MeterProvider;
use metrics_opentelemetry::{OpenTelemetryMetrics, OpenTelemetryRecorder};
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, Metric, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, InMemoryMetricExporterBuilder, Instrument, MeterProviderBuilder,
    PeriodicReader, SdkMeterProvider, Stream, Temporality,
};
use serial_test::serial;
use std::collections::{BTreeMap, BTreeSet};
use tiered_allocator::integrations::metrics::MetricsExporter;
use tiered_allocator::{Client, SubscriptionTier, TieredAllocator};

/// A meter provider of this test alone, and the bridge to it.
struct Bridge {
    recorder: OpenTelemetryRecorder,
    provider: SdkMeterProvider,
    collected: InMemoryMetricExporter,
}

/// One name as it was collected.
#[derive(Debug)]
struct Collected {
    unit: String,
    description: String,
    kind: Kind,
    series: BTreeMap<Attributes, f64>,
}

type Attributes = BTreeMap<String, String>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Gauge,
    Sum { monotonic: bool, cumulative: bool },
}

impl Bridge {
    fn new() -> Bridge {
        Bridge::with(Temporality::Cumulative, |provider| provider)
    }

    fn with(
        temporality: Temporality,
        configure: impl FnOnce(MeterProviderBuilder) -> MeterProviderBuilder,
    ) -> Bridge {
        let collected = InMemoryMetricExporterBuilder::new()
            .with_temporality(temporality)
            .build();
        let reader = PeriodicReader::builder(collected.clone()).build();
        let provider = configure(SdkMeterProvider::builder().with_reader(reader)).build();
        let meter = provider.meter("tiered_allocator");
        let recorder = OpenTelemetryRecorder::new(OpenTelemetryMetrics::new(meter));
        Bridge {
            recorder,
            provider,
            collected,
        }
    }

    fn publish(&self, exporter: &mut MetricsExporter) -> BTreeMap<String, Collected> {
        metrics::with_local_recorder(&self.recorder, || exporter.publish());
        self.collect()
    }

    /// What the SDK has now. A name that arrives in two streams fails.
    fn collect(&self) -> BTreeMap<String, Collected> {
        self.collected.reset();
        self.provider.force_flush().unwrap();
        by_name(
            self.collected
                .get_finished_metrics()
                .unwrap()
                .last()
                .unwrap(),
        )
    }
}

fn by_name(resource: &ResourceMetrics) -> BTreeMap<String, Collected> {
    let mut names = BTreeMap::new();
    for metric in resource.scope_metrics().flat_map(|scope| scope.metrics()) {
        let (kind, series) = data(metric);
        let collected = Collected {
            unit: metric.unit().to_owned(),
            description: metric.description().to_owned(),
            kind,
            series,
        };
        let before = names.insert(metric.name().to_owned(), collected);
        assert!(before.is_none(), "two streams: {before:?} and {metric:?}");
    }
    names
}

fn data(metric: &Metric) -> (Kind, BTreeMap<Attributes, f64>) {
    match metric.data() {
        AggregatedMetrics::F64(MetricData::Gauge(gauge)) => {
            let points = gauge.data_points();
            let series = points.map(|point| (attributes(point.attributes()), point.value()));
            (Kind::Gauge, series.collect())
        }
        AggregatedMetrics::U64(MetricData::Sum(sum)) => {
            let points = sum.data_points();
            let series = points.map(|point| (attributes(point.attributes()), point.value() as f64));
            let kind = Kind::Sum {
                monotonic: sum.is_monotonic(),
                cumulative: sum.temporality() == Temporality::Cumulative,
            };
            (kind, series.collect())
        }
        _ => panic!("neither a gauge nor a sum: {metric:?}"),
    }
}

fn attributes<'a>(pairs: impl Iterator<Item = &'a KeyValue>) -> Attributes {
    pairs
        .map(|pair| (pair.key.to_string(), pair.value.to_string()))
        .collect()
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Attributes {
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn of(client: &str, tier: &str) -> Attributes {
    labels([("client", client), ("tier", tier)])
}

/// The value of one series; `name` without the prefix.
#[track_caller]
fn value(names: &BTreeMap<String, Collected>, name: &str, labels: &Attributes) -> f64 {
    let found = names[&format!("{PREFIX}{name}")].series.get(labels);
    *found.unwrap_or_else(|| panic!("no {name} of {labels:?}"))
}

#[test]
#[serial]
fn every_name_arrives_once_with_its_kind_unit_and_description() {
    assert!(TieredAllocator::is_installed());
    let memory = quiet(1 << 30);
    let acme = enterprise(&memory, "acme");
    let _other = enterprise(&memory, "globex");
    let held = Bytes::of(&acme, 1000).unwrap();
    let bridge = Bridge::new();
    let mut exporter = MetricsExporter::new(&memory);
    bridge.publish(&mut exporter);
    let names = bridge.publish(&mut exporter);
    let promised: BTreeSet<&str> = MetricsExporter::names().collect();
    for &name in &promised {
        if cfg!(not(target_os = "linux")) && name.contains("resident") {
            continue;
        }
        let collected = &names[name];
        let kind = match name.ends_with("_total") {
            true => Kind::Sum {
                monotonic: true,
                cumulative: true,
            },
            false => Kind::Gauge,
        };
        let unit = match name {
            _ if name.contains("_bytes") => "By",
            _ if name.contains("_seconds") => "s",
            _ => "1",
        };
        assert_eq!((collected.kind, &*collected.unit), (kind, unit), "{name}");
        assert!(collected.description.ends_with('.'), "{name}");
        assert!(!collected.series.is_empty(), "{name}");
    }
    assert!(names.keys().all(|name| promised.contains(&**name)));
    drop(held);
}

#[test]
#[serial]
fn the_figures_and_labels_are_those_of_the_snapshot() {
    let memory = quiet(1 << 30);
    let acme = enterprise(&memory, "acme");
    let hostile = "a\"} 1\n客户,client=other";
    let basic = memory.register(hostile, SubscriptionTier::Basic).unwrap();
    let held = (
        Bytes::of(&acme, 1000).unwrap(),
        Bytes::of(&basic, 70_000).unwrap(),
    );
    assert!(Bytes::of(&acme, 2 << 20).is_none());
    let block = memory.allocate_for_client("acme", 8192).unwrap();
    let snapshot = memory.snapshot();
    let names = Bridge::new().publish(&mut MetricsExporter::new(&memory));
    for client in &snapshot.clients {
        let own = of(&client.name, &client.tier);
        for (name, expected) in [
            ("client_live_bytes", client.usage.live_bytes),
            ("client_charged_bytes", client.usage.charged_bytes),
            ("client_used_bytes", client.used_bytes),
            ("client_block_bytes", client.usage.block_bytes),
            ("client_limit_bytes", client.max_bytes),
            ("client_live_allocations", client.usage.live_allocations),
            ("client_allocated_bytes_total", client.usage.total_bytes),
            ("client_allocations_total", client.usage.total_allocations),
            ("client_refusals_total", client.usage.refusals),
        ] {
            assert_eq!(value(&names, name, &own), expected as f64, "{name} {own:?}");
        }
    }
    assert_eq!(snapshot.clients.len(), 2);
    let own = of("acme", "Enterprise");
    assert_eq!(value(&names, "client_live_bytes", &own), 9192.0);
    assert_eq!(
        value(&names, "client_limit_bytes", &own),
        f64::from(1 << 20)
    );
    assert_eq!(value(&names, "client_refusals_total", &own), 1.0);
    let tier = labels([("tier", "Enterprise")]);
    let charged = acme.usage().charged_bytes as f64;
    assert_eq!(value(&names, "tier_charged_bytes", &tier), charged);
    assert_eq!(value(&names, "tier_clients", &tier), 1.0);
    let total = value(&names, "memory_total_bytes", &labels([]));
    assert_eq!(total, f64::from(1 << 30));
    drop((held, block));
}

#[test]
#[serial]
fn publishing_again_moves_the_gauges_and_never_doubles_a_counter() {
    let memory = quiet(1 << 30);
    let acme = enterprise(&memory, "acme");
    let own = of("acme", "Enterprise");
    let bridge = Bridge::new();
    let mut exporter = MetricsExporter::new(&memory);
    let mut held = Vec::new();
    for round in 1..=4 {
        held.push(Bytes::of(&acme, 1000).unwrap());
        memory.reclaim_unused_memory();
        // What was published and not collected is not lost, either.
        metrics::with_local_recorder(&bridge.recorder, || exporter.publish());
        let names = bridge.publish(&mut exporter);
        let is = |name: &str, labels: &Attributes, expected: f64| {
            assert_eq!(value(&names, name, labels), expected, "{name} in {round}");
        };
        let round = f64::from(round);
        is("client_live_bytes", &own, 1000.0 * round);
        is("client_allocated_bytes_total", &own, 1000.0 * round);
        is("client_allocations_total", &own, round);
        is("reclaim_passes_total", &labels([]), round);
    }
    held.truncate(1);
    let names = bridge.publish(&mut exporter);
    assert_eq!(value(&names, "client_live_bytes", &own), 1000.0);
    assert_eq!(value(&names, "client_allocations_total", &own), 4.0);
    // Collected without being published: the last figures, unchanged.
    let names = bridge.collect();
    assert_eq!(value(&names, "client_live_bytes", &own), 1000.0);
    assert_eq!(value(&names, "client_allocations_total", &own), 4.0);
    assert_eq!(value(&names, "reclaim_passes_total", &labels([])), 4.0);
}

#[test]
#[serial]
fn deltas_are_what_was_added_and_a_series_that_is_gone_is_not_sent_again() {
    let memory = quiet(1 << 30);
    let clients = ["first", "second"].map(|name| enterprise(&memory, name));
    let bridge = Bridge::with(Temporality::Delta, |provider| provider);
    let mut exporter = MetricsExporter::new(&memory).top(1);
    let first = of("first", "Enterprise");
    let small = Bytes::of(&clients[0], 10_000).unwrap();
    let names = bridge.publish(&mut exporter);
    assert_eq!(value(&names, "client_live_bytes", &first), 10_000.0);
    assert_eq!(value(&names, "client_allocations_total", &first), 1.0);
    memory.reclaim_unused_memory();
    let names = bridge.publish(&mut exporter);
    assert_eq!(value(&names, "client_allocations_total", &first), 0.0);
    assert_eq!(value(&names, "reclaim_passes_total", &labels([])), 1.0);
    // Another takes its place in the top.
    let large = Bytes::of(&clients[1], 500_000).unwrap();
    let names = bridge.publish(&mut exporter);
    assert_eq!(value(&names, "client_live_bytes", &first), 0.0);
    let names = bridge.publish(&mut exporter);
    let live = &names[&format!("{PREFIX}client_live_bytes")].series;
    assert!(!live.contains_key(&first), "{live:?}");
    drop((small, large));
}

#[test]
#[serial]
fn the_number_of_series_is_bounded_and_the_sums_are_whole() {
    let memory = quiet(1 << 30);
    let held = thirty_that_hold_more_and_more(&memory);
    let names = Bridge::new().publish(&mut MetricsExporter::new(&memory).top(3));
    let live = &names[&format!("{PREFIX}client_live_bytes")].series;
    let own = live.keys().map(|labels| labels["client"].as_str());
    assert_eq!(
        own.filter(|&client| client != "other").collect::<Vec<_>>(),
        ["client 27", "client 28", "client 29"]
    );
    let tiers = memory.snapshot().tiers.len();
    assert_eq!(live.len(), 3 + tiers, "{live:?}");
    assert_eq!(live.values().sum::<f64>(), 10_000.0 * (30 * 31 / 2) as f64);
    drop(held);
}

#[test]
#[serial]
fn a_series_that_left_the_top_stays_at_zero() {
    let memory = quiet(1 << 30);
    let first = enterprise(&memory, "first");
    let second = enterprise(&memory, "second");
    let bridge = Bridge::new();
    let mut exporter = MetricsExporter::new(&memory).top(1);
    let small = Bytes::of(&first, 10_000).unwrap();
    bridge.publish(&mut exporter);
    let large = Bytes::of(&second, 500_000).unwrap();
    for _ in 0..2 {
        let names = bridge.publish(&mut exporter);
        let live = |name| value(&names, "client_live_bytes", &of(name, "Enterprise"));
        assert_eq!(live("first"), 0.0);
        assert_eq!(live("second"), 500_000.0);
        assert_eq!(live("other"), 10_000.0);
        let made = |name| value(&names, "client_allocations_total", &of(name, "Enterprise"));
        assert_eq!(made("first") + made("second") + made("other"), 2.0);
    }
    drop((small, large));
}

#[test]
#[serial]
fn beyond_the_providers_own_limit_counters_are_whole_in_its_overflow_series() {
    let memory = quiet(1 << 30);
    let clients: Vec<Client> = (0..10)
        .map(|n| enterprise(&memory, &format!("client {n}")))
        .collect();
    for client in &clients {
        drop(Bytes::of(client, 100).unwrap());
    }
    let few = |_: &Instrument| Stream::builder().with_cardinality_limit(4).build().ok();
    let bridge = Bridge::with(Temporality::Cumulative, |provider| provider.with_view(few));
    let names = bridge.publish(&mut MetricsExporter::new(&memory));
    let made = &names[&format!("{PREFIX}client_allocations_total")].series;
    let overflow = labels([("otel.metric.overflow", "true")]);
    assert!(made.contains_key(&overflow), "{made:?}");
    assert_eq!(made.len(), 5, "{made:?}");
    assert_eq!(made.values().sum::<f64>(), 10.0);
}

#[test]
#[serial]
fn memories_are_told_apart_by_a_label() {
    let bridge = Bridge::new();
    for (name, total) in [("east", 1 << 20), ("west", 1 << 30)] {
        bridge.publish(&mut MetricsExporter::new(&quiet(total)).label("memory", name));
    }
    let names = bridge.collect();
    let total = |name| value(&names, "memory_total_bytes", &labels([("memory", name)]));
    assert_eq!(
        (total("east"), total("west")),
        (1_048_576.0, 1_073_741_824.0)
    );
}

#[test]
#[serial]
fn publishing_in_a_scope_charges_nobody() {
    let memory = quiet(1 << 30);
    let acme = enterprise(&memory, "acme");
    let bridge = Bridge::new();
    let mut exporter = MetricsExporter::new(&memory);
    metrics::with_local_recorder(&bridge.recorder, || {
        let _scope = acme.enter();
        exporter.publish();
    });
    assert_eq!(acme.usage().total_allocations, 0);
    drop(bridge);
    assert_eq!(acme.usage().live_bytes, 0);
}
