//! [`Memory`]: the handle that hosts hold.

use super::block::{BlockState, MemoryBlock};
use super::builder::MemoryBuilder;
use super::error::{AllocateError, DeallocateError, DeallocateReason, WrongClient};
use super::relief;
use super::shared::{Orphans, Shared};
use crate::client::{
    Client, ClientUsage, RegisterError, UnknownClient, guarantee_does_not_fit, quota_exceeded,
    untracked,
};
use crate::ledger::{grant, sampling, settle};
use crate::reclaim::{ReclaimReport, Reclaimer};
use crate::registry::policies::{ClientOptions, ConfigError, override_mask};
use crate::registry::{Exhausted, REGISTRY, Tier, TierPolicy};
use crate::telemetry::{Event, Snapshot, read_events, take_snapshot};
use std::sync::Arc;

/// A budget domain: a total, its tiers, its clients, its reclaimer thread.
/// Clones are handles to the same memory; when the last one is dropped, the
/// thread is stopped and joined and the clients are removed.
///
/// ```
/// use tiered_allocator::{Memory, SubscriptionTier};
///
/// let mem = Memory::new(1_000_000_000);
/// mem.add_client("client_1", SubscriptionTier::Premium);
///
/// let block = mem.allocate_for_client("client_1", 50_000_000).unwrap();
/// mem.deallocate_for_client("client_1", block).unwrap();
///
/// let (allocated, used) = mem.get_client_resource_usage("client_1").unwrap();
/// let (total_allocated, total_used) = mem.get_resource_usage();
/// assert_eq!((allocated, used), (0, 0));
/// assert_eq!((total_allocated, total_used), (0, 0));
/// ```
#[derive(Clone, Debug)]
pub struct Memory {
    shared: Arc<Shared>,
    life: Arc<Life>,
}

/// Ends with the last handle.
#[derive(Debug)]
struct Life {
    shared: Arc<Shared>,
    reclaimer: Reclaimer,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.reclaimer.stop();
        sampling::stop(&self.shared.tree);
        self.reclaimer.let_go();
        self.shared.close();
    }
}

/// What [`Memory::add_client`] answers: a [`Result`] that may be ignored, as
/// the quick start does. A refused registration changes nothing, and the name
/// stays unknown.
#[derive(Debug)]
pub struct Registration(Result<Client, RegisterError>);

impl Registration {
    /// The plain result, to use with `?`.
    ///
    /// # Errors
    /// As [`Memory::register`].
    pub fn into_result(self) -> Result<Client, RegisterError> {
        self.0
    }

    /// The client, if it was registered.
    pub fn ok(self) -> Option<Client> {
        self.0.ok()
    }

    /// Why it was not registered, if it was not.
    pub fn err(self) -> Option<RegisterError> {
        self.0.err()
    }

    /// Whether it was registered.
    pub fn is_ok(&self) -> bool {
        self.0.is_ok()
    }

    /// Whether it was not.
    pub fn is_err(&self) -> bool {
        self.0.is_err()
    }

    /// The client.
    ///
    /// # Panics
    /// If it was not registered, as [`Result::unwrap`].
    #[track_caller]
    pub fn unwrap(self) -> Client {
        self.0.unwrap()
    }
}

impl Memory {
    /// A memory of `total_bytes` with the default tiers and intervals: 80 % of
    /// it is usable, 20 % is headroom.
    ///
    /// A total of 0, or beyond what a process can address, is a mistake that
    /// [`Memory::builder`] reports; here it makes a memory that refuses every
    /// charge, or one that the system's own memory bounds.
    pub fn new(total_bytes: u64) -> Memory {
        let built = untracked(|| MemoryBuilder::new(total_bytes).build_unchecked());
        match built {
            Ok(memory) => memory,
            Err(_) => unreachable!("only tiers can be wrong, and there are none"),
        }
    }

    /// A memory of `total_bytes` that is configured first.
    pub fn builder(total_bytes: u64) -> MemoryBuilder {
        MemoryBuilder::new(total_bytes)
    }

