//! Ten tenants that together want twice what there is: their work, and the
//! books that they keep of it themselves.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tiered_allocator::{
    Client, ClientOptions, Limit, Memory, MemoryBlock, PinError, ReclaimRequest, Snapshot,
    SubscriptionTier, TierSnapshot,
};

pub const MIB: u64 = 1 << 20;

/// How often those look who only look.
const LOOK: Duration = Duration::from_millis(1);

/// How often a tenant asks again for what it is due.
const INSISTS: u32 = 1000;

/// Numbers that only depend on the seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// What happened to the tenants of one tier.
#[derive(Clone, Copy, Default, Debug)]
pub struct Outcome {
    pub requests: u64,
    pub refused: u64,
    /// Of these, within the tenant's own limits, while lower tiers had borrowed
    /// at least as much and went on holding it.
    pub unfair: u64,
    /// Granted, but not at the first time of asking.
    pub late: u64,
    /// Times that its work was stopped.
    pub stopped: u64,
    /// Pins of blocks that had to wait until they could come back.
    pub pins_refused: u64,
    pub cache_given: u64,
}

impl Outcome {
    pub fn add(&mut self, other: &Outcome) {
        self.requests += other.requests;
        self.refused += other.refused;
        self.unfair += other.unfair;
        self.late += other.late;
        self.stopped += other.stopped;
        self.pins_refused += other.pins_refused;
        self.cache_given += other.cache_given;
    }
}

type Cache = Arc<Mutex<VecDeque<Vec<u8>>>>;

pub struct Tenant {
    pub client: Client,
    pub tier: SubscriptionTier,
    name: String,
    memory: Memory,
    max: u64,
    /// What it wants to hold at the moment.
    demand: u64,
    work: Vec<Vec<u8>>,
    cache: Cache,
    blocks: Vec<(MemoryBlock, u8)>,
    given: Arc<AtomicU64>,
    random: Random,
    outcome: Outcome,
}

fn bytes_of<'a>(buffers: impl IntoIterator<Item = &'a Vec<u8>>) -> u64 {
    let bytes = |buffer: &Vec<u8>| buffer.capacity() as u64;
    buffers.into_iter().map(bytes).sum()
}

impl Tenant {
    fn new(memory: &Memory, name: String, tier: SubscriptionTier, max: u64, seed: u64) -> Tenant {
        let options = ClientOptions::new(tier)
            .max(Limit::Bytes(max))
            .guarantee(Limit::Bytes(max / 16));
        let client = memory.register(&name, options).expect("the tenants fit");
        let cache = Cache::default();
        let given = Arc::new(AtomicU64::new(0));
        let (own, counter) = (Arc::clone(&cache), Arc::clone(&given));
        client
            .register_reclaimer(move |request| {
                let freed = shrink(&own, request);
                counter.fetch_add(freed, Ordering::Relaxed);
                freed
            })
            .expect("the client is there")
            .keep();
        Tenant {
            client,
            tier,
            name,
            memory: memory.clone(),
            max,
            demand: 0,
            work: Vec::new(),
            cache,
            blocks: Vec::new(),
            given,
            random: Random(seed),
            outcome: Outcome::default(),
        }
    }

    pub fn outcome(&self) -> Outcome {
        Outcome {
            cache_given: self.given.load(Ordering::Relaxed),
            ..self.outcome
        }
    }

    /// Bytes on the heap, by the tenant's own books.
    fn heap_bytes(&self) -> u64 {
        let cache = self.cache.lock().expect("no panic in here");
        bytes_of(&self.work) + bytes_of(&*cache)
    }

    pub fn block_bytes(&self) -> u64 {
        self.blocks
            .iter()
            .map(|(block, _)| block.len() as u64)
            .sum()
    }

    fn held(&self) -> u64 {
        self.heap_bytes() + self.block_bytes()
    }

    /// Whether this much is within the tenant's own limits and could be taken
    /// from lower tiers.
    fn is_due(&self, size: u64) -> bool {
        self.client.usage().live_bytes + size <= self.max
            && to_be_had(&self.memory.snapshot(), self.tier) >= size
    }

