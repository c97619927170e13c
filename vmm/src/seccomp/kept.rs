//! Rules that a machine which does well never uses, and why they stay all the same. The test that finds rules without a
//! use (`tests/system`) takes these as explained; everything else must be seen in use, or go.

use super::{Rule, Thread, When};

const ABORT: &str = "a thread that panics or aborts says so before the process ends";
const ALLOCATOR: &str = "what the allocator does depends on how much is asked of it, and when";
const SNAPSHOT: &str = "used while a machine is saved";

pub(super) fn reason(thread: Thread, rule: &Rule) -> Option<&'static str> {
    match rule.call {
        libc::SYS_rt_sigprocmask | libc::SYS_gettid | libc::SYS_getpid => Some(ABORT),
        libc::SYS_tgkill if is(rule, 2, libc::SIGABRT as u64) => Some(ABORT),
        libc::SYS_exit_group | libc::SYS_pwrite64 if thread != Thread::Devices => Some(ABORT),
        libc::SYS_brk
        | libc::SYS_mmap
        | libc::SYS_mprotect
        | libc::SYS_munmap
        | libc::SYS_mremap
        | libc::SYS_madvise => Some(ALLOCATOR),
        _ => rare(thread, rule),
    }
}

fn rare(thread: Thread, rule: &Rule) -> Option<&'static str> {
    match (thread, rule.call) {
        (_, libc::SYS_clock_gettime) => {
            Some("clocks are read without a call where the host has a vDSO for them")
        }
        (_, libc::SYS_rt_sigreturn) => Some("a pause interrupts a thread only when it is in the guest"),
        (Thread::Devices, libc::SYS_tgkill) => Some("a pause"),
        (Thread::Devices, libc::SYS_epoll_wait | libc::SYS_epoll_pwait) => {
            Some("which of the two it is, the C library decides")
        }
        (Thread::Devices, libc::SYS_mincore) => Some("a jail without a procfs"),
        (Thread::Devices, libc::SYS_recvmsg | libc::SYS_ftruncate | libc::SYS_lseek) => Some(SNAPSHOT),
        (Thread::Devices, libc::SYS_ioctl) if !is(rule, 1, 0x5421) => Some(SNAPSHOT),
        (Thread::Vcpu, libc::SYS_ioctl) if !is(rule, 1, 0xae80) => Some(SNAPSHOT),
        (Thread::Worker, _) => Some("a host without io_uring"),
        _ => None,
    }
}

fn is(rule: &Rule, argument: u8, value: u64) -> bool {
    let asked =
        |when: &When| matches!(*when, When::Is { argument: a, value: v } if (a, v) == (argument, value));
    rule.when.iter().any(asked)
}
