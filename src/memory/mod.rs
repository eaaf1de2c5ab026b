//! [`Memory`]: a budget domain with its clients, its blocks and its reclaimer.
//!
//! No `unsafe` but in [`pages`], which owns the memory behind a block.
//!
//! - [`builder`]: configuration; - [`facade`]: the handle that users hold;
//! - [`shared`]: what handles, blocks and the reclaimer share;
//! - [`block`]: a client's block and its states; - [`pin`]: access to it;
//! - [`from_cgroup`]: its total, from the system;
//! - [`pages`]: its bytes; - [`spill`]: where they go when it is idle.

mod block;
mod builder;
mod error;
mod facade;
mod from_cgroup;
mod pages;
mod pin;
mod relief;
mod shared;
mod spill;

pub use block::MemoryBlock;
pub(crate) use block::{BlockState, Reclaimed};
pub use builder::MemoryBuilder;
pub use error::{
    AllocateError, DeallocateError, DeallocateReason, PinError, TransferError, WrongClient,
};
pub use facade::{Memory, MemoryUsage, Registration};
pub use from_cgroup::SizeError;
pub use pin::{Pin, PinMut};
pub(crate) use shared::{Counts, Shared};
