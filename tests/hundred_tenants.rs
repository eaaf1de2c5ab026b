//! A hundred tenants in one process, eight of which allocate without end. The
//! others get their results, and nobody's memory is lost.

#[path = "support/results.rs"]
mod results;

use results::{Random, Texts, expected, numbers};
use tiered_allocator::integrations::tokio as tenant;
use tiered_allocator::{
    Client, ClientOptions, EventKind, Limit, Memory, QuotaExceeded, SubscriptionTier,
    TieredAllocator,
};
use tokio::runtime::Builder;
use tokio::task::yield_now;

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const TENANTS: usize = 100;
const HOSTILE: usize = 8;
const MAX_BYTES: u64 = 1 << 20;
const ROUNDS: u64 = 12;
const ATTACKS: u64 = 25;
const RECORDS: usize = 400;

/// Puts numbers into texts into maps, takes them apart again in between and
/// on other threads.
async fn work(seed: u64) -> u64 {
    let mut sum = 0_u64;
    let mut texts = Texts::default();
    for (record, number) in numbers(seed).take(RECORDS).enumerate() {
        texts.add(number, 300);
        if record % 50 == 49 {
            yield_now().await;
        }
        if record % 100 == 99 {
            let taken = std::mem::take(&mut texts);
            let add_up = move || taken.sum(seed);
            let added = if record % 200 == 99 {
                add_up()
            } else {
                tenant::spawn_blocking_current(add_up)
                    .await
                    .unwrap()
                    .unwrap()
            };
            sum = sum.wrapping_add(added);
        }
    }
    sum
}

/// Runs a tenant's rounds, some of which are cancelled and begun again.
async fn neighbour(client: Client, number: u64) -> u64 {
    let mut random = Random(number);
    let mut cancelled = 0;
    for round in 0..ROUNDS {
        let seed = number << 32 | round;
        loop {
            let task = tenant::spawn(&client, work(seed));
            if random.below(3) == 0 {
                for _ in 0..random.below(6) {
                    yield_now().await;
                }
                task.abort();
            }
            match task.await {
                Ok(result) => {
                    assert_eq!(result, Ok(expected(RECORDS, seed)));
                    break;
                }
                Err(ended) => {
                    assert!(ended.is_cancelled(), "{ended}");
                    cancelled += 1;
                }
            }
        }
    }
    cancelled
}

/// Allocates until a safe point ends it: its own, or that of being polled.
async fn attack(client: Client, seed: u64) -> Result<(), QuotaExceeded> {
    let mut random = Random(seed);
    let mut hoard = Vec::new();
    loop {
        for _ in 0..32 {
            hoard.push(vec![1_u8; 1 + random.below(8192) as usize]);
        }
        if seed.is_multiple_of(2) {
            client.checkpoint()?;
        } else {
            yield_now().await;
        }
    }
}

async fn hostile(client: Client, number: u64) {
    for round in 0..ATTACKS {
        let ended = tenant::spawn(&client, attack(client.clone(), number + round)).await;
        let quota = match ended.unwrap() {
            Ok(Ok(())) => panic!("an attack has no end of its own"),
            Ok(Err(quota)) | Err(quota) => quota,
        };
        assert_eq!(quota.limit, MAX_BYTES);
        assert!(quota.charged > MAX_BYTES);
    }
}

#[test]
fn ninety_two_tenants_do_not_notice_eight_hostile_ones() {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::builder(256 << 20)
        .background(false)
        .build()
        .unwrap();
    let clients: Vec<Client> = (0..TENANTS)
        .map(|number| {
            let options = ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(MAX_BYTES));
            memory
                .register(&format!("tenant-{number}"), options)
                .unwrap()
        })
        .collect();
    let (bad, good) = clients.split_at(HOSTILE);

    let runtime = Builder::new_multi_thread()
        .worker_threads(4)
        .build()
        .unwrap();
    let cancelled = runtime.block_on(async {
        let numbered = |clients: &[Client]| {
            let numbered: Vec<_> = clients.iter().cloned().zip(0..).collect();
            numbered.into_iter()
        };
        let hostile: Vec<_> = numbered(bad)
            .map(|(client, number)| tokio::spawn(hostile(client, number)))
            .collect();
        let neighbours: Vec<_> = numbered(good)
            .map(|(client, number)| tokio::spawn(neighbour(client, number)))
            .collect();
        let mut cancelled = 0;
        for task in neighbours {
            cancelled += task.await.unwrap();
        }
        for task in hostile {
            task.await.unwrap();
        }
        cancelled
    });
    drop(runtime);
    assert!(cancelled > 0);

    for client in good {
        let usage = client.usage();
        assert_eq!(usage.refusals, 0, "{client:?}");
        assert!(usage.peak_bytes <= MAX_BYTES, "{client:?}: {usage:?}");
    }
    for client in bad {
        assert_eq!(
            client.usage().refusals,
            0,
            "{client:?}: the headroom was enough"
        );
        assert!(client.usage().peak_bytes > MAX_BYTES);
    }

    let (events, next) = memory.events(0);
    assert_eq!(events.len() as u64, next, "no record was lost");
    let attackers: Vec<_> = bad.iter().map(Client::id).collect();
    assert!(events.iter().all(|event| attackers.contains(&event.client)));
    let overdrafts = events
        .iter()
        .filter(|event| event.kind == EventKind::Overdraft);
    assert!(overdrafts.count() as u64 >= HOSTILE as u64 * ATTACKS);

    for client in &clients {
        let usage = client.usage();
        let left = (
            usage.live_bytes,
            usage.live_allocations,
            usage.charged_bytes,
        );
        assert_eq!(left, (0, 0, 0), "{client:?}");
    }
    let usage = memory.usage();
    assert_eq!((usage.charged_bytes, usage.overdrawn_bytes), (0, 0));
}
