//! The owner tag: the client's index and a check on it, in four bytes.
//!
//! ```text
//!  31        30 .. 22      21 .. 0
//! +---------+-------------+--------------------+
//! | sampled | check bits  | index of the slot  |
//! +---------+-------------+--------------------+
//! ```
//!
//! The check is a function of the index, so an equality test against a known
//! tag verifies it for free, and a random overwrite passes with probability
//! 2^-10 at most. The sampled bit marks a block that the heap profiler has
//! sampled: the index is its sample's then, and the sample knows the owner. So
//! such a tag equals no client's; without the feature `profile` it is as
//! impossible as a wrong check.

use crate::sys::{Part, die};

/// Width of a slot's index: 4,194,304 clients can exist at once.
pub(crate) const INDEX_BITS: u32 = 22;
const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;
const CHECK_BITS: u32 = 9;
const CHECK_MASK: u32 = (1 << CHECK_BITS) - 1;
#[cfg(feature = "profile")]
const SAMPLED: u32 = 1 << 31;

/// Whose block this is, as it stands in memory. Any bit pattern may be read;
/// only [`Tag::index`] tells whether it means something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(crate) struct Tag(u32);

// No index may encode to the two values below.
const _: () = assert!(Tag::of(0).0 != 0 && Tag::NEVER.index().is_none());
#[cfg(feature = "profile")]
const _: () = assert!(Tag::NONE.sample().is_none() && Tag::NEVER.sample().is_none());

impl Tag {
    /// An account that nobody uses. Zero, because fresh tables are zeroed.
    pub(crate) const NONE: Tag = Tag(0);

    /// The account of a thread that has none: equal to no block's tag, and to
    /// no pattern that an overrun would likely leave in its place.
    pub(crate) const NEVER: Tag = Tag(0x9B3F_61C7);

    /// The tag of the slot with this index.
    #[inline]
    pub(crate) const fn of(index: u32) -> Tag {
        Tag(index | check(index) << INDEX_BITS)
    }

    /// The slot's index, or `None` if no slot has this tag.
    #[inline]
    pub(crate) const fn index(self) -> Option<u32> {
        let index = self.unchecked_index();
        if self.0 == Tag::of(index).0 {
            Some(index)
        } else {
            None
        }
    }

    /// The tag of a block with this sample.
    #[cfg(feature = "profile")]
    pub(crate) const fn of_sample(id: u32) -> Tag {
        Tag(Tag::of(id).0 | SAMPLED)
    }

    /// The number of the block's sample, or `None` if the tag names none.
    #[cfg(feature = "profile")]
    pub(crate) const fn sample(self) -> Option<u32> {
        if self.0 & SAMPLED == 0 {
            return None;
        }
        Tag(self.0 & !SAMPLED).index()
    }

    /// The index bits, whatever the rest says: good for finding a place, not
    /// for knowing an owner.
    #[inline(always)]
    pub(crate) const fn unchecked_index(self) -> u32 {
        self.0 & INDEX_MASK
    }

    #[inline(always)]
    pub(crate) const fn to_bits(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub(crate) const fn from_bits(bits: u32) -> Tag {
        Tag(bits)
    }
}

/// Nine bits in which neighbouring indices differ (multiplicative hashing,
/// Knuth, The Art of Computer Programming 6.4), never zero for index 0.
const fn check(index: u32) -> u32 {
    (index.wrapping_mul(0x9E37_79B1) >> (32 - CHECK_BITS) ^ 0x0A5) & CHECK_MASK
}

/// Ends the process: the bytes behind a block (or its page-map cell) name no
/// client, so the heap was written to by somebody who may not.
#[cold]
#[inline(never)]
pub(crate) fn corrupted(tag: Tag, address: usize, size: usize) -> ! {
    let page_mapped = super::layout::is_page_mapped(size);
    die(&[
        Part::Text("tiered_allocator: heap corruption: the owner tag of the block of "),
        Part::Decimal(size as u64),
        Part::Text(" bytes at "),
        Part::Hex(address as u64),
        Part::Text(" is "),
        Part::Hex(u64::from(tag.to_bits())),
        Part::Text(if page_mapped {
            ", which names no client. The block was freed twice, or does not come from this allocator"
        } else {
            ", which names no client. Something wrote past the end of the block, \
             freed it twice, or it does not come from this allocator"
        }),
        Part::Text(". Aborting.\n"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_survives_the_round_trip() {
        for index in (0..INDEX_MASK).step_by(997).chain([INDEX_MASK]) {
            assert_eq!(Tag::of(index).index(), Some(index));
        }
    }

    #[cfg(feature = "profile")]
    #[test]
    fn a_sample_is_no_client_and_a_client_no_sample() {
        for id in (0..INDEX_MASK).step_by(997).chain([INDEX_MASK]) {
            assert_eq!(Tag::of_sample(id).sample(), Some(id));
            assert_eq!(Tag::of_sample(id).index(), None);
            assert_eq!(Tag::of(id).sample(), None);
        }
    }

    #[test]
    fn the_reserved_values_name_nobody() {
        assert_eq!(Tag::NONE.index(), None);
        assert_eq!(Tag::NEVER.index(), None);
    }

    #[test]
    fn a_single_overwritten_byte_is_noticed() {
        let mut missed = 0;
        let mut tried = 0;
        for index in (0..100_000).step_by(37) {
            let good = Tag::of(index).to_bits();
            for byte in 0..4 {
                for value in [0x00, 0x20, 0x41, 0xff] {
                    let bad = good & !(0xff << (8 * byte)) | value << (8 * byte);
                    if bad != good {
                        tried += 1;
                        missed += u32::from(Tag::from_bits(bad).index().is_some());
                    }
                }
            }
        }
        assert!(missed * 200 < tried, "{missed} of {tried} overwrites pass");
    }
}
