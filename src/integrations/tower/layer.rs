//! [`TenantLayer`] and its service: whose a request is, and what is done about it.

use super::answer::{Fallback, Refused};
use super::body::{RequestBody, ResponseBody};
use super::future::ResponseFuture;
use super::request::Attributed;
use crate::client::{Client, QuotaExceeded, RegisterError, SafePoint, untracked};
use crate::memory::Memory;
use crate::unwind;
use bytes::Bytes;
use core::fmt;
use core::task::{Context, Poll};
use core::time::Duration;
use http::request::Parts;
use http::{HeaderName, Request, Response, StatusCode};
use http_body::Body;
use std::sync::Arc;
use tower_layer::Layer;
use tower_service::Service;

type Find = dyn Fn(&Parts) -> Result<Client, Refused<'static>> + Send + Sync;
type Answer = dyn Fn(&Refused<'_>) -> Option<Response<Bytes>> + Send + Sync;

/// Puts a service in the scope of the tenant that each request belongs to.
/// See the [module](crate::integrations::tower) for what that means.
#[derive(Clone)]
#[must_use = "a layer does nothing until it is around a service"]
pub struct TenantLayer {
    find: Arc<Find>,
    answer: Option<Arc<Answer>>,
    missing: Fallback,
    unknown: Fallback,
    budget: Option<u64>,
    retry_after: Duration,
}

impl TenantLayer {
    /// The tenant is the client of `memory` that the header names.
    pub fn from_header(memory: &Memory, header: HeaderName) -> TenantLayer {
        TenantLayer::from_name(memory, move |parts: &Parts| {
            parts.headers.get(&header)?.to_str().ok()
        })
    }

    /// The tenant is the client of `memory` that a segment of the path names,
    /// counted from 0: the path of `/t/acme/reports` has `acme` at 1. Percent
    /// encoding stays as it is. Inside a nested router of axum the path begins
    /// behind the prefix.
    pub fn from_path_segment(memory: &Memory, index: usize) -> TenantLayer {
        TenantLayer::from_name(memory, move |parts: &Parts| {
            let mut segments = parts.uri.path().strip_prefix('/')?.split('/');
            segments.nth(index).filter(|segment| !segment.is_empty())
        })
    }

    /// The tenant is the client of `memory` whose name `find` reads from the
    /// request; `None`: the request names none.
    ///
    /// ```
    /// # use tiered_allocator::integrations::tower::TenantLayer;
    /// # use http::request::Parts;
    /// # let memory = tiered_allocator::Memory::new(1 << 30);
    /// let layer = TenantLayer::from_name(&memory, |parts: &Parts| {
    ///     parts.uri.host()?.strip_suffix(".example.com")
    /// });
    /// # let _ = layer;
    /// ```
    pub fn from_name<F>(memory: &Memory, find: F) -> TenantLayer
    where
        F: Fn(&Parts) -> Option<&str> + Send + Sync + 'static,
    {
        let memory = memory.clone();
        TenantLayer::new(move |parts| {
            let name = find(parts).ok_or(Refused::Missing)?;
            memory.client(name).map_err(|_| Refused::Unknown)
        })
    }

    /// The tenant is the [`Client`] among the request's extensions, where an
    /// outer layer has put it that knows who is asking.
    pub fn from_extension() -> TenantLayer {
        TenantLayer::from_fn(|parts| parts.extensions.get::<Client>().cloned())
    }

    /// The tenant is the client that `find` answers; `None`: the request names
    /// none.
    pub fn from_fn<F>(find: F) -> TenantLayer
    where
        F: Fn(&Parts) -> Option<Client> + Send + Sync + 'static,
    {
        TenantLayer::new(move |parts| {
            let client = find(parts).ok_or(Refused::Missing)?;
            match client.is_active() {
                true => Ok(client),
                false => Err(Refused::Unknown),
            }
        })
    }

    fn new<F>(find: F) -> TenantLayer
    where
        F: Fn(&Parts) -> Result<Client, Refused<'static>> + Send + Sync + 'static,
    {
        TenantLayer {
            find: Arc::new(find),
            answer: None,
            missing: Fallback::Answer(StatusCode::UNAUTHORIZED),
            unknown: Fallback::Answer(StatusCode::NOT_FOUND),
            budget: None,
            retry_after: Duration::from_secs(1),
        }
    }

    /// Gives each request a [budget](Client::budget) of so many bytes inside
    /// its tenant's quota, until the response's body has ended. A layer for
    /// each route gives each route a budget of its own.
    pub fn budget(mut self, bytes: u64) -> TenantLayer {
        self.budget = Some(bytes);
        self
    }

    /// What to do with a request that names no tenant: 401 unless set.
    pub fn missing(mut self, fallback: Fallback) -> TenantLayer {
        self.missing = fallback;
        self
    }

    /// What to do with a request whose tenant does not exist: 404 unless set.
    pub fn unknown(mut self, fallback: Fallback) -> TenantLayer {
        self.unknown = fallback;
        self
    }

    /// The `Retry-After` of the answers to tenants over their quota, in whole
    /// seconds, rounded up: 1 s unless set.
    pub fn retry_after(mut self, after: Duration) -> TenantLayer {
        self.retry_after = after;
        self
    }

    /// Answers in place of the default; `None` leaves it the default. Runs
    /// outside any scope.
    ///
    /// ```
    /// # use tiered_allocator::integrations::tower::{Refused, TenantLayer};
    /// # use http::{HeaderName, Response};
    /// # let memory = tiered_allocator::Memory::new(1 << 30);
    /// let layer = TenantLayer::from_header(&memory, HeaderName::from_static("x-tenant"))
    ///     .answer(|refused| {
    ///         let Refused::Quota(quota) = refused else { return None };
    ///         let body = format!(r#"{{"error":"quota","limit":{}}}"#, quota.limit);
    ///         let answer = Response::builder().status(refused.status());
    ///         answer.body(body.into()).ok().filter(|_| refused.is_own())
    ///     });
    /// # let _ = layer;
    /// ```
    pub fn answer<F>(mut self, answer: F) -> TenantLayer
    where
        F: Fn(&Refused<'_>) -> Option<Response<Bytes>> + Send + Sync + 'static,
    {
        self.answer = Some(Arc::new(answer));
        self
    }

    pub(super) fn answer_to(&self, refused: Refused<'_>) -> Response<Bytes> {
        if let Some(answer) = &self.answer
            && let Some(answer) = untracked(|| answer(&refused))
        {
            return answer;
        }
        let status = match (refused, self.missing, self.unknown) {
            (Refused::Missing, Fallback::Answer(status), _) => status,
            (Refused::Unknown, _, Fallback::Answer(status)) => status,
            _ => refused.status(),
        };
        refused.answer(status, self.retry_after)
    }

    pub(super) fn answer_to_quota(&self, quota: &QuotaExceeded) -> Response<Bytes> {
        self.answer_to(Refused::Quota(quota))
    }

    fn admit(&self, parts: &Parts) -> Admission {
        let refused = match (self.find)(parts) {
            Ok(client) => match Attributed::new(client, self.budget, parts.version) {
                Ok(attributed) => return Admission::Tenant(attributed),
                Err(RegisterError::Removed) => Refused::Unknown,
                Err(error) => return Admission::Refused(self.answer_to(Refused::NoBudget(&error))),
            },
            Err(refused) => refused,
        };
        let fallback = match refused {
            Refused::Missing => self.missing,
            _ => self.unknown,
        };
        match fallback {
            Fallback::PassThrough => Admission::Nobody,
            Fallback::Answer(_) => Admission::Refused(self.answer_to(refused)),
        }
    }
}

/// Who pays for a request.
enum Admission {
    Tenant(Arc<Attributed>),
    Nobody,
    Refused(Response<Bytes>),
}

impl fmt::Debug for TenantLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantLayer")
            .field("missing", &self.missing)
            .field("unknown", &self.unknown)
            .field("budget", &self.budget)
            .field("retry_after", &self.retry_after)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for TenantLayer {
    type Service = TenantService<S>;

    fn layer(&self, inner: S) -> TenantService<S> {
        TenantService {
            layer: Arc::new(self.clone()),
            inner,
        }
    }
}

/// A service whose requests are charged to their tenants. Made by
/// [`TenantLayer`].
#[derive(Clone, Debug)]
pub struct TenantService<S> {
    layer: Arc<TenantLayer>,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for TenantService<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>>,
    R: Body<Data: From<Bytes>>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let attributed = match self.layer.admit(&parts) {
            Admission::Tenant(attributed) => Some(attributed),
            Admission::Nobody => None,
            Admission::Refused(answer) => return ResponseFuture::refused(answer),
        };
        let request = Request::from_parts(parts, RequestBody::new(body, attributed.clone()));
        let Some(attributed) = attributed else {
            return ResponseFuture::of_nobody(self.inner.call(request));
        };
        let client = attributed.account();
        if let SafePoint::Stop(quota) = client.safe_point() {
            return ResponseFuture::refused(self.layer.answer_to_quota(&quota));
        }
        let scope = client.enter();
        let called = unwind::catch(client, || self.inner.call(request));
        drop(scope);
        match called {
            Ok(future) => ResponseFuture::attributed(future, attributed, self.layer.clone()),
            Err(quota) => ResponseFuture::refused(self.layer.answer_to_quota(&quota)),
        }
    }
}
