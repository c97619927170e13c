//! Rules that a machine which does well never uses, and why they stay all the same. The test that finds rules without a
//! use (`tests/system`) takes these as explained; everything else must be seen in use, or go.

use super::devices::PIT;
use super::{Rule, Thread, When};
use crate::devices::virtio::net::tap::TUNSETOFFLOAD;

const ABORT: &str = "a thread that panics or aborts says so before the process ends";
const ALLOCATOR: &str =
    "what the allocator and the balloon do depends on how much is asked of them, and when";
const NETWORK: &str = "a machine with a network device";

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
        (_, libc::SYS_sched_yield) => Some("two threads meet at one slot of a channel within nanoseconds"),
        (_, libc::SYS_clock_gettime) => {
            Some("clocks are read without a call where the host has a vDSO for them")
        }
        (_, libc::SYS_rt_sigreturn) => Some("a pause interrupts a thread only when it is in the guest"),
        (Thread::Devices, libc::SYS_epoll_wait | libc::SYS_epoll_pwait) => {
            Some("which of the two it is, the C library decides")
        }
        (Thread::Devices, libc::SYS_mincore) => Some("a jail without a procfs"),
        (Thread::Devices, libc::SYS_lseek) => Some("a restored machine that is saved again"),
        (Thread::Devices, libc::SYS_ioctl) if is(rule, 1, PIT) => Some("a machine with an interval timer"),
        (Thread::Devices, libc::SYS_ioctl) if is(rule, 1, TUNSETOFFLOAD) => Some(NETWORK),
        (Thread::Devices, libc::SYS_readv | libc::SYS_writev) => Some(NETWORK),
        (Thread::Pages, _) => Some("a machine whose memory comes from a page-fault handler"),
        (Thread::Worker, _) => Some("a host without io_uring"),
        _ => None,
    }
}

fn is(rule: &Rule, argument: u8, value: u64) -> bool {
    let asked =
        |when: &When| matches!(*when, When::Is { argument: a, value: v } if (a, v) == (argument, value));
    rule.when.iter().any(asked)
}
