//! metrics: a memory's figures for whoever records `metrics`.
//!
//! [`MetricsExporter::publish`] takes a snapshot and hands it to the installed
//! recorder: Prometheus' by `metrics-exporter-prometheus`, OpenTelemetry's by
//! `metrics-opentelemetry`, or any other. Nothing is counted in between, so the
//! heap pays nothing for it.
//!
//! | names | labels |
//! |---|---|
//! | `tiered_allocator_client_*`: `live_bytes`, `charged_bytes`, `used_bytes`, `block_bytes`, `peak_bytes`, `limit_bytes`, `soft_limit_bytes`, `guarantee_bytes`, `overdrawn_bytes`, `live_allocations`; counters `allocated_bytes_total`, `allocations_total`, `refusals_total`, `observed_breaches_total`, `stall_seconds_total` | `client`, `tier` |
//! | `tiered_allocator_tier_*`: `charged_bytes`, `limit_bytes`, `borrowed_bytes`, `overdrawn_bytes`, `clients`; counters `shortages_total`, `reliefs_total`, `shortage_seconds_total` | `tier` |
//! | `tiered_allocator_memory_*`: `total_bytes`, `usable_bytes`, `charged_bytes`, `overdrawn_bytes`, `spilled_bytes`, `retired_clients`, `under_pressure` | |
//! | `tiered_allocator_*`: `unattributed_bytes`, `unattributed_allocations`, `resident_set_bytes`, `unattributed_resident_bytes` | |
//! | counters `tiered_allocator_*`: `reclaimed_bytes_total`, `rung_climbs_total` | `rung`, see [`Rung::name`](crate::Rung::name) |
//! | counters `tiered_allocator_*`: `spilled_bytes_total`, `discarded_bytes_total`, `restored_bytes_total`, `restore_seconds_total`, `reclaim_failed_blocks_total`, `reclaim_passes_total`, `stopped_clients_total`, `panicked_reclaimers_total`, `late_reclaimers_total`, `failed_sources_total` | |
//!
//! # How many series
//!
//! The clients with the most charged bytes have series of their own, 50 unless
//! [`top`](MetricsExporter::top) says otherwise. The rest of each tier, removed
//! clients that still hold something included, is one series with the client
//! `other`. A client of that very name is always in the rest.
//!
//! - **Gauges** of `other` are sums over its clients: of limits and peaks, too.
//! - **Counters** go by growth: what a client's figure has grown by since the
//!   last publication is added to the series that the client is in now. So no
//!   series ever falls, and the sum over a tier's series is what its clients
//!   did, wherever they were shown. A client that was in the rest begins its own
//!   series with what it does from then on. What a client does between the last
//!   publication and the moment when the last of it is freed is not counted.
//! - **A client that leaves** the top, or is removed, renamed or moved to another
//!   tier, has the gauges of its old series set to 0 once, and the series is not
//!   touched again. The facade cannot remove it; exporters can:
//!   `metrics-exporter-prometheus` with its `idle_timeout`, set to a few times
//!   the interval of publication.
//!
//! Names of clients are label values as they are; exporters escape them.
//!
//! # OpenTelemetry
//!
//! `metrics-opentelemetry` makes a recorder of an OpenTelemetry meter, which is
//! installed in place of the Prometheus one. `tests/metrics_opentelemetry.rs`
//! checks what the SDK collects from it.
//!
//! ```
//! use metrics_opentelemetry::opentelemetry::metrics::MeterProvider;
//! use metrics_opentelemetry::{OpenTelemetryMetrics, OpenTelemetryRecorder};
//! use opentelemetry_sdk::metrics::SdkMeterProvider;
//!
//! // With a reader or a periodic exporter of your own: OTLP, say.
//! let provider = SdkMeterProvider::builder().build();
//! let meter = provider.meter("tiered_allocator");
//! metrics::set_global_recorder(OpenTelemetryRecorder::new(OpenTelemetryMetrics::new(meter)))?;
//! // Then `MetricsExporter::publish` now and then, and at the end:
//! provider.shutdown()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | here | there |
//! |---|---|
//! | a gauge | a gauge of `f64` |
//! | a counter | a monotonic sum of `u64`, cumulative or as deltas, whichever the exporter asks for |
//! | labels | attributes, all of them strings |
//! | bytes, seconds, numbers | the units `By`, `s`, `1` |
//! | the help text | the description |
//!
//! - **What is sent was published last.** Nothing is read at the moment of
//!   collection: publish at least as often as the reader collects.
//! - **A client that leaves**, see above, has gauges of 0 there until the process
//!   ends; with deltas its series are not sent again. The bridge keeps every
//!   series that it has ever seen.
//! - **The SDK keeps 2,000 series of a name**, those of clients that left
//!   included, unless a view says otherwise. Those beyond are one series with the
//!   attribute `otel.metric.overflow`: of counters their sum, of gauges whichever
//!   was published last, which means nothing.
//! - **Not every bridge will do.** It has to know a counter again that is
//!   registered again. `metrics-exporter-opentelemetry` (0.2) does not: totals are
//!   added to themselves with each publication, and all series of a name but the
//!   first lose unit and description.

