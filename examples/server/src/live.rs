//! The figures of the page: sampled often, sent twice a second as server-sent
//! events. What is allocated here is charged to nobody.

use crate::app::App;
use crate::error::ApiError;
use crate::tenant::lock;
use axum::extract::State;
use axum::http::header;
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tiered_allocator::{Event, EventKind, ReclaimTotals, Rung, RungTotals, Snapshot};
use tokio::sync::{Semaphore, broadcast};

const SAMPLE: Duration = Duration::from_millis(50);
/// Samples between two messages.
const SAMPLES: u32 = 10;
/// Points of a curve: two minutes.
const POINTS: usize = 240;
const EVENTS_KEPT: usize = 60;
const VIEWERS: usize = 64;

pub(crate) struct Live {
    messages: broadcast::Sender<Arc<str>>,
    viewers: Arc<Semaphore>,
    past: Mutex<Past>,
}

/// What a page is told first.
#[derive(Default)]
struct Past {
    latest: Arc<str>,
    /// Milliseconds since 1970, and the bytes of each tenant: the highest
    /// since the point before.
    points: VecDeque<(u64, Vec<u64>)>,
    news: VecDeque<News>,
}

/// The figures at one moment.
#[derive(Serialize)]
struct Figures<'past> {
    at_ms: u64,
    total: u64,
    usable: u64,
    charged: u64,
    overdrawn: u64,
    spilled: u64,
    unattributed: u64,
    resident: Option<u64>,
    /// Of that, what is neither the tenants' nor on the heap at all.
    resident_rest: Option<u64>,
    under_pressure: bool,
    hostile: bool,
    rush: bool,
    profiling: bool,
    tenants: Vec<TenantState>,
    tiers: Vec<TierState>,
    rungs: Vec<RungState>,
    news: &'past [News],
}

#[derive(Serialize)]
struct TenantState {
    name: &'static str,
    what: &'static str,
    tier: String,
    charged: u64,
    live: u64,
    used: u64,
    /// The highest that was charged since the last message.
    high: u64,
    max: u64,
    soft: u64,
    guarantee: u64,
    overdrawn: u64,
    refusals: u64,
    cancelled: u64,
    answers: u64,
    stopped: u64,
    wrong: u64,
    p99_us: u64,
    own_max: Option<u64>,
    own_guarantee: Option<u64>,
}

#[derive(Serialize)]
struct TierState {
    name: String,
    tenants: usize,
    charged: u64,
    borrowed: u64,
}

/// A rung of the reclaim ladder, and what it has given back so far.
#[derive(Serialize)]
struct RungState {
    name: &'static str,
    bytes: u64,
    times: u64,
}

/// Events of one kind and tenant since the last message, as one.
#[derive(Clone, Serialize)]
struct News {
    at_ms: u64,
    kind: String,
    tenant: String,
    tier: String,
    node: String,
    requested: u64,
    charged: u64,
    limit: u64,
    times: u64,
}

impl Live {
    pub(crate) fn new() -> Live {
        Live {
            messages: broadcast::Sender::new(16),
            viewers: Arc::new(Semaphore::new(VIEWERS)),
            past: Mutex::default(),
        }
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// Samples until the server ends.
pub(crate) async fn sample(app: Arc<App>) {
    let mut interval = tokio::time::interval(SAMPLE);
    let mut highs = vec![0; app.tenants.len()];
    let mut teller = Teller::default();
    for round in 1_u32.. {
        interval.tick().await;
        if app.is_stopped() {
            return;
        }
        for (high, tenant) in highs.iter_mut().zip(&app.tenants) {
            *high = tenant.client.usage().charged_bytes.max(*high);
        }
        if round % SAMPLES == 1 {
            teller.tell(&app, &highs);
            highs.fill(0);
        }
    }
}

/// Makes the messages.
#[derive(Default)]
struct Teller {
    next_event: u64,
    cancelled: HashMap<Arc<str>, u64>,
}

impl Teller {
    fn tell(&mut self, app: &App, highs: &[u64]) {
        let snapshot = app.memory.snapshot();
        let (events, next) = app.memory.events(self.next_event);
        self.next_event = next;
        for event in &events {
            if let (EventKind::Cancelled, Some(name)) = (event.kind, &event.name) {
                *self.cancelled.entry(Arc::clone(name)).or_default() += 1;
            }
        }
        let news = news(&events);
        let state = self.state(app, &snapshot, highs, &news);
        let Ok(text) = serde_json::to_string(&state) else {
            return;
        };
        let text: Arc<str> = text.into();
        let points = state.tenants.iter().map(|tenant| tenant.high).collect();
        let mut past = lock(&app.live.past);
        past.latest = Arc::clone(&text);
        if past.points.len() == POINTS {
            past.points.pop_front();
        }
        past.points.push_back((state.at_ms, points));
        past.news.extend(news.iter().cloned());
        let surplus = past.news.len().saturating_sub(EVENTS_KEPT);
        past.news.drain(..surplus);
        drop(past);
        // An error says that nobody is looking.
        let _ = app.live.messages.send(text);
    }

    fn state<'past>(
        &self,
        app: &App,
        snapshot: &Snapshot,
        highs: &[u64],
        news: &'past [News],
    ) -> Figures<'past> {
        let tenants = app.tenants.iter().zip(highs).filter_map(|(tenant, &high)| {
            let client = snapshot
                .clients
                .iter()
                .find(|client| *client.name == *tenant.name)?;
            let figures = tenant.figures();
            let own = *lock(&tenant.own_limits);
            Some(TenantState {
                name: tenant.name,
                what: tenant.what,
                tier: client.tier.to_string(),
                charged: client.usage.charged_bytes,
                live: client.usage.live_bytes,
                used: client.used_bytes,
                high: high.max(client.usage.charged_bytes),
                max: client.max_bytes,
                soft: client.soft_bytes,
                guarantee: client.guarantee_bytes,
                overdrawn: client.usage.overdrawn_bytes,
                refusals: client.usage.refusals,
                cancelled: self.cancelled.get(tenant.name).copied().unwrap_or(0),
                answers: figures.answers,
                stopped: figures.stopped,
                wrong: figures.wrong,
                p99_us: figures.p99.as_micros() as u64,
                own_max: own.max,
                own_guarantee: own.guarantee,
            })
        });
        let tiers = snapshot.tiers.iter().map(|tier| TierState {
            name: tier.name.to_string(),
            tenants: tier.clients,
            charged: tier.charged_bytes,
            borrowed: tier.borrowed_bytes,
        });
        Figures {
            at_ms: unix_ms(SystemTime::now()),
            total: snapshot.memory.total_bytes,
            usable: snapshot.memory.usable_bytes,
            charged: snapshot.memory.charged_bytes,
            overdrawn: snapshot.memory.overdrawn_bytes,
            spilled: snapshot.memory.spilled_bytes,
            unattributed: snapshot.unattributed_bytes,
            resident: snapshot.resident_set_bytes,
            resident_rest: snapshot.unattributed_resident_bytes,
            under_pressure: snapshot.reclaim.under_pressure,
            hostile: app.is_hostile(),
            rush: app.is_rush(),
            profiling: app.memory.is_heap_profiling(),
            tenants: tenants.collect(),
            tiers: tiers.collect(),
            rungs: snapshot
                .reclaim
                .rungs
                .iter()
                .map(|totals| rung(&snapshot.reclaim, totals))
                .collect(),
            news,
        }
    }
}

