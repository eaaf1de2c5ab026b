//! How a block remembers the client it was charged to.
//!
//! Blocks under [`layout::PAGE_MAPPED_MIN`] bytes carry their [`Tag`] in four
//! bytes right behind the user's; larger ones have a cell in the
//! [`page_map`]. Which of the two holds depends on the size alone, so it never
//! changes while a block lives. May touch the memory of blocks; knows nothing
//! of clients beyond their index.

pub(crate) mod layout;
pub(crate) mod page_map;
mod tag;

pub(crate) use tag::{INDEX_BITS, Tag, corrupted};
