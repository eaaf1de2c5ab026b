//! The heap profile: which of the server's functions hold whose memory. Names
//! of functions and tenants, and amounts: nothing of what a tenant stores.
//!
//! A browser cannot send the token when it opens a tab or saves a file. So the
//! page asks for a [ticket](Tickets): an address that is good for one answer.

use crate::app::App;
use crate::error::ApiError;
use crate::operator::{Input, Switch, Token};
use crate::tenant::lock;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tiered_allocator::Client;
use tiered_allocator::profile::{ProfileError, ProfileOptions};

/// Finer than by default: tenants have tens of MiB here, not gigabytes.
const SAMPLE_BYTES: u64 = 64 << 10;
const TICKETS: usize = 16;
const TICKET_LASTS: Duration = Duration::from_secs(60);

/// A flame graph brings its script, for search and zoom. It runs in an origin
/// of its own, which reaches nothing of this server.
const ALONE: &str = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; \
     style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    Flamegraph,
    Pprof,
}

impl Form {
    fn named(name: &str) -> Result<Form, ApiError> {
        match name {
            "flamegraph" => Ok(Form::Flamegraph),
            "pprof" => Ok(Form::Pprof),
            _ => Err(ApiError::NotFound),
        }
    }
}

/// Whose profile: everybody's without a name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Whose {
    tenant: Option<String>,
}

impl Whose {
    fn client(&self, app: &App) -> Result<Option<Client>, ApiError> {
        let name = self.tenant.as_deref();
        name.map(|name| Ok(app.tenant(name)?.client.clone()))
            .transpose()
    }
}

/// Starts or stops sampling.
pub(crate) async fn switch(
    State(app): State<Arc<App>>,
    order: Input<Switch>,
) -> Result<StatusCode, ApiError> {
    let Json(order) = order?;
    if order.running {
        let options = ProfileOptions::new().sample_bytes(SAMPLE_BYTES);
        app.memory.start_heap_profile(&options)?;
        app.profiled.store(true, Ordering::Relaxed);
    } else {
        app.memory.stop_heap_profile()?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// The file, for who can send the token.
pub(crate) async fn report(
    State(app): State<Arc<App>>,
    Path(form): Path<String>,
    whose: Result<Query<Whose>, QueryRejection>,
) -> Result<Response, ApiError> {
    let form = Form::named(&form)?;
    let client = whose?.client(&app)?;
    make(&app, form, client).await
}

#[derive(Serialize)]
pub(crate) struct Issued {
    path: String,
}

/// An address for a browser to open, once.
pub(crate) async fn issue(
    State(app): State<Arc<App>>,
    Path(form): Path<String>,
    whose: Input<Whose>,
) -> Result<Json<Issued>, ApiError> {
    let Json(whose) = whose?;
    let form = Form::named(&form)?;
    let client = whose.client(&app)?;
    // Told here and not in the tab that would be opened for it.
    if !app.profiled.load(Ordering::Relaxed) {
        return Err(ProfileError::NotStarted.into());
    }
    let token = Token::random().map_err(|_| ApiError::Ended)?;
    let path = format!("/profile/{}", token.as_str());
    app.tickets.issue(Ticket {
        token,
        form,
        client,
        issued: Instant::now(),
    });
    Ok(Json(Issued { path }))
}

/// What a ticket is for.
pub(crate) async fn redeem(
    State(app): State<Arc<App>>,
    Path(token): Path<String>,
) -> Result<Response, ApiError> {
    let ticket = app.tickets.take(token.as_bytes(), Instant::now());
    let ticket = ticket.ok_or(ApiError::NotFound)?;
    make(&app, ticket.form, ticket.client).await
}

async fn make(app: &App, form: Form, client: Option<Client>) -> Result<Response, ApiError> {
    let memory = app.memory.clone();
    // Looks up symbols: seconds, the first time.
    let work = tokio::task::spawn_blocking(move || {
        let profile = memory.heap_profile(client.as_ref())?;
        Ok(match form {
            Form::Flamegraph => {
                let mut svg = Vec::new();
                profile
                    .to_flamegraph(&mut svg)
                    .map_err(|_| ApiError::Ended)?;
                let headers = [
                    (header::CONTENT_TYPE, "image/svg+xml"),
                    (header::CONTENT_SECURITY_POLICY, ALONE),
                ];
                (headers, svg).into_response()
            }
            Form::Pprof => {
                let headers = [
                    (header::CONTENT_TYPE, "application/octet-stream"),
                    // The page names it.
                    (header::CONTENT_DISPOSITION, "attachment"),
                ];
                (headers, profile.to_pprof()).into_response()
            }
        })
    });
    work.await.map_err(|_| ApiError::Ended)?
}

/// Leave for one answer each. The newest few, for a minute.
#[derive(Default)]
pub(crate) struct Tickets(Mutex<VecDeque<Ticket>>);

struct Ticket {
    token: Token,
    form: Form,
    client: Option<Client>,
    issued: Instant,
}

impl Tickets {
    fn issue(&self, ticket: Ticket) {
        let mut tickets = lock(&self.0);
        if tickets.len() == TICKETS {
            tickets.pop_front();
        }
        tickets.push_back(ticket);
    }

    fn take(&self, token: &[u8], now: Instant) -> Option<Ticket> {
        let mut tickets = lock(&self.0);
        tickets.retain(|ticket| now.duration_since(ticket.issued) < TICKET_LASTS);
        let at = tickets.iter().position(|ticket| ticket.token.is(token))?;
        tickets.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issue(tickets: &Tickets, issued: Instant) -> String {
        let token = Token::random().unwrap();
        let text = token.as_str().to_owned();
        tickets.issue(Ticket {
            token,
            form: Form::Pprof,
            client: None,
            issued,
        });
        text
    }

    #[test]
    fn a_ticket_is_good_once_and_for_a_minute() {
        let tickets = Tickets::default();
        let now = Instant::now();
        let take = |token: &str, at| tickets.take(token.as_bytes(), at).is_some();
        let [first, late] = [(); 2].map(|()| issue(&tickets, now));
        assert!(!take("", now));
        assert!(!take(&first[1..], now));
        let still = now + TICKET_LASTS - Duration::from_millis(1);
        assert!(take(&first, still));
        assert!(!take(&first, still));
        assert!(!take(&late, now + TICKET_LASTS));
    }

    #[test]
    fn the_oldest_ticket_makes_room() {
        let tickets = Tickets::default();
        let now = Instant::now();
        let all: Vec<String> = (0..=TICKETS).map(|_| issue(&tickets, now)).collect();
        assert!(tickets.take(all[0].as_bytes(), now).is_none());
        for token in &all[1..] {
            assert!(tickets.take(token.as_bytes(), now).is_some());
        }
    }
}
