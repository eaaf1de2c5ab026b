//! The heap at the ends of a process and of its threads: before `main`, in
//! thread-local destructors, after a thread's exit hook, for threads that
//! leave blocks, scopes and guards behind.

#![cfg(unix)]

mod support;

use serial_test::serial;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::mpsc::channel;
use support::Block;
use tiered_allocator::{Client, Memory, Scope, SubscriptionTier, TieredAllocator, untracked};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

// --- before main ------------------------------------------------------------------

#[cfg(target_os = "linux")]
mod before_main {
    use super::{Block, HEAP};
    use std::sync::Mutex;

    pub static BLOCKS: Mutex<Vec<Block>> = Mutex::new(Vec::new());

    extern "C" fn allocate() {
        let mut blocks = BLOCKS.lock().unwrap();
        for size in [10, 1000, 4096, 100_000] {
            let mut block = Block::bytes(&HEAP, size).unwrap();
            assert!(block.resize(size * 2));
            blocks.push(block);
        }
    }

    #[used]
    #[unsafe(link_section = ".init_array")]
    static ALLOCATE: extern "C" fn() = allocate;

    #[test]
    #[serial_test::serial]
    fn blocks_from_before_main_are_charged_to_nobody_and_can_be_freed() {
        let memory = super::memory();
        let blocks = std::mem::take(&mut *BLOCKS.lock().unwrap());
        assert_eq!(blocks.len(), 4);
        let bytes: u64 = blocks.iter().map(|block| block.size() as u64).sum();
        let before = memory.snapshot().unattributed_bytes;
        assert!(before >= bytes);
        drop(blocks);
        // Other threads of the test harness come and go by little.
        let after = memory.snapshot().unattributed_bytes;
        assert!(after + bytes <= before + 50_000, "{before} {after}");
    }
}

fn memory() -> Memory {
    assert!(TieredAllocator::is_installed());
    Memory::builder(4 << 30).background(false).build().unwrap()
}

fn client(memory: &Memory, name: &str) -> Client {
    memory.register(name, SubscriptionTier::Enterprise).unwrap()
}

fn live(client: &Client) -> (u64, u64) {
    let usage = client.usage();
    (usage.live_bytes, usage.live_allocations)
}

/// Runs `work` on a thread of its own and waits for its very end.
fn on_a_thread<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    std::thread::spawn(work).join().unwrap()
}

// --- thread-local destructors -----------------------------------------------------

/// What a destructor does, with the blocks that the thread gave it.
struct Last {
    client: Client,
    other: Client,
    blocks: Vec<Block>,
    keep: std::sync::mpsc::Sender<Block>,
}

impl Drop for Last {
    fn drop(&mut self) {
        // The clients' blocks, freed outside and inside a scope.
        self.blocks.truncate(1);
        let scope = self.other.enter();
        self.blocks.clear();
        // Blocks of all kinds that die here, and some that outlive the thread.
        for size in [1, 100, 4095, 4096, 300_000] {
            let mut block = Block::bytes(&HEAP, size).unwrap();
            assert!(block.resize(size + 5000));
            assert!(block.resize(50));
        }
        let kept = self.client.run(|| Block::bytes(&HEAP, 7000).unwrap());
        let kept = kept.unwrap_or_else(|_| unreachable!("within the quota"));
        let inner = untracked(|| self.client.enter());
        let mut small = Block::bytes(&HEAP, 70).unwrap();
        drop(scope);
        assert!(small.resize(77));
        drop(inner);
        untracked(|| {
            let _ = self.keep.send(kept);
            let _ = self.keep.send(small);
        });
        assert!(Client::current().is_none());
    }
}

/// Runs the destructor of whatever is in it when the thread's keys end, in the
/// last round of them: long after this crate's own exit hook.
fn at_key_end(last: Last) {
    unsafe extern "C" fn end(value: *mut libc::c_void) {
        // SAFETY: only boxes of this type are stored under the key.
        let mut boxed = unsafe { Box::from_raw(value.cast::<(usize, Last)>()) };
        if boxed.0 > 0 {
            boxed.0 -= 1;
            let key = KEY.get().copied().unwrap();
            // SAFETY: the key exists; the box is handed over once more.
            unsafe { libc::pthread_setspecific(key, Box::into_raw(boxed).cast()) };
        }
    }
    static KEY: std::sync::OnceLock<libc::pthread_key_t> = std::sync::OnceLock::new();
    let key = *KEY.get_or_init(|| {
        let mut key = 0;
        // SAFETY: `key` is ours to write.
        assert_eq!(0, unsafe { libc::pthread_key_create(&mut key, Some(end)) });
        key
    });
    let boxed = Box::into_raw(Box::new((2usize, last)));
    // SAFETY: the key exists.
    assert_eq!(0, unsafe { libc::pthread_setspecific(key, boxed.cast()) });
}

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

