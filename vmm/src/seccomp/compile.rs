//! From rules to the program that the kernel runs at each system call (classic BPF, Linux's
//! `Documentation/userspace-api/seccomp_filter.rst`).
//!
//! ```text
//!   the machine is x86-64? --no--> kill
//!        |
//!   number >= middle? --yes--> upper half     a tree over the numbers: as deep as their logarithm
//!        | no                                  |
//!   lower half ...                            number is this one? --no--> kill
//!                                              | yes
//!                                             each alternative: all conditions hold? --yes--> allow
//!                                              | none
//!                                             kill
//! ```
//!
//! A tree, and not the chain over all numbers that libraries make: the kernel tries a program with every system call when
//! it is installed, to learn which it always allows, so a chain costs the start of each thread millions of
//! instructions. Every block ends by itself; jumps go forward only.

use super::{Rule, SeccompError, Thread, When};
use seccompiler::{BpfProgram, sock_filter};
use std::collections::BTreeMap;

// linux/bpf_common.h
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const GO: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

// linux/seccomp.h and linux/audit.h
pub(super) const KILL: u32 = 0x8000_0000;
pub(super) const ALLOW: u32 = 0x7fff_0000;
const X86_64: u32 = 0xc000_003e;

// struct seccomp_data: number, machine, instruction pointer, six arguments of 64 bits
const NUMBER: u32 = 0;
const MACHINE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// BPF_MAXINSNS
const INSTRUCTIONS_MAX: usize = 4096;
/// System calls have six.
const ARGUMENTS_MAX: u8 = 6;

/// The conditions of one rule; none always holds.
type Alternative = &'static [When];

/// A call that matches no rule ends the whole process: a thread that tries one is no longer ours.
pub(super) fn compile(thread: Thread) -> Result<BpfProgram, SeccompError> {
    let program = program(thread.rules());
    if program.len() > INSTRUCTIONS_MAX {
        return Err(SeccompError::TooLong { thread, instructions: program.len(), max: INSTRUCTIONS_MAX });
    }
    Ok(program)
}

pub(super) fn program(rules: impl Iterator<Item = &'static Rule>) -> BpfProgram {
    let mut calls: BTreeMap<u32, Vec<Alternative>> = BTreeMap::new();
    for rule in rules {
        // numbers of system calls are small and positive
        calls.entry(rule.call as u32).or_default().push(rule.when);
    }
    let calls: Vec<(u32, Vec<Alternative>)> = calls.into_iter().collect();
    let mut program = vec![load(MACHINE), branch(IF_EQUAL, X86_64, 1, 0), end(KILL), load(NUMBER)];
    program.extend(tree(&calls));
    program
}

fn tree(calls: &[(u32, Vec<Alternative>)]) -> BpfProgram {
    match calls {
        [] => vec![end(KILL)],
        [(number, alternatives)] => leaf(*number, alternatives),
        _ => {
            let (lower, upper) = calls.split_at(calls.len() / 2);
            let (first_of_upper, lower) = (upper[0].0, tree(lower));
            // a conditional jump reaches 255 instructions, `GO` all of them
            let over = sock_filter { code: GO, jt: 0, jf: 0, k: lower.len() as u32 };
            let mut block = vec![branch(IF_AT_LEAST, first_of_upper, 0, 1), over];
            block.extend(lower);
            block.extend(tree(upper));
            block
        }
    }
}

fn leaf(number: u32, alternatives: &[Alternative]) -> BpfProgram {
    let mut block = vec![branch(IF_EQUAL, number, 1, 0), end(KILL)];
    for alternative in alternatives {
        block.extend(checks(alternative));
        block.push(end(ALLOW));
    }
    block.push(end(KILL));
    block
}

/// Falls through when all of `conditions` hold, else goes past the instruction that follows.
fn checks(conditions: Alternative) -> BpfProgram {
    let mut block: BpfProgram = conditions.iter().flat_map(check).collect();
    let length = block.len();
    for (at, instruction) in block.iter_mut().enumerate() {
        if instruction.code == IF_EQUAL {
            // at most six conditions of four instructions
            instruction.jf = (length - at) as u8;
        }
    }
    block
}

fn check(condition: &When) -> Vec<sock_filter> {
    // little endian: the low half comes first
    let low = |argument: u8| {
        debug_assert!(argument < ARGUMENTS_MAX);
        ARGUMENTS + 8 * u32::from(argument)
    };
    let equal = |value: u32| branch(IF_EQUAL, value, 0, 0);
    let masked = |argument, bits: u64, value: u64| {
        let and = sock_filter { code: AND, jt: 0, jf: 0, k: bits as u32 };
        vec![load(low(argument)), and, equal(value as u32)]
    };
    match *condition {
        When::Is { argument, value } => vec![load(low(argument)), equal(value as u32)],
        When::Without { argument, bits } => masked(argument, bits, 0),
        When::Of { argument, bits, value } => masked(argument, bits, value),
        When::Null { argument } => {
            vec![load(low(argument)), equal(0), load(low(argument) + 4), equal(0)]
        }
    }
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: offset }
}

fn branch(code: u16, value: u32, if_so: u8, if_not: u8) -> sock_filter {
    sock_filter { code, jt: if_so, jf: if_not, k: value }
}

fn end(action: u32) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: action }
}

#[cfg(test)]
mod tests;