mod families;

use crate::client::{ClientId, untracked};
use crate::memory::Memory;
use crate::telemetry::{ClientSnapshot, Snapshot};
use ::metrics::{Key, KeyName, Label, Level, Metadata, Recorder, SharedString, with_recorder};
use core::cmp::Reverse;
use families::{
    CLIENT_COUNTERS, CLIENT_GAUGES, COUNTERS, Kind, MEMORY_GAUGES, RECLAIM_COUNTERS, RESIDENT_SET,
    RUNG_COUNTERS, TIER_COUNTERS, TIER_GAUGES, UNATTRIBUTED_RESIDENT,
};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The client of the series for those that have none of their own.
const REST: &str = "other";

const METADATA: Metadata<'_> = Metadata::new(
    "tiered_allocator",
    Level::INFO,
    Some("tiered_allocator::integrations::metrics"),
);

/// Publishes the figures of one memory. Keeps what it published last, so there
/// should be one for a memory, and the recorder should be installed before the
/// first publication.
///
/// ```
/// use tiered_allocator::integrations::metrics::MetricsExporter;
/// use tiered_allocator::{Memory, SubscriptionTier};
///
/// let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
/// let page = recorder.handle();
/// metrics::set_global_recorder(recorder)?;
///
/// let memory = Memory::new(1 << 30);
/// memory.add_client("acme", SubscriptionTier::Basic);
/// let mut exporter = MetricsExporter::new(&memory).top(20);
/// exporter.publish();
/// assert!(page.render().contains("tiered_allocator_client_charged_bytes{client=\"acme\",tier=\"Basic\"} 0"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// From a periodic task, on tokio say:
///
/// ```
/// # use std::time::Duration;
/// # use tiered_allocator::integrations::metrics::MetricsExporter;
/// # use tiered_allocator::Memory;
/// async fn report(memory: Memory) {
///     let mut exporter = MetricsExporter::new(&memory);
///     let mut interval = tokio::time::interval(Duration::from_secs(10));
///     loop {
///         interval.tick().await;
///         exporter.publish();
///     }
/// }
/// # drop(report(Memory::new(1 << 30)));
/// ```
#[derive(Debug)]
pub struct MetricsExporter {
    memory: Memory,
    top: usize,
    labels: Vec<Label>,
    /// Each client's counters at the last publication.
    published: HashMap<ClientId, [u64; COUNTERS]>,
    /// The clients' own series at the last publication.
    shown: HashSet<Series>,
}

/// The labels of a client's own series.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Series {
    client: Arc<str>,
    tier: Arc<str>,
}

