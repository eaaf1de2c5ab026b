//! Random programs against a naive model: whatever is allocated, reallocated
//! and freed, by whichever thread, in whichever scope, through whichever inner
//! allocator, the ledger and the model agree to the byte and to the block.
//!
//! The allocator is not installed here: its instances are called directly, so
//! that nothing but the program is charged.

mod support;

use proptest::prelude::*;
use serial_test::serial;
use std::alloc::Layout;
use std::cell::RefCell;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use support::{Block, Heap};
use tiered_allocator::{
    Client, ClientOptions, Enforcement, Limit, Memory, RegisterError, Scope, TierPolicy,
    TieredAllocator, untracked,
};

static SYSTEM: TieredAllocator = TieredAllocator::system();
static MIMALLOC: TieredAllocator<mimalloc::MiMalloc> = TieredAllocator::new(mimalloc::MiMalloc);
#[cfg(feature = "jemalloc")]
static JEMALLOC: TieredAllocator<tikv_jemallocator::Jemalloc> = TieredAllocator::jemalloc();

const THREADS: usize = 3;
const NAMES: [&str; 4] = ["ann", "bob", "cid", "dot"];
const TIERS: [&str; 3] = ["red", "green", "blue"];
const TOTAL: u64 = 32 << 20;
const USABLE: u64 = 24 << 20;
/// Below the depth from which scopes must be left in order.
const DEEPEST: usize = 30;

#[derive(Clone, Debug)]
enum Op {
    Alloc {
        thread: usize,
        heap: usize,
        size: usize,
        align: usize,
        zeroed: bool,
    },
    Realloc {
        thread: usize,
        block: usize,
        size: usize,
    },
    Free {
        thread: usize,
        block: usize,
    },
    /// All threads free at once.
    FreeTogether {
        count: usize,
    },
    /// All threads allocate and free at once.
    Burst {
        heap: usize,
        size: usize,
    },
    Enter {
        thread: usize,
        client: usize,
    },
    Untracked {
        thread: usize,
    },
    EndUntracked {
        thread: usize,
    },
    Leave {
        thread: usize,
        scope: usize,
    },
    /// The thread ends, with whatever scopes it has open, and another starts.
    Restart {
        thread: usize,
    },
    Remove {
        name: usize,
    },
    Add {
        name: usize,
        tier: usize,
    },
    SetTier {
        client: usize,
        tier: usize,
    },
    Configure {
        client: usize,
        tier: usize,
        max: Option<u64>,
        enforcement: Option<Enforcement>,
    },
    SetTierPolicy {
        tier: usize,
        policy: Policy,
    },
    /// Starts a heap profile, or stops it (feature `profile`).
    Profile {
        sample_bytes: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Policy {
    max: u64,
    aggregate: Option<u64>,
    enforcement: Enforcement,
}

impl Policy {
    fn build(self) -> TierPolicy {
        TierPolicy::new(Limit::Bytes(self.max))
            .aggregate(self.aggregate.map_or(Limit::Unlimited, Limit::Bytes))
            .enforcement(self.enforcement)
    }
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 1usize..300,
        3 => 3900usize..4300,
        3 => 300usize..70_000,
        1 => 70_000usize..3_000_000,
    ]
}

fn align() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0u32..5, 2 => 5u32..13, 1 => 13u32..22].prop_map(|shift| 1 << shift)
}

fn enforcement() -> impl Strategy<Value = Enforcement> {
    prop_oneof![
        4 => Just(Enforcement::Strict),
        1 => Just(Enforcement::Graceful),
        1 => Just(Enforcement::Observe),
    ]
}

fn max() -> impl Strategy<Value = u64> {
    prop_oneof![1u64..5_000, 5_000u64..500_000, 500_000u64..8 << 20]
}

