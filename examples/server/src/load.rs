//! Traffic: each tenant sends itself requests, through the same routes as a
//! stranger's, so that there is something to see. And the hostile load.

use crate::app::{App, HOSTILE, MIB};
use crate::attribution::TENANT;
use crate::scripts::{FLOOD, PRIMES};
use crate::tenant::Tenant;
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{Method, Request, StatusCode, header};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tower::ServiceExt;

/// How a tenant's load comes and goes.
struct Habit {
    tenant: &'static str,
    every: Duration,
    /// The share of its limit that it fills: between these two, in turn.
    shares: (f64, f64),
    period: Duration,
    documents: u64,
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const HABITS: [Habit; 4] = [
    Habit {
        tenant: "bank",
        every: Duration::from_millis(120),
        shares: (0.35, 0.62),
        period: seconds(47),
        documents: 12,
    },
    Habit {
        tenant: "press",
        every: Duration::from_millis(150),
        shares: (0.30, 0.85),
        period: seconds(31),
        documents: 8,
    },
    Habit {
        tenant: "shop",
        every: Duration::from_millis(200),
        shares: (0.25, 0.75),
        period: seconds(23),
        documents: 4,
    },
    Habit {
        tenant: HOSTILE,
        every: Duration::from_millis(500),
        shares: (0.08, 0.15),
        period: seconds(20),
        documents: 0,
    },
];

/// In a rush everybody wants this share of its limit. One comes by itself, at
/// this moment of each period, for so long.
const RUSH_SHARE: f64 = 0.96;
const RUSH_AT: Duration = seconds(25);
const RUSH_EVERY: Duration = seconds(80);
const RUSH_FOR: Duration = seconds(12);

/// A pause between two attacks, so that they are seen one by one.
const BETWEEN_ATTACKS: Duration = Duration::from_millis(250);
const JANITOR: Duration = Duration::from_millis(500);

/// Starts what works by itself; it ends when the server does.
pub(crate) fn start(app: &Arc<App>) -> Vec<JoinHandle<()>> {
    let mut tasks = vec![tokio::spawn(janitor(Arc::clone(app)))];
    if app.sends_load() {
        for habit in &HABITS {
            tasks.push(tokio::spawn(tenant(Arc::clone(app), habit)));
        }
    }
    tasks.push(tokio::spawn(hostile(Arc::clone(app))));
    tasks
}

/// Waits, and says whether the server goes on.
async fn pause(app: &App, time: Duration) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => true,
        () = app.stopped() => false,
    }
}

async fn janitor(app: Arc<App>) {
    while pause(&app, JANITOR).await {
        for tenant in &app.tenants {
            tenant.forget_old_pages(Instant::now());
        }
    }
}

async fn tenant(app: Arc<App>, habit: &'static Habit) {
    let Ok(tenant) = app.tenant(habit.tenant) else {
        return;
    };
    let router = app.router();
    let begun = Instant::now();
    for round in 0_u64.. {
        if !pause(&app, habit.every).await {
            return;
        }
        let time = begun.elapsed();
        let share = match app.is_rush() || is_rush(time) {
            true if habit.tenant != HOSTILE => RUSH_SHARE,
            _ => share(habit, time),
        };
        send_pages(&router, tenant, round, share).await;
        match round % 5 {
            0 => report(&router, tenant, round).await,
            1 => primes(&router, tenant).await,
            2 => drop(get(&router, tenant.name, "/jobs/feed?chunks=24").await),
            _ => archive(&router, tenant, habit, round).await,
        }
    }
}

fn is_rush(since_start: Duration) -> bool {
    let in_period = since_start.as_millis() % RUSH_EVERY.as_millis();
    (RUSH_AT..RUSH_AT + RUSH_FOR).contains(&Duration::from_millis(in_period as u64))
}

/// The share of the limit to fill.
fn share(habit: &Habit, since_start: Duration) -> f64 {
    let (least, most) = habit.shares;
    let turn = since_start.as_secs_f64() / habit.period.as_secs_f64();
    let wave = (1.0 - (turn * std::f64::consts::TAU).cos()) / 2.0;
    least + (most - least) * wave
}

