//! Three tenants send scripts to one process. One of them allocates without
//! end, again and again. The others must not notice.
//!
//! ```text
//! cargo run --release --features tokio --example hostile_tenant
//! ```
//!
//! The scripts run in an embedded engine (rhai, its own size limits off) on
//! tokio's blocking pool, each request in an engine of its own that is charged
//! to its tenant. The engine calls back after every operation: a safe point,
//! where a tenant over its quota is stopped. Between two safe points it draws
//! on the memory's headroom, so that no allocation fails on the way.
//!
//! Ends with 1 if a promise was broken.

use rhai::{Blob, Dynamic, Engine, EvalAltResult, ImmutableString};
use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tiered_allocator::integrations::tokio as tenant;
use tiered_allocator::{
    Client, ClientOptions, Limit, Memory, QuotaExceeded, RegisterError, SubscriptionTier,
    TieredAllocator,
};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const MIB: u64 = 1 << 20;
const QUOTA_BYTES: u64 = 32 * MIB;
const PHASE: Duration = Duration::from_secs(3);

/// Counts the primes below `n`.
const SIEVE: &str = "
    let composite = [];
    for i in 0..n { composite.push(false); }
    let count = 0;
    for i in 2..n {
        if composite[i] { continue; }
        count += 1;
        let multiple = i * i;
        while multiple < n { composite[multiple] = true; multiple += i; }
    }
    count";

fn sieve(n: i64) -> i64 {
    let is_prime = |i: &i64| (2..).take_while(|d| d * d <= *i).all(|d| i % d != 0);
    (2..n).filter(is_prime).count() as i64
}

/// Joins numbers to a text and takes it apart again.
const WORDS: &str = r#"
    let text = "";
    let random = n;
    for i in 0..n { random = (random * 75 + 74) % 65537; text += random + ","; }
    let sum = 0;
    for word in text.split(",") { if word != "" { sum = (sum * 31 + parse_int(word)) % 1000003; } }
    sum"#;

fn words(n: i64) -> i64 {
    let numbers = (0..n).scan(n, |random, _| {
        *random = (*random * 75 + 74) % 65537;
        Some(*random)
    });
    numbers.fold(0, |sum, number| (sum * 31 + number) % 1_000_003)
}

/// As busy as the attacks, but within its quota.
const POLITE: &str = "
    let kept = [];
    for i in 0..150000 { if kept.len() == 1000 { kept.clear(); } kept.push([i, i + 1, i + 2]); }
    kept.len()";

const ATTACKS: [&str; 4] = [
    // Many small pieces.
    "let hoard = []; loop { hoard.push([1, 2, 3, 4]); }",
    // Fewer and fewer, each twice as large as the one before.
    r#"let text = "x"; loop { text += text; }"#,
    "let hoard = [0]; loop { hoard += hoard; }",
    // All at once: more than there is.
    "let all = blob(1000000000000); all.len()",
];

/// How a script ended, if not with a number.
#[derive(Debug)]
enum Stopped {
    /// At a safe point.
    OverQuota(QuotaExceeded),
    /// By an error that the script got.
    Failed(String),
}

impl From<Box<EvalAltResult>> for Stopped {
    fn from(error: Box<EvalAltResult>) -> Stopped {
        match *error {
            EvalAltResult::ErrorTerminated(token, _) if token.is::<QuotaExceeded>() => {
                Stopped::OverQuota(token.cast())
            }
            other => Stopped::Failed(other.to_string()),
        }
    }
}

/// Runs a script in an engine of its own, in the scope of the caller.
fn run_script(client: &Client, script: &str, n: i64) -> Result<i64, Stopped> {
    let mut engine = Engine::new();
    engine.set_max_string_size(0);
    engine.set_max_array_size(0);
    engine.set_max_map_size(0);
    ask_before_large_requests(&mut engine);
    let client = client.clone();
    engine.on_progress(move |_| client.checkpoint().err().map(Dynamic::from));
    let mut scope = rhai::Scope::new();
    scope.push_constant("n", n);
    Ok(engine.eval_with_scope(&mut scope, script)?)
}

