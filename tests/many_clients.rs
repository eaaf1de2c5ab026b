//! More clients on one thread than it has places for their accounts: accounts
//! give way to one another, and where scopes hold every place a client is
//! charged without one. Exact all the same.

mod support;

use serial_test::serial;
use support::Block;
use tiered_allocator::{
    Client, ClientOptions, Enforcement, Limit, Memory, Scope, TierPolicy, TieredAllocator,
};

static HEAP: TieredAllocator = TieredAllocator::system();

/// Accounts that a thread has places for.
const PLACES: usize = 1 << 14;
const CLIENTS: usize = 5 * PLACES + 8;
const MAX: u64 = 100_000;

fn strict(memory: &Memory, count: usize) -> Vec<Client> {
    let clients = (0..count).map(|number| memory.register(&number.to_string(), "strict").unwrap());
    clients.collect()
}

fn memory() -> Memory {
    let tier = TierPolicy::new(Limit::Bytes(MAX)).enforcement(Enforcement::Strict);
    Memory::builder(1 << 40)
        .background(false)
        .tier("strict", tier)
        .build()
        .unwrap()
}

fn live(client: &Client) -> (u64, u64) {
    let usage = client.usage();
    (usage.live_bytes, usage.live_allocations)
}

/// Clients whose accounts have the same home, as many as asked for.
fn colliding(clients: &[Client], count: usize) -> Vec<&Client> {
    let home = clients[PLACES / 2].id().index() as usize % PLACES;
    let same = clients
        .iter()
        .filter(|client| client.id().index() as usize % PLACES == home);
    let same: Vec<&Client> = same.take(count).collect();
    assert_eq!(same.len(), count);
    same
}

/// The limit is there to the byte, and not a byte more.
fn is_exact(client: &Client) {
    let had = client.usage().live_bytes;
    let _scope = client.enter();
    let rest = Block::bytes(&HEAP, (MAX - had) as usize).expect("it fits");
    assert!(Block::bytes(&HEAP, 1).is_none());
    drop(rest);
    assert_eq!(client.usage().live_bytes, had);
}

#[test]
#[serial]
fn more_clients_than_places_on_one_thread_are_all_charged_exactly() {
    let memory = memory();
    let clients = strict(&memory, CLIENTS);
    let mut blocks: Vec<Block> = Vec::with_capacity(CLIENTS);
    // Every account is evicted before its client's turn comes again.
    for (number, client) in clients.iter().enumerate() {
        let _scope = client.enter();
        drop(Block::bytes(&HEAP, 50));
        blocks.push(Block::bytes(&HEAP, 1 + number % 200).unwrap());
    }
    for (number, client) in clients.iter().enumerate().step_by(97) {
        assert_eq!(live(client), (1 + number as u64 % 200, 1));
        assert_eq!(client.usage().total_allocations, 2);
    }
    // Freed without a scope, by a thread that has no account for most of them.
    for (number, mut block) in blocks.into_iter().enumerate() {
        if number % 3 == 0 {
            assert!(block.resize(5000));
        }
        drop(block);
    }
    for client in &clients {
        assert_eq!(live(client), (0, 0));
    }
    clients.iter().step_by(1009).for_each(is_exact);
    clients_leave_nothing(&memory, CLIENTS);
}

fn clients_leave_nothing(memory: &Memory, count: usize) {
    for number in 0..count {
        memory.remove_client(&number.to_string()).unwrap();
    }
    memory.reclaim_unused_memory();
    assert_eq!(memory.snapshot().retired, []);
    assert_eq!(memory.usage().charged_bytes, 0);
}

