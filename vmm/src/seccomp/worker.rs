//! The thread of a disk on a host without io_uring: one file by position, and a word to the device thread.

use super::Rule;

pub(super) const RULES: &[Rule] = &[
    Rule { call: libc::SYS_preadv, when: &[], why: "disk reads into guest memory" },
    Rule { call: libc::SYS_pwritev, when: &[], why: "disk writes from guest memory" },
    Rule { call: libc::SYS_fdatasync, when: &[], why: "disk flushes" },
    Rule { call: libc::SYS_fallocate, when: &[], why: "discarded and zeroed ranges of a disk" },
    Rule { call: libc::SYS_sigaltstack, when: &[], why: "the thread ends: its signal stack" },
    Rule {
        call: libc::SYS_exit,
        when: &[],
        why: "the thread ends with its disk, if the machine cannot be built",
    },
];
