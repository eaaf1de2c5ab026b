//! The names, kinds, units and meanings of all series, and where in a snapshot
//! the figures are. The only place to add one.

use crate::client::ClientUsage;
use crate::memory::MemoryUsage;
use crate::registry::rungs::RungTotals;
use crate::telemetry::{ClientSnapshot, ReclaimTotals, Snapshot, TierSnapshot};
use ::metrics::Unit;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Gauge,
    Counter,
}

/// One name, with everything but its labels and values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) unit: Unit,
    pub(super) help: &'static str,
}

const fn bytes(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help,
    }
}

const fn count(name: &'static str, help: &'static str) -> Family {
    Family {
        unit: Unit::Count,
        ..bytes(name, help)
    }
}

const fn counter(name: &'static str, unit: Unit, help: &'static str) -> Family {
    Family {
        name,
        kind: Kind::Counter,
        unit,
        help,
    }
}

/// Where the value is in a `T`.
pub(super) type Figure<T> = fn(&T) -> u64;
/// Where the value is in a `T` that is part of a `W`.
pub(super) type FigureIn<T, W> = fn(&T, &W) -> u64;

const NS_PER_S: u64 = 1_000_000_000;

/// Labels `client`, `tier`.
pub(super) const CLIENT_GAUGES: &[(Family, FigureIn<ClientSnapshot, MemoryUsage>)] = &[
    (
        bytes(
            "tiered_allocator_client_live_bytes",
            "Bytes allocated and not freed, on the heap and in blocks.",
        ),
        |client, _| client.usage.live_bytes,
    ),
    (
        bytes(
            "tiered_allocator_client_charged_bytes",
            "Bytes drawn from the client's budget: live bytes and the threads' unused credit.",
        ),
        |client, _| client.usage.charged_bytes,
    ),
    (
        bytes(
            "tiered_allocator_client_used_bytes",
            "Bytes in physical memory: live heap bytes and resident pages of blocks.",
        ),
        |client, _| client.used_bytes,
    ),
    (
        bytes(
            "tiered_allocator_client_block_bytes",
            "Of the live bytes, those in reclaimable blocks.",
        ),
        |client, _| client.usage.block_bytes,
    ),
    (
        bytes(
            "tiered_allocator_client_peak_bytes",
            "The highest that the charged bytes ever were.",
        ),
        |client, _| client.usage.peak_bytes,
    ),
    (
        bytes(
            "tiered_allocator_client_limit_bytes",
            "The most the client may have; the memory's total if that is less.",
        ),
        |client, memory| client.max_bytes.min(memory.total_bytes),
    ),
    (
        bytes(
            "tiered_allocator_client_soft_limit_bytes",
            "Where the client is asked to give back; the memory's total if that is less.",
        ),
        |client, memory| client.soft_bytes.min(memory.total_bytes),
    ),
    (
        bytes(
            "tiered_allocator_client_guarantee_bytes",
            "What is reserved for the client.",
        ),
        |client, _| client.guarantee_bytes,
    ),
    (
        bytes(
            "tiered_allocator_client_overdrawn_bytes",
            "Bytes beyond the limits, out of the memory's headroom.",
        ),
        |client, _| client.usage.overdrawn_bytes,
    ),
    (
        count(
            "tiered_allocator_client_live_allocations",
            "Allocations not freed.",
        ),
        |client, _| client.usage.live_allocations,
    ),
];

/// How many counters a client has.
pub(super) const COUNTERS: usize = 5;

/// Labels `client`, `tier`. Each only grows while its client lives.
pub(super) const CLIENT_COUNTERS: [(Family, Figure<ClientUsage>); COUNTERS] = [
    (
        counter(
            "tiered_allocator_client_allocated_bytes_total",
            Unit::Bytes,
            "Bytes ever allocated.",
        ),
        |usage| usage.total_bytes,
    ),
    (
        counter(
            "tiered_allocator_client_allocations_total",
            Unit::Count,
            "Allocations ever made.",
        ),
        |usage| usage.total_allocations,
    ),
    (
        counter(
            "tiered_allocator_client_refusals_total",
            Unit::Count,
            "Requests refused.",
        ),
        |usage| usage.refusals,
    ),
    (
        counter(
            "tiered_allocator_client_observed_breaches_total",
            Unit::Count,
            "Requests granted only because the client is observed.",
        ),
        |usage| usage.observed_breaches,
    ),
    (
        counter(
            "tiered_allocator_client_stall_seconds_total",
            Unit::Seconds,
            "Full seconds that safe points above the soft limit have waited.",
        ),
        |usage| usage.stalled_ns / NS_PER_S,
    ),
];

