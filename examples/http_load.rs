//! An HTTP server under load from a second process: an Enterprise tenant asks
//! for what it may have, first alone and then beside a Basic tenant that
//! floods the server with requests for far more than its quota.
//!
//! Every answer to the Enterprise tenant must be right; the process fails
//! otherwise. Its latencies are printed and decide nothing: they are those of
//! two processes that share the machine.
//!
//! ```sh
//! cargo run --release --features tower --example http_load
//! cargo run --release --features tower --example http_load -- serve 127.0.0.1:3000
//! wrk -c 16 -H 'x-tenant: flood' http://127.0.0.1:3000/work/67108864
//! ```

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use bytes::Bytes;
use http::{HeaderName, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::env;
use std::error::Error;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tiered_allocator::integrations::tower::TenantLayer;
use tiered_allocator::{Client, ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

type Failure = Box<dyn Error + Send + Sync>;

const MIB: u64 = 1 << 20;
const STEP_BYTES: usize = 256 * 1024;

const STEADY_CONNECTIONS: usize = 2;
const STEADY_REQUESTS: usize = 1000;
const STEADY_BYTES: u64 = MIB;
const FLOOD_CONNECTIONS: usize = 16;
/// Each is five times the flood's quota.
const FLOOD_BYTES: u64 = 64 * MIB;

/// Fills so many bytes, step by step, and answers their sum.
async fn work(Path(bytes): Path<usize>) -> String {
    let mut steps = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let step = left.min(STEP_BYTES);
        steps.push(vec![1_u8; step]);
        left -= step;
        tokio::task::yield_now().await;
    }
    let sum = steps.iter().flatten().map(|&byte| u64::from(byte));
    sum.sum::<u64>().to_string()
}

struct Host {
    /// Its clients are there as long as it is.
    memory: Memory,
    steady: Client,
    flood: Client,
    router: Router,
}

fn host() -> Result<Host, Failure> {
    assert!(TieredAllocator::is_installed());
    // Half is headroom: for what the flood takes between two safe points.
    let memory = Memory::builder(256 * MIB).usable(0.5).build()?;
    let steady = ClientOptions::new(SubscriptionTier::Enterprise).guarantee(Limit::Bytes(32 * MIB));
    let layer = TenantLayer::from_header(&memory, HeaderName::from_static("x-tenant"));
    Ok(Host {
        steady: memory.register("steady", steady)?,
        flood: memory.register("flood", SubscriptionTier::Basic)?,
        memory: memory.clone(),
        router: Router::new().route("/work/{bytes}", get(work)).layer(layer),
    })
}

/// Serves itself to a child process that is the load; whether that got what it
/// was to get.
async fn host_and_child(router: Router) -> Result<bool, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?.to_string();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let server = tokio::spawn(server.into_future());
    let mut load = Command::new(env::current_exe()?);
    let mut load = load.args(["load", &at]).spawn()?;
    let load = tokio::task::spawn_blocking(move || load.wait());
    let ended = load.await??;
    drop(stop);
    server.await??;
    Ok(ended.success())
}

/// What the tenants had, and whether anything is left. To be asked when the
/// runtime has ended: `yield_now` keeps a list of 16 bytes for each task that
/// once waited in it, at the expense of whoever made it grow.
fn check(host: &Host) -> bool {
    for client in host.memory.snapshot().clients {
        let usage = client.usage;
        println!(
            "{}: {} allocations, peak {} MiB, {} bytes left",
            client.name,
            usage.total_allocations,
            usage.peak_bytes / MIB,
            usage.live_bytes
        );
    }
    let left = [&host.steady, &host.flood].map(|client| client.usage().live_bytes);
    left == [0, 0] && host.steady.usage().refusals == 0
}

struct Connection<'a> {
    at: &'a str,
    tenant: &'static str,
    open: Option<SendRequest<Empty<Bytes>>>,
}

