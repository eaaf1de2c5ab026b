//! A service that is instrumented with `tracing`: its spans name the tenant,
//! and that is all it takes for the tenant to be charged. What a tenant is
//! refused is in the same log.
//!
//! ```sh
//! cargo run --release --features tracing-subscriber --example instrumented
//! ```

use std::time::Duration;
use tiered_allocator::integrations::tracing::TracingEvents;
use tiered_allocator::integrations::tracing_subscriber::{ClientFormat, ClientLayer, Untracked};
use tiered_allocator::{Client, Memory, SubscriptionTier, TieredAllocator};
use tracing::{info, instrument};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, fmt};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

/// Nothing in here knows of clients but for the field of the span.
#[instrument(fields(client = tenant), skip_all)]
async fn serve(tenant: &'static str, words: usize) -> Vec<String> {
    let mut answer = Vec::new();
    for part in 0..2 {
        answer.extend(render(part, words / 2).await);
    }
    info!(words = answer.len(), "served");
    answer
}

#[instrument]
async fn render(part: usize, words: usize) -> Vec<String> {
    // Another thread may go on from here.
    tokio::time::sleep(Duration::from_millis(1)).await;
    (0..words).map(|n| format!("word {part}.{n}")).collect()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::new(1 << 30);
    let clients: [Client; 2] = [
        memory.register("bank", SubscriptionTier::Enterprise)?,
        memory.register("shop", SubscriptionTier::Basic)?,
    ];
    // Spans that are open at once, and lines, are kept in pools that outlive the
    // request: they are nobody's. The filter is the log's alone: a span that is
    // filtered out charges nobody.
    let log = fmt::layer()
        .with_writer(std::io::stdout)
        .with_ansi(false)
        .event_format(ClientFormat::new(fmt::format().without_time().compact()));
    let subscriber = Untracked::new(tracing_subscriber::registry())
        .with(ClientLayer::new(&memory))
        .with(Untracked::new(log).with_filter(LevelFilter::INFO));
    tracing::subscriber::set_global_default(subscriber)?;

    let bank = tokio::spawn(serve("bank", 20_000));
    let shop = tokio::spawn(serve("shop", 2_000));
    let answers = (bank.await?, shop.await?);
    for client in &clients {
        let usage = client.usage();
        println!(
            "{}: {} bytes in {} allocations",
            client.name().unwrap_or_default(),
            usage.live_bytes,
            usage.live_allocations
        );
    }
    let charged = clients.iter().all(|client| client.usage().live_bytes > 0);

    // A service does this every second or so, in a task of its own.
    let mut events = TracingEvents::new(&memory);
    if let Err(refused) = memory.allocate_for_client("shop", 500 << 20) {
        println!("the shop is told: {refused}");
    }
    let logged = events.emit();

    drop(answers);
    for client in &clients {
        println!(
            "{:?}: {} bytes left",
            client.name(),
            client.usage().live_bytes
        );
    }
    let left: u64 = clients.iter().map(|client| client.usage().live_bytes).sum();
    if charged && logged == 1 && left == 0 {
        return Ok(());
    }
    Err(format!("charged: {charged}, events: {logged}, left: {left} bytes").into())
}