    pub(super) fn assemble(shared: Arc<Shared>, reclaimer: Reclaimer) -> Memory {
        let life = Life {
            shared: Arc::clone(&shared),
            reclaimer,
        };
        Memory {
            shared,
            life: Arc::new(life),
        }
    }

    #[cfg(feature = "profile")]
    pub(crate) fn tree(&self) -> &Arc<crate::registry::tree::Tree> {
        &self.shared.tree
    }

    // --- clients --------------------------------------------------------------

    /// Registers a client by name, with everything as its tier has it. The
    /// answer may be ignored; [`Memory::register`] is the same as a plain
    /// `Result`.
    pub fn add_client(&self, name: &str, tier: impl Into<Tier>) -> Registration {
        Registration(self.register(name, untracked(|| ClientOptions::new(tier))))
    }

    /// Registers a client by name.
    ///
    /// # Errors
    /// The name is taken, the tier is unknown, a limit makes no sense, the
    /// guarantee does not fit, or there is no id or no memory for another
    /// client. Nothing is changed then.
    pub fn register(
        &self,
        name: &str,
        options: impl Into<ClientOptions>,
    ) -> Result<Client, RegisterError> {
        untracked(|| {
            let options = options.into();
            self.shared.sweep_some();
            Orphans::sweep();
            let (tier, policy) = self.shared.tree.policies.find(&options.tier)?;
            let limits = self.shared.tree.policies.limits(&policy, &options)?;
            // Keeps forks out to the end: the client comes with its name.
            let mut names = self.shared.names_mut();
            if names.contains_key(name) {
                return Err(RegisterError::Duplicate {
                    name: name.to_owned(),
                });
            }
            let name: Arc<str> = name.into();
            names
                .try_reserve(1)
                .map_err(|_| RegisterError::OutOfMemory)?;
            let tree = Arc::clone(&self.shared.tree);
            let slot = REGISTRY.acquire().map_err(|exhausted| match exhausted {
                Exhausted::Ids(limit) => RegisterError::IdsExhausted { limit },
                Exhausted::Memory => RegisterError::OutOfMemory,
            })?;
            let open = || {
                slot.lock()
                    .open(Arc::clone(&name), Arc::clone(&tree), tier, limits)
            };
            // Unused credit is no reason to refuse a guarantee.
            let opened = open().or_else(|refusal| match settle::collect_all(&tree) {
                true => open(),
                false => Err(refusal),
            });
            match opened {
                Ok(generation) => {
                    slot.set_overrides(override_mask(&options));
                    let client = Client::new(slot, generation);
                    names.insert(name, client.id());
                    Ok(client)
                }
                Err(refusal) => {
                    REGISTRY.release(slot);
                    Err(guarantee_does_not_fit(refusal))
                }
            }
        })
    }

    /// Removes a client: nothing new is charged to it. What it holds stays,
    /// visible in snapshots as retired, until the last byte is freed; its id
    /// is then used again. The name is free at once.
    ///
    /// # Errors
    /// There is no such client.
    pub fn remove_client(&self, name: &str) -> Result<(), UnknownClient> {
        let removed = self.shared.names_mut().remove(name);
        let client = removed
            .and_then(Client::with_id)
            .ok_or_else(|| unknown(name))?;
        self.shared.retire(client);
        Ok(())
    }

    /// Gives a client another name. Handles and blocks stay with it. Its own
    /// name changes nothing.
    ///
    /// # Errors
    /// There is no such client, or the new name is another's.
    pub fn rename_client(&self, name: &str, new_name: &str) -> Result<(), RegisterError> {
        untracked(|| {
            let mut names = self.shared.names_mut();
            if names.contains_key(new_name) {
                if name == new_name {
                    return Ok(());
                }
                return Err(RegisterError::Duplicate {
                    name: new_name.to_owned(),
                });
            }
            let id = names.remove(name).ok_or_else(|| unknown(name))?;
            let new_name: Arc<str> = new_name.into();
            let old_name =
                Client::with_id(id).and_then(|client| client.rename(Arc::clone(&new_name)));
            names.insert(new_name, id);
            drop(names);
            drop(old_name);
            Ok(())
        })
    }