fn destructors_work(place: fn(Last)) {
    let memory = memory();
    let (client, other) = (client(&memory, "client"), client(&memory, "other"));
    for warm in [false, true] {
        let (keep, kept) = channel();
        let last = Last {
            blocks: {
                let _scope = client.enter();
                [100, 5000, 30]
                    .map(|size| Block::bytes(&HEAP, size).unwrap())
                    .into()
            },
            client: client.clone(),
            other: other.clone(),
            keep,
        };
        let worker = client.clone();
        on_a_thread(move || {
            if warm {
                let _scope = worker.enter();
                drop(Block::bytes(&HEAP, 64));
            }
            place(last);
        });
        let kept: Vec<Block> = kept.into_iter().collect();
        assert_eq!(kept.len(), 2);
        assert_eq!(kept[0].size() + kept[1].size(), 7077);
        // The vector that held the blocks was the client's too, and is gone.
        assert_eq!(live(&client), (7077, 2));
        assert_eq!(live(&other), (0, 0));
        drop(kept);
        assert_eq!(live(&client), (0, 0));
    }
    let usage = memory.usage();
    memory.remove_client("client").unwrap();
    memory.remove_client("other").unwrap();
    assert_eq!(memory.usage().charged_bytes, 0, "{usage:?}");
    assert_eq!(memory.snapshot().retired, []);
}

#[test]
#[serial]
fn thread_local_destructors_allocate_free_and_enter_scopes() {
    destructors_work(|last| LAST.with(|place| *place.borrow_mut() = Some(last)));
}

#[test]
#[serial]
fn after_the_exit_hook_threads_allocate_free_and_enter_scopes() {
    destructors_work(at_key_end);
}

// --- what threads leave behind ----------------------------------------------------

#[test]
#[serial]
fn blocks_of_an_ended_thread_are_freed_by_another_and_refunded_to_their_owner() {
    let memory = memory();
    let client = client(&memory, "client");
    let worker = client.clone();
    let mut blocks = on_a_thread(move || {
        let mut blocks = untracked(|| Vec::with_capacity(1000));
        let _scope = worker.enter();
        for size in 1..=1000 {
            blocks.push(Block::bytes(&HEAP, size * 9).unwrap());
        }
        blocks
    });
    assert_eq!(live(&client), (9 * 500_500, 1000));
    // All credit went back when the thread ended.
    assert_eq!(client.usage().charged_bytes, 9 * 500_500);
    assert!(blocks[0].resize(109));
    assert_eq!(live(&client), (9 * 500_500 + 100, 1000));
    drop(blocks);
    assert_eq!(live(&client), (0, 0));
}

#[test]
#[serial]
fn a_hundred_thousand_short_threads_leave_nothing_behind() {
    const THREADS: usize = 100_000;
    const TOGETHER: usize = 10;
    let memory = memory();
    let clients = [client(&memory, "even"), client(&memory, "odd")];
    let batch = |first: usize| {
        let work = |number: usize| {
            let _scope = clients[number % 2].enter();
            drop(Block::bytes(&HEAP, 100 + number % 8000));
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (first..first + TOGETHER)
                .map(|number| {
                    std::thread::Builder::new()
                        .stack_size(64 << 10)
                        .spawn_scoped(scope, move || work(number))
                        .unwrap()
                })
                .collect();
            // The end of the scope would not wait for the threads' exit hooks.
            for thread in threads {
                thread.join().unwrap();
            }
        });
    };
    let size_of_process = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: Vec<u64> = statm
            .split_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        let at = |field: usize| pages.get(field).copied().unwrap_or(0) * 4096;
        (maps.lines().count(), at(0), at(1))
    };
    (0..200).step_by(TOGETHER).for_each(batch);
    let (maps, address_space, resident) = size_of_process();
    (200..THREADS).step_by(TOGETHER).for_each(batch);
    let (maps_after, address_space_after, resident_after) = size_of_process();
    for client in &clients {
        let usage = client.usage();
        assert_eq!((usage.live_bytes, usage.charged_bytes), (0, 0));
        assert_eq!(usage.live_allocations, 0);
        assert!(usage.total_allocations >= (THREADS / 2) as u64);
    }
    // A table a thread would be 100,000 mappings and 100 GiB.
    assert!(maps_after < maps + 200, "{maps} -> {maps_after}");
    assert!(address_space_after < address_space + (4 << 30));
    assert!(resident_after < resident + (32 << 20));
}

