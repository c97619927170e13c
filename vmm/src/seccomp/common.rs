//! Every thread: memory for the allocator, locks, clocks, the end.

use super::{Rule, When};

/// Memory of this process alone, of no file.
pub(super) const OWN_MEMORY: When = When::Of {
    argument: 3,
    bits: (libc::MAP_SHARED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64,
    value: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64,
};
const NOT_EXECUTABLE: When = When::Without { argument: 2, bits: libc::PROT_EXEC as u64 };

pub(super) const RULES: &[Rule] = &[
    Rule { call: libc::SYS_futex, when: &[], why: "locks and barriers between the threads" },
    Rule {
        call: libc::SYS_sched_yield,
        when: &[],
        why: "a channel whose two ends meet lets the other go first",
    },
    Rule { call: libc::SYS_write, when: &[], why: "eventfds; the last words of a panic on standard error" },
    Rule {
        call: libc::SYS_pwrite64,
        when: &[],
        why: "the console ring; the exit record, also of a thread that panics",
    },
    Rule { call: libc::SYS_brk, when: &[], why: "the allocator grows the heap" },
    Rule {
        call: libc::SYS_mmap,
        when: &[NOT_EXECUTABLE, OWN_MEMORY],
        why: "the allocator maps large blocks and arenas, never executable ones and never a file",
    },
    Rule {
        call: libc::SYS_mprotect,
        when: &[NOT_EXECUTABLE],
        why: "the allocator grows an arena, never an executable one",
    },
    Rule { call: libc::SYS_munmap, when: &[], why: "the allocator gives large blocks back" },
    Rule {
        call: libc::SYS_mremap,
        when: &[When::Is { argument: 3, value: libc::MREMAP_MAYMOVE as u64 }],
        why: "the allocator resizes large blocks",
    },
    Rule {
        call: libc::SYS_madvise,
        when: &[When::Is { argument: 2, value: libc::MADV_DONTNEED as u64 }],
        why: "the allocator trims an arena",
    },
    Rule { call: libc::SYS_clock_gettime, when: &[], why: "time, where the host has no vDSO clock" },
    Rule { call: libc::SYS_rt_sigreturn, when: &[], why: "return from a signal handler" },
    Rule { call: libc::SYS_rt_sigprocmask, when: &[], why: "abort blocks signals" },
    Rule { call: libc::SYS_gettid, when: &[], why: "abort and panic name the thread" },
    Rule { call: libc::SYS_getpid, when: &[], why: "abort signals its own process" },
    Rule {
        call: libc::SYS_tgkill,
        when: &[When::Is { argument: 2, value: libc::SIGABRT as u64 }],
        why: "abort signals its own thread",
    },
    Rule { call: libc::SYS_exit_group, when: &[], why: "the end of the process" },
    #[cfg(debug_assertions)]
    Rule {
        call: libc::SYS_fcntl,
        when: &[When::Is { argument: 1, value: libc::F_GETFD as u64 }],
        why: "the standard library of a debug build looks whether what it closes is open",
    },
];
