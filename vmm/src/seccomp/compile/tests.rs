//! The programs, run by a small interpreter beside the meaning of the rules.

use super::super::Thread;
use super::*;
use proptest::prelude::*;

const THREADS: [Thread; 4] = Thread::ALL;

/// What the kernel would do, and after how many instructions.
fn run(program: &[sock_filter], machine: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
    let mut words = vec![number, machine, 0, 0];
    words.extend(arguments.iter().flat_map(|argument| [*argument as u32, (argument >> 32) as u32]));
    let (mut at, mut held, mut steps) = (0, 0, 0);
    loop {
        let instruction = &program[at];
        at += 1;
        steps += 1;
        let jump = |taken: bool| usize::from(if taken { instruction.jt } else { instruction.jf });
        match instruction.code {
            LOAD => held = words[instruction.k as usize / 4],
            AND => held &= instruction.k,
            GO => at += instruction.k as usize,
            IF_EQUAL => at += jump(held == instruction.k),
            IF_AT_LEAST => at += jump(held >= instruction.k),
            RETURN => return (instruction.k, steps),
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn holds(condition: &When, arguments: [u64; 6]) -> bool {
    let low = |argument: u8| arguments[usize::from(argument)] & 0xffff_ffff;
    match *condition {
        When::Is { argument, value } => low(argument) == value & 0xffff_ffff,
        When::Without { argument, bits } => low(argument) & bits == 0,
        When::Of { argument, bits, value } => low(argument) & bits == value,
        When::Null { argument } => arguments[usize::from(argument)] == 0,
    }
}

fn meant(thread: Thread, number: u32, arguments: [u64; 6]) -> u32 {
    let mut rules = thread.rules().filter(|rule| rule.call == i64::from(number));
    let allowed = rules.any(|rule| rule.when.iter().all(|condition| holds(condition, arguments)));
    if allowed { ALLOW } else { KILL }
}

/// Values that conditions ask for, and their neighbours.
fn interesting() -> Vec<u64> {
    let mut values = vec![0, 1, u64::MAX, 1 << 32];
    for condition in THREADS.into_iter().flat_map(Thread::rules).flat_map(|rule| rule.when) {
        values.extend(match *condition {
            When::Is { value, .. } => vec![value, value + 1, value | 1 << 40],
            When::Without { bits, .. } => vec![bits, !bits],
            When::Of { bits, value, .. } => vec![value, value | !bits, bits],
            When::Null { .. } => vec![1 << 63],
        });
    }
    values
}

proptest! {
    #[test]
    fn a_program_does_what_its_rules_mean(
        number in 0_u32..500,
        picked in proptest::array::uniform6(any::<proptest::sample::Index>()),
    ) {
        let values = interesting();
        let arguments = picked.map(|index| *index.get(&values));
        for thread in THREADS {
            let program = compile(thread).expect("compiles");
            prop_assert_eq!(run(&program, X86_64, number, arguments).0, meant(thread, number, arguments));
        }
    }
}

#[test]
fn every_rule_can_be_met() {
    for thread in THREADS {
        let program = compile(thread).expect("compiles");
        for rule in thread.rules() {
            let mut arguments = [u64::MAX >> 1; 6];
            for condition in rule.when {
                match *condition {
                    When::Is { argument, value } => arguments[usize::from(argument)] = value,
                    When::Without { argument, bits } => arguments[usize::from(argument)] &= !bits,
                    When::Of { argument, bits, value } => {
                        let held = &mut arguments[usize::from(argument)];
                        *held = *held & !bits | value;
                    }
                    When::Null { argument } => arguments[usize::from(argument)] = 0,
                }
            }
            let (action, _) = run(&program, X86_64, rule.call as u32, arguments);
            assert_eq!(action, ALLOW, "{thread:?}: call {}, {}", rule.call, rule.why);
        }
    }
}

/// i386's numbers mean other calls, and x32's carry bit 30.
#[test]
fn other_calling_conventions_are_refused() {
    for thread in THREADS {
        let program = compile(thread).expect("compiles");
        for number in 0..500 {
            assert_eq!(run(&program, 0x4000_0003, number, [0; 6]).0, KILL);
            assert_eq!(run(&program, X86_64, number | 0x4000_0000, [0; 6]).0, KILL);
        }
    }
}

/// The kernel tries them all when the filter is installed.
#[test]
fn a_number_is_found_in_the_logarithm_of_their_count() {
    for thread in THREADS {
        let program = compile(thread).expect("compiles");
        let steps: usize = (0..460).map(|number| run(&program, X86_64, number, [0; 6]).1).sum();
        assert!(steps < 460 * 20, "{thread:?}: {steps} instructions for 460 system calls");
    }
}