// --- scopes that do not end as they should ------------------------------------------

thread_local! {
    static GUARD: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

#[test]
#[serial]
fn a_scope_that_is_forgotten_ends_with_its_thread() {
    let memory = memory();
    let client = client(&memory, "client");
    let worker = client.clone();
    let block = on_a_thread(move || {
        let outer = untracked(|| worker.enter());
        std::mem::forget(worker.enter());
        drop(outer);
        // The forgotten scope goes on.
        assert_eq!(Client::current(), Some(worker.clone()));
        Block::bytes(&HEAP, 500).unwrap()
    });
    assert!(Client::current().is_none());
    assert!(live(&client).0 >= 500);
    drop(block);
    memory.remove_client("client").unwrap();
    memory.tick();
    assert_eq!(memory.snapshot().retired, []);
}

#[test]
#[serial]
fn a_guard_kept_in_a_thread_local_charges_until_the_thread_ends() {
    let memory = memory();
    let client = client(&memory, "client");
    let worker = client.clone();
    let block = on_a_thread(move || {
        // So that the guard's destructor is registered by the client's thread.
        GUARD.with(|guard| *guard.borrow_mut() = Some(worker.enter()));
        Block::bytes(&HEAP, 500).unwrap()
    });
    let (bytes, _) = live(&client);
    assert!(bytes >= 500);
    drop(block);
    memory.remove_client("client").unwrap();
    let next = memory.register("client", SubscriptionTier::Basic).unwrap();
    assert_eq!(live(&next), (0, 0));
}

#[test]
#[serial]
fn a_panic_that_unwinds_through_scopes_restores_the_outer_client() {
    let memory = memory();
    let (outer, inner) = (client(&memory, "outer"), client(&memory, "inner"));
    let scope = outer.enter();
    for depth in [1, 3, 20, 50] {
        fn nest(clients: [&Client; 2], depth: usize) {
            let _scope = clients[depth % 2].enter();
            match depth {
                0 => untracked(|| panic_any(7_u8)),
                _ => nest(clients, depth - 1),
            }
        }
        let caught = catch_unwind(AssertUnwindSafe(|| nest([&outer, &inner], depth)));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
        assert_eq!(Client::current(), Some(outer.clone()));
    }
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _ = inner.run(|| panic_any(8_u8));
    }));
    assert!(caught.is_err());
    assert_eq!(Client::current(), Some(outer.clone()));
    drop(scope);
    assert!(Client::current().is_none());
}

#[test]
#[serial]
fn scopes_are_left_in_any_order_and_those_that_nest_deeper_in_turn() {
    let memory = memory();
    let clients: Vec<Client> = (0..100)
        .map(|number| client(&memory, &format!("c{number}")))
        .collect();
    on_a_thread(move || {
        let mut scopes: Vec<Option<Scope>> = untracked(|| Vec::with_capacity(clients.len()));
        for client in &clients[..32] {
            scopes.push(Some(client.enter()));
        }
        // Every second one, then those between them from the inside out.
        for place in (0..scopes.len()).step_by(2) {
            scopes[place] = None;
        }
        for place in (0..scopes.len()).rev() {
            let expected = clients[place | 1].clone();
            assert_eq!(Client::current().is_some(), place > 0);
            if place > 0 && place % 2 == 1 {
                assert_eq!(Client::current(), Some(expected));
            }
            scopes[place] = None;
        }
        assert!(Client::current().is_none());
        scopes.clear();
        for client in &clients {
            scopes.push(Some(client.enter()));
        }
        for client in clients.iter().rev() {
            assert_eq!(Client::current().as_ref(), Some(client));
            scopes.pop();
        }
        assert!(Client::current().is_none());
    });
}
