//! Spans that carry a client charge it, on whichever thread they are entered.

mod common;

use common::{Bytes, client, quiet};
use serial_test::serial;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::thread;
use tiered_allocator::integrations::tracing_subscriber::{
    ClientFormat, ClientLayer, SpanClient, Untracked, attach,
};
use tiered_allocator::{Client, Enforcement, Memory, TieredAllocator, untracked};
use tracing::dispatcher::set_default;
use tracing::subscriber::with_default;
use tracing::{Dispatch, Instrument, Level, Span, field, info, info_span, span};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::{filter::LevelFilter, fmt};

fn two() -> (Memory, Client, Client) {
    let memory = quiet(1 << 30);
    let acme = client(&memory, "acme", 1 << 20, Enforcement::Graceful);
    let bank = client(&memory, "bank", 1 << 20, Enforcement::Graceful);
    (memory, acme, bank)
}

fn layered(memory: &Memory) -> impl tracing::Subscriber + Send + Sync + use<> {
    tracing_subscriber::registry().with(ClientLayer::new(memory))
}

fn is_current(client: &Client) -> bool {
    Client::current().as_ref() == Some(client)
}

#[test]
#[serial]
fn what_a_span_allocates_is_its_clients() {
    assert!(TieredAllocator::is_installed());
    let (memory, acme, bank) = two();
    with_default(layered(&memory), || {
        let held = info_span!("request", client = "acme").in_scope(|| Bytes::new(1000));
        assert_eq!(acme.usage().live_bytes, 1000);
        assert_eq!(Client::current(), None);
        // The layer's own books are in nobody's account.
        assert_eq!(acme.usage().total_allocations, 1);
        drop(held);
        // Shown or debugged, it is the same name.
        for span in [
            info_span!("request", client = %"bank"),
            info_span!("request", client = ?format_args!("bank")),
        ] {
            span.in_scope(|| assert!(is_current(&bank)));
        }
    });
}

#[test]
#[serial]
fn what_the_layer_keeps_is_nobodys() {
    let (memory, acme, bank) = two();
    with_default(layered(&memory), || {
        // The registry's own stack has grown before.
        let plain: Vec<Span> = (0..24).map(|_| info_span!("plain")).collect();
        drop(plain.iter().map(Span::enter).collect::<Vec<_>>());
        let of_a_request = |_| info_span!("request", client = field::Empty);
        let spans: Vec<Span> = (0..24).map(of_a_request).collect();
        let mut entered = Vec::with_capacity(24);
        let _scope = bank.enter();
        for (n, span) in spans.iter().enumerate() {
            match n % 2 {
                0 => assert!(attach(span, &acme)),
                _ => drop(span.record("client", "acme")),
            }
            entered.push(span.enter());
            assert!(is_current(&acme));
        }
        drop(entered);
        assert!(is_current(&bank));
        for client in [&acme, &bank] {
            assert_eq!(client.usage().total_allocations, 0);
        }
    });
}

#[test]
#[serial]
fn spans_nest_and_those_without_a_client_inherit() {
    let (memory, acme, bank) = two();
    with_default(layered(&memory), || {
        let outer = info_span!("outer", client = "acme").entered();
        let plain = info_span!("plain");
        plain.in_scope(|| {
            assert!(is_current(&acme));
            info_span!("inner", client = "bank").in_scope(|| assert!(is_current(&bank)));
            assert!(is_current(&acme));
            let unknown = info_span!("unknown", client = "nobody of that name");
            unknown.in_scope(|| assert!(is_current(&acme)));
        });
        drop(outer);
        assert_eq!(Client::current(), None);
        // The parent's client, where the parent is not entered.
        let dispatch = tracing::dispatcher::get_default(Clone::clone);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                tracing::dispatcher::with_default(&dispatch, || {
                    plain.in_scope(|| assert!(is_current(&acme)));
                    assert_eq!(Client::current(), None);
                });
            });
        });
        // A root has nobody to inherit from: it changes nothing.
        let _scope = bank.enter();
        let root = info_span!(parent: None, "root");
        root.in_scope(|| assert!(is_current(&bank)));
    });
}

