//! Pins: access to a block's bytes, and the promise that they stay.

use super::block::BlockState;
use core::ops::{Deref, DerefMut};

/// Shared access to a [`MemoryBlock`](crate::MemoryBlock), for as long as it
/// lives.
#[derive(Debug)]
pub struct Pin<'block>(&'block BlockState);

/// Exclusive access to a [`MemoryBlock`](crate::MemoryBlock), for as long as
/// it lives.
#[derive(Debug)]
pub struct PinMut<'block>(&'block BlockState);

impl<'block> Pin<'block> {
    /// The caller has counted the pin.
    pub(super) fn new(state: &'block BlockState) -> Pin<'block> {
        Pin(state)
    }
}

impl<'block> PinMut<'block> {
    /// The caller has counted the pin and holds the block exclusively.
    pub(super) fn new(state: &'block BlockState) -> PinMut<'block> {
        PinMut(state)
    }
}

impl Deref for Pin<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the pin is counted, so the reclaimer leaves the bytes alone;
        // it borrows the block, so no `PinMut` (which borrows it exclusively)
        // lives beside it.
        unsafe { self.0.pages().bytes() }
    }
}

impl Deref for PinMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as for `Pin`; this pin is the only one.
        unsafe { self.0.pages().bytes() }
    }
}

impl DerefMut for PinMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the pin is counted, and borrows the block exclusively.
        unsafe { self.0.pages().bytes_mut() }
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.unpin();
    }
}

impl Drop for PinMut<'_> {
    fn drop(&mut self) {
        self.0.unpin();
    }
}