/// The engine's functions that allocate, in one step, as much as an argument
/// says. No safe point comes before that, and no headroom is large enough: the
/// host's own versions ask first, and a script that asks for too much gets an
/// error.
fn ask_before_large_requests(engine: &mut Engine) {
    type Answer<T> = Result<T, Box<EvalAltResult>>;

    fn ask(bytes: i64) -> Answer<usize> {
        let bytes = usize::try_from(bytes).unwrap_or(0);
        match Vec::<u8>::new().try_reserve_exact(bytes) {
            Ok(()) => Ok(bytes),
            Err(_) => Err(format!("{bytes} bytes are more than there is for this tenant").into()),
        }
    }
    let not_offered = || -> Answer<()> { Err("not offered by this host".into()) };

    engine
        .register_fn("blob", |len: i64| -> Answer<Blob> {
            Ok(vec![0; ask(len)?])
        })
        .register_fn("blob", |len: i64, byte: i64| -> Answer<Blob> {
            Ok(vec![byte as u8; ask(len)?])
        })
        .register_fn(
            "pad",
            |text: &mut ImmutableString, len: i64, with: char| -> Answer<()> {
                ask(len.saturating_mul(4))?;
                let missing = (len as usize).saturating_sub(text.chars().count());
                *text += std::iter::repeat_n(with, missing).collect::<String>();
                Ok(())
            },
        )
        .register_fn("pad", move |_: &mut ImmutableString, _: i64, _: &str| {
            not_offered()
        })
        .register_fn("pad", move |_: &mut Blob, _: i64, _: i64| not_offered())
        .register_fn("pad", move |_: &mut rhai::Array, _: i64, _: Dynamic| {
            not_offered()
        });
}

/// Runs a script for a tenant on the blocking pool.
async fn request(client: &Client, script: &'static str, n: i64) -> Result<i64, Stopped> {
    let tenant = client.clone();
    let work = move || run_script(&tenant, script, n);
    match tenant::spawn_blocking(client, work).await {
        Ok(Ok(result)) => result,
        Ok(Err(over)) => Err(Stopped::OverQuota(over.quota)),
        Err(ended) => Err(Stopped::Failed(ended.to_string())),
    }
}

/// What a neighbour saw during one phase.
#[derive(Default)]
struct Service {
    latencies: Vec<Duration>,
    wrong: usize,
}

impl Service {
    fn quantile(&self, share: f64) -> Duration {
        let at = (self.latencies.len() as f64 * share) as usize;
        let last = self.latencies.len().saturating_sub(1);
        self.latencies
            .get(at.min(last))
            .copied()
            .unwrap_or_default()
    }
}

/// Sends requests one after the other until the phase is over, and compares
/// every answer with what Rust makes of it.
async fn neighbour(
    client: Client,
    script: &'static str,
    expected: fn(i64) -> i64,
    end: Instant,
) -> Service {
    let mut service = Service::default();
    for round in 0.. {
        let begun = Instant::now();
        if begun >= end {
            break;
        }
        let n = 2_000 + round % 500;
        let answer = request(&client, script, n).await;
        service.latencies.push(begun.elapsed());
        service.wrong += usize::from(!matches!(answer, Ok(answer) if answer == expected(n)));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    service.latencies.sort_unstable();
    service
}

/// What the third tenant did.
#[derive(Default)]
struct Third {
    finished: usize,
    over_quota: usize,
    refused: usize,
    left_bytes: u64,
    last: Option<QuotaExceeded>,
    last_refusal: Option<String>,
}

/// Runs scripts in turn until the phase is over, each at least once.
async fn third(client: Client, scripts: &'static [&'static str], end: Instant) -> Third {
    let mut third = Third::default();
    for (round, script) in scripts.iter().cycle().enumerate() {
        if round >= scripts.len() && Instant::now() >= end {
            break;
        }
        match request(&client, script, 0).await {
            Ok(_) => third.finished += 1,
            Err(Stopped::OverQuota(quota)) => {
                third.over_quota += 1;
                third.last = Some(quota);
            }
            Err(Stopped::Failed(error)) => {
                third.refused += 1;
                // A copy of the host's own: `error` is the tenant's memory.
                third.last_refusal = Some(error.clone());
            }
        }
        third.left_bytes = third.left_bytes.max(client.usage().live_bytes);
    }
    third
}

struct Tenants {
    alice: Client,
    bob: Client,
    mallory: Client,
}

struct Phase {
    alice: Service,
    bob: Service,
    third: Third,
}