/// Label `tier`.
pub(super) const TIER_GAUGES: &[(Family, FigureIn<TierSnapshot, Snapshot>)] = &[
    (
        bytes(
            "tiered_allocator_tier_charged_bytes",
            "Charged or reserved by the tier's clients, removed ones included.",
        ),
        |tier, _| tier.charged_bytes,
    ),
    (
        bytes(
            "tiered_allocator_tier_limit_bytes",
            "The most the tier's clients may have together; the usable part if the tier has no limit.",
        ),
        |tier, snapshot| tier.limit_bytes.unwrap_or(snapshot.memory.usable_bytes),
    ),
    (
        bytes(
            "tiered_allocator_tier_borrowed_bytes",
            "Of the charged bytes, what is beyond the clients' guarantees.",
        ),
        |tier, _| tier.borrowed_bytes,
    ),
    (
        bytes(
            "tiered_allocator_tier_overdrawn_bytes",
            "Lent to its clients beyond the limits.",
        ),
        |tier, _| tier.overdrawn_bytes,
    ),
    (
        count("tiered_allocator_tier_clients", "Registered clients."),
        |tier, _| tier.clients as u64,
    ),
];

/// Label `tier`.
pub(super) const TIER_COUNTERS: &[(Family, Figure<TierSnapshot>)] = &[
    (
        counter(
            "tiered_allocator_tier_shortages_total",
            Unit::Count,
            "Times that the tier's clients were short of what lower tiers had borrowed.",
        ),
        |tier| tier.relief.shortages,
    ),
    (
        counter(
            "tiered_allocator_tier_reliefs_total",
            Unit::Count,
            "Times that such a shortage was made up for.",
        ),
        |tier| tier.relief.reliefs,
    ),
    (
        counter(
            "tiered_allocator_tier_shortage_seconds_total",
            Unit::Seconds,
            "Full seconds from the beginnings of such shortages to their ends.",
        ),
        |tier| tier.relief.total.as_secs(),
    ),
];

pub(super) const MEMORY_GAUGES: &[(Family, Figure<Snapshot>)] = &[
    (
        bytes(
            "tiered_allocator_memory_total_bytes",
            "All that the memory has to hand out.",
        ),
        |snapshot| snapshot.memory.total_bytes,
    ),
    (
        bytes(
            "tiered_allocator_memory_usable_bytes",
            "The part of the total that limits are counted in.",
        ),
        |snapshot| snapshot.memory.usable_bytes,
    ),
    (
        bytes(
            "tiered_allocator_memory_charged_bytes",
            "Charged or reserved by all clients, but for overdrafts.",
        ),
        |snapshot| snapshot.memory.charged_bytes,
    ),
    (
        bytes(
            "tiered_allocator_memory_overdrawn_bytes",
            "Overdrafts, out of the headroom.",
        ),
        |snapshot| snapshot.memory.overdrawn_bytes,
    ),
    (
        bytes(
            "tiered_allocator_memory_spilled_bytes",
            "Bytes of blocks that are on disk.",
        ),
        |snapshot| snapshot.memory.spilled_bytes,
    ),
    (
        count(
            "tiered_allocator_memory_retired_clients",
            "Removed clients that still hold something.",
        ),
        |snapshot| snapshot.retired.len() as u64,
    ),
    (
        count(
            "tiered_allocator_memory_under_pressure",
            "1 while a source reports pressure or a client is short, else 0.",
        ),
        |snapshot| u64::from(snapshot.reclaim.under_pressure),
    ),
    (
        bytes(
            "tiered_allocator_unattributed_bytes",
            "Live heap bytes of the process that belong to no client of any memory.",
        ),
        |snapshot| snapshot.unattributed_bytes,
    ),
    (
        count(
            "tiered_allocator_unattributed_allocations",
            "The allocations that hold the unattributed bytes.",
        ),
        |snapshot| snapshot.unattributed_allocations,
    ),
];

