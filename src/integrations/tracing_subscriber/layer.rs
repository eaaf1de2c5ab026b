//! [`ClientLayer`]: enters and leaves scopes as spans are.

use crate::client::{Client, Hold, Scope, untracked};
use crate::memory::Memory;
use crate::sync::{AtomicU64, Ordering};
use ::tracing::field::{Field, Visit};
use ::tracing::span::{Attributes, Id, Record};
use ::tracing::{Span, Subscriber};
use ::tracing_subscriber::Registry;
use ::tracing_subscriber::layer::{Context, Layer};
use ::tracing_subscriber::registry::{LookupSpan, SpanRef};
use core::cell::RefCell;
use core::fmt;

/// The client of a span, in the span's extensions: where [`ClientLayer`] looks
/// for it, and where layers of your own may put or find it.
#[derive(Debug)]
pub struct SpanClient {
    client: Client,
    /// A request budget, which may end before the span does.
    _kept: Option<Hold>,
}

impl SpanClient {
    /// For the extensions of a span that shall have this client.
    pub fn new(client: &Client) -> SpanClient {
        SpanClient {
            client: client.clone(),
            _kept: client.kept(),
        }
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// Gives a span its client, whatever its fields say. `false`, and nothing is
/// done, if the span is disabled or its subscriber is not built on
/// [`Registry`].
///
/// ```
/// # use tiered_allocator::integrations::tracing_subscriber::{ClientLayer, attach};
/// # use tiered_allocator::{Client, Memory, SubscriptionTier};
/// # use tracing_subscriber::layer::SubscriberExt;
/// # let memory = Memory::new(1 << 30);
/// # let subscriber = tracing_subscriber::registry().with(ClientLayer::new(&memory));
/// # let _default = tracing::subscriber::set_default(subscriber);
/// let client = memory.register("acme", SubscriptionTier::Basic)?;
/// let budget = client.budget(1 << 20)?;
/// let request = tracing::info_span!("request");
/// assert!(attach(&request, &budget));
/// request.in_scope(|| assert_eq!(Client::current().as_ref(), Some(&*budget)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn attach(span: &Span, client: &Client) -> bool {
    let attached = span.with_subscriber(|(id, dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        put(&span, client);
        Some(())
    });
    attached.flatten().is_some()
}

fn put<'a, S: LookupSpan<'a>>(span: &SpanRef<'a, S>, client: &Client) {
    untracked(|| span.extensions_mut().replace(SpanClient::new(client)));
}

/// The client of the nearest span from this one on outwards.
pub(super) fn client_of<'a, S: LookupSpan<'a>>(span: &SpanRef<'a, S>) -> Option<Client> {
    let client = |span: SpanRef<'a, S>| {
        let extensions = span.extensions();
        let own = extensions.get::<SpanClient>()?;
        own.client.may_be_entered().then(|| own.client.clone())
    };
    span.scope().find_map(client)
}

/// Enters the scope of a span's client when the span is entered, and leaves it
/// when the span is left. See the [module](super).
#[derive(Debug)]
pub struct ClientLayer {
    memory: Memory,
    field: &'static str,
    /// Ids of spans are unique in one subscriber only.
    number: u64,
}

impl ClientLayer {
    /// For the clients of this memory, which it holds.
    pub fn new(memory: &Memory) -> ClientLayer {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        ClientLayer {
            memory: memory.clone(),
            field: "client",
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The field of a span that names its client, in place of `client`.
    pub fn field(mut self, name: &'static str) -> ClientLayer {
        self.field = name;
        self
    }

    /// The client that a span's values name, if they name one.
    fn named(&self, record: impl FnOnce(&mut Name)) -> Option<Client> {
        untracked(|| {
            let mut name = Name {
                field: self.field,
                value: None,
            };
            record(&mut name);
            self.memory.client(&name.value?).ok()
        })
    }
}

/// Takes the name of a client out of a span's values.
struct Name {
    field: &'static str,
    value: Option<String>,
}

impl Visit for Name {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == self.field {
            self.value = Some(value.to_owned());
        }
    }

    /// `%name`, and whatever else shows the name as it is.
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == self.field {
            self.value = Some(format!("{value:?}"));
        }
    }
}

impl<S> Layer<S> for ClientLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.fields().field(self.field).is_none() {
            return;
        }
        let client = self.named(|name| attributes.record(name));
        if let (Some(client), Some(span)) = (client, context.span(id)) {
            put(&span, &client);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else {
            return;
        };
        if span.fields().field(self.field).is_none() {
            return;
        }
        if let Some(client) = self.named(|name| values.record(name)) {
            put(&span, &client);
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let client = context.span(id).and_then(|span| client_of(&span));
        if let Some(client) = client {
            enter(self.number, id, &client);
        }
    }

    fn on_exit(&self, id: &Id, _: Context<'_, S>) {
        leave(self.number, id);
    }
}

/// A span that the thread has entered, and the scope that goes with it.
struct Entered {
    layer: u64,
    span: u64,
    _scope: Scope,
}

thread_local! {
    static ENTERED: RefCell<Vec<Entered>> = const { RefCell::new(Vec::new()) };
}

/// Nothing in here calls code of others, so the cell is never borrowed twice.
/// While the thread's locals are destroyed no scope is entered any more.
fn enter(layer: u64, span: &Id, client: &Client) {
    let _ = ENTERED.try_with(|entered| {
        let mut entered = entered.borrow_mut();
        if entered.len() == entered.capacity() {
            untracked(|| entered.reserve(8));
        }
        entered.push(Entered {
            layer,
            span: span.into_u64(),
            _scope: client.enter(),
        });
    });
}

/// A span may be left before one that was entered later, and several times if
/// it was entered several times.
fn leave(layer: u64, span: &Id) {
    let _ = ENTERED.try_with(|entered| {
        let mut entered = entered.borrow_mut();
        let is_it = |own: &Entered| (own.layer, own.span) == (layer, span.into_u64());
        if let Some(at) = entered.iter().rposition(is_it) {
            entered.remove(at);
        }
    });
}
