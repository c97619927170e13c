//! Rules that a machine which does well never uses, and why they stay all the same. The test that finds rules without a
//! use (`tests/system`) takes these as explained; everything else must be seen in use, or go.

use super::common::OWN_MEMORY;
use super::devices::PIT;
use super::{Rule, Thread, When};
use crate::devices::virtio::balloon::release::OVER_FLAGS;
use crate::devices::virtio::net::tap::TUNSETOFFLOAD;

const ABORT: &str = "a thread that panics or aborts says so before the process ends";
const ALLOCATOR: &str = "what the allocator does depends on how much is asked of it, and when";
const BALLOON: &str = "what goes back depends on what the guest frees, and on what its memory is made of";
/// Advices with which memory goes back, and with which fresh memory takes its place.
const BALLOON_ADVICES: [i32; 3] = [libc::MADV_REMOVE, libc::MADV_DONTDUMP, libc::MADV_HUGEPAGE];
const NETWORK: &str = "a machine with a network device";

pub(super) fn reason(thread: Thread, rule: &Rule) -> Option<&'static str> {
    match rule.call {
        libc::SYS_rt_sigprocmask | libc::SYS_gettid | libc::SYS_getpid => Some(ABORT),
        libc::SYS_tgkill if is(rule, 2, libc::SIGABRT as u64) => Some(ABORT),
        libc::SYS_exit_group | libc::SYS_pwrite64 if thread != Thread::Devices => Some(ABORT),
        libc::SYS_brk | libc::SYS_mprotect | libc::SYS_munmap => Some(ALLOCATOR),
        libc::SYS_mremap if is(rule, 3, libc::MREMAP_MAYMOVE as u64) => Some(ALLOCATOR),
        libc::SYS_mmap if rule.when.contains(&OWN_MEMORY) => Some(ALLOCATOR),
        libc::SYS_madvise if is(rule, 2, libc::MADV_DONTNEED as u64) => Some(ALLOCATOR),
        libc::SYS_mmap | libc::SYS_madvise if thread == Thread::Devices && is_balloons(rule) => Some(BALLOON),
        _ => rare(thread, rule),
    }
}

fn is_balloons(rule: &Rule) -> bool {
    match rule.call {
        libc::SYS_mmap => is(rule, 3, OVER_FLAGS as u64),
        libc::SYS_madvise => BALLOON_ADVICES.iter().any(|advice| is(rule, 2, *advice as u64)),
        _ => false,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(thread: Thread, call: i64, when: &'static [When]) -> Option<&'static str> {
        reason(thread, &Rule { call, when, why: "a test" })
    }

    #[test]
    fn only_the_mappings_and_advices_of_the_allocator_and_the_balloon_are_explained() {
        const OVER: &[When] = &[When::Is { argument: 3, value: OVER_FLAGS as u64 }];
        const SHARED: &[When] = &[When::Is { argument: 3, value: libc::MAP_SHARED as u64 }];
        const REMOVE: &[When] = &[When::Is { argument: 2, value: libc::MADV_REMOVE as u64 }];
        const POPULATE: &[When] = &[When::Is { argument: 2, value: libc::MADV_POPULATE_WRITE as u64 }];
        let cases = [
            (Thread::Devices, libc::SYS_mmap, OVER, Some(BALLOON)),
            (Thread::Devices, libc::SYS_madvise, REMOVE, Some(BALLOON)),
            // nobody else has to do with the guest's memory
            (Thread::Vcpu, libc::SYS_mmap, OVER, None),
            (Thread::Vcpu, libc::SYS_madvise, REMOVE, None),
            (Thread::Devices, libc::SYS_mmap, SHARED, None),
            (Thread::Devices, libc::SYS_mmap, &[], None),
            (Thread::Devices, libc::SYS_madvise, POPULATE, None),
            (Thread::Devices, libc::SYS_madvise, &[], None),
            (Thread::Vcpu, libc::SYS_mmap, &[OWN_MEMORY], Some(ALLOCATOR)),
        ];
        for (thread, call, when, expected) in cases {
            assert_eq!(kept(thread, call, when), expected, "{thread:?}, system call {call}");
        }
    }

    #[test]
    fn every_mapping_and_advice_that_is_allowed_now_is_explained() {
        for thread in Thread::ALL {
            for rule in thread.rules().filter(|rule| [libc::SYS_mmap, libc::SYS_madvise].contains(&rule.call))
            {
                assert!(reason(thread, rule).is_some(), "{thread:?}: {}", rule.why);
            }
        }
    }
}