/// Pages, until the tenant holds as much as it is to hold now. They become too
/// old by themselves.
async fn send_pages(router: &Router, tenant: &Tenant, round: u64, share: f64) {
    let (max, _, _) = tenant.client.limits();
    let page_bytes = (max / 160).clamp(64 << 10, MIB);
    for more in 0..4 {
        if tenant.client.usage().live_bytes as f64 >= max as f64 * share {
            // An old one, read again.
            post(
                router,
                tenant.name,
                "/jobs/page",
                page_order(round / 2 * 4, page_bytes),
            )
            .await;
            return;
        }
        post(
            router,
            tenant.name,
            "/jobs/page",
            page_order(round * 4 + more, page_bytes),
        )
        .await;
    }
}

fn page_order(key: u64, bytes: u64) -> Value {
    json!({ "key": key, "bytes": bytes, "keep_ms": 9_000 })
}

async fn report(router: &Router, tenant: &Tenant, round: u64) {
    let orders: Vec<Value> = (0..400_u64)
        .map(|order| json!({ "customer": format!("c{}", order % 40), "cents": order + round }))
        .collect();
    let Some(sums) = post(router, tenant.name, "/jobs/report", Value::Array(orders)).await else {
        return;
    };
    // Ten orders each, 40 apart.
    let expected = (0..10).map(|n| 7 + 40 * n + round).sum::<u64>();
    if sums["c7"]["cents"] != expected {
        tenant.answered_wrong();
    }
}

async fn primes(router: &Router, tenant: &Tenant) {
    let order = json!({ "script": PRIMES });
    if let Some(answer) = post(router, tenant.name, "/jobs/script", order).await
        && answer["lines"][0] != "78"
    {
        tenant.answered_wrong();
    }
}

/// A document: now and then one that nobody has read for a while.
async fn archive(router: &Router, tenant: &Tenant, habit: &Habit, round: u64) {
    if habit.documents == 0 {
        return;
    }
    let document = match round % 150 {
        149 => round / 150 % habit.documents,
        _ if round < 5 * habit.documents => round / 5,
        _ => return,
    };
    let (max, _, _) = tenant.client.limits();
    let bytes = (max / 64).clamp(1, 2 * MIB);
    let order = json!({ "document": document, "bytes": bytes });
    post(router, tenant.name, "/jobs/archive", order).await;
}

/// Takes all that it can get, in every way there is, while it is switched on.
async fn hostile(app: Arc<App>) {
    let router = app.router();
    for round in 0_u64.. {
        if !pause(&app, BETWEEN_ATTACKS).await {
            return;
        }
        if !app.is_hostile() {
            continue;
        }
        match round % 3 {
            0 | 1 => {
                post(&router, HOSTILE, "/jobs/script", json!({ "script": FLOOD })).await;
            }
            _ => {
                // More than anybody may have, at once.
                let all = json!({ "bytes": app.memory.usage().total_bytes });
                post(&router, HOSTILE, "/jobs/block", all).await;
            }
        }
    }
}

async fn post(router: &Router, tenant: &str, path: &str, body: Value) -> Option<Value> {
    let body = send(
        router,
        Method::POST,
        tenant,
        path,
        Body::from(body.to_string()),
    )
    .await?;
    serde_json::from_slice(&body).ok()
}

async fn get(router: &Router, tenant: &str, path: &str) -> Option<Vec<u8>> {
    send(router, Method::GET, tenant, path, Body::empty()).await
}

/// The answer's body, if it is one.
async fn send(
    router: &Router,
    method: Method,
    tenant: &str,
    path: &str,
    body: Body,
) -> Option<Vec<u8>> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .header(TENANT, tenant)
        .body(body)
        .ok()?;
    let Ok(response) = router.clone().oneshot(request).await;
    let is_answer = response.status() == StatusCode::OK;
    let mut body = response.into_body().into_data_stream();
    let mut bytes = Vec::with_capacity(body.size_hint().lower() as usize);
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk.ok()?);
    }
    is_answer.then_some(bytes)
}
