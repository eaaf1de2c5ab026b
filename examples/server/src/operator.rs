//! What the operator may change, and the token that it takes.

use crate::app::{App, MIB};
use crate::error::ApiError;
use crate::tenant::lock;
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use subtle::ConstantTimeEq;
use tiered_allocator::{ClientOptions, Limit, SubscriptionTier};

const TOKEN_BYTES: usize = 24;

/// Made at random for each run, and shown to whoever started it.
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn random() -> Result<Token, getrandom::Error> {
        let mut bytes = [0; TOKEN_BYTES];
        getrandom::fill(&mut bytes)?;
        let mut text = String::with_capacity(2 * TOKEN_BYTES);
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        Ok(Token(text))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Takes as long whatever of it is right.
    pub(crate) fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

pub(crate) async fn demand_token(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let given = request.headers().get(header::AUTHORIZATION);
    let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    match given {
        Some(given) if app.token.is(given) => Ok(next.run(request).await),
        _ => Err(ApiError::Unauthorized),
    }
}

/// Whether the token is right: the layer has found out.
pub(crate) async fn login() -> StatusCode {
    StatusCode::NO_CONTENT
}

pub(crate) type Input<T> = Result<Json<T>, JsonRejection>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TierOrder {
    tier: String,
}

/// Moves a tenant to another tier, live.
pub(crate) async fn set_tier(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    order: Input<TierOrder>,
) -> Result<StatusCode, ApiError> {
    let Json(order) = order?;
    let tenant = app.tenant(&name)?;
    let tier: SubscriptionTier = order.tier.parse().map_err(|_| ApiError::UnknownTier {
        given: order.tier.clone(),
    })?;
    tenant.client.set_tier(tier)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LimitsOrder {
    /// `null`: as the tier has it.
    max_bytes: Option<u64>,
    guarantee_bytes: Option<u64>,
}

/// Gives a tenant limits of its own, or takes them away.
pub(crate) async fn set_limits(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    order: Input<LimitsOrder>,
) -> Result<StatusCode, ApiError> {
    let Json(order) = order?;
    let tenant = app.tenant(&name)?;
    let usable = app.memory.usage().usable_bytes;
    let within = |what, given: Option<u64>, least| match given {
        Some(given) if !(least..=usable).contains(&given) => Err(ApiError::OutOfRange {
            what,
            given,
            least,
            most: usable,
        }),
        _ => Ok(()),
    };
    within("max_bytes", order.max_bytes, MIB)?;
    within("guarantee_bytes", order.guarantee_bytes, 0)?;
    // One change at a time, so that what is noted is what is in force.
    let mut own = lock(&tenant.own_limits);
    let tier = tenant.client.tier().ok_or(ApiError::Ended)?;
    let mut options = ClientOptions::new(tier);
    if let Some(bytes) = order.max_bytes {
        options = options.max(Limit::Bytes(bytes));
    }
    if let Some(bytes) = order.guarantee_bytes {
        options = options.guarantee(Limit::Bytes(bytes));
    }
    tenant.client.configure(options)?;
    own.max = order.max_bytes;
    own.guarantee = order.guarantee_bytes;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Switch {
    pub(crate) running: bool,
}

/// Starts or stops the hostile load.
pub(crate) async fn set_hostile(
    State(app): State<Arc<App>>,
    order: Input<Switch>,
) -> Result<StatusCode, ApiError> {
    let Json(order) = order?;
    app.hostile.store(order.running, Ordering::Relaxed);
    Ok(StatusCode::NO_CONTENT)
}

/// Starts or stops a rush: the tenants want more than there is for all.
pub(crate) async fn set_rush(
    State(app): State<Arc<App>>,
    order: Input<Switch>,
) -> Result<StatusCode, ApiError> {
    let Json(order) = order?;
    app.rush.store(order.running, Ordering::Relaxed);
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize)]
pub(crate) struct Reclaimed {
    spilled_bytes: u64,
    discarded_bytes: u64,
}

/// One pass over what is idle, now.
pub(crate) async fn reclaim(State(app): State<Arc<App>>) -> Result<Json<Reclaimed>, ApiError> {
    let memory = app.memory.clone();
    let pass = tokio::task::spawn_blocking(move || memory.reclaim_unused_memory());
    let report = pass.await.map_err(|_| ApiError::Ended)?;
    Ok(Json(Reclaimed {
        spilled_bytes: report.spilled_bytes,
        discarded_bytes: report.discarded_bytes,
    }))
}
