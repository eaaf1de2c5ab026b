//! Tenants are killed under load, again and again: removed, cancelled, ended
//! with their thread. Their neighbours' results stay right, every byte comes
//! back, and the process does not grow.
//!
//! Without more ado a few dozen rounds. `SOAK_SECONDS` goes on for as long,
//! `SOAK_SEED` repeats a run's choices; `scripts/soak.sh` sets both.

#[path = "support/results.rs"]
mod results;

use results::{Random, Texts, expected, hash, numbers};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tiered_allocator::clock::ManualClock;
use tiered_allocator::{
    Client, ClientId, ClientOptions, Enforcement, InClientExt, Limit, Memory, MemoryBlock,
    SubscriptionTier, TieredAllocator,
};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const NEIGHBOURS: u64 = 3;
const VICTIMS: u64 = 6;
const RECORDS: usize = 600;
const MAX_BYTES: u64 = 1 << 20;
const NEIGHBOUR_BYTES: u64 = 16 << 20;
const BLOCK_BYTES: usize = 192 << 10;
const IDLE: Duration = Duration::from_secs(300);
const ROUNDS: u64 = 30;

// --- neighbours -----------------------------------------------------------------

/// Puts numbers into texts into maps, reads them again from there.
fn work(seed: u64) -> u64 {
    let mut texts = Texts::default();
    for number in numbers(seed).take(RECORDS) {
        texts.add(number, 6000);
    }
    texts.sum(seed)
}

/// A block that knows what it must hold, whether it was spilled or not.
struct Marked(MemoryBlock, u64);

impl Marked {
    fn words(seed: u64) -> impl Iterator<Item = [u8; 8]> {
        (0..(BLOCK_BYTES / 8) as u64).map(move |at| hash(at, seed).to_le_bytes())
    }

    fn write(&mut self, seed: u64) {
        self.1 = seed;
        let mut pin = self.0.pin_mut().unwrap();
        for (bytes, word) in pin.chunks_exact_mut(8).zip(Marked::words(seed)) {
            bytes.copy_from_slice(&word);
        }
    }

    fn check(&self) {
        let pin = self.0.pin().unwrap();
        assert!(pin.chunks_exact(8).eq(Marked::words(self.1)));
    }
}

struct Neighbour {
    client: Client,
    block: Option<Marked>,
}

/// Works until nobody is killed any more; at least once.
fn neighbour(client: &Client, mut block: Marked, seed: u64, done: &AtomicBool) -> Marked {
    let mut piece = 0;
    loop {
        let seed = hash(piece, seed);
        let result = if piece % 3 == 0 {
            let budget = client.budget(NEIGHBOUR_BYTES / 2).unwrap();
            budget.run(|| work(seed)).unwrap()
        } else {
            work(seed)
        };
        assert_eq!(result, expected(RECORDS, seed), "seed {seed}");
        block.check();
        block.write(seed);
        client.checkpoint().unwrap();
        piece += 1;
        if done.load(Ordering::Relaxed) {
            return block;
        }
    }
}

// --- victims --------------------------------------------------------------------

/// What a victim leaves behind, to be freed by somebody else after its end.
enum Left {
    Hoard(ClientId, Vec<Vec<u8>>),
    Blocks(ClientId, Vec<MemoryBlock>),
}

impl Left {
    fn client(&self) -> ClientId {
        match *self {
            Left::Hoard(id, _) | Left::Blocks(id, _) => id,
        }
    }

    /// All bytes, and of these those in blocks.
    fn bytes(&self) -> (u64, u64) {
        match self {
            Left::Hoard(_, hoard) => {
                let pieces: usize = hoard.iter().map(Vec::capacity).sum();
                let bytes = pieces + hoard.capacity() * size_of::<Vec<u8>>();
                (bytes as u64, 0)
            }
            Left::Blocks(_, blocks) => {
                let in_blocks: usize = blocks.iter().map(|block| block.len()).sum();
                let bytes = in_blocks + blocks.capacity() * size_of::<MemoryBlock>();
                (bytes as u64, in_blocks as u64)
            }
        }
    }
}

#[derive(Default)]
struct Bin(Mutex<Vec<Left>>);

impl Bin {
    fn keep(&self, left: Left) {
        tiered_allocator::untracked(|| self.0.lock().unwrap().push(left));
    }
}

#[derive(Default)]
struct Deaths {
    quota: AtomicU64,
    refused: AtomicU64,
    panicked: AtomicU64,
    dropped: AtomicU64,
    removed: AtomicU64,
    budget: AtomicU64,
    blocks: AtomicU64,
}