#[test]
#[serial]
fn scopes_that_hold_every_place_leave_the_others_without_an_account() {
    let memory = memory();
    let clients = strict(&memory, 6 * PLACES);
    let same = colliding(&clients, 6);
    // A client has four places; the fifth and the sixth find none.
    let mut scopes: Vec<Option<Scope>> = Vec::new();
    let mut blocks: Vec<Block> = Vec::new();
    for client in &same {
        scopes.push(Some(client.enter()));
        for size in [10, 4000, 5000] {
            let mut block = Block::bytes(&HEAP, size).unwrap();
            assert!(block.resize(size + 1000));
            assert!(block.resize(size));
            blocks.push(block);
        }
        assert_eq!(Client::current().as_ref(), Some(*client));
    }
    for client in &same {
        assert_eq!(live(client), (9010, 3));
        assert_eq!(client.usage().total_bytes, 12_010);
        is_exact(client);
    }
    // One more thread, with places of its own, frees and allocates.
    std::thread::scope(|scope| {
        let (same, blocks) = (&same, &mut blocks);
        let other = scope.spawn(move || {
            drop(blocks.drain(..9));
            same.iter().for_each(|client| is_exact(client));
        });
        other.join().unwrap();
    });
    let sums: Vec<(u64, u64)> = same.iter().map(|client| live(client)).collect();
    assert_eq!(sums[..3], [(0, 0); 3]);
    assert_eq!(sums[3..], [(9010, 3); 3]);
    // An account-less scope keeps its client's slot, removed or not.
    let name = same[5].name().unwrap();
    memory.remove_client(&name).unwrap();
    memory.reclaim_unused_memory();
    assert_eq!(Client::current().as_ref(), Some(same[5]));
    assert!(Block::bytes(&HEAP, 1).is_none(), "removed, and strict");
    // Out of order; then the places are free for those that had none.
    for place in [1, 5, 0, 3, 4, 2] {
        scopes[place] = None;
    }
    assert!(Client::current().is_none());
    drop(blocks);
    for client in &same[..5] {
        assert_eq!(live(client), (0, 0));
        is_exact(client);
    }
    memory.reclaim_unused_memory();
    assert_eq!(memory.snapshot().retired, []);
}

#[test]
#[serial]
fn a_scope_without_an_account_counts_again_after_scopes_of_both_kinds_inside_it() {
    let memory = memory();
    let clients = strict(&memory, 6 * PLACES);
    let same = colliding(&clients, 6);
    // These hold the four places of the six.
    let _places: Vec<Scope> = same[..4].iter().map(|client| client.enter()).collect();
    let without = same[4].enter();
    {
        let _with = same[0].enter();
        drop(same[5].enter());
        assert_eq!(Client::current().as_ref(), Some(same[0]));
    }
    assert_eq!(Client::current().as_ref(), Some(same[4]));
    let block = Block::bytes(&HEAP, 10).unwrap();
    assert_eq!(live(same[4]), (10, 1));
    assert_eq!(live(same[5]), (0, 0));
    drop((without, block));
    assert_eq!(Client::current().as_ref(), Some(same[3]));
}

#[test]
#[serial]
fn threads_with_colliding_clients_stay_exact_at_the_limit() {
    const THREADS: usize = 3;
    let memory = memory();
    let clients = strict(&memory, 6 * PLACES);
    let same = colliding(&clients, 6);
    std::thread::scope(|scope| {
        for seed in 1..=THREADS as u64 {
            let same = &same;
            scope.spawn(move || {
                let mut random = seed;
                let mut held: Vec<Vec<Block>> = (0..same.len()).map(|_| Vec::new()).collect();
                for round in 0..6_000 {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                    let pick = (random >> 33) as usize;
                    let which = pick % same.len();
                    let _outer = same[(which + 1 + round % 3) % same.len()].enter();
                    let _scope = same[which].enter();
                    match Block::bytes(&HEAP, pick / 7 % 9000 + 1) {
                        Some(block) => held[which].push(block),
                        None => held[which].clear(),
                    }
                }
            });
        }
        let watched = &same;
        scope.spawn(move || {
            for _ in 0..2_000 {
                for client in watched {
                    let usage = client.usage();
                    assert!(usage.live_bytes <= MAX && usage.charged_bytes <= MAX);
                }
            }
        });
    });
    for client in same {
        assert_eq!(live(client), (0, 0));
        is_exact(client);
    }
}

#[test]
#[serial]
fn clients_that_come_and_go_in_one_place_never_inherit_figures() {
    let memory = memory();
    for round in 0..3_000u64 {
        let options = ClientOptions::new("strict").max(Limit::Bytes(10_000 + round));
        let client = memory.register("again", options).unwrap();
        assert_eq!(client.usage(), Default::default());
        let _scope = client.enter();
        let block = Block::bytes(&HEAP, 9_000).unwrap();
        drop(_scope);
        if round % 3 == 0 {
            // The block outlives its client's name.
            memory.remove_client("again").unwrap();
            assert_eq!(live(&client), (9_000, 1));
            drop(block);
        } else {
            drop(block);
            memory.remove_client("again").unwrap();
        }
        assert_eq!(client.usage().live_bytes, 0);
    }
    memory.reclaim_unused_memory();
    assert_eq!(memory.snapshot().retired, []);
    assert_eq!(memory.usage().charged_bytes, 0);
}
