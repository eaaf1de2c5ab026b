//! Adding up the samples, and naming their frames.

use super::options::{ProfileError, is_of};
use crate::ledger::sampling;
use crate::registry::REGISTRY;
use crate::{Client, ClientId, Memory};
use std::collections::HashMap;
use std::sync::Arc;

/// What lives of what was allocated since the profile was started, by client
/// and call stack. The figures are estimates; see [the module](super).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HeapProfile {
    /// Most bytes first.
    pub sites: Vec<ProfileSite>,
    /// The mean number of bytes from one sample to the next.
    pub sample_bytes: u64,
    /// Samples that found no room since the start: what they stood for is
    /// missing. More [`max_samples`](super::ProfileOptions::max_samples) or
    /// more `sample_bytes` help.
    pub dropped_samples: u64,
    /// Samples of the whole process that are kept at the moment.
    pub kept_samples: u32,
    /// Whether the profile is still being taken.
    pub is_running: bool,
}

/// What one client has from one call stack.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ProfileSite {
    /// The client; `None` for what was allocated outside any scope.
    pub client: Option<ClientId>,
    /// Its name at the moment, or `(unattributed)`.
    pub client_name: Arc<str>,
    /// Who called whom, innermost first: what asked for the memory, not the
    /// allocator. At most 59 calls deep, those of the allocator included;
    /// what is further out is missing.
    pub frames: Vec<StackFrame>,
    /// Live bytes, estimated.
    pub live_bytes: u64,
    /// Live blocks, estimated.
    pub live_blocks: u64,
    /// Live blocks that are sampled.
    pub samples: u64,
}

/// One function of a call stack. A function that was inlined has the address
/// of the one it was inlined into.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct StackFrame {
    /// The return address.
    pub address: usize,
    /// The function's name, or the address if it has no symbol.
    pub function: String,
    /// The source file, if debug information tells.
    pub file: Option<String>,
    /// The line, if debug information tells.
    pub line: Option<u32>,
}

impl HeapProfile {
    /// Live bytes of all sites, estimated.
    pub fn live_bytes(&self) -> u64 {
        self.sites.iter().map(|site| site.live_bytes).sum()
    }

    /// Live blocks of all sites, estimated.
    pub fn live_blocks(&self) -> u64 {
        self.sites.iter().map(|site| site.live_blocks).sum()
    }
}

/// What samples with one stack of one client add up to.
#[derive(Default)]
struct Sum {
    bytes: f64,
    blocks: f64,
    samples: u64,
}

pub(super) fn take(memory: &Memory, client: Option<&Client>) -> Result<HeapProfile, ProfileError> {
    let tree = memory.tree();
    let figures = sampling::figures(tree).ok_or(ProfileError::NotStarted)?;
    let wanted = client.map(|client| client.slot().client());
    if let Some(client) = client.filter(|client| !is_of(memory, client)) {
        return Err(ProfileError::NotOfThisMemory {
            client: client.id(),
        });
    }
    let seen = sampling::read_all(figures.epoch, |seen| {
        let slot = REGISTRY.slot(seen.owner.index()?)?;
        let owner = slot.client();
        if wanted.is_some_and(|wanted| !core::ptr::eq(wanted, owner)) {
            return None;
        }
        if slot.is_unattributed() {
            return Some(None);
        }
        // A block may have been adopted by a client of another memory.
        slot.has_tree(&**tree)
            .then(|| Some(ClientId::new(owner.index(), owner.generation())))
    });
    let mut sums: HashMap<(Option<ClientId>, Vec<usize>), Sum> = HashMap::new();
    for (sample, owner) in seen {
        let sum = sums.entry((owner, sample.frames().to_vec())).or_default();
        let stands_for = stands_for(sample.size, figures.sample_bytes);
        sum.bytes += sample.size as f64 * stands_for;
        sum.blocks += stands_for;
        sum.samples += 1;
    }
    let mut names = HashMap::new();
    let mut symbols = HashMap::new();
    let mut sites: Vec<ProfileSite> = sums
        .into_iter()
        .map(|((client, stack), sum)| ProfileSite {
            client,
            client_name: Arc::clone(names.entry(client).or_insert_with(|| name(client))),
            frames: frames(&stack, &mut symbols),
            live_bytes: sum.bytes.round() as u64,
            live_blocks: sum.blocks.round() as u64,
            samples: sum.samples,
        })
        .collect();
    let key = |site: &ProfileSite| (u64::MAX - site.live_bytes, site.client);
    sites.sort_by_cached_key(|site| (key(site), Arc::clone(&site.client_name)));
    Ok(HeapProfile {
        sites,
        sample_bytes: figures.sample_bytes,
        dropped_samples: figures.dropped,
        kept_samples: figures.taken,
        is_running: figures.running,
    })
}

/// How many blocks of `size` bytes one sampled one stands for.
fn stands_for(size: u64, sample_bytes: u64) -> f64 {
    // 1 / (1 - exp(-size / sample_bytes)), exact for small quotients, too. A
    // sampled block has at least the byte with the mark.
    -1.0 / (-(size as f64) / sample_bytes as f64).exp_m1()
}

fn name(client: Option<ClientId>) -> Arc<str> {
    match client {
        None => "(unattributed)".into(),
        Some(id) => Client::with_id(id)
            .and_then(|client| client.name())
            .unwrap_or_else(|| id.to_string().into()),
    }
}

/// The frames of a stack, without those of the allocator and the profiler.
fn frames(stack: &[usize], symbols: &mut HashMap<usize, Vec<StackFrame>>) -> Vec<StackFrame> {
    let mut frames: Vec<StackFrame> = Vec::with_capacity(stack.len());
    for &address in stack {
        let named = symbols.entry(address).or_insert_with(|| resolve(address));
        frames.extend_from_slice(named);
    }
    let inside = |frame: &StackFrame| is_inside(&frame.function);
    // The entry points' names differ between compilers, and they may be inlined.
    let own = frames.iter().take_while(|frame| inside(frame)).count();
    frames.drain(..own);
    frames
}

fn is_inside(function: &str) -> bool {
    [
        "tiered_allocator::ledger::",
        "tiered_allocator::allocator::",
        "tiered_allocator::TieredAllocator",
        "backtrace::",
        "__rust_alloc",
        "__rust_realloc",
        "__rg_",
        "alloc::alloc::",
        "alloc::GlobalAlloc",
    ]
    .iter()
    .any(|inside| function.contains(inside))
}

fn resolve(address: usize) -> Vec<StackFrame> {
    let mut frames = Vec::new();
    // Subtracts one from the address, which is where the call returns to.
    backtrace::resolve(core::ptr::without_provenance_mut(address), |symbol| {
        frames.push(StackFrame {
            address,
            function: symbol
                .name()
                .map_or_else(|| format!("{address:#x}"), |name| format!("{name:#}")),
            file: symbol
                .filename()
                .map(|file| file.to_string_lossy().into_owned()),
            line: symbol.lineno(),
        });
    });
    if frames.is_empty() {
        frames.push(StackFrame {
            address,
            function: format!("{address:#x}"),
            file: None,
            line: None,
        });
    }
    frames
}
