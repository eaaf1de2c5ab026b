//! The two bodies: both are polled when the service's future is not.

use super::headers;
use super::request::Attributed;
use crate::client::{QuotaExceeded, SafePoint, untracked};
use crate::unwind;
use bytes::{Buf, BufMut, Bytes};
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::sync::Arc;

/// The error of the bodies: the inner body's, or a
/// [`QuotaExceeded`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

pin_project! {
    /// A request's body as its service reads it.
    ///
    /// The pieces of the body below lie in the connection's read buffer, and
    /// would keep all of it from being used again for as long as one of them
    /// lives, at nobody's expense. So each is copied, into a buffer of just
    /// its size that the tenant pays for. What does not fit within the
    /// tenant's quota is refused before it is stored, whatever the tenant's
    /// enforcement but `Observe`; the request is then answered like any other
    /// whose tenant is over its quota.
    ///
    /// The body below is polled outside any scope: it is the connection's.
    #[derive(Debug)]
    pub struct RequestBody<B> {
        #[pin]
        inner: B,
        // `None` if nobody pays.
        attributed: Option<Arc<Attributed>>,
    }
}

impl<B> RequestBody<B> {
    pub(super) fn new(inner: B, attributed: Option<Arc<Attributed>>) -> RequestBody<B> {
        RequestBody { inner, attributed }
    }
}

/// A copy of `piece` that the request's tenant pays for.
fn charged(mut piece: impl Buf, attributed: &Attributed) -> Result<Bytes, QuotaExceeded> {
    let mut copy = untracked(|| Vec::with_capacity(piece.remaining()));
    match attributed.account().adopt(&mut copy) {
        Ok(()) => {
            while piece.has_remaining() {
                let chunk = piece.chunk();
                let read = chunk.len();
                copy.put_slice(chunk);
                piece.advance(read);
            }
            Ok(Bytes::from(copy))
        }
        Err(quota) => {
            attributed.refuse(&quota);
            Err(quota)
        }
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        let frame = match ready!(untracked(|| this.inner.poll_frame(context))) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        let frame = match (frame.into_data(), &this.attributed) {
            (Ok(piece), Some(attributed)) => charged(piece, attributed)
                .map(Frame::data)
                .map_err(|quota| untracked(|| quota.into())),
            (Ok(mut piece), None) => Ok(Frame::data(piece.copy_to_bytes(piece.remaining()))),
            (Err(other), _) => match other.into_trailers() {
                Ok(trailers) => Ok(Frame::trailers(trailers)),
                Err(_) => unreachable!("a frame is data or trailers"),
            },
        };
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

pin_project! {
    /// A response's body, polled in its tenant's scope; or the text of an
    /// answer in its place.
    #[derive(Debug)]
    pub struct ResponseBody<R> {
        #[pin]
        content: Content<R>,
    }
}

pin_project! {
    #[project = Project]
    #[derive(Debug)]
    enum Content<R> {
        Attributed {
            #[pin]
            inner: InScope<R>,
        },
        OfNobody {
            #[pin]
            inner: R,
        },
        Answer {
            text: Bytes,
        },
    }
}

pin_project! {
    /// A body that is polled and dropped in a scope.
    #[derive(Debug)]
    struct InScope<R> {
        // `None` once it has ended: what it holds is needed now.
        #[pin]
        body: Option<R>,
        attributed: Option<Arc<Attributed>>,
        begun: bool,
    }

    impl<R> PinnedDrop for InScope<R> {
        fn drop(this: Pin<&mut Self>) {
            this.end();
        }
    }
}

impl<R> ResponseBody<R> {
    fn new(content: Content<R>) -> ResponseBody<R> {
        ResponseBody { content }
    }

    pub(super) fn attributed(body: R, attributed: Arc<Attributed>) -> ResponseBody<R> {
        let inner = InScope {
            body: Some(body),
            attributed: Some(attributed),
            begun: false,
        };
        ResponseBody::new(Content::Attributed { inner })
    }

    pub(super) fn of_nobody(inner: R) -> ResponseBody<R> {
        ResponseBody::new(Content::OfNobody { inner })
    }

    pub(super) fn answer(text: Bytes) -> ResponseBody<R> {
        ResponseBody::new(Content::Answer { text })
    }
}

impl<R> InScope<R> {
    /// Drops the body in its scope, and then the request's budget.
    fn end(self: Pin<&mut Self>) {
        let mut this = self.project();
        if let Some(attributed) = this.attributed.take() {
            let _scope = attributed.account().enter();
            this.body.set(None);
        }
    }
}

/// What polling a body answers.
type Polled<R> = Poll<Option<Result<Frame<<R as Body>::Data>, BoxError>>>;

impl<R: Body<Error: Into<BoxError>>> InScope<R> {
    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled<R> {
        let this = self.as_mut().project();
        let (Some(attributed), Some(body)) = (&*this.attributed, this.body.as_pin_mut()) else {
            return Poll::Ready(None);
        };
        let polled = poll_in_scope(attributed, body, *this.begun, context);
        *this.begun = true;
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.end();
        }
        polled.map(|frame| frame.map(|frame| frame.map(with_trailers_of_nobody)))
    }
}

fn with_trailers_of_nobody<D>(frame: Frame<D>) -> Frame<D> {
    match frame.into_trailers() {
        Ok(trailers) => Frame::trailers(headers::of_nobody(&trailers)),
        Err(other) => other,
    }
}

fn poll_in_scope<R: Body<Error: Into<BoxError>>>(
    attributed: &Attributed,
    body: Pin<&mut R>,
    begun: bool,
    context: &mut Context<'_>,
) -> Polled<R> {
    let client = attributed.account();
    let failed = |quota: QuotaExceeded| Poll::Ready(Some(Err(untracked(|| quota.into()))));
    if begun && let SafePoint::Stop(quota) = client.safe_point() {
        return failed(quota);
    }
    // Above the soft limit, too: what is sent is freed.
    let _scope = client.enter();
    match unwind::catch(client, || body.poll_frame(context)) {
        Ok(polled) => polled.map(|frame| frame.map(|frame| frame.map_err(Into::into))),
        Err(quota) => failed(quota),
    }
}

impl<R> Body for ResponseBody<R>
where
    R: Body<Data: From<Bytes>, Error: Into<BoxError>>,
{
    type Data = R::Data;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled<R> {
        match self.project().content.project() {
            Project::Attributed { inner } => inner.poll_frame(context),
            Project::OfNobody { inner } => {
                let polled = inner.poll_frame(context);
                polled.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            Project::Answer { text } => {
                let text = core::mem::take(text);
                let frame = (!text.is_empty()).then(|| Ok(Frame::data(text.into())));
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Attributed { inner } => inner.body.as_ref().is_none_or(R::is_end_stream),
            Content::OfNobody { inner } => inner.is_end_stream(),
            Content::Answer { text } => text.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Attributed { inner } => match &inner.body {
                Some(body) => body.size_hint(),
                None => SizeHint::with_exact(0),
            },
            Content::OfNobody { inner } => inner.size_hint(),
            Content::Answer { text } => SizeHint::with_exact(text.len() as u64),
        }
    }
}