fn policy() -> impl Strategy<Value = Policy> {
    let aggregate = proptest::option::of(1u64..12 << 20);
    (max(), aggregate, enforcement()).prop_map(|(max, aggregate, enforcement)| Policy {
        max,
        aggregate,
        enforcement,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let thread = 0..THREADS;
    let pick = 0usize..1000;
    prop_oneof![
        30 => (thread.clone(), pick.clone(), size(), align(), any::<bool>())
            .prop_map(|(thread, heap, size, align, zeroed)| {
                Op::Alloc { thread, heap, size, align, zeroed }
            }),
        20 => (thread.clone(), pick.clone(), size())
            .prop_map(|(thread, block, size)| Op::Realloc { thread, block, size }),
        15 => (thread.clone(), pick.clone())
            .prop_map(|(thread, block)| Op::Free { thread, block }),
        2 => (1usize..40).prop_map(|count| Op::FreeTogether { count }),
        3 => (pick.clone(), 1usize..6000).prop_map(|(heap, size)| Op::Burst { heap, size }),
        12 => (thread.clone(), pick.clone())
            .prop_map(|(thread, client)| Op::Enter { thread, client }),
        3 => thread.clone().prop_map(|thread| Op::Untracked { thread }),
        2 => thread.clone().prop_map(|thread| Op::EndUntracked { thread }),
        6 => (thread.clone(), pick.clone())
            .prop_map(|(thread, scope)| Op::Leave { thread, scope }),
        1 => thread.prop_map(|thread| Op::Restart { thread }),
        2 => (0..NAMES.len()).prop_map(|name| Op::Remove { name }),
        3 => (0..NAMES.len(), 0..TIERS.len()).prop_map(|(name, tier)| Op::Add { name, tier }),
        2 => (pick.clone(), 0..TIERS.len())
            .prop_map(|(client, tier)| Op::SetTier { client, tier }),
        3 => (
            pick,
            0..TIERS.len(),
            proptest::option::of(max()),
            proptest::option::of(enforcement())
        )
            .prop_map(|(client, tier, max, enforcement)| {
                Op::Configure { client, tier, max, enforcement }
            }),
        2 => (0..TIERS.len(), policy())
            .prop_map(|(tier, policy)| Op::SetTierPolicy { tier, policy }),
        4 => (1u64..3000).prop_map(|sample_bytes| Op::Profile { sample_bytes }),
    ]
}

// --- the threads of a program -------------------------------------------------

enum Order {
    Alloc(Heap, Layout, bool, u8),
    Realloc(Block, usize),
    Free(Vec<Block>),
    Burst(Heap, usize),
    Enter(Client, u64),
    Leave(u64),
    Untracked,
    EndUntracked,
    Exit,
}

enum Answer {
    Done,
    Allocated(Option<Block>),
    Reallocated(Block, bool),
    /// How many were granted, of [`BURST`].
    Burst(u64),
}

const BURST: u64 = 50;

struct Worker {
    orders: Sender<Order>,
    answers: Receiver<Answer>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn start() -> Worker {
        let (orders, inbox) = channel();
        let (outbox, answers) = channel();
        let thread = std::thread::spawn(move || {
            // Dropped first to last when the thread ends: out of order.
            let guards = RefCell::new(Vec::new());
            serve(&inbox, &outbox, &guards);
        });
        Worker {
            orders,
            answers,
            thread,
        }
    }

    fn send(&self, order: Order) {
        self.orders.send(order).unwrap();
    }

    fn ask(&self, order: Order) -> Answer {
        self.send(order);
        self.answers.recv().expect("the worker is alive")
    }

    fn end(self) {
        self.send(Order::Exit);
        self.thread.join().unwrap();
    }
}

/// Answers whether the thread is to end.
fn serve(
    inbox: &Receiver<Order>,
    outbox: &Sender<Answer>,
    guards: &RefCell<Vec<(u64, Scope)>>,
) -> bool {
    loop {
        // A failed program drops its workers' orders and is reported elsewhere.
        let Ok(order) = inbox.recv() else {
            return true;
        };
        let answer = match order {
            Order::Alloc(heap, layout, false, seed) => {
                Answer::Allocated(Block::new(heap, layout, seed))
            }
            Order::Alloc(heap, layout, true, seed) => {
                Answer::Allocated(Block::zeroed(heap, layout, seed))
            }
            Order::Realloc(mut block, size) => {
                let resized = block.resize(size);
                Answer::Reallocated(block, resized)
            }
            Order::Free(blocks) => {
                drop(blocks);
                Answer::Done
            }
            Order::Burst(heap, size) => {
                let granted = (0..BURST).filter(|_| Block::bytes(heap, size).is_some());
                Answer::Burst(granted.count() as u64)
            }
            Order::Enter(client, id) => {
                guards.borrow_mut().push((id, client.enter()));
                Answer::Done
            }
            Order::Leave(id) => {
                let mut guards = guards.borrow_mut();
                let at = guards.iter().position(|(known, _)| *known == id).unwrap();
                drop(guards.remove(at));
                Answer::Done
            }
            Order::Untracked => {
                outbox.send(Answer::Done).unwrap();
                if untracked(|| serve(inbox, outbox, guards)) {
                    return true;
                }
                Answer::Done
            }
            Order::EndUntracked => return false,
            Order::Exit => return true,
        };
        outbox.send(answer).unwrap();
    }
}

// --- the model ------------------------------------------------------------------

/// Nobody, and the clients of a program, removed ones included.
type Who = Option<usize>;

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Books {
    live_bytes: u64,
    live_blocks: u64,
    total_bytes: u64,
    total_blocks: u64,
}

impl Books {
    fn allocate(&mut self, size: usize) {
        self.live_bytes += size as u64;
        self.live_blocks += 1;
        self.total_bytes += size as u64;
        self.total_blocks += 1;
    }

    fn resize(&mut self, old: usize, new: usize) {
        self.live_bytes = self.live_bytes - old as u64 + new as u64;
        self.total_bytes += new.saturating_sub(old) as u64;
    }

    fn free(&mut self, size: usize) {
        self.live_bytes -= size as u64;
        self.live_blocks -= 1;
    }
}

struct ModelClient {
    handle: Client,
    active: bool,
    tier: usize,
    max: u64,
    enforcement: Enforcement,
    own_max: Option<u64>,
    own_enforcement: Option<Enforcement>,
    books: Books,
    refusals: u64,
}

struct OpenScope {
    id: u64,
    who: Who,
    untracked: bool,
    left: bool,
}

#[derive(Default)]
struct ModelThread {
    scopes: Vec<OpenScope>,
}

impl ModelThread {
    fn current(&self) -> Who {
        self.scopes
            .iter()
            .rfind(|scope| !scope.left)
            .and_then(|scope| scope.who)
    }

    fn leave(&mut self, id: u64) {
        for scope in &mut self.scopes {
            scope.left |= scope.id == id;
        }
        while self.scopes.last().is_some_and(|scope| scope.left) {
            self.scopes.pop();
        }
    }
}

/// What must happen to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Granted,
    Refused,
    /// Up to the headroom, or to credit drawn before a limit was lowered.
    Either,
}

struct Program {
    heaps: Vec<Heap>,
    memory: Memory,
    workers: Vec<Worker>,
    threads: Vec<ModelThread>,
    clients: Vec<ModelClient>,
    named: [Option<usize>; NAMES.len()],
    policies: [Policy; TIERS.len()],
    nobody: Books,
    blocks: Vec<(Block, Who)>,
    next_id: u64,
}

fn unattributed(memory: &Memory) -> (u64, u64) {
    let snapshot = memory.snapshot();
    (
        snapshot.unattributed_bytes,
        snapshot.unattributed_allocations,
    )
}

impl Program {
    fn new(heaps: &[Heap]) -> Program {
        let policy = Policy {
            max: 4 << 20,
            aggregate: None,
            enforcement: Enforcement::Strict,
        };
        let mut builder = Memory::builder(TOTAL)
            .usable(USABLE as f64 / TOTAL as f64)
            .background(false);
        for tier in TIERS {
            builder = builder.tier(tier, policy.build());
        }
        let memory = builder.build().unwrap();
        assert_eq!(memory.usage().usable_bytes, USABLE);
        assert_eq!(unattributed(&memory), (0, 0));
        let mut program = Program {
            heaps: heaps.to_vec(),
            memory,
            workers: (0..THREADS).map(|_| Worker::start()).collect(),
            threads: (0..THREADS).map(|_| ModelThread::default()).collect(),
            clients: Vec::new(),
            named: [None; NAMES.len()],
            policies: [policy; TIERS.len()],
            nobody: Books::default(),
            blocks: Vec::new(),
            next_id: 0,
        };
        program.add(0, 0);
        program.add(1, 1);
        program
    }

    fn books(&mut self, who: Who) -> &mut Books {
        match who {
            Some(client) => &mut self.clients[client].books,
            None => &mut self.nobody,
        }
    }

    /// Whether all budgets of `client` have room for `size` more bytes, if the
    /// model can tell: overdrafts, by how much they spare the limits, are not
    /// modelled.
    fn fits(&self, client: usize, size: u64) -> Verdict {
        let asking = &self.clients[client];
        let live = |of: &dyn Fn(&ModelClient) -> bool| -> u64 {
            let clients = self.clients.iter().filter(|client| of(client));
            clients.map(|client| client.books.live_bytes).sum()
        };
        let tier = live(&|client| client.tier == asking.tier);
        let aggregate = self.policies[asking.tier].aggregate.unwrap_or(u64::MAX);
        if asking.books.live_bytes + size <= asking.max
            && tier + size <= aggregate
            && live(&|_| true) + size <= USABLE
        {
            return Verdict::Granted;
        }
        match asking.enforcement {
            Enforcement::Observe => Verdict::Granted,
            Enforcement::Graceful => Verdict::Either,
            _ if self.memory.usage().overdrawn_bytes > 0 => Verdict::Either,
            // An observed client has pushed a budget past its limit: what this
            // one had drawn before is charged already, and stays its own.
            _ if (tier > aggregate || live(&|_| true) > USABLE)
                && asking.books.live_bytes + size <= asking.max
                && asking.books.live_bytes + size <= asking.handle.usage().charged_bytes =>
            {
                Verdict::Either
            }
            _ => Verdict::Refused,
        }
    }

    /// Who is charged for a new block, and whether it is granted.
    fn judge(&self, thread: usize, size: u64) -> (Who, Verdict) {
        let Some(client) = self.threads[thread].current() else {
            return (None, Verdict::Granted);
        };
        let state = &self.clients[client];
        match (state.active, state.enforcement) {
            (true, _) => (Some(client), self.fits(client, size)),
            (false, Enforcement::Strict) => (Some(client), Verdict::Refused),
            (false, _) => (None, Verdict::Granted),
        }
    }

    fn check_verdict(&mut self, who: Who, verdict: Verdict, granted: bool) {
        match verdict {
            Verdict::Granted => assert!(granted, "a false denial"),
            Verdict::Refused => assert!(
                !granted,
                "granted beyond a limit: {:?}",
                who.map(|client| self.clients[client].handle.usage())
            ),
            Verdict::Either => {}
        }
        if let (Some(client), false) = (who, granted) {
            self.clients[client].refusals += 1;
        }
    }

    fn add(&mut self, name: usize, tier: usize) {
        let added = self.memory.register(NAMES[name], TIERS[tier]);
        if self.named[name].is_some() {
            assert!(matches!(added, Err(RegisterError::Duplicate { .. })));
            return;
        }
        self.named[name] = Some(self.clients.len());
        self.clients.push(ModelClient {
            handle: added.unwrap(),
            active: true,
            tier,
            max: self.policies[tier].max,
            enforcement: self.policies[tier].enforcement,
            own_max: None,
            own_enforcement: None,
            books: Books::default(),
            refusals: 0,
        });
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn enter(&mut self, thread: usize, who: Who, untracked: bool) -> u64 {
        let id = self.id();
        self.threads[thread].scopes.push(OpenScope {
            id,
            who,
            untracked,
            left: false,
        });
        id
    }

    fn alloc(&mut self, thread: usize, heap: usize, layout: Layout, zeroed: bool) {
        let (who, verdict) = self.judge(thread, layout.size() as u64);
        let heap = self.heaps[heap % self.heaps.len()];
        let seed = self.id() as u8;
        let order = Order::Alloc(heap, layout, zeroed, seed);
        let Answer::Allocated(block) = self.workers[thread].ask(order) else {
            unreachable!()
        };
        self.check_verdict(who, verdict, block.is_some());
        if let Some(block) = block {
            self.books(who).allocate(layout.size());
            self.blocks.push((block, who));
        }
    }

    fn realloc(&mut self, thread: usize, block: usize, size: usize) {
        if self.blocks.is_empty() {
            return;
        }
        let (block, who) = self.blocks.swap_remove(block % self.blocks.len());
        let old = block.size();
        let verdict = match who {
            Some(client) if size > old => self.fits(client, (size - old) as u64),
            _ => Verdict::Granted,
        };
        let Answer::Reallocated(block, resized) =
            self.workers[thread].ask(Order::Realloc(block, size))
        else {
            unreachable!()
        };
        self.check_verdict(who, verdict, resized);
        if resized {
            self.books(who).resize(old, size);
        }
        self.blocks.push((block, who));
    }

    /// Takes a block out of the books; it is about to be freed.
    fn take(&mut self, block: usize) -> Block {
        let (block, who) = self.blocks.swap_remove(block % self.blocks.len());
        self.books(who).free(block.size());
        block
    }

    fn free_together(&mut self, count: usize) {
        let mut parcels: Vec<Vec<Block>> = (0..THREADS).map(|_| Vec::new()).collect();
        for number in 0..count.min(self.blocks.len()) {
            let block = self.take(number * 7);
            parcels[number % THREADS].push(block);
        }
        for (worker, parcel) in self.workers.iter().zip(parcels) {
            worker.send(Order::Free(parcel));
        }
        for worker in &self.workers {
            worker.answers.recv().unwrap();
        }
    }

    fn burst(&mut self, heap: usize, size: usize) {
        let heap = self.heaps[heap % self.heaps.len()];
        let judged: Vec<(Who, Verdict)> = (0..THREADS)
            // Room for all of them at once, so that races decide nothing.
            .map(|thread| match self.judge(thread, (size * THREADS) as u64) {
                (who, Verdict::Granted) => (who, Verdict::Granted),
                (who, _) => (who, Verdict::Either),
            })
            .collect();
        for worker in &self.workers {
            worker.send(Order::Burst(heap, size));
        }
        for (thread, (who, verdict)) in judged.into_iter().enumerate() {
            let Answer::Burst(granted) = self.workers[thread].answers.recv().unwrap() else {
                unreachable!()
            };
            if verdict == Verdict::Granted {
                assert_eq!(granted, BURST, "a false denial");
            }
            let books = self.books(who);
            books.total_blocks += granted;
            books.total_bytes += granted * size as u64;
            if let Some(client) = who {
                self.clients[client].refusals += BURST - granted;
            }
        }
    }

    fn restart(&mut self, thread: usize) {
        let ended = std::mem::replace(&mut self.workers[thread], Worker::start());
        ended.end();
        self.threads[thread].scopes.clear();
    }

    fn reconfigure(&mut self, client: usize, tier: usize, own: Option<ModelOptions>) {
        let policy = self.policies[tier];
        let client = &mut self.clients[client];
        let changed = match &own {
            Some((max, enforcement)) => {
                let mut options = ClientOptions::new(TIERS[tier]);
                if let Some(max) = max {
                    options = options.max(Limit::Bytes(*max));
                }
                if let Some(enforcement) = enforcement {
                    options = options.enforcement(*enforcement);
                }
                client.handle.configure(options)
            }
            None => client.handle.set_tier(TIERS[tier]),
        };
        if !client.active {
            assert_eq!(changed, Err(RegisterError::Removed));
            return;
        }
        changed.unwrap();
        if let Some((max, enforcement)) = own {
            client.own_max = max;
            client.own_enforcement = enforcement;
        }
        client.tier = tier;
        client.max = client.own_max.unwrap_or(policy.max);
        client.enforcement = client.own_enforcement.unwrap_or(policy.enforcement);
        assert_eq!(client.handle.limits().0, client.max);
        assert_eq!(client.handle.enforcement(), client.enforcement);
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Alloc {
                thread,
                heap,
                size,
                align,
                zeroed,
            } => {
                let layout = Layout::from_size_align(size, align).unwrap();
                self.alloc(thread, heap, layout, zeroed);
            }
            Op::Realloc {
                thread,
                block,
                size,
            } => self.realloc(thread, block, size),
            Op::Free { thread, block } => {
                if !self.blocks.is_empty() {
                    let block = self.take(block);
                    self.workers[thread].ask(Order::Free(vec![block]));
                }
            }
            Op::FreeTogether { count } => self.free_together(count),
            Op::Burst { heap, size } => self.burst(heap, size),
            Op::Enter { thread, client } => {
                if self.threads[thread].scopes.len() < DEEPEST && !self.clients.is_empty() {
                    let client = client % self.clients.len();
                    let active = self.clients[client].active;
                    let id = self.enter(thread, active.then_some(client), false);
                    let handle = self.clients[client].handle.clone();
                    self.workers[thread].ask(Order::Enter(handle, id));
                }
            }
            Op::Untracked { thread } => {
                if self.threads[thread].scopes.len() < DEEPEST {
                    self.enter(thread, None, true);
                    self.workers[thread].ask(Order::Untracked);
                }
            }
            Op::EndUntracked { thread } => {
                let scopes = &self.threads[thread].scopes;
                let innermost = scopes.iter().rfind(|scope| scope.untracked && !scope.left);
                if let Some(id) = innermost.map(|scope| scope.id) {
                    self.workers[thread].ask(Order::EndUntracked);
                    self.threads[thread].leave(id);
                }
            }
            Op::Leave { thread, scope } => {
                let scopes = self.threads[thread].scopes.iter();
                let open: Vec<u64> = scopes
                    .filter(|scope| !scope.untracked && !scope.left)
                    .map(|scope| scope.id)
                    .collect();
                if !open.is_empty() {
                    let id = open[scope % open.len()];
                    self.workers[thread].ask(Order::Leave(id));
                    self.threads[thread].leave(id);
                }
            }
            Op::Restart { thread } => self.restart(thread),
            Op::Remove { name } => {
                let removed = self.memory.remove_client(NAMES[name]);
                assert_eq!(removed.is_ok(), self.named[name].is_some());
                if let Some(client) = self.named[name].take() {
                    self.clients[client].active = false;
                }
            }
            Op::Add { name, tier } => self.add(name, tier),
            Op::SetTier { client, tier } => {
                let client = client % self.clients.len();
                self.reconfigure(client, tier, None);
            }
            Op::Configure {
                client,
                tier,
                max,
                enforcement,
            } => {
                let client = client % self.clients.len();
                self.reconfigure(client, tier, Some((max, enforcement)));
            }
            Op::SetTierPolicy { tier, policy } => {
                self.memory
                    .set_tier_policy(TIERS[tier], policy.build())
                    .unwrap();
                self.policies[tier] = policy;
            }
            Op::Profile { sample_bytes } => self.profile(sample_bytes),
        }
    }

    #[cfg(not(feature = "profile"))]
    fn profile(&self, _: u64) {}

    #[cfg(feature = "profile")]
    fn profile(&self, sample_bytes: u64) {
        if self.memory.stop_heap_profile().is_err() {
            let options = tiered_allocator::profile::ProfileOptions::new()
                .sample_bytes(sample_bytes)
                .unattributed(sample_bytes.is_multiple_of(2))
                .max_samples(200)
                .seed(sample_bytes);
            self.memory.start_heap_profile(&options).unwrap();
        }
    }

    /// At rest, everything that can be seen is what the model says.
    fn compare(&self) {
        for client in &self.clients {
            let usage = client.handle.usage();
            let books = client.books;
            assert_eq!(usage.live_bytes, books.live_bytes);
            assert_eq!(usage.live_allocations, books.live_blocks);
            assert_eq!(usage.block_bytes, 0);
            // Of a removed client the figures end with its last byte.
            if client.active || books.live_bytes > 0 {
                assert_eq!(usage.total_bytes, books.total_bytes);
                assert_eq!(usage.total_allocations, books.total_blocks);
                assert_eq!(usage.refusals, client.refusals);
                assert!(usage.charged_bytes >= books.live_bytes);
                assert!(usage.peak_bytes >= books.live_bytes);
            }
        }
        let snapshot = self.memory.snapshot();
        assert_eq!(snapshot.unattributed_bytes, self.nobody.live_bytes);
        assert_eq!(snapshot.unattributed_allocations, self.nobody.live_blocks);
        assert_eq!(snapshot.clients.len(), self.named.iter().flatten().count());
        for seen in &snapshot.clients {
            let name = NAMES.iter().position(|name| **name == *seen.name).unwrap();
            let client = &self.clients[self.named[name].unwrap()];
            assert_eq!(seen.id, client.handle.id());
            assert_eq!(*seen.tier, *TIERS[client.tier]);
            assert_eq!(seen.usage.live_bytes, client.books.live_bytes);
            assert_eq!(seen.used_bytes, client.books.live_bytes);
            assert_eq!(seen.max_bytes, client.max);
        }
        let removed: Vec<&ModelClient> = self
            .clients
            .iter()
            .filter(|client| !client.active && client.books.live_bytes > 0)
            .collect();
        for client in &removed {
            let id = client.handle.id();
            let seen = snapshot.retired.iter().find(|seen| seen.id == id);
            let usage = seen.expect("it still holds something").usage;
            assert_eq!(usage.live_bytes, client.books.live_bytes);
            assert_eq!(usage.live_allocations, client.books.live_blocks);
        }
        let seen = snapshot.retired.iter();
        assert_eq!(
            seen.filter(|seen| seen.usage.live_bytes > 0).count(),
            removed.len()
        );
    }

    /// Frees everything and ends every thread: nothing may be left.
    fn finish(mut self) {
        while !self.blocks.is_empty() {
            let block = self.take(self.blocks.len() / 2);
            self.workers[block.size() % THREADS].ask(Order::Free(vec![block]));
        }
        self.compare();
        for worker in self.workers.drain(..) {
            worker.end();
        }
        self.threads.clear();
        self.compare();
        let usage = self.memory.usage();
        assert_eq!((usage.charged_bytes, usage.overdrawn_bytes), (0, 0));
        let snapshot = self.memory.snapshot();
        assert!(snapshot.tiers.iter().all(|tier| tier.charged_bytes == 0));
        #[cfg(feature = "profile")]
        if let Ok(profile) = self.memory.heap_profile(None) {
            assert_eq!(profile.kept_samples, 0, "samples of blocks that are freed");
        }
        for name in NAMES {
            let _ = self.memory.remove_client(name);
        }
        self.memory.tick();
    }
}

type ModelOptions = (Option<u64>, Option<Enforcement>);

fn run(heaps: &[Heap], ops: Vec<Op>) {
    let mut program = Program::new(heaps);
    for op in ops {
        program.step(op);
        program.compare();
    }
    program.finish();
}

fn agree(heaps: &[Heap]) {
    assert!(!TieredAllocator::is_installed());
    let config = ProptestConfig {
        cases: support::cases(24),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(ops in proptest::collection::vec(op(), 1..250))| run(heaps, ops));
}

#[test]
#[serial]
fn ledger_and_model_agree_over_the_system_allocator() {
    agree(&[&SYSTEM]);
}

#[test]
#[serial]
fn ledger_and_model_agree_over_mimalloc() {
    agree(&[&MIMALLOC]);
}

#[cfg(feature = "jemalloc")]
#[test]
#[serial]
fn ledger_and_model_agree_over_jemalloc() {
    agree(&[&JEMALLOC]);
}

#[test]
#[serial]
fn ledger_and_model_agree_over_several_inner_allocators_at_once() {
    agree(&[
        &SYSTEM,
        &MIMALLOC,
        #[cfg(feature = "jemalloc")]
        &JEMALLOC,
    ]);
}
