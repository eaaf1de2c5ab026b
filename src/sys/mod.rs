//! The operating system, behind one contract. The only users of `libc`.
//!
//! Both platforms (`unix.rs`, `portable.rs`) offer the same items:
//!
//! | item | contract |
//! |---|---|
//! | `ASYMMETRIC_FENCE` | `true` if [`heavy_fence`] makes a mere compiler fence of other threads enough |
//! | `heavy_fence()` | orders all running threads of the process; `false` if the system refuses |
//! | `map(len)` / `unmap` | zeroed pages, mapped on demand, or `None`; never from the global allocator |
//! | `discard(ptr, len)` | gives the physical pages back; the range reads as zero afterwards |
//! | `resident_bytes(ptr, len)` | physical bytes behind a mapped range |
//! | `on_thread_exit(hook)` | runs `hook` once when the calling thread ends |
//! | `on_fork(prepare, parent, child)` | runs the hooks around every `fork` |
//! | `process_id()`, `note_fork()` | tells a process from its ancestors, if each child notes its fork |
//! | `yield_now()`, `resident_set_bytes()` | as named |
//! | `spill_file(dir)`, `punch_hole` | an unlinked private file, and giving back parts of it |
//! | `write_at`, `read_at`, `drop_cached` | all of a part of a file, by any number of threads; forgetting copies of it in memory |
//! | `trim_heap()` | has the C library give free heap pages back: whether it did, `None` where it cannot |
//! | `WAITS_FOR_PRIORITY`, `wait_for_priority(file, stop)` | waits until the system has priority data for `file`, or `stop` can be read |
//! | `physical_bytes()` | memory of the machine, where the system tells it |
//! | `die(parts)` | writes the parts to standard error without allocating and aborts |
//!
//! `inner.rs` has `collect_mimalloc()` and `purge_jemalloc()` of the features.
//!
//! `--cfg tiered_allocator_portable` forces the portable side, so that it can
//! be tested on a system that would not need it.

#[cfg(all(unix, not(tiered_allocator_portable)))]
#[cfg_attr(
    all(test, any(tiered_allocator_loom, tiered_allocator_shuttle)),
    allow(dead_code)
)]
mod unix;
#[cfg(all(unix, not(tiered_allocator_portable)))]
pub(crate) use unix::*;

// Under a model checker threads are tasks: these hide the platform's own.
#[cfg(all(test, any(tiered_allocator_loom, tiered_allocator_shuttle)))]
pub(crate) use crate::sync::real::{
    ASYMMETRIC_FENCE, heavy_fence, heavy_fence_available, on_thread_exit, yield_now,
};

#[cfg(not(all(unix, not(tiered_allocator_portable))))]
mod portable;
#[cfg(not(all(unix, not(tiered_allocator_portable))))]
pub(crate) use portable::*;

#[cfg(any(feature = "mimalloc", feature = "jemalloc"))]
mod inner;
#[cfg(any(feature = "mimalloc", feature = "jemalloc"))]
pub(crate) use inner::*;

/// Why [`wait_for_priority`] came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    not(all(unix, not(tiered_allocator_portable))),
    allow(dead_code, reason = "nothing waits there")
)]
pub(crate) enum Roused {
    /// There is priority data.
    Priority,
    /// The other end of `stop` was written to or closed.
    Stopped,
    /// What the file stood for is gone.
    Gone,
}

/// One piece of a message written by [`die`].
#[derive(Clone, Copy)]
pub(crate) enum Part<'a> {
    Text(&'a str),
    Decimal(u64),
    Hex(u64),
}

/// Renders `parts` into `out` without allocating; what does not fit is cut.
pub(crate) fn render<'a>(parts: &[Part<'_>], out: &'a mut [u8]) -> &'a [u8] {
    let mut len = 0;
    let mut push = |bytes: &[u8]| {
        for &byte in bytes {
            if len < out.len() {
                out[len] = byte;
                len += 1;
            }
        }
    };
    for part in parts {
        match *part {
            Part::Text(text) => push(text.as_bytes()),
            Part::Decimal(value) => push(digits(value, 10, &mut [0; 20])),
            Part::Hex(value) => {
                push(b"0x");
                push(digits(value, 16, &mut [0; 20]));
            }
        }
    }
    &out[..len]
}

fn digits(mut value: u64, radix: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut start = buffer.len();
    loop {
        start -= 1;
        buffer[start] = b"0123456789abcdef"[(value % radix) as usize];
        value /= radix;
        if value == 0 {
            return &buffer[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_text_and_numbers_without_allocating() {
        let mut out = [0; 64];
        let parts = [
            Part::Text("size "),
            Part::Decimal(u64::MAX),
            Part::Text(" tag "),
            Part::Hex(0xdead_beef),
            Part::Text(" "),
            Part::Decimal(0),
        ];
        assert_eq!(
            render(&parts, &mut out),
            b"size 18446744073709551615 tag 0xdeadbeef 0"
        );
    }

    #[test]
    fn a_message_that_does_not_fit_is_cut() {
        let mut out = [0; 4];
        assert_eq!(render(&[Part::Text("abcdef")], &mut out), b"abcd");
    }

    #[test]
    fn mapped_pages_are_zero_and_can_be_discarded() {
        let len = 64 * 1024;
        let pages = map(len).expect("64 KiB can be mapped");
        // SAFETY: `pages` is a fresh mapping of `len` bytes that nobody else uses.
        unsafe {
            let bytes = core::slice::from_raw_parts_mut(pages.as_ptr(), len);
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(7);
            assert!(resident_bytes(pages, len) > 0);
            discard(pages, len);
            let bytes = core::slice::from_raw_parts(pages.as_ptr(), len);
            assert!(bytes.iter().all(|&byte| byte == 0));
            unmap(pages, len);
        }
    }
}
