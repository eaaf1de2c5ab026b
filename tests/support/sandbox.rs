//! System calls that a sandbox refuses, for tests in a process of their own.

#![allow(dead_code, reason = "each test binary uses a part of it")]

/// Makes the system call fail with `errno` in every thread of the process, for
/// good.
pub fn refuse(call: libc::c_long, errno: libc::c_int) {
    let op = |code: u32, jump: (u8, u8), value: u32| libc::sock_filter {
        code: code as u16,
        jt: jump.0,
        jf: jump.1,
        k: value,
    };
    let program = [
        // The first word that a filter sees is the system call's number.
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), 0),
        op(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            (0, 1),
            call as u32,
        ),
        op(
            libc::BPF_RET | libc::BPF_K,
            (0, 0),
            libc::SECCOMP_RET_ERRNO | errno as u32,
        ),
        op(libc::BPF_RET | libc::BPF_K, (0, 0), libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the program is well-formed and outlives the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let installed = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const filter,
        );
        assert_eq!(installed, 0, "{}", std::io::Error::last_os_error());
    }
}
