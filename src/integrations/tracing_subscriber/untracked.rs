//! Logging that charges nobody.

use crate::client::untracked;
use ::tracing::span::{Attributes, Id, Record};
use ::tracing::subscriber::Interest;
use ::tracing::{Dispatch, Event, Metadata, Subscriber};
use ::tracing_core::span::Current;
use ::tracing_subscriber::filter::FilterId;
use ::tracing_subscriber::layer::{Context, Layer};
use ::tracing_subscriber::registry::{LookupSpan, Registry};
use core::any::TypeId;
use core::ptr;

/// Another layer, or the registry under all of them, whose own allocations are
/// charged to nobody: what a log keeps or buffers is not the tenants', nor are
/// the pools of spans that the registry keeps for each thread and for ever. Not
/// for layers that enter scopes, as [`ClientLayer`](super::ClientLayer) does.
/// Filters go around it:
///
/// ```
/// use tiered_allocator::integrations::tracing_subscriber::{ClientLayer, Untracked};
/// use tracing_subscriber::filter::LevelFilter;
/// use tracing_subscriber::layer::SubscriberExt;
/// use tracing_subscriber::{Layer, fmt};
///
/// # let memory = tiered_allocator::Memory::new(1 << 30);
/// let subscriber = Untracked::new(tracing_subscriber::registry())
///     .with(ClientLayer::new(&memory))
///     .with(Untracked::new(fmt::layer()).with_filter(LevelFilter::WARN));
/// # drop(subscriber);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Untracked<L> {
    inner: L,
}

impl<L> Untracked<L> {
    /// Around that layer, or that registry.
    pub fn new(inner: L) -> Untracked<L> {
        Untracked { inner }
    }
}

impl<S: Subscriber, L: Layer<S>> Layer<S> for Untracked<L> {
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        untracked(|| self.inner.on_register_dispatch(dispatch));
    }

    fn on_layer(&mut self, subscriber: &mut S) {
        untracked(|| self.inner.on_layer(subscriber));
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        untracked(|| self.inner.register_callsite(metadata))
    }

    fn enabled(&self, metadata: &Metadata<'_>, context: Context<'_, S>) -> bool {
        untracked(|| self.inner.enabled(metadata, context))
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        untracked(|| self.inner.on_new_span(attributes, id, context));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        untracked(|| self.inner.on_record(id, values, context));
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, S>) {
        untracked(|| self.inner.on_follows_from(id, follows, context));
    }

    fn event_enabled(&self, event: &Event<'_>, context: Context<'_, S>) -> bool {
        untracked(|| self.inner.event_enabled(event, context))
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        untracked(|| self.inner.on_event(event, context));
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        untracked(|| self.inner.on_enter(id, context));
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        untracked(|| self.inner.on_exit(id, context));
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        untracked(|| self.inner.on_close(id, context));
    }

    fn on_id_change(&self, old: &Id, new: &Id, context: Context<'_, S>) {
        untracked(|| self.inner.on_id_change(old, new, context));
    }
}

/// The registry makes a pool for each thread that creates spans, makes it
/// larger when more spans are open than ever before, and a stack for each
/// thread that enters one. All of that happens while a span is created or
/// entered, often inside a client's, and stays as long as the subscriber.
impl Subscriber for Untracked<Registry> {
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        untracked(|| self.inner.on_register_dispatch(dispatch));
    }

    /// As the registry's, but for "never": `tracing_subscriber` knows that this
    /// answer of a registry is only that of the layers with filters, and asks
    /// the others. Of what is around a registry it would believe it for all. So
    /// where every layer has a filter, a span that all of them refuse is still
    /// made in the registry; none sees it.
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let interest = untracked(|| self.inner.register_callsite(metadata));
        if interest.is_never() {
            return Interest::sometimes();
        }
        interest
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn event_enabled(&self, event: &Event<'_>) -> bool {
        self.inner.event_enabled(event)
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        untracked(|| self.inner.new_span(attributes))
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        untracked(|| self.inner.record(id, values));
    }

    fn record_follows_from(&self, id: &Id, follows: &Id) {
        untracked(|| self.inner.record_follows_from(id, follows));
    }

    fn event(&self, event: &Event<'_>) {
        untracked(|| self.inner.event(event));
    }

    fn enter(&self, id: &Id) {
        untracked(|| self.inner.enter(id));
    }

    fn exit(&self, id: &Id) {
        untracked(|| self.inner.exit(id));
    }

    fn clone_span(&self, id: &Id) -> Id {
        untracked(|| self.inner.clone_span(id))
    }

    fn try_close(&self, id: Id) -> bool {
        untracked(|| self.inner.try_close(id))
    }

    fn current_span(&self) -> Current {
        self.inner.current_span()
    }

    unsafe fn downcast_raw(&self, id: TypeId) -> Option<*const ()> {
        if id == TypeId::of::<Self>() {
            return Some(ptr::from_ref(self).cast());
        }
        // `tracing_subscriber` looks for the registry itself to close a span
        // after its layers have seen that.
        // SAFETY: the same question, of a part of `self` that lives as long.
        unsafe { self.inner.downcast_raw(id) }
    }
}

impl<'a> LookupSpan<'a> for Untracked<Registry> {
    type Data = <Registry as LookupSpan<'a>>::Data;

    fn span_data(&'a self, id: &Id) -> Option<Self::Data> {
        self.inner.span_data(id)
    }

    fn register_filter(&mut self) -> FilterId {
        self.inner.register_filter()
    }
}
