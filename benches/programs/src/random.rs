//! Input that is the same in every run.

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }

    /// A word of a vocabulary in which some are far more frequent than others.
    pub fn word(&mut self) -> String {
        const SYLLABLES: [&str; 16] = [
            "ka", "lo", "mi", "ner", "os", "pra", "qui", "ros", "sta", "tem", "ul", "ver", "wen",
            "xi", "yor", "zu",
        ];
        let bound = 1 << (4 + self.below(9));
        let number = self.below(bound);
        let mut word = String::new();
        for shift in [0, 4, 8] {
            word.push_str(SYLLABLES[number >> shift & 15]);
        }
        word
    }

    pub fn text(&mut self, words: usize) -> String {
        let words: Vec<String> = (0..words).map(|_| self.word()).collect();
        words.join(" ")
    }
}

/// A checksum of what a program computed.
pub fn mix(sum: u64, value: u64) -> u64 {
    (sum ^ value)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .rotate_left(23)
}

pub fn checksum(sum: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(sum, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(sum, u64::from_le_bytes(word))
    })
}
