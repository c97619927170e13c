//! The thread that listens to the page-fault handler of a restored machine.

use super::{Rule, When};

pub(super) const RULES: &[Rule] = &[
    Rule {
        call: libc::SYS_recvfrom,
        when: &[When::Null { argument: 4 }],
        why: "words of the page-fault handler",
    },
    Rule { call: libc::SYS_close, when: &[], why: "all of guest memory is in place: the userfaultfd goes" },
    Rule { call: libc::SYS_sigaltstack, when: &[], why: "then the thread ends: its signal stack" },
    Rule { call: libc::SYS_exit, when: &[], why: "then the thread ends" },
];
