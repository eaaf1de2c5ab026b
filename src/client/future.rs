//! Futures in a client's scope, on any runtime or none.
//!
//! The scope is entered for the length of each poll, on whichever thread
//! polls, and left when the poll returns or panics. So a task may migrate
//! between threads, be joined, selected or dropped, and its allocations are
//! charged to its client all the same.

use super::error::QuotaExceeded;
use super::handle::{Client, Hold};
use super::safe_point::SafePoint;
use crate::unwind;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

/// Puts a future into a client's scope.
pub trait InClientExt: Future + Sized {
    /// Charges what the future allocates to `client`, and ends it when the
    /// client is over its quota: before or after a poll the inner future is
    /// then dropped at once, and the result is the error. Above the client's
    /// soft limit the future yields to the reclaimer now and then, instead of
    /// blocking the thread that polls it.
    ///
    /// ```
    /// # use tiered_allocator::{InClientExt, Memory, SubscriptionTier};
    /// # fn block_on<F: std::future::Future>(future: F) -> F::Output {
    /// #     let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     let mut future = std::pin::pin!(future);
    /// #     loop {
    /// #         if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
    /// #             return output;
    /// #         }
    /// #     }
    /// # }
    /// # let memory = Memory::new(1 << 30);
    /// let client = memory.register("acme", SubscriptionTier::Basic)?;
    /// let answer = block_on(async { vec![1, 2, 3].len() }.in_client(&client))?;
    /// assert_eq!(answer, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn in_client(self, client: &Client) -> InClient<Self> {
        InClient {
            client: client.clone(),
            yielded: false,
            inner: Some(self),
            _kept: client.kept(),
        }
    }

    /// Charges what the future allocates to `client`, and never ends it.
    fn attributed_to(self, client: &Client) -> AttributedTo<Self> {
        AttributedTo(self.in_client(client))
    }
}

impl<F: Future> InClientExt for F {}

/// See [`InClientExt::in_client`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct InClient<F> {
    client: Client,
    /// The last poll only gave way to the reclaimer.
    yielded: bool,
    /// `None` once it has returned or was ended.
    inner: Option<F>,
    /// A request budget, which may end before the future does.
    _kept: Option<Hold>,
}

/// See [`InClientExt::attributed_to`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct AttributedTo<F>(InClient<F>);

impl<F> InClient<F> {
    /// The client, and the inner future where it is pinned.
    fn project(self: Pin<&mut Self>) -> (&Client, Pin<&mut Option<F>>) {
        // SAFETY: `inner` is pinned whenever `self` is: it is never moved out
        // of (only replaced by `None`, which drops it in place), `Drop` below
        // does not move it, and `InClient` is `Unpin` only if `F` is, since
        // the automatic implementation asks for just that. `client` is not
        // pinned and only borrowed.
        unsafe {
            let this = self.get_unchecked_mut();
            (&this.client, Pin::new_unchecked(&mut this.inner))
        }
    }

    /// Whether this poll gives way to the reclaimer: every second one does,
    /// so that a worker thread never blocks and the future never starves.
    fn gives_way(self: Pin<&mut Self>) -> bool {
        // SAFETY: `yielded` is not pinned; nothing else is touched.
        let this = unsafe { self.get_unchecked_mut() };
        this.yielded = !this.yielded;
        this.yielded
    }

    /// Drops the inner future in the scope of its client.
    fn end(self: Pin<&mut Self>) {
        let (client, mut inner) = self.project();
        if inner.is_some() {
            let _scope = client.enter();
            inner.set(None);
        }
    }
}

impl<F: Future> InClient<F> {
    /// One poll in the scope; the inner future must not have returned yet.
    /// The error: a refused allocation unwound it.
    fn poll_in_scope(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        catch: impl FnOnce(
            &Client,
            &mut dyn FnMut() -> Poll<F::Output>,
        ) -> Result<Poll<F::Output>, QuotaExceeded>,
    ) -> Result<Poll<F::Output>, QuotaExceeded> {
        let (client, mut inner) = self.project();
        let _scope = client.enter();
        let polled = catch(client, &mut || match inner.as_mut().as_pin_mut() {
            Some(future) => future.poll(context),
            None => panic!("polled again after it had returned"),
        });
        if !matches!(polled, Ok(Poll::Pending)) {
            inner.set(None);
        }
        polled
    }
}

impl<F: Future> Future for InClient<F> {
    type Output = Result<F::Output, QuotaExceeded>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.client.safe_point() {
            SafePoint::Go => {}
            SafePoint::Stop(quota) => {
                self.end();
                return Poll::Ready(Err(quota));
            }
            SafePoint::Pause(_) => {
                if self.as_mut().gives_way() {
                    self.client.press();
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        let catch = |client: &Client, poll: &mut dyn FnMut() -> _| unwind::catch(client, poll);
        match self.as_mut().poll_in_scope(context, catch) {
            Err(quota) => Poll::Ready(Err(quota)),
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) => match self.client.safe_point() {
                // What it holds is needed now, not when it is next woken.
                SafePoint::Stop(quota) => {
                    self.end();
                    Poll::Ready(Err(quota))
                }
                SafePoint::Go | SafePoint::Pause(_) => Poll::Pending,
            },
        }
    }
}

impl<F: Future> Future for AttributedTo<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: the only field is pinned whenever `self` is; nothing moves it.
        let inner = unsafe { self.map_unchecked_mut(|this| &mut this.0) };
        match inner.poll_in_scope(context, |_, poll| Ok(poll())) {
            Ok(polled) => polled,
            Err(_) => unreachable!("nothing was caught"),
        }
    }
}

impl<F> Drop for InClient<F> {
    fn drop(&mut self) {
        // SAFETY: `self` is not used again after `drop`, and `end` drops the
        // inner future where it is.
        unsafe { Pin::new_unchecked(self) }.end();
    }
}