/// What the clients in the rest of a tier add up to.
struct Rest {
    gauges: Vec<u64>,
    growth: [u64; COUNTERS],
}

impl MetricsExporter {
    /// For the figures of this memory, which it holds.
    pub fn new(memory: &Memory) -> MetricsExporter {
        MetricsExporter {
            memory: memory.clone(),
            top: 50,
            labels: Vec::new(),
            published: HashMap::new(),
            shown: HashSet::new(),
        }
    }

    /// How many clients have series of their own; the default is 50, and 0
    /// leaves the tiers' sums.
    pub fn top(mut self, clients: usize) -> MetricsExporter {
        self.top = clients;
        self
    }

    /// Puts a label on every series: needed where a process has several
    /// memories, to tell them apart.
    pub fn label(
        mut self,
        key: impl Into<SharedString>,
        value: impl Into<SharedString>,
    ) -> MetricsExporter {
        self.labels.push(Label::new(key, value));
        self
    }

    /// The names of all series that are published.
    pub fn names() -> impl Iterator<Item = &'static str> {
        families::all().map(|family| family.name)
    }

    /// Publishes the figures of this moment to the installed recorder. Costs
    /// what [`Memory::snapshot`] costs, and what the recorder takes for a value
    /// of each series. What that allocates is charged to nobody.
    pub fn publish(&mut self) {
        untracked(|| {
            let snapshot = self.memory.snapshot();
            with_recorder(|recorder| {
                describe(recorder);
                self.publish_clients(recorder, &snapshot);
                self.publish_sums(recorder, &snapshot);
            });
        });
    }

    fn publish_clients(&mut self, recorder: &dyn Recorder, snapshot: &Snapshot) {
        let top = top(&snapshot.clients, self.top);
        let before = core::mem::take(&mut self.published);
        let shown = core::mem::take(&mut self.shown);
        let mut rests: HashMap<Arc<str>, Rest> = HashMap::new();
        for tier in &snapshot.tiers {
            rests.insert(Arc::clone(&tier.name), Rest::default());
        }
        for client in snapshot.clients.iter().chain(&snapshot.retired) {
            let last = before.get(&client.id).copied().unwrap_or_default();
            let now = core::array::from_fn(|at| {
                let (_, figure) = CLIENT_COUNTERS[at];
                // Figures read while threads run may be a little behind.
                figure(&client.usage).max(last[at])
            });
            let growth = core::array::from_fn(|at| now[at] - last[at]);
            self.published.insert(client.id, now);
            let figures = CLIENT_GAUGES
                .iter()
                .map(|(_, figure)| figure(client, &snapshot.memory));
            if top.contains(&client.id) {
                let series = Series {
                    client: Arc::clone(&client.name),
                    tier: Arc::clone(&client.tier),
                };
                let gauges: Vec<u64> = figures.collect();
                self.publish_series(recorder, &series, &gauges, &growth);
                self.shown.insert(series);
            } else {
                let rest = rests.entry(Arc::clone(&client.tier)).or_default();
                rest.add(figures, &growth);
            }
        }
        for (tier, rest) in rests {
            let series = Series {
                client: REST.into(),
                tier,
            };
            self.publish_series(recorder, &series, &rest.gauges, &rest.growth);
        }
        for gone in shown.difference(&self.shown) {
            self.publish_gauges(recorder, gone, &[0; CLIENT_GAUGES.len()]);
        }
    }

    fn publish_series(
        &self,
        recorder: &dyn Recorder,
        series: &Series,
        gauges: &[u64],
        growth: &[u64; COUNTERS],
    ) {
        self.publish_gauges(recorder, series, gauges);
        for ((family, _), growth) in CLIENT_COUNTERS.iter().zip(growth) {
            let key = self.key(family.name, &series.labels());
            recorder
                .register_counter(&key, &METADATA)
                .increment(*growth);
        }
    }

    fn publish_gauges(&self, recorder: &dyn Recorder, series: &Series, gauges: &[u64]) {
        for ((family, _), &value) in CLIENT_GAUGES.iter().zip(gauges) {
            self.set(recorder, family.name, &series.labels(), value);
        }
    }

    fn publish_sums(&self, recorder: &dyn Recorder, snapshot: &Snapshot) {
        for tier in &snapshot.tiers {
            let labels = [Label::new("tier", Arc::clone(&tier.name))];
            for (family, figure) in TIER_GAUGES {
                self.set(recorder, family.name, &labels, figure(tier, snapshot));
            }
            for (family, figure) in TIER_COUNTERS {
                self.raise(recorder, family.name, &labels, figure(tier));
            }
        }
        for (family, figure) in MEMORY_GAUGES {
            self.set(recorder, family.name, &[], figure(snapshot));
        }
        for (family, told) in [
            (RESIDENT_SET, snapshot.resident_set_bytes),
            (UNATTRIBUTED_RESIDENT, snapshot.unattributed_resident_bytes),
        ] {
            if let Some(bytes) = told {
                self.set(recorder, family.name, &[], bytes);
            }
        }
        for (family, figure) in RECLAIM_COUNTERS {
            self.raise(recorder, family.name, &[], figure(&snapshot.reclaim));
        }
        for totals in &snapshot.reclaim.rungs {
            let labels = [Label::from_static_parts("rung", totals.rung.name())];
            for (family, figure) in RUNG_COUNTERS {
                self.raise(recorder, family.name, &labels, figure(totals));
            }
        }
    }

    fn key(&self, name: &'static str, labels: &[Label]) -> Key {
        let all = labels.iter().chain(&self.labels).cloned();
        Key::from_parts(name, all.collect::<Vec<Label>>())
    }

    fn set(&self, recorder: &dyn Recorder, name: &'static str, labels: &[Label], value: u64) {
        let gauge = recorder.register_gauge(&self.key(name, labels), &METADATA);
        gauge.set(value as f64);
    }

    /// A total that grows for as long as the memory lives.
    fn raise(&self, recorder: &dyn Recorder, name: &'static str, labels: &[Label], total: u64) {
        let counter = recorder.register_counter(&self.key(name, labels), &METADATA);
        counter.absolute(total);
    }
}