#[test]
#[serial]
fn spans_may_be_left_in_any_order() {
    let (memory, acme, bank) = two();
    with_default(layered(&memory), || {
        let a = info_span!("a", client = "acme");
        let b = info_span!("b", client = "bank");
        let first = a.enter();
        let second = b.enter();
        let third = a.enter();
        assert!(is_current(&acme));
        drop(second);
        assert!(is_current(&acme));
        drop(third);
        assert!(is_current(&acme));
        drop(first);
        assert_eq!(Client::current(), None);
        // A scope of the host's own in between.
        let span = a.enter();
        let scope = bank.enter();
        drop(span);
        assert!(is_current(&bank));
        drop(scope);
        assert_eq!(Client::current(), None);
        // A panic leaves the span, too.
        let work = || -> () { a.in_scope(|| std::panic::resume_unwind(Box::new(()))) };
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        assert!(unwound.is_err());
        assert_eq!(Client::current(), None);
    });
}

#[test]
#[serial]
fn a_client_can_be_recorded_later_or_attached() {
    let (memory, acme, bank) = two();
    with_default(layered(&memory), || {
        let span = info_span!("request", client = field::Empty, other = field::Empty);
        span.in_scope(|| assert_eq!(Client::current(), None));
        span.record("client", "acme");
        span.record("other", "bank");
        span.in_scope(|| assert!(is_current(&acme)));
        // For the next time it is entered.
        let entered = span.enter();
        span.record("client", "bank");
        assert!(is_current(&acme));
        drop(entered);
        span.in_scope(|| assert!(is_current(&bank)));
        assert!(attach(&span, &acme));
        span.in_scope(|| assert!(is_current(&acme)));
    });
    assert!(!attach(&Span::none(), &acme));
}

#[test]
#[serial]
fn a_request_budget_lives_as_long_as_its_span() {
    let (memory, acme, _) = two();
    with_default(layered(&memory), || {
        let span = info_span!("request");
        let budget = acme.budget(1000).unwrap();
        assert!(attach(&span, &budget));
        let account = (*budget).clone();
        span.in_scope(|| assert!(is_current(&account)));
        drop(budget);
        // Another budget in between would take the index if it were free.
        let _another = acme.budget(1000).unwrap();
        let held = span.in_scope(|| Bytes::new(500));
        assert_eq!(acme.usage().live_bytes, 500);
        drop(held);
    });
}

#[test]
#[serial]
fn a_removed_client_is_as_none() {
    let (memory, acme, bank) = two();
    with_default(layered(&memory), || {
        let outer = info_span!("outer", client = "bank");
        let span = outer.in_scope(|| info_span!("inner", client = "acme"));
        span.in_scope(|| assert!(is_current(&acme)));
        memory.remove_client("acme").unwrap();
        span.in_scope(|| assert!(is_current(&bank)));
    });
}

#[test]
#[serial]
fn another_field_can_name_the_client() {
    let (memory, acme, _) = two();
    let layer = ClientLayer::new(&memory).field("tenant");
    with_default(tracing_subscriber::registry().with(layer), || {
        info_span!("a", client = "bank").in_scope(|| assert_eq!(Client::current(), None));
        info_span!("b", tenant = "acme").in_scope(|| assert!(is_current(&acme)));
    });
}

#[test]
#[serial]
fn subscribers_do_not_mix_up_their_spans() {
    let (memory, _acme, bank) = two();
    with_default(layered(&memory), || {
        let outer = info_span!("outer", client = "acme");
        let entered = outer.enter();
        with_default(layered(&memory), || {
            // The same id, of another registry.
            let inner = info_span!("inner", client = "bank");
            assert_eq!(outer.id(), inner.id());
            let entered_too = inner.enter();
            drop(entered);
            assert!(is_current(&bank));
            drop(entered_too);
            assert_eq!(Client::current(), None);
        });
    });
}

#[test]
#[serial]
fn a_span_that_is_filtered_out_changes_nothing() {
    let (memory, _acme, bank) = two();
    let filtered = ClientLayer::new(&memory).with_filter(LevelFilter::WARN);
    with_default(tracing_subscriber::registry().with(filtered), || {
        let _scope = bank.enter();
        let quiet = info_span!("request", client = "acme");
        quiet.in_scope(|| assert!(is_current(&bank)));
        let loud = span!(Level::ERROR, "request", client = "acme");
        loud.in_scope(|| assert!(!is_current(&bank)));
        assert!(is_current(&bank));
    });
}

