//! [`Snapshot`]: a memory at one moment, as far as running threads allow.

use crate::client::{Client, ClientId, ClientUsage, usage};
use crate::ledger::fork::Cold;
use crate::ledger::{reading, thread};
use crate::memory::{Counts, MemoryUsage, Shared};
use crate::registry::rungs::{Relief, Rung, RungTotals};
use crate::registry::{Enforcement, REGISTRY};
use crate::sync::{AtomicU64, Ordering};
use crate::sys;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// One client.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ClientSnapshot {
    /// Which client.
    pub id: ClientId,
    /// Its name.
    pub name: Arc<str>,
    /// The name of its tier.
    pub tier: Arc<str>,
    /// What it has and had.
    pub usage: ClientUsage,
    /// Bytes in physical memory: live heap bytes and the resident pages of its
    /// blocks at the last sample.
    pub used_bytes: u64,
    /// The most it may have.
    pub max_bytes: u64,
    /// Where it is asked to give back.
    pub soft_bytes: u64,
    /// What is reserved for it.
    pub guarantee_bytes: u64,
    /// What happens beyond `max_bytes`.
    pub enforcement: Enforcement,
}

/// One tier.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct TierSnapshot {
    /// Its name.
    pub name: Arc<str>,
    /// Charged or reserved by its clients, removed ones included.
    pub charged_bytes: u64,
    /// The most its clients may have together, if there is a limit.
    pub limit_bytes: Option<u64>,
    /// Of `charged_bytes`, what is beyond the clients' guarantees.
    pub borrowed_bytes: u64,
    /// What its clients were lent beyond the limits, no part of
    /// `charged_bytes`.
    pub overdrawn_bytes: u64,
    /// Its clients, removed ones not counted.
    pub clients: usize,
    /// How often its clients were short of what lower tiers had borrowed.
    pub relief: Relief,
}

/// What the reclaimer has done since the memory was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ReclaimTotals {
    /// Bytes written to the spill file.
    pub spilled_bytes: u64,
    /// The blocks that held them.
    pub spilled_blocks: u64,
    /// Bytes read back from it.
    pub restored_bytes: u64,
    /// The blocks that hold them.
    pub restored_blocks: u64,
    /// How long reading back took, all together.
    #[cfg_attr(
        feature = "serde",
        serde(
            rename = "restore_time_ns",
            serialize_with = "crate::registry::rungs::duration_ns"
        )
    )]
    pub restore_time: Duration,
    /// The longest time that it took for one block.
    #[cfg_attr(
        feature = "serde",
        serde(
            rename = "longest_restore_ns",
            serialize_with = "crate::registry::rungs::duration_ns"
        )
    )]
    pub longest_restore: Duration,
    /// Bytes thrown away, as their policy allows.
    pub discarded_bytes: u64,
    /// The blocks that held them.
    pub discarded_blocks: u64,
    /// Blocks that could not be written out.
    pub failed_blocks: u64,
    /// Passes over the idle blocks whose time had come.
    pub passes: u64,
    /// What each rung of the ladder has done under pressure.
    pub rungs: [RungTotals; Rung::ALL.len()],
    /// Clients that were asked to stop their work.
    pub stopped_clients: u64,
    /// Clients' reclaimers that panicked and are not asked any more.
    pub panicked_reclaimers: u64,
    /// Calls of clients' reclaimers that did not end in time.
    pub late_reclaimers: u64,
    /// Times that a pressure source could not tell.
    pub failed_sources: u64,
    /// Whether a source reports pressure, or a client is short.
    pub under_pressure: bool,
}

/// A memory at one moment.
///
/// With the feature `serde` it is serialised under the names of its fields,
/// which end in their unit and stay as they are; new ones may be added. Ids are
/// strings, `"index.generation"`, enumerations are in snake case, tiers go by
/// their names, what does not exist is null.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// The memory as a whole.
    pub memory: MemoryUsage,
    /// Its clients, by name.
    pub clients: Vec<ClientSnapshot>,
    /// Removed clients that still hold something.
    pub retired: Vec<ClientSnapshot>,
    /// Its tiers, in the order in which they were defined.
    pub tiers: Vec<TierSnapshot>,
    /// Live heap bytes of the process that were allocated outside any scope,
    /// of this or any other memory.
    pub unattributed_bytes: u64,
    /// The allocations that hold them.
    pub unattributed_allocations: u64,
    /// The process' resident set in bytes, where the system tells it.
    pub resident_set_bytes: Option<u64>,
    /// Of these, what is neither in `used_bytes` of a client nor in
    /// `unattributed_bytes`: free pages and rounding of the inner allocator,
    /// C libraries' own memory, stacks, code, and the clients of other
    /// memories. Charged to nobody.
    pub unattributed_resident_bytes: Option<u64>,
    /// What the reclaimer has done.
    pub reclaim: ReclaimTotals,
}