    /// The client with this name.
    ///
    /// # Errors
    /// There is none.
    pub fn client(&self, name: &str) -> Result<Client, UnknownClient> {
        let id = self.shared.names().get(name).copied();
        id.and_then(Client::with_id).ok_or_else(|| unknown(name))
    }

    /// Clients registered at the moment.
    pub fn client_count(&self) -> usize {
        self.shared.names().len()
    }

    // --- tiers ----------------------------------------------------------------

    /// Defines a tier or changes one, live. The aggregate limit holds from now
    /// on; the limits of each client change when it next comes to the tier
    /// ([`Client::set_tier`]). What is charged stays charged.
    ///
    /// # Errors
    /// A limit makes no sense, or there are too many tiers.
    pub fn set_tier_policy(
        &self,
        tier: impl Into<Tier>,
        policy: TierPolicy,
    ) -> Result<(), ConfigError> {
        let tree = &self.shared.tree;
        untracked(|| tree.define(&tier.into(), policy))?;
        // Credit drawn under the old limit must not outlast it.
        settle::collect_all(tree);
        Ok(())
    }

    // --- blocks ---------------------------------------------------------------

    /// Allocates a block of `size` bytes that is charged to the client.
    ///
    /// While the memory is full and lower tiers have borrowed as much, the call
    /// waits for the reclaimer to take it back from them, for
    /// [`MemoryBuilder::patience`] at most.
    ///
    /// # Errors
    /// There is no such client, the size is 0, the client may not have so
    /// much, or the system has no memory.
    pub fn allocate_for_client(
        &self,
        name: &str,
        size: usize,
    ) -> Result<MemoryBlock, AllocateError> {
        let client = self.client(name)?;
        if size == 0 {
            return Err(AllocateError::ZeroSize);
        }
        let _hold = client.held().ok_or_else(|| unknown(name))?;
        let (slot, bytes) = (client.slot(), size as u64);
        relief::charge(&self.shared, slot, bytes, || {
            grant::charge_block(slot, bytes)
        })
        .map_err(|refusal| quota_exceeded(slot, refusal))?;
        let shared = Arc::clone(&self.shared);
        let state = untracked(|| BlockState::allocate(size, client.clone(), shared));
        let Some(state) = state else {
            settle::refund_block(client.slot(), size as u64, 1);
            return Err(AllocateError::OutOfMemory { requested: size });
        };
        self.shared.remember(&state);
        Ok(MemoryBlock::new(state))
    }

    /// Frees a block, as dropping it does, after checking that it is the
    /// client's.
    ///
    /// # Errors
    /// There is no such client, or the block is another's. The error hands the
    /// block back.
    pub fn deallocate_for_client(
        &self,
        name: &str,
        block: MemoryBlock,
    ) -> Result<(), DeallocateError> {
        let reason = match self.client(name) {
            Ok(client) if block.belongs_to(&client) => {
                drop(block);
                return Ok(());
            }
            Ok(_) => DeallocateReason::WrongClient(WrongClient {
                owner: untracked(|| block.client().name().unwrap_or_else(|| "?".into())),
                named: untracked(|| name.to_owned()),
            }),
            Err(unknown) => DeallocateReason::UnknownClient(unknown),
        };
        Err(DeallocateError { block, reason })
    }

    // --- usage ----------------------------------------------------------------

    /// `(allocated, used)` of a client in bytes: what it holds, and how much
    /// of that is in physical memory (live heap bytes, and the resident pages
    /// of its blocks, measured now).
    ///
    /// # Errors
    /// There is no such client.
    pub fn get_client_resource_usage(&self, name: &str) -> Result<(u64, u64), UnknownClient> {
        self.update_client_usage(name)
    }

    /// `(allocated, used)` of all clients together, removed ones that still
    /// hold something included, in bytes; measured now.
    pub fn get_resource_usage(&self) -> (u64, u64) {
        let mut allocated = 0;
        let mut used = 0;
        self.measure_blocks();
        let snapshot = self.snapshot();
        for client in snapshot.clients.iter().chain(&snapshot.retired) {
            allocated += client.usage.live_bytes;
            used += client.used_bytes;
        }
        (allocated, used)
    }

