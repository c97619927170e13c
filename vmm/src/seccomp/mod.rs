//! What system calls each thread may make once the guest runs. Everything else ends the process.
//!
//! A filter is a table of rules, each with its reason. The filters are compiled before the threads start and installed
//! by each thread for itself, before the first guest instruction.

mod devices;
mod vcpu;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use std::collections::BTreeMap;

/// A compiled filter.
pub type Filter = BpfProgram;

/// A system call, under which conditions on its arguments, and why. No condition means always.
struct Rule {
    call: i64,
    when: &'static [When],
    #[allow(dead_code, reason = "read by people, and by the test that wants one for each rule")]
    why: &'static str,
}

/// A condition on one argument.
enum When {
    /// the low 32 bits are this value
    Is { argument: u8, value: u64 },
    /// none of these bits is set
    Without { argument: u8, bits: u64 },
}

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("the seccomp filter of {thread} threads cannot be compiled")]
    Compile { thread: &'static str, source: seccompiler::BackendError },
    #[error("the seccomp filter cannot be installed")]
    Install(#[source] seccompiler::Error),
}

/// The filter of the device thread, which is the main thread.
pub fn devices() -> Result<Filter, SeccompError> {
    compile("device", &[COMMON, devices::RULES])
}

/// The filter of vCPU threads.
pub fn vcpu() -> Result<Filter, SeccompError> {
    compile("vCPU", &[COMMON, vcpu::RULES])
}

/// Binds the calling thread for ever.
pub fn install(filter: &Filter) -> Result<(), SeccompError> {
    seccompiler::apply_filter(filter).map_err(SeccompError::Install)
}

/// Every thread: memory for the allocator, locks, clocks, the end.
const COMMON: &[Rule] = &[
    Rule { call: libc::SYS_futex, when: &[], why: "locks and barriers between the threads" },
    Rule { call: libc::SYS_write, when: &[], why: "eventfds; the last words of a panic on standard error" },
    Rule {
        call: libc::SYS_pwrite64,
        when: &[],
        why: "the console ring; the exit record, also of a thread that panics",
    },
    Rule { call: libc::SYS_brk, when: &[], why: "the allocator grows the heap" },
    Rule {
        call: libc::SYS_mmap,
        when: &[When::Without { argument: 2, bits: libc::PROT_EXEC as u64 }],
        why: "the allocator maps large blocks and arenas, never executable ones",
    },
    Rule {
        call: libc::SYS_mprotect,
        when: &[When::Without { argument: 2, bits: libc::PROT_EXEC as u64 }],
        why: "the allocator grows an arena, never an executable one",
    },
    Rule { call: libc::SYS_munmap, when: &[], why: "the allocator gives large blocks back" },
    Rule { call: libc::SYS_mremap, when: &[], why: "the allocator resizes large blocks" },
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
    Rule { call: libc::SYS_tgkill, when: &[], why: "abort signals its own thread" },
    Rule { call: libc::SYS_exit_group, when: &[], why: "the end of the process" },
];

fn compile(thread: &'static str, tables: &[&[Rule]]) -> Result<Filter, SeccompError> {
    let failed = |source| SeccompError::Compile { thread, source };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in tables.iter().copied().flatten() {
        let alternatives = rules.entry(rule.call).or_default();
        if !rule.when.is_empty() {
            let conditions: Result<Vec<_>, _> = rule.when.iter().map(condition).collect();
            alternatives.push(SeccompRule::new(conditions.map_err(failed)?).map_err(failed)?);
        }
    }
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)
        .and_then(TryInto::try_into)
        .map_err(failed)
}

fn condition(when: &When) -> Result<SeccompCondition, seccompiler::BackendError> {
    match when {
        When::Is { argument, value } => {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value)
        }
        When::Without { argument, bits } => {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(*bits), 0)
        }
    }
}

#[cfg(test)]
mod tests;
