//! The events of a memory, as `tracing` subscribers see them.

use serial_test::serial;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use tiered_allocator::integrations::tracing::TracingEvents;
use tiered_allocator::{ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

/// One event, as a subscriber got it.
#[derive(Debug)]
struct Seen {
    level: Level,
    target: String,
    fields: BTreeMap<&'static str, String>,
}

impl Visit for Seen {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

/// Keeps every event.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Seen>>>);

impl Collector {
    fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Subscriber for Collector {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut seen = Seen {
            level: *event.metadata().level(),
            target: event.metadata().target().to_owned(),
            fields: BTreeMap::new(),
        };
        event.record(&mut seen);
        self.0.lock().unwrap().push(seen);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn kinds(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|seen| &*seen.fields["kind"]).collect()
}

fn small() -> ClientOptions {
    ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(64 << 10))
}

#[test]
#[serial]
fn an_event_has_the_figures_of_the_refusal() {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    memory.register("acme", small()).unwrap();
    let collector = Collector::default();
    let mut events = TracingEvents::new(&memory);
    tracing::subscriber::with_default(collector.clone(), || {
        assert_eq!(events.emit(), 0);
        // More than the whole memory.
        assert!(memory.allocate_for_client("acme", 2 << 30).is_err());
        // Nothing is logged where the decision is made.
        assert!(collector.take().is_empty());
        assert_eq!(events.emit(), 1);
        assert_eq!(events.emit(), 0);
    });
    let seen = collector.take();
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (seen[0].level, &*seen[0].target),
        (Level::WARN, "tiered_allocator")
    );
    let expected = [
        ("kind", "Refused"),
        ("client", "acme"),
        ("tier", "Basic"),
        ("node", "Client"),
        ("requested", "2147483648"),
        ("charged", "0"),
        ("limit", "65536"),
        ("number", "0"),
    ];
    for (field, value) in expected {
        assert_eq!(seen[0].fields[field], value, "{field}");
    }
}

#[test]
#[serial]
fn the_way_of_a_client_is_told_in_order() {
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    let client = memory.register("brief", small()).unwrap();
    let collector = Collector::default();
    let mut events = TracingEvents::new(&memory);
    let over = client.run(|| vec![0_u8; 100 << 10]);
    assert!(over.is_err());
    memory.remove_client("brief").unwrap();
    tracing::subscriber::with_default(collector.clone(), || events.emit());
    let seen = collector.take();
    assert_eq!(kinds(&seen), ["Overdraft", "Cancelled", "Retired"]);
    assert_eq!(seen[1].fields["node"], "Client");
    assert_eq!(seen[2].level, Level::DEBUG);
    drop(over);
}

#[test]
#[serial]
fn what_the_subscriber_allocates_is_charged_to_nobody() {
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    let client = memory.register("asks", small()).unwrap();
    for _ in 0..200 {
        assert!(memory.allocate_for_client("asks", 2 << 30).is_err());
    }
    let collector = Collector::default();
    let mut events = TracingEvents::new(&memory);
    tracing::subscriber::with_default(collector.clone(), || {
        let _scope = client.enter();
        assert_eq!(events.emit(), 200);
    });
    assert_eq!(collector.take().len(), 200);
    assert_eq!(client.usage().live_bytes, 0);
    assert!(client.checkpoint().is_ok());
}

#[test]
#[serial]
fn events_lost_to_newer_ones_are_counted() {
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    memory.register("busy", small()).unwrap();
    let mut events = TracingEvents::new(&memory);
    for _ in 0..1500 {
        assert!(memory.allocate_for_client("busy", 2 << 30).is_err());
    }
    let collector = Collector::default();
    let emitted = tracing::subscriber::with_default(collector.clone(), || events.emit());
    let seen = collector.take();
    let lost: usize = seen[0].fields["lost"].parse().unwrap();
    assert_eq!(emitted + lost, 1500);
    assert_eq!(seen.len(), emitted + 1);
}
