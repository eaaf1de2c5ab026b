//! The C interfaces of the optional inner allocators, on every platform.

/// Has mimalloc give back what is free in its arenas and in the calling
/// thread's heap.
#[cfg(feature = "mimalloc")]
pub(crate) fn collect_mimalloc() {
    // SAFETY: may be called at any time, on any thread; works on the calling
    // thread's heap and on what is shared under its own synchronisation.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// Has jemalloc give back the calling thread's cache and the unused dirty and
/// muzzy pages of all arenas.
#[cfg(feature = "jemalloc")]
pub(crate) fn purge_jemalloc() -> std::io::Result<()> {
    let control = |name: &core::ffi::CStr| {
        // SAFETY: a terminated name; these two controls neither read nor write
        // a value (jemalloc(3), `thread.tcache.flush`, `arena.<i>.purge`).
        let failed = unsafe {
            tikv_jemalloc_sys::mallctl(
                name.as_ptr(),
                core::ptr::null_mut(),
                core::ptr::null_mut(),
                core::ptr::null_mut(),
                0,
            )
        };
        match failed {
            0 => Ok(()),
            code => Err(std::io::Error::from_raw_os_error(code)),
        }
    };
    // Fails where thread caches are switched off, and then there is none.
    let _ = control(c"thread.tcache.flush");
    // 4096 is `MALLCTL_ARENAS_ALL`.
    control(c"arena.4096.purge")
}
