//! What tenants may ask for. Everything in here runs in the tenant's scope.

use crate::app::{App, MIB};
use crate::error::ApiError;
use crate::scripts::{self, Stopped};
use crate::tenant::{Page, Tenant, lock};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Extension, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tiered_allocator::integrations::tokio as in_scope;
use tiered_allocator::{Client, PinError};

type Input<T> = Result<Json<T>, JsonRejection>;

fn in_range(what: &'static str, given: u64, least: u64, most: u64) -> Result<u64, ApiError> {
    match (least..=most).contains(&given) {
        true => Ok(given),
        false => Err(ApiError::OutOfRange {
            what,
            given,
            least,
            most,
        }),
    }
}

// --- a report: JSON in, JSON out ----------------------------------------------

#[derive(Deserialize)]
pub(crate) struct Order {
    customer: String,
    cents: u64,
}

#[derive(Serialize, Default)]
pub(crate) struct Sum {
    orders: u64,
    cents: u64,
}

/// Sums of orders by customer.
pub(crate) async fn report(
    Extension(tenant): Extension<Arc<Tenant>>,
    orders: Input<Vec<Order>>,
) -> Result<Json<BTreeMap<String, Sum>>, ApiError> {
    let Json(orders) = orders?;
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    for (at, order) in orders.into_iter().enumerate() {
        if at % 256 == 0 {
            tenant.client.checkpoint()?;
        }
        let sum = sums.entry(order.customer).or_default();
        sum.orders += 1;
        sum.cents = sum.cents.saturating_add(order.cents);
    }
    Ok(Json(sums))
}

// --- a page: rendered once, kept in a cache on the heap ------------------------

#[derive(Deserialize)]
pub(crate) struct PageOrder {
    key: u64,
    bytes: u64,
    keep_ms: u64,
}

#[derive(Serialize)]
pub(crate) struct Rendered {
    bytes: usize,
    from_cache: bool,
}

/// A page of a catalogue, out of the cache if it is there.
pub(crate) async fn page(
    Extension(tenant): Extension<Arc<Tenant>>,
    order: Input<PageOrder>,
) -> Result<Json<Rendered>, ApiError> {
    let Json(order) = order?;
    let bytes = in_range("bytes", order.bytes, 1, 4 * MIB)? as usize;
    let keep_ms = in_range("keep_ms", order.keep_ms, 0, 600_000)?;
    if let Some(page) = lock(&tenant.cache).get(&order.key) {
        if checksum(page.text.as_bytes()) != page.checksum {
            tenant.answered_wrong();
        }
        return Ok(Json(Rendered {
            bytes: page.text.len(),
            from_cache: true,
        }));
    }
    let text = render(&tenant.client, order.key, bytes)?;
    let page = Page {
        checksum: checksum(text.as_bytes()),
        text,
        until: Instant::now() + Duration::from_millis(keep_ms),
    };
    let bytes = page.text.len();
    lock(&tenant.cache).insert(order.key, page);
    Ok(Json(Rendered {
        bytes,
        from_cache: false,
    }))
}

fn render(client: &Client, key: u64, bytes: usize) -> Result<String, ApiError> {
    const ROW_BYTES: usize = 128;
    let mut text = String::with_capacity(bytes + ROW_BYTES);
    let mut row = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    while text.len() < bytes {
        client.checkpoint()?;
        for _ in 0..256 {
            row = row.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            let article = row >> 40;
            let _ = writeln!(text, "<tr><td>{article}<td>{}</tr>", article % 977);
            if text.len() >= bytes {
                break;
            }
        }
    }
    Ok(text)
}

fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

// --- an archive: blocks that may be taken while nobody reads them ---------------

#[derive(Deserialize)]
pub(crate) struct ArchiveOrder {
    document: u64,
    bytes: u64,
}

#[derive(Serialize)]
pub(crate) struct Archived {
    bytes: usize,
    /// It had been thrown away while it was idle, as its tier has it.
    made_again: bool,
}

