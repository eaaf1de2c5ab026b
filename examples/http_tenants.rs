//! An HTTP server (axum) whose requests are charged to the tenant that the
//! header `x-tenant` names: one asks for more than its quota and is told so,
//! its neighbour is served all along.
//!
//! ```sh
//! cargo run --features tower --example http_tenants             # asks itself, and ends
//! cargo run --features tower --example http_tenants -- 0.0.0.0:3000
//! curl -d 1000 -H 'x-tenant: acme' localhost:3000/report
//! ```

use axum::Router;
use axum::routing::{get, post};
use http::{HeaderName, Request};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::error::Error;
use tiered_allocator::integrations::tower::TenantLayer;
use tiered_allocator::{ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator};
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const MIB: u64 = 1 << 20;

/// Ordinary code: so many lines, as the body says.
async fn report(lines: String) -> String {
    let lines = lines.trim().parse().unwrap_or(0);
    (0..lines).map(|line| format!("line {line}\n")).collect()
}

fn router(memory: &Memory) -> Router {
    let host = memory.clone();
    let usage = move || async move {
        let mut page = String::new();
        for client in host.snapshot().clients {
            page += &format!("{}: {} bytes\n", client.name, client.usage.live_bytes);
        }
        page
    };
    let tenants = TenantLayer::from_header(memory, HeaderName::from_static("x-tenant"));
    Router::new()
        .route("/report", post(report).layer(tenants.budget(8 * MIB)))
        .route("/usage", get(usage)) // the host's own: no layer
}

async fn ask(at: &str, tenant: &str, lines: &str) -> Result<String, Box<dyn Error>> {
    let stream = TokioIo::new(TcpStream::connect(at).await?);
    let (mut requests, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let request = Request::post("/report").header("host", at);
    let request = request.header("x-tenant", tenant).body(lines.to_owned())?;
    let (head, body) = requests.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    drop(requests);
    connection.await??;
    let retry_after = head.headers.get("retry-after");
    let retry_after = retry_after.map_or("-", |after| after.to_str().unwrap_or("?"));
    Ok(format!(
        "{tenant:<8} {lines:>9} lines: {}, {} bytes, Retry-After: {retry_after}",
        head.status,
        body.len()
    ))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::new(1024 * MIB);
    memory.register("acme", SubscriptionTier::Enterprise)?;
    let small = ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(2 * MIB));
    memory.register("globex", small)?;
    let router = router(&memory);
    if let Some(at) = std::env::args().nth(1) {
        return Ok(axum::serve(TcpListener::bind(at).await?, router).await?);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?.to_string();
    let server = tokio::spawn(axum::serve(listener, router).into_future());
    for (tenant, lines) in [
        ("globex", "1000"),
        ("globex", "1000000"),
        ("acme", "100000"),
        ("acme", "1000000"),
        ("globex", "1000"),
        ("initech", "1000"),
    ] {
        println!("{}", ask(&at, tenant, lines).await?);
    }
    for client in memory.snapshot().clients {
        let usage = client.usage;
        println!(
            "{}: {} bytes now, {} at most",
            client.name, usage.live_bytes, usage.peak_bytes
        );
    }
    server.abort();
    Ok(())
}
