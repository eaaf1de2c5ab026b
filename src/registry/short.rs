//! Who is short of memory: clients within their own limits that were lent what
//! lower tiers have borrowed. Written from the cold path of an allocation,
//! which can neither wait nor allocate; read by the reclaimer.
//!
//! # Orderings
//! All `Relaxed`: the slots' own figures are what counts, these words only say
//! where to look. A note that a later one overwrites costs promptness: that
//! client's overdraft is covered at its own next refund or safe point.

use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Clients that can be noted at once.
const PLACES: usize = 64;

/// See the module's description.
pub(crate) struct Short {
    /// The highest precedence of them.
    precedence: AtomicU8,
    /// The largest request that was refused although lower tiers had borrowed
    /// as much.
    refused_bytes: AtomicU64,
    /// Whose it was, or that of another one refused at the same time.
    refused_client: AtomicU32,
    /// Indices of their slots; 0 for none.
    clients: [AtomicU32; PLACES],
}

impl Default for Short {
    fn default() -> Short {
        Short {
            precedence: AtomicU8::new(0),
            refused_bytes: AtomicU64::new(0),
            refused_client: AtomicU32::new(0),
            clients: [const { AtomicU32::new(0) }; PLACES],
        }
    }
}

impl Short {
    /// Notes a client of a tier with this precedence, and how much of what it
    /// asked for it was refused.
    pub(crate) fn note(&self, index: u32, precedence: u8, refused_bytes: u64) {
        self.clients[index as usize % PLACES].store(index, Ordering::Relaxed);
        if refused_bytes > 0 {
            self.refused_client.store(index, Ordering::Relaxed);
            self.refused_bytes
                .fetch_max(refused_bytes, Ordering::Relaxed);
        }
        self.precedence.fetch_max(precedence, Ordering::Relaxed);
    }

    /// Below this precedence nothing that becomes free is handed out.
    pub(crate) fn precedence(&self) -> u8 {
        self.precedence.load(Ordering::Relaxed)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.precedence() == 0
    }

    /// Takes the largest refused request away, to answer it, and whose it was.
    pub(crate) fn take_refused(&self) -> Option<(u64, u32)> {
        let bytes = self.refused_bytes.swap(0, Ordering::Relaxed);
        (bytes > 0).then(|| (bytes, self.refused_client.load(Ordering::Relaxed)))
    }

    /// The slots noted. They stay until they are removed.
    pub(crate) fn clients(&self) -> impl Iterator<Item = u32> {
        self.clients
            .iter()
            .map(|index| index.load(Ordering::Relaxed))
            .filter(|&index| index != 0)
    }

    /// This client is not short any more.
    pub(crate) fn remove(&self, index: u32) {
        let place = &self.clients[index as usize % PLACES];
        let _ = place.compare_exchange(index, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Hands out again what becomes free, unless somebody was noted meanwhile.
    pub(crate) fn release(&self) {
        let precedence = self.precedence.swap(0, Ordering::Relaxed);
        if self.clients().next().is_some() {
            self.precedence.fetch_max(precedence, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_tier_that_is_short_is_served_until_nobody_is() {
        let short = Short::default();
        assert!(short.is_empty());
        short.note(7, 20, 0);
        short.note(9, 30, 500);
        short.note(7, 20, 0);
        assert_eq!(short.precedence(), 30);
        assert_eq!(short.clients().collect::<Vec<_>>(), [7, 9]);
        short.note(9, 30, 300);
        assert_eq!(short.take_refused(), Some((500, 9)));
        assert_eq!(short.take_refused(), None);
        short.remove(9);
        short.release();
        assert_eq!(short.precedence(), 30);
        short.remove(7);
        short.release();
        assert!(short.is_empty());
    }

    #[test]
    fn a_note_that_another_took_the_place_of_is_not_removed_with_it() {
        let short = Short::default();
        short.note(1, 10, 0);
        short.note(1 + PLACES as u32, 10, 0);
        short.remove(1);
        assert_eq!(short.clients().collect::<Vec<_>>(), [1 + PLACES as u32]);
    }
}
