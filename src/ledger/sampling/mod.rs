//! Which blocks the heap profiler has sampled, and the hooks by which the cold
//! path tells it of blocks that come, grow, shrink and go.
//!
//! # Marks
//! The bytes that a thread allocates for profiled clients, one after the other,
//! are a line on which *marks* lie as a Poisson process of one mark in
//! `T` = `sample_bytes` bytes (`marks.rs`). **A block is sampled exactly if a
//! mark lies in its bytes**, so a block of `s` bytes is sampled with the
//! probability `p(s) = 1 - exp(-s/T)`, each independently of all others:
//! disjoint stretches of a Poisson process are independent.
//!
//! - *Growth* allocates further bytes of the same block. If a mark lies in
//!   them the block is sampled from now on; if one lay in what was there
//!   before it stays so. No mark in `s + g` bytes has the probability
//!   `exp(-s/T) exp(-g/T)`: that is `1 - p(s + g)` again.
//! - *Shrinking* takes bytes away at the end, with the marks in them. A sample
//!   keeps the place of its first mark; if the block ends before it the sample
//!   goes. What is left has a mark with the probability `p` of what is left.
//! - *Freeing* takes the sample away, and a block that passes to another client
//!   takes its sample along.
//!
//! So at any moment a block of `s` bytes that was allocated since the start is
//! sampled with probability `p(s)`, whatever happened to it and whatever else
//! was allocated and freed: nothing depends on the client's net growth, and a
//! cache that replaces its entries for ever shows as well as one that grows.
//!
//! # The estimate
//! Each sample stands for `1 / p(s)` blocks and `s / p(s)` bytes. The expected
//! value of the sum over the samples of a call stack is `Σ p(s) s / p(s) = Σ s`
//! over its live blocks: the estimate has no bias (Horvitz and Thompson, "A
//! Generalization of Sampling Without Replacement", 1952). Its variance is
//! `Σ s² (1 - p(s)) / p(s)`, at most `T Σ s`, since `p / (1 - p) = exp(s/T) - 1
//! >= s/T`. So the standard error of `L` live bytes is at most `sqrt(T L)`, a
//! share of `1 / sqrt(L / T)`: one in ten for a stack with 100 samples. Blocks
//! far larger than `T` are all seen and are exact.
//!
//! Two things are outside the proof: a block from before the start counts for
//! about the bytes by which it grew since, and samples that found no room are
//! missing (they are counted).
//!
//! # How it gets to see every byte
//! A profiled account's ceiling is 0, so each charge goes to the cold path,
//! and there, before any lock, to [`Account::charge_watched`], which admits
//! within the same window and credit as ever. The fast paths have nothing to
//! test: while no client is profiled they are as if the profiler were not
//! there. A sampled block carries the number of its sample in place of its
//! owner's index, marked by the tag's highest bit. So its tag equals no
//! account's, and free and realloc find to [`plain`] on the path for blocks of
//! clients not at hand; no address has to be looked up, and the sample moves
//! with the block.
//!
//! Without the feature `profile` all of this is a set of empty functions.
//!
//! [`Account::charge_watched`]: super::account::Account::charge_watched

#[cfg(feature = "profile")]
mod marks;
#[cfg(feature = "profile")]
mod samples;
#[cfg(feature = "profile")]
mod watch;

#[cfg(feature = "profile")]
pub(crate) use marks::{grown, new_block};
#[cfg(feature = "profile")]
pub(crate) use samples::{MOST, freed, passed, plain, read_all, shrunk};
#[cfg(feature = "profile")]
pub(crate) use watch::{NotStarted, Plan, figures, is_on, start, stop, watches};

#[cfg(not(feature = "profile"))]
mod off;
#[cfg(not(feature = "profile"))]
pub(crate) use off::*;