impl Connection<'_> {
    async fn ask(&mut self, bytes: u64) -> Result<(StatusCode, Bytes), Failure> {
        let mut requests = match self.open.take() {
            Some(requests) => requests,
            None => {
                let stream = TcpStream::connect(self.at).await?;
                stream.set_nodelay(true)?;
                let (requests, connection) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                requests
            }
        };
        requests.ready().await?;
        let request = Request::get(format!("/work/{bytes}"))
            .header("host", self.at)
            .header("x-tenant", self.tenant)
            .body(Empty::new())?;
        let (head, body) = requests.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        self.open = Some(requests);
        Ok((head.status, body))
    }
}

#[derive(Default)]
struct Steady {
    latencies: Vec<Duration>,
    failed: usize,
}

async fn steady(at: &str) -> Steady {
    let connections = (0..STEADY_CONNECTIONS).map(|_| {
        let at = at.to_owned();
        tokio::spawn(async move {
            let mut steady = Steady::default();
            let mut connection = Connection {
                at: &at,
                tenant: "steady",
                open: None,
            };
            for _ in 0..STEADY_REQUESTS / STEADY_CONNECTIONS {
                let begun = Instant::now();
                let answer = connection.ask(STEADY_BYTES).await;
                steady.latencies.push(begun.elapsed());
                match answer {
                    Ok((StatusCode::OK, sum)) if sum == STEADY_BYTES.to_string() => {}
                    other => {
                        eprintln!("steady was answered {other:?}");
                        steady.failed += 1;
                    }
                }
            }
            steady
        })
    });
    let mut all = Steady::default();
    for connection in connections.collect::<Vec<_>>() {
        let one = connection
            .await
            .expect("a connection's task does not panic");
        all.latencies.extend(one.latencies);
        all.failed += one.failed;
    }
    all.latencies.sort_unstable();
    all
}

/// Asks for too much until it is told to stop, at least once; answers how
/// often it was refused and how often anything else happened.
async fn flood(at: String, enough: Arc<AtomicBool>) -> (usize, usize) {
    let (mut refused, mut other) = (0, 0);
    let mut connection = Connection {
        at: &at,
        tenant: "flood",
        open: None,
    };
    while refused + other == 0 || !enough.load(Ordering::Relaxed) {
        match connection.ask(FLOOD_BYTES).await {
            Ok((StatusCode::TOO_MANY_REQUESTS, _)) => refused += 1,
            answer => {
                eprintln!("flood was answered {answer:?}");
                other += 1;
            }
        }
    }
    (refused, other)
}

fn print(phase: &str, steady: &Steady) {
    let quantile = |share: f64| {
        let at = (steady.latencies.len() as f64 * share) as usize;
        steady.latencies[at.min(steady.latencies.len() - 1)].as_secs_f64() * 1e3
    };
    println!(
        "{phase:<22} {} of {} answered rightly, median {:.2} ms, p99 {:.2} ms",
        steady.latencies.len() - steady.failed,
        steady.latencies.len(),
        quantile(0.5),
        quantile(0.99)
    );
}

async fn load(at: &str) -> bool {
    let quiet = steady(at).await;
    print("steady, alone", &quiet);
    let enough = Arc::new(AtomicBool::new(false));
    let floods: Vec<_> = (0..FLOOD_CONNECTIONS)
        .map(|_| tokio::spawn(flood(at.to_owned(), Arc::clone(&enough))))
        .collect();
    let beside = steady(at).await;
    enough.store(true, Ordering::Relaxed);
    let (mut refused, mut other) = (0, 0);
    for flood in floods {
        let one = flood.await.expect("a connection's task does not panic");
        refused += one.0;
        other += one.1;
    }
    print("steady, with the flood", &beside);
    println!("flood: {refused} requests answered 429, {other} otherwise");
    quiet.failed + beside.failed + other == 0 && refused >= FLOOD_CONNECTIONS
}

fn main() -> Result<ExitCode, Failure> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let kept = match arguments[..] {
        ["load", at] => runtime.block_on(load(at)),
        ["serve", at] => runtime.block_on(async {
            axum::serve(TcpListener::bind(at).await?, host()?.router).await?;
            Ok::<_, Failure>(true)
        })?,
        _ => {
            let host = host()?;
            let kept = runtime.block_on(host_and_child(host.router.clone()))?;
            drop(runtime);
            check(&host) && kept
        }
    };
    Ok(match kept {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