    /// Asks, and asks again while the tenant is due what it was refused: what
    /// could be had is known only a moment later, when it may have changed.
    fn insist<T>(&mut self, size: usize, ask: impl Fn(&Tenant) -> Option<T>) -> Option<T> {
        self.outcome.requests += 1;
        for asked in 0..INSISTS {
            let got = ask(self);
            if got.is_some() {
                self.outcome.late += u64::from(asked > 0);
                return got;
            }
            if !self.is_due(size as u64) {
                self.outcome.refused += 1;
                return None;
            }
            std::thread::sleep(LOOK);
        }
        self.outcome.refused += 1;
        self.outcome.unfair += 1;
        None
    }

    fn buffer(&mut self, size: usize) -> Option<Vec<u8>> {
        self.insist(size, |tenant| {
            let mut buffer = Vec::new();
            let _scope = tenant.client.enter();
            buffer.try_reserve_exact(size).ok().map(|()| buffer)
        })
    }

    /// A piece of work that leaves something behind, in memory, in the cache or
    /// in a block; unless it is stopped.
    fn grow(&mut self) {
        let size = (16 * 1024) << self.random.below(3);
        let goes_to = self.random.below(8);
        if goes_to == 7 {
            self.allocate_block(4 * size);
            self.safe_point();
            return;
        }
        let Some(mut buffer) = self.buffer(size) else {
            return;
        };
        buffer.resize(size, 0xA5);
        if !self.safe_point() {
            return;
        }
        if goes_to < 4 {
            self.work.push(buffer);
        } else {
            let mut cache = self.cache.lock().expect("no panic in here");
            cache.push_back(buffer);
        }
    }

    fn allocate_block(&mut self, size: usize) {
        let got = self.insist(size, |tenant| {
            tenant.memory.allocate_for_client(&tenant.name, size).ok()
        });
        if let Some(mut block) = got {
            let mark = self.random.next() as u8;
            if let Ok(mut pin) = block.pin_mut() {
                pin.fill(mark);
            }
            self.blocks.push((block, mark));
        }
    }

    /// Uses a block: what is in it must be what was put there.
    fn use_block(&mut self) {
        let at = self.random.below(self.blocks.len() as u64) as usize;
        let Some((block, mark)) = self.blocks.get(at) else {
            return;
        };
        match block.pin() {
            Ok(pin) => {
                let page = [*mark; 4096];
                let intact = pin.chunks(4096).all(|chunk| chunk == &page[..chunk.len()]);
                assert!(intact, "a block was damaged");
            }
            Err(PinError::QuotaExceeded(_)) => self.outcome.pins_refused += 1,
            Err(error) => panic!("a block is lost: {error}"),
        }
    }

    fn shed(&mut self) {
        let taken = self.random.below(3);
        let freed = match taken {
            0 => self.cache.lock().expect("no panic in here").pop_front(),
            1 if !self.blocks.is_empty() => {
                let at = self.random.below(self.blocks.len() as u64) as usize;
                self.blocks.swap_remove(at);
                return;
            }
            _ => self.work.pop(),
        };
        drop(freed);
    }

    /// One piece of work, and a safe point after it.
    fn step(&mut self) {
        let held = self.held();
        if held < self.demand && held + MIB < self.max {
            self.grow();
        } else {
            self.shed();
        }
        if self.random.below(4) == 0 {
            self.use_block();
        }
        self.safe_point();
    }

    /// Answers whether the work may go on. If not, it ends here, and what it
    /// had is freed.
    fn safe_point(&mut self) -> bool {
        let may_go_on = self.client.checkpoint().is_ok();
        if !may_go_on {
            self.outcome.stopped += 1;
            self.work.clear();
        }
        may_go_on
    }

    /// `steps` pieces of work, then safe points for as long as others work.
    fn work(&mut self, steps: u64, busy: &AtomicU64) {
        (0..steps).for_each(|_| self.step());
        busy.fetch_sub(1, Ordering::Relaxed);
        while busy.load(Ordering::Relaxed) > 0 {
            self.safe_point();
            std::thread::sleep(LOOK);
        }
    }
}

