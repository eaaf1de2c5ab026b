//! A workload of the standard collections, in threads, for the allocator that
//! the test binary has installed.

use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::channel;
use tiered_allocator::{Client, Memory, SubscriptionTier, TieredAllocator, untracked};

type Things = (
    HashMap<String, Vec<u8>>,
    BTreeMap<u64, Arc<str>>,
    VecDeque<Box<[u64]>>,
    BinaryHeap<String>,
);

fn things(seed: u64) -> Things {
    let mut things = Things::default();
    let mut text = String::new();
    for number in 0..400u64 {
        let mixed = (number + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        things.0.insert(
            format!("key {mixed}"),
            vec![number as u8; mixed as usize % 9000],
        );
        things.1.insert(mixed, Arc::from(format!("value {number}")));
        things
            .2
            .push_back(vec![mixed; number as usize].into_boxed_slice());
        things.3.push(mixed.to_string());
        if number % 3 == 0 {
            things.2.pop_front();
            things.3.pop();
        }
        text.push_str("grows by reallocation ");
    }
    things.0.insert("text".to_owned(), text.into_bytes());
    things.0.shrink_to_fit();
    things
}

fn bytes_of(client: &Client) -> (u64, u64) {
    let usage = client.usage();
    (usage.live_bytes, usage.live_allocations)
}

/// Checks that what clients have is exactly what they hold.
pub fn are_charged_to_the_byte() {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::builder(8 << 30).background(false).build().unwrap();
    let clients =
        ["a", "b", "c"].map(|name| memory.register(name, SubscriptionTier::Enterprise).unwrap());

    // What one workload holds is the same whoever makes it.
    let alone = clients[0].run(|| things(7)).unwrap();
    let measured = bytes_of(&clients[0]);
    assert!(measured.0 > 1 << 20 && measured.1 > 1000, "{measured:?}");
    drop(alone);
    assert_eq!(bytes_of(&clients[0]), (0, 0));

    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        for client in &clients {
            for _ in 0..2 {
                let sender = sender.clone();
                scope.spawn(move || {
                    for _ in 0..3 {
                        let made = client.run(|| things(7)).unwrap();
                        let sum = client.run(|| made.2.iter().map(|b| b.len()).sum::<usize>());
                        assert!(sum.unwrap() > 0);
                        untracked(|| sender.send(made).unwrap());
                    }
                });
            }
        }
    });
    drop(sender);
    // Six workloads a client, made by two threads that are gone.
    for client in &clients {
        assert_eq!(bytes_of(client), (measured.0 * 6, measured.1 * 6));
    }
    // Whoever frees, and in whatever scope: the owners are refunded.
    clients[1]
        .run(|| receiver.into_iter().for_each(drop))
        .unwrap();
    for client in &clients {
        assert_eq!(bytes_of(client), (0, 0));
    }
}
