//! Sequences of actions over the allocator, two threads deep: contents are as
//! they were written, and after each action every client holds what the
//! sequence says it holds.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::alloc::Layout;
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, Sender, channel};
use tiered_allocator::{
    AllocateError, Budget, Client, ClientOptions, Enforcement, Limit, Memory, MemoryBlock,
    PinError, RegisterError, Scope, TierPolicy, TieredAllocator, TransferError, untracked,
};

#[path = "../../tests/support/mod.rs"]
mod support;
use support::Block;

static HEAP: TieredAllocator = TieredAllocator::system();

const SEATS: usize = 3;
const MAX: u64 = 300_000;
const DEEPEST: usize = 30;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Size {
    Tiny(u8),
    /// Around the size from which owners are in the page map.
    Page(i8),
    Medium(u16),
    Large(u8),
}

impl Size {
    fn bytes(self) -> usize {
        match self {
            Size::Tiny(size) => usize::from(size) + 1,
            Size::Page(offset) => (4096 + isize::from(offset)) as usize,
            Size::Medium(size) => usize::from(size) + 1,
            Size::Large(size) => (usize::from(size) + 1) * 8191,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Action {
    Alloc {
        size: Size,
        align: u8,
        zeroed: bool,
    },
    Realloc {
        pick: u8,
        size: Size,
        elsewhere: bool,
    },
    Free {
        pick: u8,
        elsewhere: bool,
    },
    AllocUntracked {
        size: Size,
    },
    Enter {
        seat: u8,
    },
    Budget {
        bytes: u16,
        ends_first: bool,
    },
    Leave {
        pick: u8,
    },
    Configure {
        seat: u8,
        max: u32,
        enforcement: u8,
    },
    Replace {
        seat: u8,
    },
    Block {
        seat: u8,
        size: u16,
    },
    Write {
        pick: u8,
    },
    ChargeTo {
        pick: u8,
        seat: u8,
    },
    DropBlock {
        pick: u8,
    },
    Reclaim,
    Snapshot,
}

/// A second thread, for as long as the process lives.
enum Order {
    Realloc(Block, usize),
    Free(Block),
}

type Elsewhere = (Sender<Order>, Receiver<(Option<Block>, bool)>);

fn elsewhere() -> Elsewhere {
    let (orders, inbox) = channel();
    let (outbox, answers) = channel();
    std::thread::spawn(move || {
        for order in inbox {
            let answer = match order {
                Order::Realloc(mut block, size) => {
                    let resized = block.resize(size);
                    (Some(block), resized)
                }
                Order::Free(block) => {
                    drop(block);
                    (None, true)
                }
            };
            outbox.send(answer).unwrap();
        }
    });
    (orders, answers)
}

static ELSEWHERE: LazyLock<std::sync::Mutex<Elsewhere>> =
    LazyLock::new(|| std::sync::Mutex::new(elsewhere()));

fn at_the_other_thread(order: Order) -> (Option<Block>, bool) {
    let elsewhere = ELSEWHERE.lock().unwrap();
    elsewhere.0.send(order).unwrap();
    elsewhere.1.recv().unwrap()
}

/// Nobody, or a client by its place in `clients`.
type Who = Option<usize>;

struct Known {
    client: Client,
    name: String,
    active: bool,
    strict: bool,
    bytes: u64,
    blocks: u64,
}

struct Open {
    scope: Option<Scope>,
    budget: Option<Budget>,
    ends_first: bool,
    who: usize,
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.ends_first {
            self.budget = None;
        }
        self.scope = None;
    }
}

struct Buffer {
    block: MemoryBlock,
    who: usize,
    seed: u8,
}

impl Buffer {
    fn is_charged(&self) -> bool {
        match self.block.pin() {
            Ok(bytes) => {
                assert!(bytes.iter().all(|&byte| byte == self.seed));
                true
            }
            Err(PinError::QuotaExceeded(_)) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

struct World {
    memory: Memory,
    clients: Vec<Known>,
    seats: [usize; SEATS],
    nobody: (u64, u64),
    blocks: Vec<(Block, Who)>,
    buffers: Vec<Buffer>,
    open: Vec<Open>,
    seed: u8,
}

impl World {
    fn new() -> World {
        let policy = TierPolicy::new(Limit::Bytes(MAX))
            .enforcement(Enforcement::Strict)
            .idle_after(std::time::Duration::ZERO);
        let memory = Memory::builder(1 << 40)
            .background(false)
            .tier("tier", policy)
            .build()
            .unwrap();
        let mut world = World {
            memory,
            clients: Vec::new(),
            seats: [0; SEATS],
            nobody: (0, 0),
            blocks: Vec::new(),
            buffers: Vec::new(),
            open: Vec::new(),
            seed: 0,
        };
        for seat in 0..SEATS {
            world.register(seat);
        }
        world
    }

    fn register(&mut self, seat: usize) {
        let name = format!("client {}", self.clients.len());
        self.seats[seat] = self.clients.len();
        self.clients.push(Known {
            client: self.memory.register(&name, "tier").unwrap(),
            name,
            active: true,
            strict: true,
            bytes: 0,
            blocks: 0,
        });
    }

    fn seat(&self, seat: u8) -> usize {
        self.seats[usize::from(seat) % SEATS]
    }

    fn seed(&mut self) -> u8 {
        self.seed = self.seed.wrapping_add(1);
        self.seed
    }

    fn book(&mut self, who: Who, old: u64, new: u64, blocks: i64) {
        let (bytes, count) = match who {
            Some(who) => {
                let known = &mut self.clients[who];
                (&mut known.bytes, &mut known.blocks)
            }
            None => (&mut self.nobody.0, &mut self.nobody.1),
        };
        *bytes = *bytes - old + new;
        *count = count.checked_add_signed(blocks).unwrap();
    }

    /// Who pays now; the error: a removed client, for whom nothing is
    /// allocated here.
    fn payer(&self) -> Result<Who, ()> {
        match self.open.last() {
            None => Ok(None),
            Some(open) if self.clients[open.who].active => Ok(Some(open.who)),
            Some(_) => Err(()),
        }
    }

    fn alloc(&mut self, who: Who, layout: Layout, zeroed: bool) {
        let seed = self.seed();
        let block = match zeroed {
            true => Block::zeroed(&HEAP, layout, seed),
            false => Block::new(&HEAP, layout, seed),
        };
        match block {
            Some(block) => {
                self.book(who, 0, block.size() as u64, 1);
                self.blocks.push((block, who));
            }
            None => assert!(who.is_some(), "nobody has no limit"),
        }
    }

    fn realloc(&mut self, pick: u8, size: usize, elsewhere: bool) {
        if self.blocks.is_empty() {
            return;
        }
        let at = usize::from(pick) % self.blocks.len();
        let (mut block, who) = self.blocks.swap_remove(at);
        let old = block.size();
        let resized = match elsewhere {
            true => {
                let (back, resized) = at_the_other_thread(Order::Realloc(block, size));
                block = back.unwrap();
                resized
            }
            false => block.resize(size),
        };
        assert!(resized || size > old);
        if resized {
            self.book(who, old as u64, size as u64, 0);
        }
        self.blocks.push((block, who));
    }

    fn free(&mut self, pick: usize, elsewhere: bool) {
        if self.blocks.is_empty() {
            return;
        }
        let at = pick % self.blocks.len();
        let (block, who) = self.blocks.swap_remove(at);
        self.book(who, block.size() as u64, 0, -1);
        match elsewhere {
            true => drop(at_the_other_thread(Order::Free(block))),
            false => drop(block),
        }
    }

    fn step(&mut self, action: Action) {
        match action {
            Action::Alloc {
                size,
                align,
                zeroed,
            } => {
                let layout = Layout::from_size_align(size.bytes(), 1 << (align % 22)).unwrap();
                if let Ok(who) = self.payer() {
                    self.alloc(who, layout, zeroed);
                }
            }
            Action::AllocUntracked { size } => {
                let layout = Layout::from_size_align(size.bytes(), 1).unwrap();
                untracked(|| self.alloc(None, layout, false));
            }
            Action::Realloc {
                pick,
                size,
                elsewhere,
            } => self.realloc(pick, size.bytes(), elsewhere),
            Action::Free { pick, elsewhere } => self.free(usize::from(pick), elsewhere),
            Action::Enter { seat } => {
                if self.open.len() < DEEPEST {
                    let who = self.seat(seat);
                    self.open.push(Open {
                        scope: Some(self.clients[who].client.enter()),
                        budget: None,
                        ends_first: false,
                        who,
                    });
                }
            }
            Action::Budget { bytes, ends_first } => self.enter_budget(bytes, ends_first),
            Action::Leave { pick } => {
                if !self.open.is_empty() {
                    let at = usize::from(pick) % self.open.len();
                    drop(self.open.remove(at));
                }
            }
            Action::Configure {
                seat,
                max,
                enforcement,
            } => {
                let enforcement = [
                    Enforcement::Strict,
                    Enforcement::Graceful,
                    Enforcement::Observe,
                ][usize::from(enforcement % 3)];
                let who = self.seat(seat);
                let known = &mut self.clients[who];
                let options = ClientOptions::new("tier")
                    .max(Limit::Bytes(u64::from(max % 1_000_000)))
                    .enforcement(enforcement);
                match known.client.configure(options) {
                    Ok(()) => known.strict = enforcement == Enforcement::Strict,
                    Err(RegisterError::Config(_)) => assert_eq!(max % 1_000_000, 0),
                    Err(error) => panic!("{error}"),
                }
            }
            Action::Replace { seat } => {
                let who = self.seat(seat);
                let known = &mut self.clients[who];
                known.active = false;
                self.memory.remove_client(&known.name).unwrap();
                assert!(self.memory.remove_client(&known.name).is_err());
                self.register(usize::from(seat) % SEATS);
            }
            Action::Block { seat, size } => {
                let who = self.seat(seat);
                let name = &self.clients[who].name;
                match self.memory.allocate_for_client(name, size.into()) {
                    Ok(block) => self.buffers.push(Buffer {
                        block,
                        who,
                        seed: 0,
                    }),
                    Err(AllocateError::ZeroSize) => assert_eq!(size, 0),
                    Err(AllocateError::QuotaExceeded(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Action::Write { pick } => {
                let seed = self.seed();
                if let Some(buffer) = self.buffer(pick)
                    && let Ok(mut bytes) = buffer.block.pin_mut()
                {
                    bytes.fill(seed);
                    drop(bytes);
                    buffer.seed = seed;
                }
            }
            Action::ChargeTo { pick, seat } => {
                let who = self.seat(seat);
                let client = self.clients[who].client.clone();
                if let Some(buffer) = self.buffer(pick) {
                    match buffer.block.charge_to(&client) {
                        Ok(()) => buffer.who = who,
                        Err(TransferError::QuotaExceeded(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            Action::DropBlock { pick } => {
                if !self.buffers.is_empty() {
                    let at = usize::from(pick) % self.buffers.len();
                    self.buffers.swap_remove(at).is_charged();
                }
            }
            Action::Reclaim => drop(self.memory.reclaim_unused_memory()),
            Action::Snapshot => {
                let snapshot = self.memory.snapshot();
                assert_eq!(snapshot.clients.len(), SEATS);
                assert_eq!(snapshot.unattributed_bytes, self.nobody.0);
                assert_eq!(snapshot.unattributed_allocations, self.nobody.1);
            }
        }
    }

    fn buffer(&mut self, pick: u8) -> Option<&mut Buffer> {
        let len = self.buffers.len();
        self.buffers.get_mut(usize::from(pick) % len.max(1))
    }

    fn enter_budget(&mut self, bytes: u16, ends_first: bool) {
        let Some(outer) = self.open.last().filter(|_| self.open.len() < DEEPEST) else {
            return;
        };
        let parent: &Client = match &outer.budget {
            Some(budget) => budget,
            None => &self.clients[outer.who].client,
        };
        let budget = match parent.budget(bytes.into()) {
            Ok(budget) => budget,
            Err(RegisterError::Removed) => return,
            Err(error) => panic!("{error}"),
        };
        let who = outer.who;
        self.open.push(Open {
            scope: Some(budget.enter()),
            budget: Some(budget),
            ends_first,
            who,
        });
    }

    fn check(&self) {
        for (number, known) in self.clients.iter().enumerate() {
            let usage = known.client.usage();
            let buffers = self.buffers.iter().filter(|buffer| buffer.who == number);
            let heap = usage.live_bytes - usage.block_bytes;
            assert_eq!(heap, known.bytes, "{usage:?}");
            assert_eq!(
                usage.live_allocations,
                known.blocks + buffers.count() as u64,
                "{usage:?}"
            );
            assert!(usage.charged_bytes >= usage.live_bytes);
        }
    }

    fn end(mut self) {
        while !self.open.is_empty() {
            drop(self.open.remove(0));
        }
        while !self.blocks.is_empty() {
            self.free(self.blocks.len() / 2, self.blocks.len() % 2 == 0);
        }
        for buffer in self.buffers.drain(..) {
            buffer.is_charged();
        }
        self.check();
        for known in &self.clients {
            assert_eq!((known.bytes, known.blocks), (0, 0));
            if known.active {
                self.memory.remove_client(&known.name).unwrap();
            }
        }
        for _ in 0..=DEEPEST {
            self.memory.reclaim_unused_memory();
        }
        let usage = self.memory.usage();
        assert_eq!((usage.charged_bytes, usage.overdrawn_bytes), (0, 0));
        assert_eq!(usage.spilled_bytes, 0);
        assert_eq!(self.memory.snapshot().retired, []);
    }
}

fuzz_target!(|actions: Vec<Action>| {
    let mut world = World::new();
    for action in actions {
        world.step(action);
        world.check();
    }
    world.end();
});
