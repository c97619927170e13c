//! The rules for those who look at them from outside: people who audit a node, and the test that finds rules which no
//! workload needs.

use super::{Rule, Thread, When, kept};
use serde::Serialize;

/// One rule of one kind of thread.
#[derive(Debug, Serialize)]
pub struct Listed {
    pub thread: &'static str,
    /// number of the system call on x86-64
    pub call: i64,
    /// arguments that must have one value, and the value; these tell rules of one call apart
    pub values: Vec<(u8, u64)>,
    /// every condition, in words
    pub conditions: Vec<String>,
    pub why: &'static str,
    /// why the rule is there although a machine that does well never uses it
    pub kept: Option<&'static str>,
}

/// All rules, thread by thread.
pub fn all() -> Vec<Listed> {
    let rules_of = |thread: Thread| thread.rules().map(move |rule| listed(thread, rule));
    Thread::ALL.into_iter().flat_map(rules_of).collect()
}

fn listed(thread: Thread, rule: &'static Rule) -> Listed {
    let value = |when: &When| match *when {
        When::Is { argument, value } => Some((argument, value)),
        _ => None,
    };
    Listed {
        thread: thread.name(),
        call: rule.call,
        values: rule.when.iter().filter_map(value).collect(),
        conditions: rule.when.iter().map(words).collect(),
        why: rule.why,
        kept: kept::reason(thread, rule),
    }
}

fn words(when: &When) -> String {
    match *when {
        When::Is { argument, value } => format!("argument {argument} is {value:#x}"),
        When::Without { argument, bits } => format!("argument {argument} has none of {bits:#x}"),
        When::Of { argument, bits, value } => format!("argument {argument} has of {bits:#x} just {value:#x}"),
        When::Null { argument } => format!("argument {argument} is null"),
    }
}