impl Series {
    fn labels(&self) -> [Label; 2] {
        [
            Label::new("client", Arc::clone(&self.client)),
            Label::new("tier", Arc::clone(&self.tier)),
        ]
    }
}

impl Default for Rest {
    fn default() -> Rest {
        Rest {
            gauges: vec![0; CLIENT_GAUGES.len()],
            growth: [0; COUNTERS],
        }
    }
}

impl Rest {
    fn add(&mut self, figures: impl Iterator<Item = u64>, growth: &[u64; COUNTERS]) {
        for (sum, figure) in self.gauges.iter_mut().zip(figures) {
            *sum = sum.saturating_add(figure);
        }
        for (sum, growth) in self.growth.iter_mut().zip(growth) {
            *sum = sum.saturating_add(*growth);
        }
    }
}

/// The clients with the most charged bytes; by name where they are equal, so
/// that idle clients do not take turns.
fn top(clients: &[ClientSnapshot], most: usize) -> HashSet<ClientId> {
    let mut named: Vec<&ClientSnapshot> = clients.iter().filter(|c| &*c.name != REST).collect();
    named.sort_by_key(|client| {
        (
            Reverse(client.usage.charged_bytes),
            Arc::clone(&client.name),
        )
    });
    named.iter().take(most).map(|client| client.id).collect()
}

fn describe(recorder: &dyn Recorder) {
    for family in families::all() {
        let name = KeyName::from_const_str(family.name);
        let help = SharedString::const_str(family.help);
        match family.kind {
            Kind::Gauge => recorder.describe_gauge(name, Some(family.unit), help),
            Kind::Counter => recorder.describe_counter(name, Some(family.unit), help),
        }
    }
}
