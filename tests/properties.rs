//! Random programs whose threads run at once, against an oracle that every one
//! of them keeps: clients, nested scopes, request budgets, blocks of the heap
//! and of clients that change hands, limits that move meanwhile. Whenever all
//! rest, ledger and oracle agree to the byte, what is left of a strict client's
//! limit can be had to the byte, and all contents are as they were written.
//!
//! `model.rs` predicts each single answer, one request at a time; here requests
//! race. `PROPTEST_CASES` says how many programs are tried.

mod support;

use proptest::prelude::*;
use serial_test::serial;
use std::alloc::{GlobalAlloc, Layout};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use support::Block;
use tiered_allocator::{
    AllocateError, Budget, Client, ClientOptions, Enforcement, Limit, Memory, MemoryBlock,
    PinError, Scope, TierPolicy, TieredAllocator, TransferError, untracked,
};

static HEAP: TieredAllocator = TieredAllocator::system();

const SEATS: usize = 4;
const TIERS: [&str; 2] = ["red", "green"];
const DEEPEST: usize = 30;
/// So large that only the clients' own limits bind.
const TOTAL: u64 = 1 << 40;

#[derive(Clone, Debug)]
enum Act {
    Alloc {
        size: usize,
        align: usize,
        zeroed: bool,
    },
    AllocUntracked {
        size: usize,
    },
    Realloc {
        pick: usize,
        size: usize,
    },
    Free {
        pick: usize,
    },
    /// Into the hands of whoever takes it.
    Give {
        pick: usize,
    },
    TakeAndFree,
    TakeAndRealloc {
        size: usize,
    },
    Enter {
        seat: usize,
    },
    EnterBudget {
        bytes: u64,
        ends_first: bool,
    },
    Leave {
        pick: usize,
    },
    /// Nothing is held on to: back and forth across the account's window.
    Churn {
        size: usize,
        times: usize,
    },
    Block {
        seat: usize,
        size: usize,
    },
    Write {
        pick: usize,
    },
    ChargeTo {
        pick: usize,
        seat: usize,
    },
    DropBlock {
        pick: usize,
    },
    Look {
        seat: usize,
    },
}

/// What the host does while the threads run.
#[derive(Clone, Debug)]
enum Host {
    Configure {
        seat: usize,
        tier: usize,
        max: u64,
        enforcement: Enforcement,
    },
    SetPolicy {
        tier: usize,
        max: u64,
    },
    Reclaim,
    Snapshot,
}

/// What the host does while they rest.
#[derive(Clone, Debug)]
enum AtRest {
    Nothing,
    Replace { seat: usize },
}

#[derive(Clone, Debug)]
struct Phase {
    acts: Vec<Vec<Act>>,
    host: Vec<Host>,
    then: AtRest,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        300 => 1usize..300,
        150 => 3900usize..4300,
        150 => 300usize..70_000,
        20 => 70_000usize..3_000_000,
        1 => 3_000_000usize..64 << 20,
    ]
}

fn align() -> impl Strategy<Value = usize> {
    prop_oneof![20 => 0u32..5, 5 => 5u32..13, 1 => 13u32..22].prop_map(|shift| 1 << shift)
}

fn max() -> impl Strategy<Value = u64> {
    prop_oneof![
        1 => 1u64..5_000,
        3 => 5_000u64..500_000,
        6 => 500_000u64..128 << 20,
    ]
}

