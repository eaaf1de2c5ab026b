//! tracing: the events of a memory as `tracing` events.
//!
//! Budgets decide inside the allocator, where nothing may be logged. They
//! leave records (see [`Memory::events`]), and [`TracingEvents`] turns those
//! into `tracing` events when it is asked to: from a task or a thread of the
//! host that does so every second or so. The memory keeps 1,024 records; what
//! is lost to newer ones is reported as lost.

use crate::client::untracked;
use crate::memory::Memory;
use crate::registry::events::EventKind;
use crate::telemetry::Event;
use ::tracing::{debug, warn};
use std::time::SystemTime;

/// Emits the events of one memory, each once, with the target
/// `tiered_allocator`.
///
/// The fields are `kind`, `client` (the name), `client_id`, `tier`, `node`
/// (the budget that decided), `requested`, `charged` and `limit` in bytes,
/// `number`, and `at_unix_ms`. A client that is removed or closed, and memory
/// that was taken back, is reported at level `DEBUG`, everything else at
/// `WARN`.
///
/// ```
/// use tiered_allocator::integrations::tracing::TracingEvents;
/// use tiered_allocator::{Memory, SubscriptionTier};
///
/// let memory = Memory::new(1 << 30);
/// let mut events = TracingEvents::new(&memory);
/// memory.add_client("acme", SubscriptionTier::Basic);
/// assert!(memory.allocate_for_client("acme", 2 << 30).is_err());
/// assert_eq!(events.emit(), 1);
/// assert_eq!(events.emit(), 0);
/// ```
///
/// From a periodic task, on tokio say:
///
/// ```
/// # use std::time::Duration;
/// # use tiered_allocator::integrations::tracing::TracingEvents;
/// # use tiered_allocator::Memory;
/// async fn report(memory: Memory) {
///     let mut events = TracingEvents::new(&memory);
///     let mut interval = tokio::time::interval(Duration::from_secs(1));
///     loop {
///         interval.tick().await;
///         events.emit();
///     }
/// }
/// # drop(report(Memory::new(1 << 30)));
/// ```
#[derive(Debug)]
pub struct TracingEvents {
    memory: Memory,
    next: u64,
}

impl TracingEvents {
    /// From the oldest event on that the memory still has. Holds the memory.
    pub fn new(memory: &Memory) -> TracingEvents {
        let next = memory.events(0).0.first().map_or(0, |event| event.number);
        TracingEvents {
            memory: memory.clone(),
            next,
        }
    }

    /// Emits what happened since the last call, and answers how many events
    /// that were. What the subscriber allocates is charged to nobody.
    pub fn emit(&mut self) -> usize {
        untracked(|| {
            let (events, next) = self.memory.events(self.next);
            let lost = (next - self.next).saturating_sub(events.len() as u64);
            if lost > 0 {
                warn!(target: TARGET, lost, "events were lost to newer ones");
            }
            self.next = next;
            events.iter().for_each(emit);
            events.len()
        })
    }
}

const TARGET: &str = "tiered_allocator";

fn emit(event: &Event) {
    let since_1970 = event.time.duration_since(SystemTime::UNIX_EPOCH);
    let at_unix_ms = since_1970.map_or(0, |time| time.as_millis() as u64);
    macro_rules! at_level {
        ($level:ident, $message:literal) => {
            $level!(
                target: TARGET,
                kind = ?event.kind,
                client = event.name.as_deref().unwrap_or("?"),
                client_id = %event.client,
                tier = &*event.tier,
                node = ?event.node,
                requested = event.requested,
                charged = event.charged,
                limit = event.limit,
                number = event.number,
                at_unix_ms,
                $message
            )
        };
    }
    match event.kind {
        EventKind::Retired | EventKind::Closed => at_level!(debug, "a client ends"),
        EventKind::Reclaimed | EventKind::PressureEnded => {
            at_level!(debug, "memory was taken back")
        }
        EventKind::PressureBegan | EventKind::AskedToStop | EventKind::Infeasible => {
            at_level!(warn, "memory is scarce")
        }
        EventKind::SpillFailed | EventKind::ReclaimerPanicked | EventKind::ReclaimerLate => {
            at_level!(warn, "memory could not be taken back")
        }
        _ => at_level!(warn, "a budget was asked for more than it has"),
    }
}
