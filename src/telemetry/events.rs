//! [`Event`]: a record of the ring, with names.

use crate::client::{Client, ClientId};
use crate::memory::Shared;
use crate::registry::REGISTRY;
use crate::registry::budget::BudgetNode;
use crate::registry::events::{EventKind, Record};
use core::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What a budget refused or lent, or the reclaimer took back, and when.
///
/// With the feature `serde` it is serialised as a [`Snapshot`](crate::Snapshot)
/// is, but that figures are named with their unit: `at_unix_ms`,
/// `requested_bytes`, `charged_bytes`, `limit_bytes`.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Event {
    /// Its number in its memory, from 0. A gap means that records were lost to
    /// newer ones.
    pub number: u64,
    /// When it happened.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "at_unix_ms", serialize_with = "super::serde::unix_ms")
    )]
    pub time: SystemTime,
    /// What happened.
    pub kind: EventKind,
    /// To which client.
    pub client: ClientId,
    /// Its name at the moment of reading, if anything of it is left.
    pub name: Option<Arc<str>>,
    /// The name of its tier.
    pub tier: Arc<str>,
    /// Bytes asked for; 0 if nobody asked.
    #[cfg_attr(feature = "serde", serde(rename = "requested_bytes"))]
    pub requested: u64,
    /// Bytes charged to the budget that decided.
    #[cfg_attr(feature = "serde", serde(rename = "charged_bytes"))]
    pub charged: u64,
    /// That budget's limit.
    #[cfg_attr(feature = "serde", serde(rename = "limit_bytes"))]
    pub limit: u64,
    /// Which budget decided.
    pub node: BudgetNode,
    /// The system's error number, where the system is the reason.
    pub os_error: Option<i32>,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or("?");
        write!(
            f,
            "{:?}: client `{name}` ({}) requested {} bytes, {} of {} charged, decided by {:?}",
            self.kind, self.tier, self.requested, self.charged, self.limit, self.node
        )?;
        match self.os_error {
            Some(code) => write!(f, ": {}", std::io::Error::from_raw_os_error(code)),
            None => Ok(()),
        }
    }
}

/// The events from `from` on, and where to go on from.
pub(crate) fn read_events(shared: &Shared, from: u64) -> (Vec<Event>, u64) {
    let (records, next) = shared.tree.events.read(from);
    let policies = shared.tree.policies.all();
    let named = records.into_iter().map(|(number, record)| {
        let tier = policies
            .get(record.tier)
            .map_or_else(|| Arc::from("?"), |tier| Arc::clone(&tier.name));
        named(number, &record, tier)
    });
    (named.collect(), next)
}

fn named(number: u64, record: &Record, tier: Arc<str>) -> Event {
    let client = REGISTRY
        .slot(record.index)
        .map(|slot| Client::new(slot, record.generation));
    Event {
        number,
        time: SystemTime::UNIX_EPOCH + Duration::from_nanos(record.time_ns),
        kind: record.kind,
        client: ClientId::new(record.index, record.generation),
        name: client.and_then(|client| client.name()),
        tier,
        requested: record.refusal.requested,
        charged: record.refusal.charged,
        limit: record.refusal.limit,
        node: record.refusal.node,
        os_error: Some(record.os_error).filter(|&code| code != 0),
    }
}
