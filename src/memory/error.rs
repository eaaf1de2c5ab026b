//! What can go wrong with blocks.

use super::block::MemoryBlock;
use crate::client::{QuotaExceeded, UnknownClient};
use std::io;
use std::sync::Arc;

/// No block was allocated, and nothing was charged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllocateError {
    /// No client of this name.
    #[error(transparent)]
    UnknownClient(#[from] UnknownClient),
    /// A block of no bytes.
    #[error("a block needs at least 1 byte")]
    ZeroSize,
    /// The client may not have so much.
    #[error(transparent)]
    QuotaExceeded(#[from] QuotaExceeded),
    /// The client may, but the system has no memory.
    #[error("the system has no memory for a block of {requested} bytes")]
    OutOfMemory {
        /// Bytes asked for.
        requested: usize,
    },
}

/// Whose the block is, and who was named.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the block belongs to `{owner}`, not to `{named}`")]
#[non_exhaustive]
pub struct WrongClient {
    /// The owner's name.
    pub owner: Arc<str>,
    /// The name given.
    pub named: String,
}

/// The block was not deallocated; here it is back.
#[derive(Debug, thiserror::Error)]
#[error("{reason}; the block is handed back")]
#[non_exhaustive]
pub struct DeallocateError {
    /// The block, as it was.
    pub block: MemoryBlock,
    /// Why.
    #[source]
    pub reason: DeallocateReason,
}

/// Why a block was not deallocated.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeallocateReason {
    /// No client of this name.
    #[error(transparent)]
    UnknownClient(#[from] UnknownClient),
    /// Another client's block.
    #[error(transparent)]
    WrongClient(#[from] WrongClient),
}

/// The block was not given to another client. It is as it was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// That client may not have so much.
    #[error(transparent)]
    QuotaExceeded(#[from] QuotaExceeded),
    /// That client was removed.
    #[error("the client was removed from its memory")]
    Removed,
    /// That client belongs to another memory.
    #[error("the client belongs to another memory than the block")]
    OtherMemory,
}

/// The block's bytes are not at hand. The block itself is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// The block was idle and its policy allowed to throw its bytes away.
    /// [`MemoryBlock::renew`] gives it fresh ones.
    #[error("the block of {bytes} bytes was discarded while it was idle")]
    Reclaimed {
        /// Its size.
        bytes: usize,
    },
    /// The block was spilled, and its client may not have its bytes back now.
    #[error("the block cannot come back: {0}")]
    QuotaExceeded(#[from] QuotaExceeded),
    /// The block was spilled and could not be read back. It stays spilled.
    #[error("the block cannot be read back from its spill file: {0}")]
    Io(#[from] io::Error),
}