async fn phase(tenants: &Tenants, scripts: &'static [&'static str]) -> Phase {
    let end = Instant::now() + PHASE;
    let alice = tokio::spawn(neighbour(tenants.alice.clone(), SIEVE, sieve, end));
    let bob = tokio::spawn(neighbour(tenants.bob.clone(), WORDS, words, end));
    let third = tokio::spawn(third(tenants.mallory.clone(), scripts, end));
    Phase {
        alice: alice.await.expect("the neighbour's task does not panic"),
        bob: bob.await.expect("the neighbour's task does not panic"),
        third: third.await.expect("the third's task does not panic"),
    }
}

fn print_latencies(phases: [&Phase; 3]) {
    println!("latency, ms          alone   with a polite third   with the hostile one");
    for (name, service) in [
        ("alice", (|phase| &phase.alice) as fn(&Phase) -> &Service),
        ("bob", |phase| &phase.bob),
    ] {
        for (what, share) in [("median", 0.5), ("p99", 0.99)] {
            let [alone, polite, hostile] =
                phases.map(|phase| service(phase).quantile(share).as_secs_f64() * 1e3);
            println!("{name:<6} {what:<8} {alone:>10.2} {polite:>21.2} {hostile:>22.2}");
        }
        let requests = phases.map(|phase| service(phase).latencies.len());
        println!(
            "{name:<6} requests {:>10} {:>21} {:>22}",
            requests[0], requests[1], requests[2]
        );
    }
    println!();
}

/// Prints a promise with its figure; answers whether it was kept.
fn promise(what: &str, figure: impl fmt::Display, kept: bool) -> bool {
    println!(
        "{} {what}: {figure}",
        if kept { "kept  " } else { "BROKEN" }
    );
    kept
}

fn check(memory: &Memory, tenants: &Tenants, phases: [&Phase; 3]) -> bool {
    let hostile = &phases[2].third;
    let mallory = tenants.mallory.usage();
    println!(
        "the hostile tenant: {} attacks stopped at a safe point, {} refused at once, \
         peak {} MiB of {} MiB",
        hostile.over_quota,
        hostile.refused,
        mallory.peak_bytes / MIB,
        QUOTA_BYTES / MIB,
    );
    if let Some(quota) = &hostile.last {
        println!("  stopped: {quota}");
    }
    if let Some(error) = &hostile.last_refusal {
        println!("  refused: {error}");
    }
    let mut kept = promise(
        "attacks that ended with QuotaExceeded",
        hostile.over_quota,
        hostile.over_quota > 0 && hostile.finished == 0,
    );
    let mut expect_none = |what: &str, figure: u64| kept &= promise(what, figure, figure == 0);
    expect_none(
        "bytes the hostile tenant had after an attack, at most",
        hostile.left_bytes,
    );
    for (name, client) in [("alice", &tenants.alice), ("bob", &tenants.bob)] {
        let usage = client.usage();
        expect_none(&format!("refusals of {name}"), usage.refusals);
        let beyond = usage.peak_bytes.saturating_sub(QUOTA_BYTES);
        expect_none(&format!("bytes that {name} had beyond its quota"), beyond);
        expect_none(&format!("bytes that {name} has left"), usage.live_bytes);
    }
    let wrong = phases.map(|phase| phase.alice.wrong + phase.bob.wrong);
    expect_none(
        "wrong answers to the neighbours",
        wrong.iter().sum::<usize>() as u64,
    );
    expect_none("bytes overdrawn at the end", memory.usage().overdrawn_bytes);
    kept
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    assert!(TieredAllocator::is_installed());
    // Headroom: what an attack may take between two safe points. Twice the
    // quota, if a step doubles what is there.
    let memory = Memory::builder(2048 * MIB).usable(0.5).build()?;
    let register = |name| -> Result<Client, RegisterError> {
        let options = ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(QUOTA_BYTES));
        memory.register(name, options)
    };
    let tenants = Tenants {
        alice: register("alice")?,
        bob: register("bob")?,
        mallory: register("mallory")?,
    };
    // What an engine makes once for the process, its hashers' seeds, would
    // otherwise be charged to whoever comes first.
    drop(Engine::new());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()?;
    let (alone, polite, hostile) = runtime.block_on(async {
        (
            phase(&tenants, &[]).await,
            phase(&tenants, &[POLITE]).await,
            phase(&tenants, &ATTACKS).await,
        )
    });
    drop(runtime);
    let phases = [&alone, &polite, &hostile];
    print_latencies(phases);
    Ok(match check(&memory, &tenants, phases) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
