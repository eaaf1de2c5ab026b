//! [`Snapshot`]: a memory at one moment, as far as running threads allow.

use crate::client::{Client, ClientId, ClientUsage, usage};
use crate::ledger::fork::Cold;
use crate::ledger::{reading, thread};
use crate::memory::{MemoryUsage, Shared};
use crate::registry::{Enforcement, REGISTRY};
use crate::sys;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One client.
#[derive(Clone, PartialEq, Eq, Debug)]
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
#[non_exhaustive]
pub struct TierSnapshot {
    /// Its name.
    pub name: Arc<str>,
    /// Charged or reserved by its clients, removed ones included.
    pub charged_bytes: u64,
    /// The most its clients may have together, if there is a limit.
    pub limit_bytes: Option<u64>,
    /// Its clients, removed ones not counted.
    pub clients: usize,
}

/// What the reclaimer has done since the memory was made, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ReclaimTotals {
    /// Written to the spill file.
    pub spilled_bytes: u64,
    /// Read back from it.
    pub restored_bytes: u64,
    /// Thrown away, as their policy allows.
    pub discarded_bytes: u64,
    /// Blocks that could not be written out.
    pub failed_blocks: u64,
    /// Passes over the idle blocks.
    pub passes: u64,
}

/// A memory at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
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
    let retired = shared
        .retired()
        .into_iter()
        .filter(|client| !named.contains(&client.id()))
        .filter_map(|client| Some(of(client.name()?, &client)))
        .collect();
    let tiers = policies
        .iter()
        .zip(&tree.tiers)
        .map(|(tier, node)| TierSnapshot {
            name: Arc::clone(&tier.name),
            charged_bytes: node.charged(),
            limit_bytes: Some(node.limit()).filter(|&limit| limit != u64::MAX),
            clients: clients.iter().filter(|c| c.tier == tier.name).count(),
        })
        .collect();
    let counts = &shared.counts;
    let resident_set_bytes = sys::resident_set_bytes();
    // From here on nothing is allocated or freed: at rest the figure counts
    // what lives when the caller has the snapshot, the snapshot included.
    drop((resident, policies, named));
    let unattributed = unattributed();
    Snapshot {
        memory,
        clients,
        retired,
        tiers,
        unattributed_bytes: unattributed.live_bytes,
        unattributed_allocations: unattributed.live_allocations,
        resident_set_bytes,
        reclaim: ReclaimTotals {
            spilled_bytes: counts.spilled_bytes.load(Ordering::Relaxed),
            restored_bytes: counts.restored_bytes.load(Ordering::Relaxed),
            discarded_bytes: counts.discarded_bytes.load(Ordering::Relaxed),
            failed_blocks: counts.failed_spills.load(Ordering::Relaxed),
            passes: counts.passes.load(Ordering::Relaxed),
        },
    }
}

/// What was allocated outside any scope, in the whole process.
pub(crate) fn unattributed() -> ClientUsage {
    let _cold = Cold::enter(thread::attached());
    REGISTRY
        .slot(0)
        .map_or_else(ClientUsage::default, |slot| usage(slot, reading::of(slot)))
}
