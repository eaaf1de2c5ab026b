//! Log lines that say whose they are, and logging that charges nobody.

use super::layer::client_of;
use crate::client::{Client, untracked};
use ::tracing::span::{Attributes, Id, Record};
use ::tracing::subscriber::Interest;
use ::tracing::{Dispatch, Event, Metadata, Subscriber};
use ::tracing_subscriber::fmt::format::Writer;
use ::tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use ::tracing_subscriber::layer::{Context, Layer};
use ::tracing_subscriber::registry::LookupSpan;
use core::fmt;

/// Begins each line of a text format with `client="name"`: the client of the
/// event's spans, or else of the scope that the event is in; nothing if there
/// is neither. What the formatting allocates is charged to nobody.
///
/// Not for JSON, whose lines are whole as they are: name the client in a field
/// of the span, which is part of them.
///
/// ```
/// use tiered_allocator::integrations::tracing_subscriber::ClientFormat;
/// use tracing_subscriber::fmt;
///
/// let layer = fmt::layer::<tracing_subscriber::Registry>()
///     .event_format(ClientFormat::new(fmt::format().compact()));
/// # drop(layer);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientFormat<E> {
    inner: E,
}

impl<E> ClientFormat<E> {
    /// Around the format of the rest of the line.
    pub fn new(inner: E) -> ClientFormat<E> {
        ClientFormat { inner }
    }
}

impl<S, N, E> FormatEvent<S, N> for ClientFormat<E>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    E: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let of_spans = context.parent_span().and_then(|span| client_of(&span));
        let client = of_spans.or_else(Client::current);
        untracked(|| {
            if let Some(name) = client.and_then(|client| client.name()) {
                // Quoted, so that no name can look like more than a name.
                write!(writer, "client={name:?} ")?;
            }
            self.inner.format_event(context, writer, event)
        })
    }
}

/// Another layer, whose own allocations are charged to nobody: what a log
/// keeps or buffers is not the tenants'. Not for layers that enter scopes, as
/// [`ClientLayer`](super::ClientLayer) does. Filters go around it:
///
/// ```
/// use tiered_allocator::integrations::tracing_subscriber::{ClientLayer, Untracked};
/// use tracing_subscriber::filter::LevelFilter;
/// use tracing_subscriber::layer::SubscriberExt;
/// use tracing_subscriber::{Layer, fmt};
///
/// # let memory = tiered_allocator::Memory::new(1 << 30);
/// let subscriber = tracing_subscriber::registry()
///     .with(ClientLayer::new(&memory))
///     .with(Untracked::new(fmt::layer()).with_filter(LevelFilter::WARN));
/// # drop(subscriber);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Untracked<L> {
    inner: L,
}

impl<L> Untracked<L> {
    /// Around that layer.
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