fn rung(reclaim: &ReclaimTotals, totals: &RungTotals) -> RungState {
    let (bytes, times) = match totals.rung {
        // Under pressure, and when their time has come.
        Rung::IdleBlocks => (
            reclaim.spilled_bytes + reclaim.discarded_bytes,
            reclaim.spilled_blocks + reclaim.discarded_blocks,
        ),
        Rung::Cancel => (totals.reclaimed_bytes, reclaim.stopped_clients),
        _ => (totals.reclaimed_bytes, totals.climbed),
    };
    RungState {
        name: totals.rung.name(),
        bytes,
        times,
    }
}

/// One line for each kind, tenant and budget: how often, with the latest
/// figures, but for what was taken back, which adds up.
fn news(events: &[Event]) -> Vec<News> {
    let mut news: Vec<News> = Vec::new();
    for event in events {
        let line = News {
            at_ms: unix_ms(event.time),
            kind: snake_case(&format!("{:?}", event.kind)),
            tenant: event.name.as_deref().unwrap_or_default().to_owned(),
            tier: event.tier.to_string(),
            node: snake_case(&format!("{:?}", event.node)),
            requested: event.requested,
            charged: event.charged,
            limit: event.limit,
            times: 1,
        };
        let same = |other: &&mut News| {
            (&other.kind, &other.tenant, &other.node) == (&line.kind, &line.tenant, &line.node)
        };
        match news.iter_mut().find(same) {
            None => news.push(line),
            Some(other) => {
                let together = match event.kind {
                    EventKind::Reclaimed => other.requested + line.requested,
                    _ => line.requested,
                };
                *other = News {
                    times: other.times + 1,
                    requested: together,
                    ..line
                };
            }
        }
    }
    news
}

fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// The latest figures, once.
pub(crate) async fn state(State(app): State<Arc<App>>) -> Response {
    let latest = Arc::clone(&lock(&app.live.past).latest);
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, latest.to_string()).into_response()
}

/// The figures for as long as somebody looks: first the past, then what comes.
pub(crate) async fn stream(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let viewer = Arc::clone(&app.live.viewers).try_acquire_owned();
    let viewer = viewer.map_err(|_| ApiError::Busy)?;
    // Before the past is read, so that nothing is missed between the two.
    let messages = app.live.messages.subscribe();
    let past = {
        let past = lock(&app.live.past);
        serde_json::json!({ "points": past.points, "news": past.news }).to_string()
    };
    let latest = Arc::clone(&lock(&app.live.past).latest);
    let first = [
        Message::default().event("past").data(past),
        Message::default().event("state").data(&*latest),
    ];
    let coming = stream::unfold(messages, async |mut messages| {
        loop {
            match messages.recv().await {
                Ok(text) => {
                    let message = Message::default().event("state").data(&*text);
                    return Some((message, messages));
                }
                // A slow reader goes on with the newest.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    let all = stream::iter(first)
        .chain(coming)
        .take_until(async move {
            let _viewer = viewer;
            app.stopped().await;
        })
        .map(Ok::<Message, Infallible>);
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(Sse::new(all).keep_alive(keep_alive).into_response())
}