fn shrink(cache: &Cache, request: ReclaimRequest) -> u64 {
    let mut cache = cache.lock().expect("no panic in here");
    let mut freed = 0;
    while freed < request.wanted_bytes {
        // Freed under the lock: nobody sees it in neither of the books.
        let Some(buffer) = cache.pop_front() else {
            break;
        };
        freed += buffer.capacity() as u64;
    }
    freed
}

/// What tiers below this one have borrowed, less what this one and those above
/// it were lent for it already.
fn to_be_had(snapshot: &Snapshot, tier: SubscriptionTier) -> u64 {
    let sum = |lower: bool, bytes: fn(&TierSnapshot) -> u64| -> u64 {
        SubscriptionTier::ALL
            .into_iter()
            .filter(|&other| (other < tier) == lower)
            .map(|other| bytes(&snapshot.tiers[other as usize]))
            .sum()
    };
    sum(true, |tier| tier.borrowed_bytes).saturating_sub(sum(false, |tier| tier.overdrawn_bytes))
}

pub struct Scenario {
    pub memory: Memory,
    pub tenants: Vec<Tenant>,
    random: Random,
}

impl Scenario {
    /// Two tenants of Enterprise, three of Premium, five of Basic, with the
    /// shares of the default policies: together 2.1 times the usable part.
    pub fn new(memory: Memory, seed: u64) -> Scenario {
        let usable = memory.usage().usable_bytes;
        let mut random = Random(seed);
        let kinds = [
            (SubscriptionTier::Enterprise, 2, usable / 2),
            (SubscriptionTier::Premium, 3, usable / 5),
            (SubscriptionTier::Basic, 5, usable / 10),
        ];
        let mut tenants = Vec::new();
        for (tier, count, max) in kinds {
            for number in 1..=count {
                let name = format!("{tier} {number}");
                tenants.push(Tenant::new(&memory, name, tier, max, random.next()));
            }
        }
        Scenario {
            memory,
            tenants,
            random,
        }
    }

    /// New demands: `load` is the share of their own `max` that the tenants
    /// want on average, 1.0 at most.
    pub fn set_load(&mut self, load: f64) {
        for tenant in &mut self.tenants {
            let share = load * (0.8 + self.random.below(400) as f64 / 1000.0);
            tenant.demand = (tenant.max as f64 * share.min(1.0)) as u64;
        }
    }

    /// Every tenant does `steps` pieces of work on a thread of its own. Answers
    /// the most that was charged at once.
    pub fn run(&mut self, steps: u64) -> u64 {
        let done = AtomicBool::new(false);
        let busy = &AtomicU64::new(self.tenants.len() as u64);
        let memory = &self.memory;
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| watch(memory, &done));
            let workers: Vec<_> = self
                .tenants
                .iter_mut()
                .map(|tenant| scope.spawn(move || tenant.work(steps, busy)))
                .collect();
            for worker in workers {
                worker.join().expect("a tenant does not panic");
            }
            done.store(true, Ordering::Relaxed);
            watcher.join().expect("the watcher does not panic")
        })
    }

    pub fn outcome(&self, tier: SubscriptionTier) -> Outcome {
        let mut all = Outcome::default();
        for tenant in self.tenants.iter().filter(|tenant| tenant.tier == tier) {
            all.add(&tenant.outcome());
        }
        all
    }

    /// What a tenant's books and the ledger disagree about, if they do.
    pub fn disagreement(&self) -> Option<String> {
        self.tenants.iter().find_map(|tenant| {
            // The reclaimer may ask the cache at any time.
            let cache = tenant.cache.lock().expect("no panic in here");
            let usage = tenant.client.usage();
            let booked = bytes_of(&tenant.work) + bytes_of(&*cache);
            drop(cache);
            let heap = usage.live_bytes - usage.block_bytes;
            let wrong = heap != booked || usage.block_bytes > tenant.block_bytes();
            wrong.then(|| format!("{}: {booked} bytes booked, {usage:?}", tenant.name))
        })
    }
}

fn watch(memory: &Memory, done: &AtomicBool) -> u64 {
    let mut most = 0;
    loop {
        let usage = memory.usage();
        let charged = usage.charged_bytes + usage.overdrawn_bytes;
        most = most.max(charged);
        if done.load(Ordering::Relaxed) {
            return most;
        }
        std::thread::sleep(LOOK);
    }
}
