//! What a request is told that is not served.

use crate::client::{QuotaExceeded, RegisterError, untracked};
use crate::registry::budget::BudgetNode;
use bytes::Bytes;
use core::time::Duration;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

/// What is done with a request that is no tenant's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fallback {
    /// It is answered with this status and not served.
    Answer(StatusCode),
    /// It is served, and charged to nobody.
    PassThrough,
}

/// Why a request is not served.
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub enum Refused<'a> {
    /// It names no tenant.
    Missing,
    /// There is no such tenant, or it was removed.
    Unknown,
    /// The tenant is over its quota. The figures may be those of the tier or
    /// the memory, which are nobody's business outside: see
    /// [`Refused::is_own`].
    Quota(&'a QuotaExceeded),
    /// There can be no budget for the request.
    NoBudget(&'a RegisterError),
}

impl Refused<'_> {
    /// Whether a budget of the tenant's own is used up: its `max` or the
    /// request's budget, and not what it shares with others.
    pub fn is_own(&self) -> bool {
        match self {
            Refused::Quota(quota) => {
                matches!(quota.node, BudgetNode::Client | BudgetNode::Request)
            }
            _ => false,
        }
    }

    /// The status that the request is answered with by default.
    pub fn status(&self) -> StatusCode {
        match self {
            Refused::Missing => StatusCode::UNAUTHORIZED,
            Refused::Unknown => StatusCode::NOT_FOUND,
            Refused::Quota(quota) if quota.node == BudgetNode::Removed => StatusCode::NOT_FOUND,
            Refused::Quota(_) if self.is_own() => StatusCode::TOO_MANY_REQUESTS,
            Refused::Quota(_) => StatusCode::INSUFFICIENT_STORAGE,
            Refused::NoBudget(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// One line for the tenant, with no figure but its own.
    fn text(&self) -> String {
        match self {
            Refused::Missing => "the request names no tenant\n".to_owned(),
            Refused::Unknown => "there is no such tenant\n".to_owned(),
            Refused::Quota(quota) if quota.node == BudgetNode::Removed => {
                "there is no such tenant\n".to_owned()
            }
            Refused::Quota(quota) if self.is_own() => {
                let what = match quota.node {
                    BudgetNode::Request => "request's memory budget",
                    _ => "tenant's memory quota",
                };
                format!("the {what} of {} bytes is used up\n", quota.limit)
            }
            Refused::Quota(_) | Refused::NoBudget(_) => {
                "the server has no memory to spare\n".to_owned()
            }
        }
    }

    /// The default answer, on the host's account: who is over its quota has
    /// nothing to pay for it with.
    pub(super) fn answer(&self, status: StatusCode, retry_after: Duration) -> Response<Bytes> {
        untracked(|| {
            let mut answer = Response::new(Bytes::from(self.text()));
            *answer.status_mut() = status;
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            answer.headers_mut().insert(CONTENT_TYPE, plain);
            if matches!(self, Refused::Quota(_) | Refused::NoBudget(_))
                && status != StatusCode::NOT_FOUND
            {
                let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
                answer.headers_mut().insert(RETRY_AFTER, seconds.into());
            }
            answer
        })
    }
}
