//! Unix, with Linux where it offers more (`membarrier`, `mincore` vectors,
//! `O_TMPFILE`, `fallocate`).

use super::{Part, Roused, render};
use crate::sync::{AtomicU8, AtomicU32, Ordering, fence};
use core::ptr::{self, NonNull};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Linux has `membarrier`; elsewhere owners pay for a full fence.
pub(crate) const ASYMMETRIC_FENCE: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// State of the process' registration for expedited barriers.
static FENCE: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const REGISTERED: u8 = 1;
const REFUSED: u8 = 2;

#[cfg(any(target_os = "linux", target_os = "android"))]
fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: `membarrier` takes a command, flags and a processor number and
    // touches no memory of ours (membarrier(2)).
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Makes sure, once, that [`heavy_fence`] works. `false`: it never will, and
/// no thread may hold credit that another would have to take back.
pub(crate) fn heavy_fence_available() -> bool {
    if cfg!(tiered_allocator_fence) || !ASYMMETRIC_FENCE {
        return true;
    }
    // Relaxed: the value is a hint that every thread may find out by itself.
    match FENCE.load(Ordering::Relaxed) {
        UNKNOWN => {
            let state = if register() { REGISTERED } else { REFUSED };
            FENCE.store(state, Ordering::Relaxed);
            state == REGISTERED
        }
        state => state == REGISTERED,
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn register() -> bool {
    membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn register() -> bool {
    true
}

/// Orders the memory accesses of every running thread of this process: what
/// they stored before is visible here, what they load afterwards sees what the
/// caller stored before. Threads that do not run passed a full barrier when
/// they were switched out (membarrier(2), `MEMBARRIER_CMD_PRIVATE_EXPEDITED`).
pub(crate) fn heavy_fence() -> bool {
    if !heavy_fence_available() {
        return false;
    }
    fence(Ordering::SeqCst);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if !cfg!(tiered_allocator_fence) {
        let done = membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
            // A new process image or a child may have lost the registration.
            || (register() && membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED));
        if !done {
            FENCE.store(REFUSED, Ordering::Relaxed);
        }
        return done;
    }
    true
}

/// Maps `len` zeroed bytes on demand, or says that it cannot be had.
pub(crate) fn map(len: usize) -> Option<NonNull<u8>> {
    // SAFETY: an anonymous private mapping at an address of the kernel's
    // choice touches nothing that exists.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        None
    } else {
        NonNull::new(at.cast())
    }
}

/// Gives a mapping back.
///
/// # Safety
/// `at` and `len` are one mapping from [`map`] and nobody uses it any more.
pub(crate) unsafe fn unmap(at: NonNull<u8>, len: usize) {
    // SAFETY: the caller passes a mapping of its own.
    unsafe { libc::munmap(at.as_ptr().cast(), len) };
}

/// Gives the physical memory of a mapping back; it reads as zero afterwards.
///
/// # Safety
/// `at` and `len` are one mapping from [`map`] and nobody reads or writes it
/// during the call.
pub(crate) unsafe fn discard(at: NonNull<u8>, len: usize) {
    if cfg!(any(target_os = "linux", target_os = "android")) {
        // SAFETY: the range is the caller's; on Linux `MADV_DONTNEED` drops
        // private anonymous pages at once and refills with zeros (madvise(2)).
        unsafe { libc::madvise(at.as_ptr().cast(), len, libc::MADV_DONTNEED) };
    } else {
        // Elsewhere the advice need not zero: map fresh pages over the range.
        // SAFETY: `MAP_FIXED` replaces a range that is wholly the caller's.
        unsafe {
            libc::mmap(
                at.as_ptr().cast(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
    }
}

/// Bytes of one page of memory.
pub(crate) fn page_bytes() -> usize {
    // SAFETY: reads a constant of the system.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096).max(4096)
}

/// Physical bytes behind a mapping, counted by `mincore` a window at a time.
///
/// # Safety
/// `at` and `len` are one mapping from [`map`] that stays mapped.
pub(crate) unsafe fn resident_bytes(at: NonNull<u8>, len: usize) -> usize {
    const WINDOW_PAGES: usize = 2048;
    let page = page_bytes();
    let mut pages = [0u8; WINDOW_PAGES];
    let mut resident = 0;
    let mut offset = 0;
    while offset < len {
        let window = (len - offset).min(WINDOW_PAGES * page);
        // SAFETY: `offset < len`, so the address lies in the mapping; the
        // vector holds one byte for each page of the window (mincore(2)).
        let known = unsafe {
            libc::mincore(
                at.as_ptr().add(offset).cast(),
                window,
                pages.as_mut_ptr().cast(),
            ) == 0
        };
        if known {
            let present = pages[..window.div_ceil(page)]
                .iter()
                .filter(|&&state| state & 1 != 0)
                .count();
            resident += present * page;
        }
        offset += window;
    }
    resident.min(len)
}

static EXIT_KEY: once_cell::race::OnceNonZeroUsize = once_cell::race::OnceNonZeroUsize::new();
static EXIT_HOOK: crate::sync::AtomicPtr<()> = crate::sync::AtomicPtr::new(ptr::null_mut());

extern "C" fn run_exit_hook(_: *mut libc::c_void) {
    let hook = EXIT_HOOK.load(Ordering::Acquire);
    if !hook.is_null() {
        // SAFETY: only `on_thread_exit` stores here, and only a `fn()`.
        let hook: fn() = unsafe { core::mem::transmute(hook) };
        hook();
    }
}

/// Runs `hook` when the calling thread ends, after its `thread_local!`
/// destructors on the platforms where those run before key destructors.
/// `false`: the system has no key left.
pub(crate) fn on_thread_exit(hook: fn()) -> bool {
    EXIT_HOOK.store(hook as *mut (), Ordering::Release);
    let key = EXIT_KEY.get_or_try_init(|| {
        let mut key: libc::pthread_key_t = 0;
        // SAFETY: `key` is ours to write; the destructor is a plain function.
        let created = unsafe { libc::pthread_key_create(&mut key, Some(run_exit_hook)) == 0 };
        // A loser of the race leaves one key unused, once in a process.
        core::num::NonZeroUsize::new(key as usize + 1)
            .filter(|_| created)
            .ok_or(())
    });
    match key {
        // SAFETY: the key exists; any non-null value arms its destructor.
        Ok(key) => unsafe {
            libc::pthread_setspecific((key.get() - 1) as libc::pthread_key_t, ptr::dangling()) == 0
        },
        Err(()) => false,
    }
}

/// Runs the hooks around every later `fork` of this process.
pub(crate) fn on_fork(
    prepare: unsafe extern "C" fn(),
    parent: unsafe extern "C" fn(),
    child: unsafe extern "C" fn(),
) {
    // SAFETY: the hooks are functions that live as long as the program.
    // Failure (no memory) leaves `fork` as it is without this crate.
    unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
}

/// Lets another thread run.
pub(crate) fn yield_now() {
    // SAFETY: takes nothing, touches nothing.
    unsafe { libc::sched_yield() };
}

/// Tells a forked child from its ancestors.
pub(crate) fn process_id() -> u32 {
    // Linux has fewer than 2^22 of them.
    std::process::id() ^ (GENERATION.load(Ordering::Relaxed) << 22)
}

/// Forks that lie between this process and the first: a child may have the id
/// that its parent's parent had, or in another namespace its parent's own.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Counts a fork, in the child.
pub(crate) fn note_fork() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Resident set of the process in bytes, where the system tells it.
pub(crate) fn resident_set_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_bytes() as u64)
}

/// Memory of the machine in bytes, where the system tells it.
pub(crate) fn physical_bytes() -> Option<u64> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    {
        // SAFETY: reads a figure of the system.
        let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
        let pages = u64::try_from(pages).ok().filter(|&pages| pages > 0)?;
        pages.checked_mul(page_bytes() as u64)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    None
}

/// Whether [`wait_for_priority`] is of use.
pub(crate) const WAITS_FOR_PRIORITY: bool = true;

/// Waits without end, until `file` has priority data (`POLLPRI`) or `stop` can
/// be read or was closed. `Stopped` goes before the others.
pub(crate) fn wait_for_priority(file: &File, stop: &io::PipeReader) -> io::Result<Roused> {
    let awaited = |fd, events| libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    let mut fds = [
        awaited(file.as_raw_fd(), libc::POLLPRI),
        awaited(stop.as_raw_fd(), libc::POLLIN),
    ];
    loop {
        // SAFETY: two entries of ours, whose descriptors are borrowed and open.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        let gone = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
        if fds[1].revents != 0 {
            return Ok(Roused::Stopped);
        }
        if fds[0].revents & gone != 0 {
            return Ok(Roused::Gone);
        }
        if fds[0].revents & libc::POLLPRI != 0 {
            return Ok(Roused::Priority);
        }
    }
}

/// Has the C library give the free pages of its heap back: whether there were
/// any, or `None` where it cannot be asked.
pub(crate) fn trim_heap() -> Option<bool> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time, on any thread (malloc_trim(3)), but
    // from within the heap, where nothing of this crate calls it.
    return Some(unsafe { libc::malloc_trim(0) } != 0);
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    None
}

/// Opens a file in `dir` that only this process can reach: unlinked, mode 0600.
pub(crate) fn spill_file(dir: &Path) -> io::Result<File> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let path = terminated(dir.as_os_str().as_bytes());
        // SAFETY: `path` ends with a zero byte.
        let fd = unsafe {
            libc::open(
                path.as_ptr().cast(),
                libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC | libc::O_EXCL,
                0o600,
            )
        };
        if fd >= 0 {
            // SAFETY: a fresh descriptor that nobody else owns.
            return Ok(unsafe { File::from_raw_fd(fd) });
        }
    }
    // Not every file system has nameless files: make a named one, drop the name.
    let mut path = terminated(dir.join("tiered-allocator-XXXXXX").as_os_str().as_bytes());
    // SAFETY: `path` is writable, ends with a zero byte, and its last six
    // characters before it are the template (mkstemp(3), mode 0600).
    let fd = unsafe { libc::mkstemp(path.as_mut_ptr().cast()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `path` now names the file just made; `fd` is ours alone.
    unsafe {
        libc::unlink(path.as_ptr().cast());
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        Ok(File::from_raw_fd(fd))
    }
}

fn terminated(bytes: &[u8]) -> Vec<u8> {
    let mut path = bytes.to_vec();
    path.push(0);
    path
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Fills `bytes` from `offset` on.
pub(crate) fn read_at(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

/// Gives up copies of a part of `file` that are in memory, where the system
/// can. What was not written to the disk stays.
pub(crate) fn drop_cached(file: &File, offset: u64, len: u64) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: the descriptor is open; the call is a hint.
    unsafe {
        libc::posix_fadvise(
            file.as_raw_fd(),
            offset as libc::off_t,
            len as libc::off_t,
            libc::POSIX_FADV_DONTNEED,
        );
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (file, offset, len);
}

/// Gives the disk space of a part of `file` back, where the system can.
pub(crate) fn punch_hole(file: &File, offset: u64, len: u64) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: the descriptor is open; the call changes the file only. Failure
    // keeps the space allocated and harms nothing.
    unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            offset as libc::off_t,
            len as libc::off_t,
        );
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (file.as_raw_fd(), offset, len);
}

/// Writes the parts to standard error without allocating, then aborts.
pub(crate) fn die(parts: &[Part<'_>]) -> ! {
    let mut buffer = [0; 512];
    let text = render(parts, &mut buffer);
    // SAFETY: `text` is readable; the process ends right after.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::abort()
    }
}

/// Sends one byte of priority data: what a test can have `POLLPRI` of.
#[cfg(test)]
pub(crate) fn send_urgent(stream: &std::net::TcpStream) {
    // SAFETY: the descriptor is open, and the byte can be read.
    let sent = unsafe { libc::send(stream.as_raw_fd(), b"!".as_ptr().cast(), 1, libc::MSG_OOB) };
    assert_eq!(sent, 1);
}
