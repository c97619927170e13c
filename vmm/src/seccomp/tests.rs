//! The filters in force, in child processes.

use super::*;

/// Installs `filter` in a child and runs `act` there. The signal that ended it, if one did.
fn in_child(filter: &Filter, act: fn()) -> Option<i32> {
    // SAFETY: the child makes system calls only, then leaves by _exit.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork");
    if child == 0 {
        let code = if install(filter).is_ok() { 0 } else { 1 };
        act();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: `status` is valid for writes, the child is ours.
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(waited, child);
    if libc::WIFSIGNALED(status) {
        return Some(libc::WTERMSIG(status));
    }
    assert_eq!(libc::WEXITSTATUS(status), 0, "the filter was not installed");
    None
}

fn call(number: i64, arguments: [usize; 3]) {
    // SAFETY: called in a child of a test with harmless arguments.
    unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) };
}

const BAD: usize = usize::MAX;

#[test]
fn what_a_thread_needs_passes() {
    for filter in [devices().expect("compiles"), vcpu().expect("compiles")] {
        assert_eq!(in_child(&filter, || call(libc::SYS_gettid, [0; 3])), None);
        assert_eq!(in_child(&filter, || call(libc::SYS_write, [BAD, 0, 0])), None);
        // the exit record of a thread that panics
        assert_eq!(in_child(&filter, || call(libc::SYS_pwrite64, [BAD, 0, 0])), None);
        assert_eq!(in_child(&filter, || call(libc::SYS_mmap, [0, 0, libc::PROT_READ as usize])), None);
    }
    let devices = devices().expect("compiles");
    assert_eq!(in_child(&devices, || call(libc::SYS_accept4, [BAD, 0, 0])), None);
    assert_eq!(in_child(&devices, || call(libc::SYS_ioctl, [BAD, 0x5421, 0])), None);
    let vcpu = vcpu().expect("compiles");
    assert_eq!(in_child(&vcpu, || call(libc::SYS_ioctl, [BAD, 0xae80, 0])), None);
}

#[test]
fn everything_else_ends_the_process() {
    let forbidden: [(&str, fn()); 10] = [
        ("open", || call(libc::SYS_open, [0; 3])),
        ("openat", || call(libc::SYS_openat, [BAD, 0, 0])),
        ("execve", || call(libc::SYS_execve, [0; 3])),
        ("clone", || call(libc::SYS_clone, [0; 3])),
        ("fork", || call(libc::SYS_fork, [0; 3])),
        ("ptrace", || call(libc::SYS_ptrace, [0; 3])),
        ("kill", || call(libc::SYS_kill, [BAD, 0, 0])),
        ("executable mmap", || call(libc::SYS_mmap, [0, 4096, libc::PROT_EXEC as usize])),
        ("executable mprotect", || call(libc::SYS_mprotect, [0, 0, libc::PROT_EXEC as usize])),
        ("another ioctl of KVM", || call(libc::SYS_ioctl, [BAD, 0xae41, 0])),
    ];
    for (thread, filter) in [("device", devices().expect("compiles")), ("vCPU", vcpu().expect("compiles"))] {
        for (what, act) in forbidden {
            assert_eq!(in_child(&filter, act), Some(libc::SIGSYS), "{what} on a {thread} thread");
        }
    }
}

#[test]
fn a_vcpu_thread_touches_no_file_and_no_socket() {
    let filter = vcpu().expect("compiles");
    let forbidden: [fn(); 6] = [
        || call(libc::SYS_read, [BAD, 0, 0]),
        || call(libc::SYS_close, [BAD, 0, 0]),
        || call(libc::SYS_epoll_ctl, [BAD, 0, 0]),
        || call(libc::SYS_pwritev, [BAD, 0, 0]),
        || call(libc::SYS_socket, [libc::AF_UNIX as usize, 1, 0]),
        || call(libc::SYS_ioctl, [BAD, 0x5421, 0]),
    ];
    for act in forbidden {
        assert_eq!(in_child(&filter, act), Some(libc::SIGSYS));
    }
}

#[test]
fn the_device_thread_reaches_no_network() {
    let filter = devices().expect("compiles");
    for act in [
        || call(libc::SYS_socket, [libc::AF_INET as usize, 1, 0]),
        || call(libc::SYS_socket, [libc::AF_VSOCK as usize, 1, 0]),
        || call(libc::SYS_ioctl, [BAD, 0xae80, 0]),
    ] as [fn(); 3]
    {
        assert_eq!(in_child(&filter, act), Some(libc::SIGSYS));
    }
}

#[test]
fn every_rule_says_why() {
    for rule in COMMON.iter().chain(devices::RULES).chain(vcpu::RULES) {
        assert!(rule.why.len() > 3, "system call {}", rule.call);
    }
}
