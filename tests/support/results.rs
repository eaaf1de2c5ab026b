//! Work whose result is known beforehand: whoever does it in the company of
//! hostile tenants can tell that it was not disturbed.

use std::collections::BTreeMap;

/// A generator of numbers that look random.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

pub fn hash(number: u64, seed: u64) -> u64 {
    let mixed = (number ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 29
}

/// The numbers that the work with this seed is about.
pub fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let mut random = Random(seed);
    std::iter::repeat_with(move || random.below(1 << 30))
}

fn sum(numbers: impl Iterator<Item = u64>, seed: u64) -> u64 {
    numbers.fold(0, |sum, number| sum.wrapping_add(hash(number, seed)))
}

/// What the work on so many numbers comes to, without memory.
pub fn expected(records: usize, seed: u64) -> u64 {
    sum(numbers(seed).take(records), seed)
}

/// Numbers that were put into texts into maps.
#[derive(Default)]
pub struct Texts(BTreeMap<u64, Vec<String>>);

impl Texts {
    /// In a text of 20 to 20 + `spread` bytes.
    pub fn add(&mut self, number: u64, spread: usize) {
        let padding = 20 + number as usize % spread;
        self.0
            .entry(number % 37)
            .or_default()
            .push(format!("{number:0>padding$}"));
    }

    /// Reads them again from there.
    pub fn sum(self, seed: u64) -> u64 {
        let texts = self.0.into_values().flatten();
        sum(texts.map(|text| text.parse().unwrap()), seed)
    }
}