/// Only where the system tells it.
pub(super) const RESIDENT_SET: Family = bytes(
    "tiered_allocator_resident_set_bytes",
    "The process' resident set.",
);

/// Only where the system tells it.
pub(super) const UNATTRIBUTED_RESIDENT: Family = bytes(
    "tiered_allocator_unattributed_resident_bytes",
    "Of the resident set, what is neither a client's nor in the unattributed bytes.",
);

pub(super) const RECLAIM_COUNTERS: &[(Family, Figure<ReclaimTotals>)] = &[
    (
        counter(
            "tiered_allocator_spilled_bytes_total",
            Unit::Bytes,
            "Bytes of idle blocks written to the spill file.",
        ),
        |totals| totals.spilled_bytes,
    ),
    (
        counter(
            "tiered_allocator_discarded_bytes_total",
            Unit::Bytes,
            "Bytes of idle blocks thrown away, as their policy allows.",
        ),
        |totals| totals.discarded_bytes,
    ),
    (
        counter(
            "tiered_allocator_restored_bytes_total",
            Unit::Bytes,
            "Bytes read back from the spill file.",
        ),
        |totals| totals.restored_bytes,
    ),
    (
        counter(
            "tiered_allocator_reclaim_failed_blocks_total",
            Unit::Count,
            "Blocks that could not be written out.",
        ),
        |totals| totals.failed_blocks,
    ),
    (
        counter(
            "tiered_allocator_reclaim_passes_total",
            Unit::Count,
            "Passes over the idle blocks whose time had come.",
        ),
        |totals| totals.passes,
    ),
    (
        counter(
            "tiered_allocator_restore_seconds_total",
            Unit::Seconds,
            "Full seconds that reading spilled blocks back took.",
        ),
        |totals| totals.restore_time.as_secs(),
    ),
    (
        counter(
            "tiered_allocator_stopped_clients_total",
            Unit::Count,
            "Clients that were asked to stop their work.",
        ),
        |totals| totals.stopped_clients,
    ),
    (
        counter(
            "tiered_allocator_panicked_reclaimers_total",
            Unit::Count,
            "Clients' reclaimers that panicked and are not asked any more.",
        ),
        |totals| totals.panicked_reclaimers,
    ),
    (
        counter(
            "tiered_allocator_late_reclaimers_total",
            Unit::Count,
            "Calls of clients' reclaimers that did not end in time.",
        ),
        |totals| totals.late_reclaimers,
    ),
    (
        counter(
            "tiered_allocator_failed_sources_total",
            Unit::Count,
            "Times that a pressure source could not tell.",
        ),
        |totals| totals.failed_sources,
    ),
];

/// Label `rung`: [`Rung::name`](crate::Rung::name).
pub(super) const RUNG_COUNTERS: &[(Family, Figure<RungTotals>)] = &[
    (
        counter(
            "tiered_allocator_reclaimed_bytes_total",
            Unit::Bytes,
            "Bytes gained under pressure, by rung of the reclaim ladder.",
        ),
        |rung| rung.reclaimed_bytes,
    ),
    (
        counter(
            "tiered_allocator_rung_climbs_total",
            Unit::Count,
            "How often a rung of the reclaim ladder was climbed.",
        ),
        |rung| rung.climbed,
    ),
];

pub(super) fn all() -> impl Iterator<Item = Family> {
    fn families<F>(columns: &[(Family, F)]) -> impl Iterator<Item = Family> {
        columns.iter().map(|(family, _)| *family)
    }
    families(CLIENT_GAUGES)
        .chain(families(&CLIENT_COUNTERS))
        .chain(families(TIER_GAUGES))
        .chain(families(MEMORY_GAUGES))
        .chain(families(TIER_COUNTERS))
        .chain(families(RECLAIM_COUNTERS))
        .chain(families(RUNG_COUNTERS))
        .chain([RESIDENT_SET, UNATTRIBUTED_RESIDENT])
}
