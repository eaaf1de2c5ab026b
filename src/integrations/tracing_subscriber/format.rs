//! Log lines that say whose they are.

use super::layer::client_of;
use crate::client::{Client, untracked};
use ::tracing::{Event, Subscriber};
use ::tracing_subscriber::fmt::format::Writer;
use ::tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
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
