//! The inverted index that each tenant builds: word -> where it stands.
//!
//! Nothing here knows that memory is accounted for.

use crate::corpus::{Occurrences, Reference};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

#[derive(Clone, Copy)]
pub struct Posting {
    pub file: u32,
    pub line: u32,
}

type Words = HashMap<Box<str>, Vec<Posting>>;

/// Many threads add to it at once, and grow each other's lists: each word has
/// its stripe, and each stripe a lock.
pub struct Index {
    stripes: Box<[Mutex<Words>]>,
}

const STRIPES: usize = 64;

impl Index {
    pub fn new() -> Index {
        Index {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
        }
    }

    /// Adds every word of a file. A word is a run of letters and digits, in
    /// lower case as far as ASCII goes.
    pub fn add_file(&self, file: u32, mut text: String) {
        text.make_ascii_lowercase();
        let mut line = 1;
        let mut start = None;
        for (at, c) in text.char_indices().chain([(text.len(), '\n')]) {
            match (start, c.is_alphanumeric()) {
                (None, true) => start = Some(at),
                (Some(from), false) => {
                    self.add_word(&text[from..at], Posting { file, line });
                    start = None;
                }
                _ => {}
            }
            line += u32::from(c == '\n');
        }
    }

    fn add_word(&self, word: &str, place: Posting) {
        let mut words = lock(&self.stripes[stripe(word)]);
        match words.get_mut(word) {
            Some(places) => places.push(place),
            None => {
                words.insert(word.into(), vec![place]);
            }
        }
    }

    pub fn words(&self) -> usize {
        self.stripes.iter().map(|stripe| lock(stripe).len()).sum()
    }

    pub fn postings(&self) -> u64 {
        let in_stripe = |stripe| {
            lock(stripe)
                .values()
                .map(|places| places.len() as u64)
                .sum::<u64>()
        };
        self.stripes.iter().map(in_stripe).sum()
    }

    /// Compares every word with the reference; the number of wrong ones,
    /// missing ones included.
    pub fn wrong_words(&self, reference: &Reference) -> usize {
        let mut right = 0;
        let mut foreign = 0;
        for stripe in &self.stripes {
            for (word, places) in lock(stripe).iter() {
                let mut found = Occurrences::default();
                places.iter().for_each(|&place| found.add(place));
                match reference.of_word(word) {
                    Some(expected) if *expected == found => right += 1,
                    Some(_) => {}
                    None => foreign += 1,
                }
            }
        }
        reference.words() - right + foreign
    }
}

fn lock(stripe: &Mutex<Words>) -> MutexGuard<'_, Words> {
    stripe
        .lock()
        .expect("no thread panics while it adds a word")
}

/// FNV-1a, so that a word's stripe is the same in every run.
fn stripe(word: &str) -> usize {
    let hash = word.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    (hash >> 32) as usize % STRIPES
}