pub(crate) fn take_snapshot(shared: &Shared, memory: MemoryUsage) -> Snapshot {
    let tree = &shared.tree;
    let policies = tree.policies.all();
    let mut resident: HashMap<u32, u64> = HashMap::new();
    for block in shared.blocks() {
        *resident.entry(block.owner_index()).or_default() += block.last_measured();
    }
    let tier_name = |place: usize| {
        policies
            .get(place)
            .map_or_else(|| Arc::from("?"), |tier| Arc::clone(&tier.name))
    };
    let of = |name: Arc<str>, client: &Client| {
        let slot = client.slot();
        let usage = client.usage();
        let limits = slot.limits();
        let blocks = resident.get(&slot.index()).copied().unwrap_or(0);
        ClientSnapshot {
            id: client.id(),
            name,
            tier: tier_name(slot.tier()),
            usage,
            used_bytes: usage.live_bytes - usage.block_bytes + blocks,
            max_bytes: limits.max,
            soft_bytes: limits.soft,
            guarantee_bytes: limits.guarantee,
            enforcement: limits.enforcement,
        }
    };
    // The names are copied first: reading the accounts takes a while, and the
    // lock is also taken to register clients.
    let mut names: Vec<(Arc<str>, Client)> = shared
        .names()
        .iter()
        .filter_map(|(name, &id)| Some((Arc::clone(name), Client::with_id(id)?)))
        .collect();
    names.sort_by(|(a, _), (b, _)| a.cmp(b));
    let clients: Vec<ClientSnapshot> = names
        .into_iter()
        .map(|(name, client)| of(name, &client))
        .collect();
    // A client may have been removed since the names were copied.
    let named: HashSet<ClientId> = clients.iter().map(|client| client.id).collect();
    let retired: Vec<ClientSnapshot> = shared
        .retired()
        .into_iter()
        .filter(|client| !named.contains(&client.id()))
        .filter_map(|client| Some(of(client.name()?, &client)))
        .collect();
    let relief = *shared.counts.relief();
    let tiers = policies
        .iter()
        .zip(&tree.tiers)
        .zip(relief)
        .map(|((tier, node), relief)| TierSnapshot {
            name: Arc::clone(&tier.name),
            charged_bytes: node.charged(),
            borrowed_bytes: node.borrowed(),
            overdrawn_bytes: node.owed(),
            limit_bytes: Some(node.limit()).filter(|&limit| limit != u64::MAX),
            clients: clients.iter().filter(|c| c.tier == tier.name).count(),
            relief,
        })
        .collect();
    let counts = &shared.counts;
    let resident_set_bytes = sys::resident_set_bytes();
    // From here on nothing is allocated or freed: at rest the figure counts
    // what lives when the caller has the snapshot, the snapshot included.
    drop((resident, policies, named));
    let unattributed = unattributed();
    let used = clients
        .iter()
        .chain(&retired)
        .map(|client| client.used_bytes);
    let known = used.sum::<u64>() + unattributed.live_bytes;
    Snapshot {
        memory,
        clients,
        retired,
        tiers,
        unattributed_bytes: unattributed.live_bytes,
        unattributed_allocations: unattributed.live_allocations,
        resident_set_bytes,
        unattributed_resident_bytes: resident_set_bytes
            .map(|resident| resident.saturating_sub(known)),
        reclaim: reclaim_totals(counts),
    }
}

fn reclaim_totals(counts: &Counts) -> ReclaimTotals {
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (restore_time, longest_restore) = counts.restore_time();
    ReclaimTotals {
        spilled_bytes: of(&counts.spilled_bytes),
        spilled_blocks: of(&counts.spilled_blocks),
        restored_bytes: of(&counts.restored_bytes),
        restored_blocks: of(&counts.restored_blocks),
        restore_time,
        longest_restore,
        discarded_bytes: of(&counts.discarded_bytes),
        discarded_blocks: of(&counts.discarded_blocks),
        failed_blocks: of(&counts.failed_spills),
        passes: of(&counts.passes),
        rungs: counts.rungs(),
        stopped_clients: of(&counts.stopped_clients),
        panicked_reclaimers: of(&counts.panicked_reclaimers),
        late_reclaimers: of(&counts.late_reclaimers),
        failed_sources: of(&counts.failed_sources),
        under_pressure: counts.under_pressure.load(Ordering::Relaxed),
    }
}

/// What was allocated outside any scope, in the whole process.
pub(crate) fn unattributed() -> ClientUsage {
    let _cold = Cold::enter(thread::attached());
    REGISTRY
        .slot(0)
        .map_or_else(ClientUsage::default, |slot| usage(slot, reading::of(slot)))
}
