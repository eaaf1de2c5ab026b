//! A cache that four threads share: texts in and out of a concurrent map
//! (dashmap).

use crate::heap;
use crate::random::Random;
use dashmap::DashMap;
use std::thread;

const THREADS: usize = 4;
const KEYS: usize = 100_000;

/// What each thread finds depends on the others: the result is how many keys
/// hold what belongs to them, which is all of them.
pub fn run(operations: usize) -> u64 {
    let map: DashMap<String, Vec<String>> = DashMap::new();
    thread::scope(|scope| {
        for number in 0..THREADS {
            let map = &map;
            scope.spawn(move || {
                let _scope = heap::enter();
                let mut random = Random(0x3A9 + number as u64);
                for _ in 0..operations / THREADS {
                    let number = random.below(KEYS);
                    let key = format!("key-{number}");
                    match random.below(10) {
                        0..4 => {
                            let value = (0..1 + random.below(4))
                                .map(|at| format!("{number}/{at}/{}", random.word()))
                                .collect();
                            map.insert(key, value);
                        }
                        4..6 => drop(map.remove(&key)),
                        _ => {
                            let copy = map.get(&key).map(|value| value.clone());
                            drop(copy);
                        }
                    }
                }
            });
        }
    });
    let wrong = map.iter().filter(|entry| {
        let number = entry.key().strip_prefix("key-").unwrap();
        let theirs = |text: &String| text.split('/').next() == Some(number);
        !entry.value().iter().all(theirs)
    });
    wrong.count() as u64
}