fn enforcement() -> impl Strategy<Value = Enforcement> {
    prop_oneof![
        6 => Just(Enforcement::Strict),
        1 => Just(Enforcement::Graceful),
        1 => Just(Enforcement::Observe),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let (pick, seat) = (0usize..1000, 0..SEATS);
    prop_oneof![
        30 => (size(), align(), any::<bool>())
            .prop_map(|(size, align, zeroed)| Act::Alloc { size, align, zeroed }),
        2 => size().prop_map(|size| Act::AllocUntracked { size }),
        20 => (pick.clone(), size()).prop_map(|(pick, size)| Act::Realloc { pick, size }),
        12 => pick.clone().prop_map(|pick| Act::Free { pick }),
        10 => pick.clone().prop_map(|pick| Act::Give { pick }),
        8 => Just(Act::TakeAndFree),
        6 => size().prop_map(|size| Act::TakeAndRealloc { size }),
        12 => seat.clone().prop_map(|seat| Act::Enter { seat }),
        4 => (1u64..300_000, any::<bool>())
            .prop_map(|(bytes, ends_first)| Act::EnterBudget { bytes, ends_first }),
        10 => pick.clone().prop_map(|pick| Act::Leave { pick }),
        4 => (1usize..20_000, 1usize..60).prop_map(|(size, times)| Act::Churn { size, times }),
        4 => (seat.clone(), 1usize..200_000).prop_map(|(seat, size)| Act::Block { seat, size }),
        4 => pick.clone().prop_map(|pick| Act::Write { pick }),
        3 => (pick.clone(), seat.clone()).prop_map(|(pick, seat)| Act::ChargeTo { pick, seat }),
        3 => pick.prop_map(|pick| Act::DropBlock { pick }),
        3 => seat.prop_map(|seat| Act::Look { seat }),
    ]
}

fn host() -> impl Strategy<Value = Host> {
    prop_oneof![
        5 => (0..SEATS, 0..TIERS.len(), max(), enforcement()).prop_map(
            |(seat, tier, max, enforcement)| Host::Configure { seat, tier, max, enforcement }
        ),
        1 => (0..TIERS.len(), max()).prop_map(|(tier, max)| Host::SetPolicy { tier, max }),
        2 => Just(Host::Reclaim),
        1 => Just(Host::Snapshot),
    ]
}

fn phases() -> impl Strategy<Value = Vec<Phase>> {
    (2usize..=4).prop_flat_map(|threads| {
        let acts = prop::collection::vec(prop::collection::vec(act(), 0..60), threads);
        let then = prop_oneof![
            2 => Just(AtRest::Nothing),
            1 => (0..SEATS).prop_map(|seat| AtRest::Replace { seat }),
        ];
        let phase = (acts, prop::collection::vec(host(), 0..6), then)
            .prop_map(|(acts, host, then)| Phase { acts, host, then });
        prop::collection::vec(phase, 1..5)
    })
}

// --- the oracle --------------------------------------------------------------------

/// A client, or nobody, and what it holds by what the threads saw.
struct Owner {
    client: Option<(Client, String)>,
    bytes: AtomicI64,
    blocks: AtomicI64,
    active: AtomicBool,
    strict: AtomicBool,
    /// Whether it was anything but strict since the last rest.
    was_lenient: AtomicBool,
    max: AtomicU64,
    /// The highest limit since the last rest.
    highest_max: AtomicU64,
    bytes_at_rest: AtomicI64,
}

impl Owner {
    fn new(client: Option<(Client, String)>, max: u64) -> Arc<Owner> {
        Arc::new(Owner {
            client,
            bytes: AtomicI64::new(0),
            blocks: AtomicI64::new(0),
            active: AtomicBool::new(true),
            strict: AtomicBool::new(true),
            was_lenient: AtomicBool::new(false),
            max: AtomicU64::new(max),
            highest_max: AtomicU64::new(max),
            bytes_at_rest: AtomicI64::new(0),
        })
    }

    fn client(&self) -> &Client {
        &self.client.as_ref().unwrap().0
    }

    fn name(&self) -> &str {
        &self.client.as_ref().unwrap().1
    }

    fn count(&self, bytes: i64, blocks: i64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.blocks.fetch_add(blocks, Relaxed);
    }
}

type OwnedBlock = (Block, Arc<Owner>);

/// A client's block; the seed of its contents.
struct Buffer {
    block: MemoryBlock,
    owner: Arc<Owner>,
    seed: u8,
}

impl Buffer {
    /// Whether the bytes are there and charged; they are what was written.
    fn is_charged(&self) -> bool {
        match self.block.pin() {
            Ok(bytes) => {
                assert!(bytes.iter().all(|&byte| byte == self.seed), "contents");
                true
            }
            Err(PinError::QuotaExceeded(_)) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

struct World {
    memory: Memory,
    nobody: Arc<Owner>,
    seats: RwLock<Vec<Arc<Owner>>>,
    /// Everybody there ever was.
    owners: Mutex<Vec<Arc<Owner>>>,
    given: Mutex<Vec<OwnedBlock>>,
    buffers: Mutex<Vec<Buffer>>,
    failure: Mutex<Option<String>>,
    next_name: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const FIRST_MAX: u64 = 96 << 20;

impl World {
    fn new() -> World {
        let policy = TierPolicy::new(Limit::Bytes(FIRST_MAX))
            .enforcement(Enforcement::Strict)
            .idle_after(Duration::ZERO);
        let memory = Memory::builder(TOTAL)
            .background(false)
            .tier(TIERS[0], policy)
            .tier(TIERS[1], policy)
            .build()
            .unwrap();
        let world = World {
            memory,
            nobody: Owner::new(None, u64::MAX),
            seats: RwLock::default(),
            owners: Mutex::default(),
            given: Mutex::default(),
            buffers: Mutex::default(),
            failure: Mutex::default(),
            next_name: AtomicU64::new(0),
        };
        for _ in 0..SEATS {
            let owner = world.register();
            world.seats.write().unwrap().push(owner);
        }
        world
    }

    fn register(&self) -> Arc<Owner> {
        let name = format!("client {}", self.next_name.fetch_add(1, Relaxed));
        let options = ClientOptions::new(TIERS[0])
            .max(Limit::Bytes(FIRST_MAX))
            .enforcement(Enforcement::Strict);
        let client = self.memory.register(&name, options).unwrap();
        let owner = Owner::new(Some((client, name)), FIRST_MAX);
        lock(&self.owners).push(Arc::clone(&owner));
        owner
    }

    fn seat(&self, seat: usize) -> Arc<Owner> {
        Arc::clone(&self.seats.read().unwrap()[seat])
    }

    fn fail(&self, panic: &(dyn std::any::Any + Send)) {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        lock(&self.failure).get_or_insert(text.unwrap_or_else(|| "a panic".to_owned()));
    }

    fn host(&self, host: &Host) {
        match *host {
            Host::Configure {
                seat,
                tier,
                max,
                enforcement,
            } => {
                let owner = self.seat(seat);
                owner.highest_max.fetch_max(max, Relaxed);
                if enforcement != Enforcement::Strict {
                    owner.was_lenient.store(true, Relaxed);
                }
                owner
                    .client()
                    .configure(
                        ClientOptions::new(TIERS[tier])
                            .max(Limit::Bytes(max))
                            .enforcement(enforcement),
                    )
                    .unwrap();
                owner.max.store(max, Relaxed);
                owner
                    .strict
                    .store(enforcement == Enforcement::Strict, Relaxed);
            }
            Host::SetPolicy { tier, max } => {
                let policy = TierPolicy::new(Limit::Bytes(max)).idle_after(Duration::ZERO);
                self.memory.set_tier_policy(TIERS[tier], policy).unwrap();
            }
            Host::Reclaim => {
                self.memory.reclaim_unused_memory();
            }
            Host::Snapshot => {
                let snapshot = self.memory.snapshot();
                assert_eq!(snapshot.clients.len(), SEATS);
                for client in &snapshot.clients {
                    assert!(client.usage.live_bytes <= client.usage.charged_bytes);
                }
            }
        }
    }

    /// Everybody rests: ledger and oracle are the same.
    fn compare(&self) {
        let mut buffers: Vec<(Arc<Owner>, i64)> = Vec::new();
        for buffer in lock(&self.buffers).iter() {
            let bytes = buffer.block.len() as i64 * i64::from(buffer.is_charged());
            buffers.push((Arc::clone(&buffer.owner), bytes));
        }
        for owner in lock(&self.owners).iter() {
            let own = buffers.iter().filter(|(of, _)| Arc::ptr_eq(of, owner));
            let (bytes, blocks) = own.fold(
                (owner.bytes.load(Relaxed), owner.blocks.load(Relaxed)),
                |(bytes, blocks), (_, more)| (bytes + more, blocks + 1),
            );
            let usage = owner.client().usage();
            assert_eq!(
                (usage.live_bytes as i64, usage.live_allocations as i64),
                (bytes, blocks),
                "{}: {usage:?}",
                owner.name()
            );
            if !owner.active.load(Relaxed) {
                continue;
            }
            let bound = owner.highest_max.load(Relaxed) as i64;
            if !owner.was_lenient.load(Relaxed) {
                let bound = bound.max(owner.bytes_at_rest.load(Relaxed));
                assert!(bytes <= bound, "{} past {bound}: {usage:?}", owner.name());
            }
            if owner.strict.load(Relaxed) {
                self.the_rest_can_be_had(owner, bytes as u64);
            }
            let max = owner.max.load(Relaxed);
            owner.highest_max.store(max, Relaxed);
            let lenient = !owner.strict.load(Relaxed);
            owner.was_lenient.store(lenient, Relaxed);
            owner.bytes_at_rest.store(bytes, Relaxed);
        }
        let snapshot = self.memory.snapshot();
        assert_eq!(
            (
                snapshot.unattributed_bytes as i64,
                snapshot.unattributed_allocations as i64
            ),
            (
                self.nobody.bytes.load(Relaxed),
                self.nobody.blocks.load(Relaxed)
            )
        );
    }

    /// What is left of the limit, to the byte, and not one byte more.
    fn the_rest_can_be_had(&self, owner: &Owner, live: u64) {
        let max = owner.max.load(Relaxed);
        let _scope = owner.client().enter();
        let raw = |size: u64| {
            let layout = Layout::from_size_align(size as usize, 1).unwrap();
            // SAFETY: the size is not zero; the bytes are not touched.
            let block = unsafe { HEAP.alloc(layout) };
            (!block.is_null()).then_some((block, layout))
        };
        let rest = max.saturating_sub(live);
        let held = (rest > 0).then(|| raw(rest));
        let more = raw(1);
        for (block, layout) in held.flatten().into_iter().chain(more) {
            // SAFETY: allocated just above with this layout.
            unsafe { HEAP.dealloc(block, layout) };
        }
        assert_ne!(held, Some(None), "a false denial of {rest} bytes");
        assert_eq!(more, None, "one byte past {max}");
    }

    fn at_rest(&self, then: &AtRest) {
        if let AtRest::Replace { seat } = *then {
            let old = self.seat(seat);
            self.memory.remove_client(old.name()).unwrap();
            old.active.store(false, Relaxed);
            self.seats.write().unwrap()[seat] = self.register();
        }
    }
}

// --- a thread -----------------------------------------------------------------------

struct Open {
    scope: Option<Scope>,
    budget: Option<Budget>,
    ends_first: bool,
    owner: Arc<Owner>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.ends_first {
            self.budget = None;
        }
        self.scope = None;
    }
}

struct Worker<'world> {
    world: &'world World,
    open: Vec<Open>,
    blocks: Vec<OwnedBlock>,
    seed: u8,
}

impl Worker<'_> {
    fn seed(&mut self) -> u8 {
        self.seed = self.seed.wrapping_add(1);
        self.seed
    }

    /// Who pays for what is allocated now; `None` if it must be refused, or
    /// (in a removed client's request budget) is not this test's concern.
    fn payer(&self) -> Option<Arc<Owner>> {
        let Some(open) = self.open.last() else {
            return Some(Arc::clone(&self.world.nobody));
        };
        let active = open.owner.active.load(Relaxed);
        if active {
            Some(Arc::clone(&open.owner))
        } else if open.budget.is_some() || open.owner.strict.load(Relaxed) {
            None
        } else {
            Some(Arc::clone(&self.world.nobody))
        }
    }

    fn alloc(&mut self, layout: Layout, zeroed: bool) {
        let Some(payer) = self.payer() else {
            return;
        };
        let seed = self.seed();
        let block = match zeroed {
            true => Block::zeroed(&HEAP, layout, seed),
            false => Block::new(&HEAP, layout, seed),
        };
        if let Some(block) = block {
            payer.count(block.size() as i64, 1);
            self.blocks.push((block, payer));
        } else {
            assert!(payer.client.is_some(), "nobody has no limit");
        }
    }

    fn realloc((block, owner): &mut OwnedBlock, size: usize) {
        let old = block.size();
        if block.resize(size) {
            owner.count(size as i64 - old as i64, 0);
        } else {
            assert!(size > old, "a refused shrinkage");
        }
    }

    fn free((block, owner): OwnedBlock) {
        owner.count(-(block.size() as i64), -1);
        drop(block);
    }

    fn pick(&mut self, pick: usize) -> Option<OwnedBlock> {
        let len = self.blocks.len();
        (len > 0).then(|| self.blocks.swap_remove(pick % len))
    }

    fn with_buffer(&self, pick: usize, work: impl FnOnce(&mut Buffer)) {
        let mut buffers = lock(&self.world.buffers);
        let len = buffers.len();
        if len > 0 {
            work(&mut buffers[pick % len]);
        }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Alloc {
                size,
                align,
                zeroed,
            } => self.alloc(Layout::from_size_align(size, align).unwrap(), zeroed),
            Act::AllocUntracked { size } => {
                let block = untracked(|| Block::bytes(&HEAP, size)).unwrap();
                let nobody = Arc::clone(&self.world.nobody);
                nobody.count(size as i64, 1);
                self.blocks.push((block, nobody));
            }
            Act::Realloc { pick, size } => {
                let len = self.blocks.len();
                if len > 0 {
                    Self::realloc(&mut self.blocks[pick % len], size);
                }
            }
            Act::Free { pick } => self.pick(pick).into_iter().for_each(Self::free),
            Act::Give { pick } => {
                let block = self.pick(pick);
                lock(&self.world.given).extend(block);
            }
            Act::TakeAndFree => {
                let taken = lock(&self.world.given).pop();
                taken.into_iter().for_each(Self::free);
            }
            Act::TakeAndRealloc { size } => {
                let taken = lock(&self.world.given).pop();
                if let Some(mut block) = taken {
                    Self::realloc(&mut block, size);
                    self.blocks.push(block);
                }
            }
            Act::Enter { seat } => {
                if self.open.len() < DEEPEST {
                    let owner = self.world.seat(seat);
                    self.open.push(Open {
                        scope: Some(owner.client().enter()),
                        budget: None,
                        ends_first: false,
                        owner,
                    });
                }
            }
            Act::EnterBudget { bytes, ends_first } => self.enter_budget(bytes, ends_first),
            Act::Leave { pick } => {
                let len = self.open.len();
                if len > 0 {
                    drop(self.open.remove(pick % len));
                }
            }
            Act::Churn { size, times } => {
                if self.payer().is_some() {
                    for _ in 0..times {
                        drop(Block::bytes(&HEAP, size));
                    }
                }
            }
            Act::Block { seat, size } => self.block(seat, size),
            Act::Write { pick } => {
                let seed = self.seed();
                self.with_buffer(pick, |buffer| {
                    if buffer.is_charged()
                        && buffer.block.pin_mut().is_ok_and(|mut bytes| {
                            bytes.fill(seed);
                            true
                        })
                    {
                        buffer.seed = seed;
                    }
                });
            }
            Act::ChargeTo { pick, seat } => {
                let to = self.world.seat(seat);
                self.with_buffer(pick, |buffer| match buffer.block.charge_to(to.client()) {
                    Ok(()) => buffer.owner = to,
                    Err(TransferError::QuotaExceeded(_)) => {}
                    Err(error) => panic!("{error}"),
                });
            }
            Act::DropBlock { pick } => {
                let mut buffers = lock(&self.world.buffers);
                let len = buffers.len();
                if len > 0 {
                    let buffer = buffers.swap_remove(pick % len);
                    drop(buffers);
                    buffer.is_charged();
                }
            }
            Act::Look { seat } => {
                let usage = self.world.seat(seat).client().usage();
                assert!(usage.live_bytes <= usage.charged_bytes, "{usage:?}");
                assert!(usage.charged_bytes < TOTAL && usage.peak_bytes < TOTAL);
            }
        }
    }

    /// A request budget of whoever pays at the moment.
    fn enter_budget(&mut self, bytes: u64, ends_first: bool) {
        let outer = self.open.last().filter(|_| self.open.len() < DEEPEST);
        let Some(outer) = outer.filter(|outer| outer.owner.active.load(Relaxed)) else {
            return;
        };
        let owner = Arc::clone(&outer.owner);
        let parent = match &outer.budget {
            Some(budget) => budget.budget(bytes),
            None => owner.client().budget(bytes),
        };
        let budget = parent.unwrap();
        self.open.push(Open {
            scope: Some(budget.enter()),
            budget: Some(budget),
            ends_first,
            owner,
        });
    }

    fn block(&mut self, seat: usize, size: usize) {
        let owner = self.world.seat(seat);
        match self.world.memory.allocate_for_client(owner.name(), size) {
            Ok(block) => lock(&self.world.buffers).push(Buffer {
                block,
                owner,
                seed: 0,
            }),
            Err(AllocateError::QuotaExceeded(quota)) => {
                assert_eq!(quota.requested, size as u64);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

// --- a program ------------------------------------------------------------------------

fn run(phases: &[Phase]) {
    let world = World::new();
    let threads = phases[0].acts.len();
    let turn = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|number| {
                let (world, turn) = (&world, &turn);
                scope.spawn(move || {
                    let mut worker = Worker {
                        world,
                        open: Vec::new(),
                        blocks: Vec::new(),
                        seed: number as u8 * 60,
                    };
                    for phase in phases {
                        let acts = &phase.acts[number];
                        let work = || acts.iter().for_each(|act| worker.act(act));
                        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                            world.fail(&*panic);
                        }
                        turn.wait();
                        turn.wait();
                    }
                    lock(&world.given).append(&mut worker.blocks);
                    // Outermost first: out of order.
                    drop(worker.open);
                })
            })
            .collect();
        for phase in phases {
            let host = || phase.host.iter().for_each(|host| world.host(host));
            if let Err(panic) = catch_unwind(AssertUnwindSafe(host)) {
                world.fail(&*panic);
            }
            turn.wait();
            let rest = || {
                if lock(&world.failure).is_none() {
                    world.compare();
                    world.at_rest(&phase.then);
                    world.compare();
                }
            };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(rest)) {
                world.fail(&*panic);
            }
            turn.wait();
        }
        for worker in workers {
            worker.join().unwrap();
        }
    });
    if let Some(failure) = lock(&world.failure).take() {
        panic!("{failure}");
    }
    end(&world);
}

