//! The future of a request: the service's own, in its tenant's scope, and the
//! answer in its place if the tenant is over its quota.

use super::body::ResponseBody;
use super::headers;
use super::layer::TenantLayer;
use super::request::Attributed;
use crate::client::{InClient, InClientExt, QuotaExceeded, SafePoint};
use bytes::Bytes;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;
use std::sync::Arc;

pin_project! {
    /// The future of a [`TenantService`](super::TenantService).
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = Project]
    #[derive(Debug)]
    enum State<F> {
        Attributed {
            #[pin]
            future: InClient<F>,
            attributed: Arc<Attributed>,
            layer: Arc<TenantLayer>,
        },
        OfNobody {
            #[pin]
            future: F,
        },
        Refused {
            answer: Option<Response<Bytes>>,
        },
    }
}

impl<F> ResponseFuture<F> {
    pub(super) fn refused(answer: Response<Bytes>) -> ResponseFuture<F> {
        let answer = Some(answer);
        ResponseFuture {
            state: State::Refused { answer },
        }
    }

    pub(super) fn of_nobody(future: F) -> ResponseFuture<F> {
        ResponseFuture {
            state: State::OfNobody { future },
        }
    }
}

impl<F: Future> ResponseFuture<F> {
    pub(super) fn attributed(
        future: F,
        attributed: Arc<Attributed>,
        layer: Arc<TenantLayer>,
    ) -> ResponseFuture<F> {
        ResponseFuture {
            state: State::Attributed {
                future: future.in_client(attributed.account()),
                attributed,
                layer,
            },
        }
    }
}

/// What the service made of the request, unless that is to be refused.
fn outcome<R, E>(
    polled: Poll<Result<Result<Response<R>, E>, QuotaExceeded>>,
    attributed: &Attributed,
) -> Result<Poll<Result<Response<R>, E>>, QuotaExceeded> {
    let client = attributed.account();
    let output = match polled {
        Poll::Ready(Err(quota)) => return Err(quota),
        Poll::Ready(Ok(output)) => Poll::Ready(output),
        Poll::Pending => Poll::Pending,
    };
    let refused = match attributed.refused() {
        Some(quota) => Some(quota.clone()),
        None if output.is_pending() => None,
        // The last moment at which the tenant can be told properly.
        None => match client.safe_point() {
            SafePoint::Stop(quota) => Some(quota),
            SafePoint::Go | SafePoint::Pause(_) => None,
        },
    };
    match refused {
        None => Ok(output),
        Some(quota) => {
            let _scope = client.enter();
            drop(output);
            Err(quota)
        }
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body<Data: From<Bytes>>,
{
    type Output = Result<Response<ResponseBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        let answer = match state.as_mut().project() {
            Project::Attributed {
                future,
                attributed,
                layer,
            } => match outcome(future.poll(context), attributed) {
                Ok(polled) => {
                    let response = ready!(polled)?;
                    let body = |body| ResponseBody::attributed(body, attributed.clone());
                    return Poll::Ready(
                        Ok(with_a_table_of_its_own(response, attributed).map(body)),
                    );
                }
                Err(quota) => layer.answer_to_quota(&quota),
            },
            Project::OfNobody { future } => {
                let response = ready!(future.poll(context))?;
                return Poll::Ready(Ok(response.map(ResponseBody::of_nobody)));
            }
            Project::Refused { answer } => {
                let answer = answer.take().expect("polled again after it had returned");
                return Poll::Ready(Ok(answer.map(ResponseBody::answer)));
            }
        };
        // Drops the service's future, in its tenant's scope.
        state.set(State::Refused { answer: None });
        Poll::Ready(Ok(answer.map(ResponseBody::answer)))
    }
}

/// The response with its headers in a table of the host's: hyper keeps the
/// table for the connection's next request, which may be another tenant's.
/// With HTTP/2 their text is the host's, too.
fn with_a_table_of_its_own<R>(mut response: Response<R>, attributed: &Attributed) -> Response<R> {
    let table = match attributed.keeps_headers() {
        true => headers::of_nobody(response.headers()),
        false => response.headers().clone(),
    };
    *response.headers_mut() = table;
    response
}
