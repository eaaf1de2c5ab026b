//! What the standard library alone can do: no asymmetric fence, no pages that
//! can be given back, no look at what is resident. Correct, with less to offer.

use super::{Part, Roused, render};
use crate::sync::{Ordering, fence};
use core::ptr::NonNull;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;

/// Owners pay for a full fence.
pub(crate) const ASYMMETRIC_FENCE: bool = false;

/// Full fences on both sides always work.
pub(crate) fn heavy_fence_available() -> bool {
    true
}

/// The revoker's half of two full fences.
pub(crate) fn heavy_fence() -> bool {
    fence(Ordering::SeqCst);
    true
}

fn layout(len: usize) -> Option<Layout> {
    Layout::from_size_align(len, page_bytes()).ok()
}

/// Zeroed memory from the system's allocator, never from the global one.
pub(crate) fn map(len: usize) -> Option<NonNull<u8>> {
    let layout = layout(len).filter(|layout| layout.size() > 0)?;
    // SAFETY: the size is not zero.
    NonNull::new(unsafe { System.alloc_zeroed(layout) })
}

/// Gives a mapping back.
///
/// # Safety
/// `at` and `len` are one mapping from [`map`] and nobody uses it any more.
pub(crate) unsafe fn unmap(at: NonNull<u8>, len: usize) {
    if let Some(layout) = layout(len) {
        // SAFETY: allocated by `map` with this very layout.
        unsafe { System.dealloc(at.as_ptr(), layout) };
    }
}

/// Zeroes the range; the physical memory stays where it is.
///
/// # Safety
/// `at` and `len` are one mapping from [`map`] and nobody reads or writes it
/// during the call.
pub(crate) unsafe fn discard(at: NonNull<u8>, len: usize) {
    // SAFETY: the range is the caller's.
    unsafe { at.as_ptr().write_bytes(0, len) };
}

/// Bytes of one page of memory.
pub(crate) fn page_bytes() -> usize {
    4096
}

/// Everything that is mapped is taken to be resident.
///
/// # Safety
/// As on the other platforms; nothing is read.
pub(crate) unsafe fn resident_bytes(_at: NonNull<u8>, len: usize) -> usize {
    len
}

struct ExitHook(Cell<Option<fn()>>);

impl Drop for ExitHook {
    fn drop(&mut self) {
        if let Some(hook) = self.0.take() {
            hook();
        }
    }
}

thread_local! {
    static EXIT: ExitHook = const { ExitHook(Cell::new(None)) };
}

/// Runs `hook` when the calling thread ends. `false`: it is ending already.
pub(crate) fn on_thread_exit(hook: fn()) -> bool {
    EXIT.try_with(|exit| exit.0.set(Some(hook))).is_ok()
}

/// There is no `fork` to prepare for.
pub(crate) fn on_fork(
    _prepare: unsafe extern "C" fn(),
    _parent: unsafe extern "C" fn(),
    _child: unsafe extern "C" fn(),
) {
}

/// Lets another thread run.
pub(crate) fn yield_now() {
    std::thread::yield_now();
}

/// There is no `fork`.
pub(crate) fn note_fork() {}

/// Tells a forked child from its parent.
pub(crate) fn process_id() -> u32 {
    std::process::id()
}

/// Not known here.
pub(crate) fn resident_set_bytes() -> Option<u64> {
    None
}

/// Not known here.
pub(crate) fn physical_bytes() -> Option<u64> {
    None
}

/// Nothing can be waited for here.
pub(crate) const WAITS_FOR_PRIORITY: bool = false;

/// Unsupported.
pub(crate) fn wait_for_priority(_file: &File, _stop: &io::PipeReader) -> io::Result<Roused> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// The system's allocator cannot be asked.
pub(crate) fn trim_heap() -> Option<bool> {
    None
}

/// The standard library alone cannot make a file that nobody else can open.
pub(crate) fn spill_file(_dir: &Path) -> io::Result<File> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// There is no spill file to write to.
pub(crate) fn write_at(_file: &File, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// There is no spill file to read from.
pub(crate) fn read_at(_file: &File, _offset: u64, _bytes: &mut [u8]) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// Nothing is cached.
pub(crate) fn drop_cached(_file: &File, _offset: u64, _len: u64) {}

/// Nothing to give back.
pub(crate) fn punch_hole(_file: &File, _offset: u64, _len: u64) {}

/// Writes the parts to standard error without allocating, then aborts.
pub(crate) fn die(parts: &[Part<'_>]) -> ! {
    let mut buffer = [0; 512];
    // Standard error is not buffered; a failed write leaves only the abort.
    let _ = io::stderr().write_all(render(parts, &mut buffer));
    std::process::abort()
}