#[test]
#[serial]
fn a_thread_may_end_inside_a_span() {
    let (memory, acme, _) = two();
    let dispatch = tracing::Dispatch::new(layered(&memory));
    let held = std::thread::spawn(move || {
        let default = tracing::dispatcher::set_default(&dispatch);
        let span = info_span!("request", client = "acme");
        std::mem::forget(span.enter());
        let held = Bytes::new(100);
        std::mem::forget(span);
        drop(default);
        held
    })
    .join()
    .unwrap();
    assert_eq!(acme.usage().live_bytes, 100);
    drop(held);
    // Nothing keeps the client's index.
    memory.remove_client("acme").unwrap();
    assert!(memory.snapshot().retired.is_empty());
}

#[test]
#[serial]
fn instrumented_futures_are_charged_wherever_they_are_polled() {
    let (memory, acme, bank) = two();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let dispatch = tracing::Dispatch::new(layered(&memory));
    let _default = tracing::dispatcher::set_default(&dispatch);
    let work = |name: &'static str, of: Client| {
        let span = info_span!("request", client = name);
        let child = info_span!(parent: &span, "step");
        let dispatch = dispatch.clone();
        let step = async move {
            let mut held = Vec::new();
            for _ in 0..50 {
                assert!(is_current(&of));
                held.push(Bytes::new(100).unwrap());
                tokio::task::yield_now().await;
            }
            untracked(|| held)
        };
        // The child inherits on threads where the parent is not entered.
        let task = step.instrument(child);
        let with_dispatch = tracing::instrument::WithSubscriber::with_subscriber(task, dispatch);
        (span, runtime.spawn(with_dispatch))
    };
    let (_of_acme, first) = work("acme", acme.clone());
    let (_of_bank, second) = work("bank", bank.clone());
    let held = runtime.block_on(async { (first.await.unwrap(), second.await.unwrap()) });
    let of_blocks = |client: &Client| client.usage().live_bytes >= 5000;
    assert!(of_blocks(&acme) && of_blocks(&bank));
    assert_eq!(Client::current(), None);
    drop(held);
    // What the runtime's workers keep goes with them.
    drop(runtime);
    assert_eq!(acme.usage().live_bytes, 0);
    assert_eq!(bank.usage().live_bytes, 0);
}

/// Lines of a log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
#[serial]
fn log_lines_say_whose_they_are_and_cost_the_client_nothing() {
    let (memory, acme, _) = two();
    let odd = client(&memory, "odd\nname", 1 << 20, Enforcement::Graceful);
    let log = Log::default();
    let writer = log.clone();
    let format = fmt::format().without_time().with_target(false).compact();
    let lines = fmt::layer()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .event_format(ClientFormat::new(format));
    let subscriber = tracing_subscriber::registry()
        .with(ClientLayer::new(&memory))
        .with(Untracked::new(lines).with_filter(LevelFilter::INFO));
    with_default(subscriber, || {
        info!("nobody's");
        let request = info_span!("request");
        attach(&request, &acme);
        // Places in the registry's pools are used again.
        let step = || info_span!("step", number = 7, name = "with fields");
        drop((step(), step()));
        let before = acme.usage().total_allocations;
        request.in_scope(|| {
            step().in_scope(|| info!("a step"));
            for _ in 0..3 {
                info!(number = 7, "served");
            }
            info!(parent: None, "a root");
            tracing::debug!("not this");
        });
        assert_eq!(acme.usage().total_allocations, before);
        attach(&request, &odd);
        request.in_scope(|| info!("odd"));
    });
    let lines = log.lines();
    assert_eq!(lines.len(), 7, "{lines:?}");
    assert!(!lines[0].contains("client="), "{lines:?}");
    for line in &lines[2..5] {
        assert!(line.starts_with("client=\"acme\" "), "{line}");
        assert!(
            line.contains("served") && line.contains("number=7"),
            "{line}"
        );
    }
    assert!(lines[6].starts_with("client=\"odd\\nname\" "), "{lines:?}");
}

#[test]
#[serial]
fn a_line_outside_any_span_names_the_scope() {
    let (memory, _acme, bank) = two();
    let log = Log::default();
    let writer = log.clone();
    let lines = fmt::layer()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .event_format(ClientFormat::new(fmt::format().without_time()));
    let subscriber = tracing_subscriber::registry().with(lines);
    with_default(subscriber, || {
        let _scope = bank.enter();
        info!("in a scope");
    });
    assert!(log.lines()[0].starts_with("client=\"bank\" "));
    drop(memory);
}

