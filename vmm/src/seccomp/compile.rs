//! From rules to the program that the kernel runs at each system call.

use super::{Rule, SeccompError, Thread, When};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// A call that matches no rule ends the whole process: a thread that tries one is no longer ours.
pub(super) fn compile(thread: Thread) -> Result<BpfProgram, SeccompError> {
    filter(thread.rules()).map_err(|source| SeccompError::Compile { thread, source })
}

fn filter(table: impl Iterator<Item = &'static Rule>) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in table {
        let alternatives = rules.entry(rule.call).or_default();
        if !rule.when.is_empty() {
            let conditions: Result<Vec<_>, _> = rule.when.iter().map(condition).collect();
            alternatives.push(SeccompRule::new(conditions?)?);
        }
    }
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?
        .try_into()
}

fn condition(when: &When) -> Result<SeccompCondition, BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    match *when {
        When::Is { argument, value } => SeccompCondition::new(argument, Dword, Eq, value),
        When::Without { argument, bits } => SeccompCondition::new(argument, Dword, MaskedEq(bits), 0),
        When::Of { argument, bits, value } => SeccompCondition::new(argument, Dword, MaskedEq(bits), value),
        When::Null { argument } => SeccompCondition::new(argument, Qword, Eq, 0),
    }
}
