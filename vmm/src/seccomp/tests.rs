//! The filters in force, in child processes.

use super::*;
use linux_raw_sys::ioctl::UFFDIO_COPY;

/// Binds a child as `thread` and runs `act` there. The signal that ended it, if one did.
fn in_child(thread: Thread, act: fn()) -> Option<i32> {
    let bindings = bindings(true).expect("compiles");
    let binding = match thread {
        Thread::Devices => bindings.devices,
        Thread::Vcpu => bindings.vcpu,
        Thread::Worker => worker(true).expect("compiles"),
        Thread::Pages => pages(true).expect("compiles"),
    };
    // SAFETY: the child makes system calls only, then leaves by _exit.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork");
    if child == 0 {
        let code = if binding.bind().is_ok() { 0 } else { 1 };
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

fn call<const N: usize>(number: i64, arguments: [usize; N]) {
    let argument = |index: usize| arguments.get(index).copied().unwrap_or(0);
    let [a, b, c, d, e, f] = std::array::from_fn(argument);
    // SAFETY: called in a child of a test with harmless arguments.
    unsafe { libc::syscall(number, a, b, c, d, e, f) };
}

const BAD: usize = usize::MAX;

const BOTH: [Thread; 2] = [Thread::Devices, Thread::Vcpu];
const ANONYMOUS: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
const READ: usize = libc::PROT_READ as usize;
const EXECUTE: usize = libc::PROT_EXEC as usize;
const STREAM: usize = (libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) as usize;

#[test]
fn what_a_thread_needs_passes() {
    let passes = |thread, act| assert_eq!(in_child(thread, act), None, "{thread:?}");
    for thread in BOTH {
        passes(thread, || call(libc::SYS_gettid, []));
        passes(thread, || call(libc::SYS_write, [BAD]));
        // the exit record of a thread that panics
        passes(thread, || call(libc::SYS_pwrite64, [BAD]));
        passes(thread, || call(libc::SYS_mmap, [0, 4096, READ, ANONYMOUS, BAD]));
    }
    passes(Thread::Devices, || call(libc::SYS_accept4, [BAD, 0, 0, libc::SOCK_CLOEXEC as usize]));
    passes(Thread::Devices, || call(libc::SYS_socket, [libc::AF_UNIX as usize, STREAM]));
    passes(Thread::Devices, || call(libc::SYS_ioctl, [BAD, 0x5421]));
    passes(Thread::Vcpu, || call(libc::SYS_ioctl, [BAD, 0xae80]));
}

#[test]
fn everything_else_ends_the_process() {
    let forbidden: [(&str, fn()); 14] = [
        ("open", || call(libc::SYS_open, [0])),
        ("openat", || call(libc::SYS_openat, [BAD])),
        ("execve", || call(libc::SYS_execve, [0])),
        ("clone", || call(libc::SYS_clone, [0])),
        ("fork", || call(libc::SYS_fork, [])),
        ("ptrace", || call(libc::SYS_ptrace, [0])),
        ("kill", || call(libc::SYS_kill, [BAD])),
        ("a signal that is not abort's", || call(libc::SYS_tgkill, [BAD, BAD, libc::SIGKILL as usize])),
        ("executable mmap", || call(libc::SYS_mmap, [0, 4096, EXECUTE, ANONYMOUS, BAD])),
        ("mmap of a file", || call(libc::SYS_mmap, [0, 4096, READ, libc::MAP_PRIVATE as usize, BAD])),
        ("mmap in place of another", || {
            call(libc::SYS_mmap, [0, 4096, READ, ANONYMOUS | libc::MAP_FIXED as usize, BAD]);
        }),
        ("executable mprotect", || call(libc::SYS_mprotect, [0, 0, EXECUTE])),
        ("another advice", || call(libc::SYS_madvise, [0, 0, libc::MADV_HWPOISON as usize])),
        ("another ioctl of KVM", || call(libc::SYS_ioctl, [BAD, 0xae41])),
    ];
    for thread in Thread::ALL {
        for (what, act) in forbidden {
            assert_eq!(in_child(thread, act), Some(libc::SIGSYS), "{what} on a {thread:?} thread");
        }
    }
}

#[test]
fn a_worker_thread_reads_and_writes_a_disk_and_nothing_else() {
    for call_number in [libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_fdatasync, libc::SYS_fallocate] {
        assert!(worker::RULES.iter().any(|rule| rule.call == call_number));
    }
    assert_eq!(in_child(Thread::Worker, || call(libc::SYS_preadv, [BAD, 0, 0, 0])), None);
    for act in [
        || call(libc::SYS_io_uring_enter, [BAD, 0, 0]),
        || call(libc::SYS_epoll_ctl, [BAD, 0, 0]),
        || call(libc::SYS_close, [BAD]),
        || call(libc::SYS_socket, [libc::AF_UNIX as usize, 1, 0]),
        || call(libc::SYS_openat, [BAD, 0, 0]),
        || call(libc::SYS_clone3, [0, 0]),
    ] as [fn(); 6]
    {
        assert_eq!(in_child(Thread::Worker, act), Some(libc::SIGSYS));
    }
}

/// Nor does it take a descriptor that the handler sends, or touch the userfaultfd but to close it.
#[test]
fn a_page_listening_thread_hears_words_and_nothing_else() {
    let passing = [|| call(libc::SYS_recvfrom, [BAD, 0, 0, 0, 0, 0]), || call(libc::SYS_close, [BAD])];
    for act in passing as [fn(); 2] {
        assert_eq!(in_child(Thread::Pages, act), None);
    }
    for act in [
        || call(libc::SYS_recvfrom, [BAD, 0, 0, 0, 1 << 32, 0]),
        || call(libc::SYS_recvmsg, [BAD, 0, 0]),
        || call(libc::SYS_sendto, [BAD, 0, 0, 0, 0, 0]),
        || call(libc::SYS_setsockopt, [BAD, 0, 0, 0, 0]),
        || call(libc::SYS_ioctl, [BAD, UFFDIO_COPY as usize, 0]),
        || call(libc::SYS_userfaultfd, [0]),
        || call(libc::SYS_read, [BAD, 0, 0]),
        || call(libc::SYS_epoll_ctl, [BAD, 0, 0]),
    ] as [fn(); 8]
    {
        assert_eq!(in_child(Thread::Pages, act), Some(libc::SIGSYS));
    }
}

#[test]
fn the_device_thread_makes_no_ring() {
    for act in [
        || call(libc::SYS_io_uring_setup, [1, 0]),
        || call(libc::SYS_io_uring_register, [BAD, 0, 0, 0]),
        || call(libc::SYS_preadv, [BAD, 0, 0, 0]),
    ] as [fn(); 3]
    {
        assert_eq!(in_child(Thread::Devices, act), Some(libc::SIGSYS));
    }
    assert_eq!(in_child(Thread::Devices, || call(libc::SYS_io_uring_enter, [BAD, 0, 0, 0, 0, 0])), None);
}

#[test]
fn a_vcpu_thread_touches_no_file_and_no_socket() {
    let forbidden: [fn(); 6] = [
        || call(libc::SYS_read, [BAD]),
        || call(libc::SYS_close, [BAD]),
        || call(libc::SYS_epoll_ctl, [BAD]),
        || call(libc::SYS_pwritev, [BAD]),
        || call(libc::SYS_socket, [libc::AF_UNIX as usize, STREAM]),
        || call(libc::SYS_ioctl, [BAD, 0x5421]),
    ];
    for act in forbidden {
        assert_eq!(in_child(Thread::Vcpu, act), Some(libc::SIGSYS));
    }
}

#[test]
fn the_device_thread_reaches_no_network() {
    let forbidden: [fn(); 6] = [
        || call(libc::SYS_socket, [libc::AF_INET as usize, STREAM]),
        || call(libc::SYS_socket, [libc::AF_VSOCK as usize, STREAM]),
        || call(libc::SYS_socket, [libc::AF_UNIX as usize, libc::SOCK_DGRAM as usize]),
        // low half zero, high half not
        || call(libc::SYS_sendto, [BAD, 0, 0, 0, 1 << 32]),
        || call(libc::SYS_bind, [BAD]),
        || call(libc::SYS_ioctl, [BAD, 0xae80]),
    ];
    for act in forbidden {
        assert_eq!(in_child(Thread::Devices, act), Some(libc::SIGSYS));
    }
}

#[test]
fn every_rule_says_why() {
    for rule in Thread::ALL.into_iter().flat_map(Thread::rules) {
        assert!(rule.why.len() > 3, "system call {}", rule.call);
    }
}
