//! The figures of a memory as Prometheus reads them, printed once.
//!
//! ```sh
//! cargo run --release --features metrics --example metrics
//! ```
//!
//! To serve them, give `metrics-exporter-prometheus` its feature
//! `http-listener` and a port in place of `install_recorder`,
//! `PrometheusBuilder::new().with_http_listener(([0, 0, 0, 0], 9000)).install()?`,
//! or let a route of your own web framework answer with `page.render()`; and
//! call `exporter.publish()` every ten seconds or so, or before each `render`.
//! `examples/grafana/tiered_allocator.json` is a dashboard for Grafana.

use metrics_exporter_prometheus::PrometheusBuilder;
use tiered_allocator::integrations::metrics::MetricsExporter;
use tiered_allocator::{ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let page = PrometheusBuilder::new().install_recorder()?;
    let memory = Memory::new(1 << 30);
    let mut exporter = MetricsExporter::new(&memory).top(2);

    // Two clients with series of their own; the smallest is in `other`.
    let mut held = Vec::new();
    for (name, tier, words) in [
        ("bank", SubscriptionTier::Enterprise, 30_000),
        ("press", SubscriptionTier::Premium, 20_000),
        ("shop", SubscriptionTier::Basic, 10_000),
    ] {
        let options = ClientOptions::new(tier).max(Limit::Bytes(1 << 20));
        let client = memory.register(name, options)?;
        let work = || (0..words).map(|n| format!("word {n}")).collect::<Vec<_>>();
        match client.run(work) {
            Ok(words) => held.push(words),
            Err(over) => eprintln!("{over}"),
        }
    }

    exporter.publish();
    print!("{}", page.render());
    Ok(())
}