impl Deaths {
    fn all(&self) -> [(&'static str, u64); 7] {
        [
            ("stopped at a checkpoint", &self.quota),
            ("refused to the byte", &self.refused),
            ("panicked", &self.panicked),
            ("dropped between two polls", &self.dropped),
            ("removed at work", &self.removed),
            ("ended in a budget", &self.budget),
            ("ended with blocks", &self.blocks),
        ]
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

fn count(of: &AtomicU64) {
    of.fetch_add(1, Ordering::Relaxed);
}

/// Allocates until the quota of `charged` (the client or a budget of it) stops
/// it, or the client is removed: then it is charged to nobody and has no quota.
fn hoard(charged: &Client, client: &Client, random: &mut Random) -> Vec<Vec<u8>> {
    let mut hoard = Vec::new();
    loop {
        for _ in 0..16 {
            hoard.push(vec![1_u8; 1 + random.below(8192) as usize]);
        }
        if charged.checkpoint().is_err() || !client.is_active() {
            return hoard;
        }
    }
}

/// The same for a client that is refused to the byte, in code that can fail.
fn refused(client: &Client, random: &mut Random) -> Vec<Vec<u8>> {
    let mut hoard: Vec<Vec<u8>> = Vec::new();
    hoard.try_reserve_exact(4096).unwrap();
    while hoard.len() < hoard.capacity() {
        let mut piece = Vec::new();
        let Ok(()) = piece.try_reserve_exact(1 + random.below(4096) as usize) else {
            break;
        };
        hoard.push(piece);
    }
    let usage = client.usage();
    if client.is_active() {
        assert!(usage.refusals > 0 && usage.live_bytes <= MAX_BYTES);
    }
    hoard
}

/// A future that is polled a few times and then dropped with all it holds.
fn drop_between_polls(client: &Client, random: &mut Random) {
    let polls = 1 + random.below(20);
    let seed = random.below(1 << 30);
    let attack = async move {
        let mut random = Random(seed);
        let mut hoard = Vec::new();
        poll_fn(|context| -> Poll<()> {
            hoard.push(vec![1_u8; 1 + random.below(30_000) as usize]);
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    };
    let mut attack = pin!(attack.in_client(client));
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..polls {
        assert!(attack.as_mut().poll(&mut context).is_pending());
    }
}

/// One tenant's life, from its first scope to the end of its thread.
fn victim(
    memory: &Memory,
    name: &str,
    client: &Client,
    mut random: Random,
    bin: &Bin,
    deaths: &Deaths,
    killed: &AtomicBool,
) {
    let random = &mut random;
    let id = client.id();
    let leaves = random.below(2) == 0;
    if client.enforcement() == Enforcement::Strict {
        let _scope = client.enter();
        let hoard = refused(client, random);
        count(&deaths.refused);
        if leaves {
            bin.keep(Left::Hoard(id, hoard));
        }
        return;
    }
    match random.below(6) {
        0 => {
            let _scope = client.enter();
            let hoard = hoard(client, client, random);
            count(&deaths.quota);
            if leaves {
                bin.keep(Left::Hoard(id, hoard));
            }
        }
        1 => {
            let _scope = client.enter();
            let _hoard = hoard(client, client, random);
            count(&deaths.panicked);
            // As a panic, without its message.
            std::panic::resume_unwind(Box::new(()));
        }
        2 => {
            drop_between_polls(client, random);
            count(&deaths.dropped);
        }
        3 => {
            let _scope = client.enter();
            let mut hoard = Vec::new();
            while !killed.load(Ordering::Relaxed) {
                if hoard.len() == 200 {
                    hoard.clear();
                }
                hoard.push(vec![1_u8; 1 + random.below(8192) as usize]);
            }
            count(&deaths.removed);
            if leaves {
                bin.keep(Left::Hoard(id, hoard));
            }
        }
        4 => {
            let Ok(budget) = client.budget(MAX_BYTES / 4) else {
                // Removed before it began.
                return;
            };
            let hoard = {
                let _scope = budget.enter();
                hoard(&budget, client, random)
            };
            drop(budget);
            count(&deaths.budget);
            if leaves {
                bin.keep(Left::Hoard(id, hoard));
            }
        }
        _ => {
            let _scope = client.enter();
            let mut blocks = Vec::with_capacity(8);
            while blocks.len() < blocks.capacity()
                && let Ok(block) = memory.allocate_for_client(name, BLOCK_BYTES / 2)
            {
                blocks.push(block);
            }
            count(&deaths.blocks);
            if leaves {
                bin.keep(Left::Blocks(id, blocks));
            }
        }
    }
}

// --- rounds ---------------------------------------------------------------------

struct Soak {
    memory: Memory,
    clock: Arc<ManualClock>,
    neighbours: Vec<Neighbour>,
    deaths: Arc<Deaths>,
    random: Random,
    round: u64,
    /// What victims left and the books said, byte for byte.
    compared_bytes: u64,
}

struct Victim {
    name: String,
    id: ClientId,
    thread: JoinHandle<()>,
}

impl Soak {
    fn new(seed: u64) -> Soak {
        let clock = Arc::new(ManualClock::default());
        let memory = Memory::builder(512 << 20)
            .background(false)
            .clock(Arc::clone(&clock))
            .build()
            .unwrap();
        let neighbours = (0..NEIGHBOURS)
            .map(|number| {
                let name = format!("neighbour-{number}");
                let options = ClientOptions::new(SubscriptionTier::Premium)
                    .max(Limit::Bytes(NEIGHBOUR_BYTES));
                let client = memory.register(&name, options).unwrap();
                let block = memory.allocate_for_client(&name, BLOCK_BYTES).unwrap();
                let mut block = Marked(block, 0);
                block.write(number);
                Neighbour {
                    client,
                    block: Some(block),
                }
            })
            .collect();
        Soak {
            memory,
            clock,
            neighbours,
            deaths: Arc::default(),
            random: Random(seed),
            round: 0,
            compared_bytes: 0,
        }
    }

    fn victim(&mut self, number: u64, bin: &Arc<Bin>, killed: &Arc<AtomicBool>) -> Victim {
        let name = format!("victim-{}-{number}", self.round);
        let strict = self.random.below(4) == 0;
        let enforcement = if strict {
            Enforcement::Strict
        } else {
            Enforcement::Graceful
        };
        let options = ClientOptions::new(SubscriptionTier::Basic)
            .max(Limit::Bytes(MAX_BYTES))
            .enforcement(enforcement);
        let client = self.memory.register(&name, options).unwrap();
        let id = client.id();
        let random = Random(self.random.below(1 << 31));
        let (memory, of_thread) = (self.memory.clone(), name.clone());
        let (bin, deaths) = (Arc::clone(bin), Arc::clone(&self.deaths));
        let killed = Arc::clone(killed);
        let thread = thread::spawn(move || {
            victim(&memory, &of_thread, &client, random, &bin, &deaths, &killed);
        });
        Victim { name, id, thread }
    }

    /// Victims live and die while the neighbours work; then everything rests
    /// and is counted.
    fn round(&mut self) {
        let bin = Arc::new(Bin::default());
        let killed = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicBool::new(false));
        let neighbours: Vec<JoinHandle<Marked>> = self
            .neighbours
            .iter_mut()
            .map(|neighbour| {
                let client = neighbour.client.clone();
                let block = neighbour.block.take().unwrap();
                let seed = self.random.below(1 << 31);
                let done = Arc::clone(&done);
                thread::spawn(move || {
                    let _scope = client.enter();
                    self::neighbour(&client, block, seed, &done)
                })
            })
            .collect();
        let victims: Vec<Victim> = (0..VICTIMS)
            .map(|number| self.victim(number, &bin, &killed))
            .collect();
        // Some are removed while they are at work, the others when they ended.
        let (early, late): (Vec<Victim>, Vec<Victim>) =
            victims.into_iter().partition(|_| self.random.below(2) == 0);
        for victim in &early {
            if self.random.below(2) == 0 {
                thread::yield_now();
            }
            self.memory.remove_client(&victim.name).unwrap();
        }
        self.clock.advance(2 * IDLE);
        self.memory.tick();
        killed.store(true, Ordering::Relaxed);
        let removed_at_end: Vec<(String, ClientId)> = late
            .iter()
            .map(|victim| (victim.name.clone(), victim.id))
            .collect();
        for victim in early.into_iter().chain(late) {
            // A victim's panic is one of its ways to go; any other would have
            // left a text.
            if let Err(panic) = victim.thread.join() {
                assert!(panic.is::<()>(), "{}: {panic:?}", victim.name);
            }
        }
        for (name, _) in &removed_at_end {
            self.memory.remove_client(name).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for (neighbour, thread) in self.neighbours.iter_mut().zip(neighbours) {
            neighbour.block = Some(thread.join().unwrap());
        }
        let bin = Arc::into_inner(bin).unwrap().0.into_inner().unwrap();
        let all_theirs = removed_at_end.into_iter().map(|(_, id)| id).collect();
        self.rest(bin, all_theirs);
        self.round += 1;
    }

    /// Nobody works: the books must agree with what is there, to the byte. What
    /// the clients in `exact` left is all theirs; what others left may have been
    /// allocated after they were removed, and is charged to nobody then.
    fn rest(&mut self, bin: Vec<Left>, exact: Vec<ClientId>) {
        let snapshot = self.memory.snapshot();
        let retired: BTreeMap<ClientId, (u64, u64)> = snapshot
            .retired
            .iter()
            .map(|client| {
                let usage = client.usage;
                (client.id, (usage.live_bytes, usage.block_bytes))
            })
            .collect();
        for left in &bin {
            let booked = retired.get(&left.client()).copied().unwrap_or_default();
            let there = left.bytes();
            if exact.contains(&left.client()) {
                // Blocks may be spilled, whole ones.
                let spilled = there.1 - booked.1;
                assert_eq!(spilled % (BLOCK_BYTES / 2) as u64, 0);
                assert_eq!(booked.0, there.0 - spilled, "{:?}", left.client());
                self.compared_bytes += there.0;
            } else {
                assert!(booked.0 <= there.0 && booked.1 <= there.1);
            }
        }
        let left: Vec<ClientId> = bin.iter().map(Left::client).collect();
        let mut others = retired.iter().filter(|(id, _)| !left.contains(id));
        assert!(others.all(|(_, &booked)| booked == (0, 0)), "{retired:?}");
        // Freed by a thread that never worked for any of them.
        thread::spawn(move || drop(bin)).join().unwrap();

        let snapshot = self.memory.snapshot();
        // Their slots are freed a few at a time, by later calls; not their bytes.
        assert!(snapshot.retired.len() as u64 <= 2 * VICTIMS);
        for client in &snapshot.retired {
            let usage = client.usage;
            let left = (usage.live_bytes, usage.live_allocations);
            assert_eq!((left, usage.charged_bytes), ((0, 0), 0), "{client:?}");
        }
        assert_eq!(self.memory.client_count() as u64, NEIGHBOURS);
        let mut charged_bytes = 0;
        for neighbour in &self.neighbours {
            let usage = neighbour.client.usage();
            // The block is charged where it is, and not where it was spilled to.
            let resident = [0, BLOCK_BYTES as u64];
            assert!(resident.contains(&usage.block_bytes), "{usage:?}");
            assert_eq!(usage.live_bytes, usage.block_bytes, "{usage:?}");
            assert_eq!(usage.charged_bytes, usage.live_bytes, "{usage:?}");
            assert_eq!((usage.refusals, usage.overdrawn_bytes), (0, 0));
            charged_bytes += usage.charged_bytes;
        }
        let usage = self.memory.usage();
        assert_eq!(
            (usage.charged_bytes, usage.overdrawn_bytes),
            (charged_bytes, 0)
        );
    }
}

/// The resident set may be this much larger in the last quarter of a run than
/// it was in the first half, by its highest figure at a rest.
const GROWTH: (u64, u64) = (5, 4);
const GROWTH_BYTES: u64 = 8 << 20;

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {value}")),
    )
}

#[test]
fn neighbours_of_killed_tenants_notice_nothing_and_every_byte_comes_back() {
    assert!(TieredAllocator::is_installed());
    let seed = from_environment("SOAK_SEED").unwrap_or(1);
    let time = from_environment("SOAK_SECONDS").map(Duration::from_secs);
    println!("SOAK_SEED={seed}");
    let began = Instant::now();
    let mut soak = Soak::new(seed);
    let mut resident = Vec::new();
    let mut unattributed = Vec::new();
    let mut said = began;
    loop {
        soak.round();
        let snapshot = soak.memory.snapshot();
        resident.extend(snapshot.resident_set_bytes);
        unattributed.push(snapshot.unattributed_bytes);
        if said.elapsed() >= Duration::from_secs(60) {
            said = Instant::now();
            println!(
                "round {}: {resident_set:?} bytes resident",
                soak.round,
                resident_set = resident.last()
            );
        }
        let enough = match time {
            Some(time) => began.elapsed() >= time && soak.round >= ROUNDS,
            None => soak.round >= ROUNDS,
        };
        if enough {
            break;
        }
    }
    let reclaim = soak.memory.snapshot().reclaim;
    println!(
        "{} rounds; {} bytes left by victims and found in the books; {} bytes spilled, {} restored",
        soak.round, soak.compared_bytes, reclaim.spilled_bytes, reclaim.restored_bytes,
    );
    for (death, times) in soak.deaths.all() {
        println!("{times} victims {death}");
        assert!(times > 0, "nobody {death}");
    }
    assert!(soak.compared_bytes > 0);
    for (what, figures, slack) in [
        ("resident", &resident, GROWTH_BYTES),
        ("unattributed", &unattributed, 1 << 20),
    ] {
        // Where the system does not say; and a few rounds do not show whether
        // the inner allocator is still making arenas.
        if figures.is_empty() || (what == "resident" && time.is_none()) {
            continue;
        }
        let quarter = figures.len() / 4;
        let highest = |figures: &[u64]| figures.iter().copied().max().unwrap();
        // The first rounds fill caches, tables and the ring of events.
        let early = highest(&figures[..2 * quarter]);
        let late = highest(&figures[3 * quarter..]);
        println!("{what} bytes: at most {early} in the first half, {late} in the last quarter");
        assert!(late <= early / GROWTH.1 * GROWTH.0 + slack);
    }
    drop(soak);
}