/// The threads are gone, and nothing of theirs is left but what lives.
fn end(world: &World) {
    world.compare();
    let given = std::mem::take(&mut *lock(&world.given));
    given.into_iter().for_each(Worker::free);
    world.compare();
    lock(&world.buffers).clear();
    world.compare();
    for owner in lock(&world.owners).iter() {
        let usage = owner.client().usage();
        assert_eq!((usage.live_bytes, usage.live_allocations), (0, 0));
        if owner.active.load(Relaxed) {
            world.memory.remove_client(owner.name()).unwrap();
        }
    }
    // A budget within a budget is closed before the outer one can be.
    for _ in 0..=DEEPEST {
        world.memory.reclaim_unused_memory();
    }
    let usage = world.memory.usage();
    assert_eq!(
        (
            usage.charged_bytes,
            usage.overdrawn_bytes,
            usage.spilled_bytes
        ),
        (0, 0, 0)
    );
    let left = world.memory.snapshot().retired;
    assert!(left.is_empty(), "{left:?}");
}

#[test]
#[serial]
fn whatever_threads_do_at_once_the_ledger_is_exact_whenever_they_rest() {
    assert!(!TieredAllocator::is_installed());
    let config = ProptestConfig {
        cases: support::cases(48),
        max_shrink_iters: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(phases in phases())| run(&phases));
}