    fn measure_blocks(&self) {
        untracked(|| {
            for block in self.shared.blocks() {
                block.measure();
            }
        });
    }

    /// Measures what a client uses now, without waiting for the next sample,
    /// and answers as [`Memory::get_client_resource_usage`].
    ///
    /// # Errors
    /// There is no such client.
    pub fn update_client_usage(&self, name: &str) -> Result<(u64, u64), UnknownClient> {
        let client = self.client(name)?;
        let index = client.slot().index();
        let resident: u64 = untracked(|| {
            let blocks = self.shared.blocks();
            let own = blocks.iter().filter(|block| block.owner_index() == index);
            own.map(|block| block.measure()).sum()
        });
        let usage = client.usage();
        let heap = usage.live_bytes - usage.block_bytes;
        Ok((usage.live_bytes, heap + resident))
    }

    /// What a client has and had.
    ///
    /// # Errors
    /// There is no such client.
    pub fn client_usage(&self, name: &str) -> Result<ClientUsage, UnknownClient> {
        Ok(self.client(name)?.usage())
    }

    /// The memory as a whole: what is charged, reserved, overdrawn.
    pub fn usage(&self) -> MemoryUsage {
        let tree = &self.shared.tree;
        let (charged_bytes, overdrawn_bytes) = tree.charged_and_overdrawn();
        MemoryUsage {
            total_bytes: self.shared.total_bytes,
            usable_bytes: tree.root.limit(),
            charged_bytes,
            overdrawn_bytes,
            spilled_bytes: self.shared.spilled_now_bytes(),
        }
    }

    /// Everything at once, as plain data: clients, tiers, totals, what is
    /// charged to nobody, and the process' resident set. The physical figures
    /// are those of the last sample.
    pub fn snapshot(&self) -> Snapshot {
        untracked(|| take_snapshot(&self.shared, self.usage()))
    }

    /// What was refused, lent and taken back, from number `from` on, oldest
    /// first, and the number to go on from. The latest 1,024 are kept.
    ///
    /// ```
    /// # use tiered_allocator::{EventKind, Memory, SubscriptionTier};
    /// # let memory = Memory::new(1 << 30);
    /// # memory.add_client("acme", SubscriptionTier::Basic);
    /// assert!(memory.allocate_for_client("acme", 2 << 30).is_err());
    /// let (events, next) = memory.events(0);
    /// assert_eq!(events[0].kind, EventKind::Refused);
    /// assert!(memory.events(next).0.is_empty());
    /// ```
    pub fn events(&self, from: u64) -> (Vec<Event>, u64) {
        untracked(|| read_events(&self.shared, from))
    }

    // --- reclaim --------------------------------------------------------------

    /// Reclaims every block that is idle by its tier's rule, now, on the
    /// calling thread.
    pub fn reclaim_unused_memory(&self) -> ReclaimReport {
        self.life.reclaimer.reclaim_now()
    }

    /// Does what is due by the memory's clock (sampling, reclaiming), and
    /// returns when it is done. The reclaimer thread does the same by itself;
    /// this is for memories without one and for tests.
    pub fn tick(&self) {
        self.life.reclaimer.tick();
    }

    /// Whether the memory has a running reclaimer thread.
    pub fn has_reclaimer_thread(&self) -> bool {
        self.life.reclaimer.has_thread()
    }
}

/// The memory as a whole, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MemoryUsage {
    /// All there is to hand out.
    pub total_bytes: u64,
    /// The part that limits are counted in.
    pub usable_bytes: u64,
    /// Charged or reserved: Σ over the clients of max(guarantee, charged), but
    /// for overdrafts.
    pub charged_bytes: u64,
    /// Overdrafts, out of the headroom.
    pub overdrawn_bytes: u64,
    /// On disk.
    pub spilled_bytes: u64,
}

fn unknown(name: &str) -> UnknownClient {
    untracked(|| UnknownClient {
        name: name.to_owned(),
    })
}