/// What 100 spans, each open inside the one before, leave with the client that
/// they are of, on a thread that had none before.
fn left_by_spans(client: &Client, dispatch: Dispatch) -> u64 {
    let before = client.usage().live_bytes;
    thread::scope(|threads| {
        threads.spawn(|| {
            let _default = set_default(&dispatch);
            let request = info_span!("request", client = client.name().as_deref()).entered();
            let mut nested = untracked(|| Vec::with_capacity(100));
            for number in 0..100 {
                nested.push(info_span!("step", number).entered());
            }
            drop(nested);
            assert_eq!(Span::current().id(), request.id());
        });
    });
    let left = client.usage().live_bytes - before;
    drop(dispatch);
    assert_eq!(client.usage().live_bytes, before);
    left
}

#[test]
#[serial]
fn the_registrys_pools_are_nobodys() {
    let (memory, acme, _) = two();
    let spans = || ClientLayer::new(&memory);
    let wrapped = Untracked::new(tracing_subscriber::registry()).with(spans());
    assert_eq!(left_by_spans(&acme, Dispatch::new(wrapped)), 0);
    // And that is because it is wrapped.
    assert!(
        left_by_spans(
            &acme,
            Dispatch::new(tracing_subscriber::registry().with(spans()))
        ) > 0
    );
}

/// Counts what it is shown.
struct Counts(Arc<Mutex<Vec<&'static str>>>);

impl<S: tracing::Subscriber> Layer<S> for Counts {
    fn on_new_span(&self, _: &span::Attributes<'_>, _: &span::Id, _: Context<'_, S>) {
        self.0.lock().unwrap().push("new");
    }

    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        self.0
            .lock()
            .unwrap()
            .push(event.metadata().level().as_str());
    }

    fn on_close(&self, _: span::Id, _: Context<'_, S>) {
        self.0.lock().unwrap().push("close");
    }
}

fn warned<S>(seen: &Arc<Mutex<Vec<&'static str>>>) -> impl Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    Counts(Arc::clone(seen)).with_filter(LevelFilter::WARN)
}

/// Filters of single layers work around the wrapped registry as they do around
/// the registry itself, in either order.
#[test]
#[serial]
fn a_wrapped_registry_leaves_filters_as_they_are() {
    let (memory, acme, _) = two();
    let seen: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let registry = || Untracked::new(tracing_subscriber::registry());
    let shows = |subscriber: Dispatch, charged: bool| {
        tracing::dispatcher::with_default(&subscriber, || {
            let of_acme = || info_span!("request", client = "acme");
            assert_eq!(of_acme().in_scope(|| is_current(&acme)), charged);
            // Said again here: what is remembered of it joins the answers of
            // all subscribers, those of other tests among them.
            let metadata = of_acme().metadata().unwrap();
            assert!(!subscriber.register_callsite(metadata).is_never());
            info!("filtered");
            tracing::warn!("shown");
            drop(span!(Level::ERROR, "shown"));
        });
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen, ["WARN", "new", "close"]);
        assert!(subscriber.is::<Registry>() && subscriber.is::<Untracked<Registry>>());
    };
    let spans = || ClientLayer::new(&memory);
    shows(
        Dispatch::new(registry().with(spans()).with(warned(&seen))),
        true,
    );
    shows(
        Dispatch::new(registry().with(warned(&seen)).with(spans())),
        true,
    );
    shows(Dispatch::new(registry().with(warned(&seen))), false);
    shows(
        Dispatch::new(
            registry()
                .with(spans().with_filter(LevelFilter::OFF))
                .with(warned(&seen)),
        ),
        false,
    );
}

/// A layer of the host's own that finds the client.
struct Finds(Arc<Mutex<Vec<Client>>>);

impl Layer<Registry> for Finds {
    fn on_enter(&self, id: &span::Id, context: Context<'_, Registry>) {
        let span = context.span(id).unwrap();
        if let Some(found) = span.extensions().get::<SpanClient>() {
            self.0.lock().unwrap().push(found.client().clone());
        }
    }
}

#[test]
#[serial]
fn other_layers_find_the_client_in_the_extensions() {
    let (memory, acme, _) = two();
    let found = Arc::default();
    let both = ClientLayer::new(&memory).and_then(Finds(Arc::clone(&found)));
    with_default(Registry::default().with(both), || {
        info_span!("request", client = "acme").in_scope(|| {});
    });
    assert_eq!(*found.lock().unwrap(), [acme]);
}