/// Reads a document and compares every byte; writes it first if it is new.
pub(crate) async fn archive(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Arc<Tenant>>,
    order: Input<ArchiveOrder>,
) -> Result<Json<Archived>, ApiError> {
    let Json(order) = order?;
    let bytes = in_range("bytes", order.bytes, 1, 8 * MIB)? as usize;
    let document = in_range("document", order.document, 0, 63)?;
    let fill = document as u8 ^ 0xA5;
    // Taken out, so that nobody waits while it comes back from the disk.
    let kept = lock(&tenant.archive).remove(&document);
    let is_new = kept.is_none();
    let mut block = match kept {
        Some(block) => block,
        None => app.memory.allocate_for_client(tenant.name, bytes)?,
    };
    let mut made_again = false;
    if is_new {
        block.pin_mut()?.fill(fill);
    }
    let read = |block: &tiered_allocator::MemoryBlock| {
        let pin = block.pin()?;
        Ok::<bool, PinError>(pin.iter().all(|&byte| byte == fill))
    };
    let right = match read(&block) {
        Err(PinError::Reclaimed { .. }) => {
            made_again = true;
            let renewed = block.renew();
            if renewed.is_ok() {
                block.pin_mut()?.fill(fill);
            }
            renewed.and_then(|()| read(&block))
        }
        read => read,
    };
    let bytes = block.len();
    lock(&tenant.archive).insert(document, block);
    if !right? {
        tenant.answered_wrong();
    }
    Ok(Json(Archived { bytes, made_again }))
}

#[derive(Deserialize)]
pub(crate) struct BlockOrder {
    bytes: u64,
}

/// A working buffer, for as long as the request takes.
pub(crate) async fn block(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Arc<Tenant>>,
    order: Input<BlockOrder>,
) -> Result<Json<Archived>, ApiError> {
    let Json(order) = order?;
    let bytes = in_range("bytes", order.bytes, 1, 1 << 40)? as usize;
    let mut block = app.memory.allocate_for_client(tenant.name, bytes)?;
    // A byte of it is enough to have been there.
    block.pin_mut()?[0] = 1;
    Ok(Json(Archived {
        bytes: block.len(),
        made_again: false,
    }))
}

// --- a script --------------------------------------------------------------------

#[derive(Deserialize)]
pub(crate) struct ScriptOrder {
    script: String,
}

#[derive(Serialize)]
pub(crate) struct Emitted {
    lines: Vec<String>,
}

/// Runs a script on the blocking pool, in the tenant's scope there too.
pub(crate) async fn script(
    Extension(tenant): Extension<Arc<Tenant>>,
    order: Input<ScriptOrder>,
) -> Result<Json<Emitted>, ApiError> {
    let Json(order) = order?;
    let client = tenant.client.clone();
    let work = move || scripts::run(&client, &order.script);
    let ended = in_scope::spawn_blocking(&tenant.client, work).await;
    match ended.map_err(|_| ApiError::Ended)? {
        Ok(Ok(lines)) => Ok(Json(Emitted { lines })),
        Ok(Err(Stopped::OverQuota(quota))) => Err(quota.into()),
        Ok(Err(Stopped::Failed(error))) => Err(ApiError::Script(error)),
        Err(over) => Err(over.quota.into()),
    }
}

// --- a feed: an answer that is made while it is sent -------------------------------

const FEED_LINES: usize = 200;

#[derive(Deserialize)]
pub(crate) struct FeedOrder {
    chunks: u64,
}

/// As many chunks as asked for, each made when the one before was sent.
pub(crate) async fn feed(
    Extension(tenant): Extension<Arc<Tenant>>,
    order: Result<Query<FeedOrder>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(order) = order?;
    let chunks = in_range("chunks", order.chunks, 1, 4096)?;
    // Made long after the handler has returned: in the tenant's scope, too.
    let lines = stream::iter(0..chunks).map(move |chunk| {
        let line = format!("{chunk}: what is new at {}\n", tenant.name);
        Ok::<Bytes, Infallible>(line.repeat(FEED_LINES).into())
    });
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((kind, Body::from_stream(lines)).into_response())
}
