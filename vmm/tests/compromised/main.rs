//! A VMM that its guest has taken over, for real: `examples/compromised` builds its machine, binds its threads and then
//! tries what a VMM must never do, once with every layer of confinement and once with each layer alone.
//!
//! ```text
//!   open        an ordinary uid, nothing else     shows that an attempt does work
//!   landlock    + Landlock                        refuses what its table says, nothing more
//!   jail        the real jailer                   the same
//!   seccomp     + the filters                     the process is ended with SIGSYS
//!   all         jailer, Landlock, filters         nothing passes
//! ```
//!
//! Needs root, a cgroup v2 mount and a `/dev/kvm` that makes machines; no guest runs. In CI (`CI=true`) their absence is a
//! failure; elsewhere the tests say that they were skipped. The programs are built by the test, statically; where there
//! is no cargo, `PINFOLD_COMPROMISED_PROGRAMS` names a directory with `compromised` and `pinfold-jailer`.

mod bench;
mod launch;

use bench::{Attempt, Bench};
use launch::{Layers, Outcome};
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Machines that are up at the same time.
const WORKERS: usize = 12;

/// Runs every attempt under `layers` on `thread`, and holds what came of it against `right`.
fn each(
    bench: &Bench,
    layers: Layers,
    thread: &'static str,
    right: impl Fn(&Attempt, Outcome) -> bool + Sync,
) {
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(String::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(attempt) = bench.attempts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = launch::run(bench, layers, thread, attempt);
                    println!("{layers:?}\t{thread}\t{}\t{outcome:?}", attempt.name);
                    if !right(attempt, outcome) {
                        let mut wrong = wrong.lock().unwrap_or_else(PoisonError::into_inner);
                        let _ = writeln!(wrong, "  {}, {}: {outcome:?}", attempt.name, attempt.what);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(wrong.is_empty(), "{layers:?} on the {thread} thread is not as the attempts say:\n{wrong}");
}

#[test]
fn without_a_layer_an_attempt_works_unless_it_needs_a_privilege() {
    let Some(bench) = Bench::new("open") else { return };
    each(&bench, Layers::OPEN, "devices", |attempt, outcome| {
        matches!(outcome, Outcome::Refused(_)) == attempt.uid && outcome != Outcome::Killed
    });
}

#[test]
fn landlock_alone_refuses_what_it_is_for() {
    let Some(bench) = Bench::new("landlock") else { return };
    let version = bench.landlock_version();
    println!("this kernel has Landlock {version}");
    each(&bench, Layers::LANDLOCK, "devices", |attempt, outcome| {
        let refuses = attempt.uid || attempt.landlock.is_some_and(|since| since <= version);
        matches!(outcome, Outcome::Refused(_)) == refuses && outcome != Outcome::Killed
    });
}

#[test]
fn the_jail_alone_refuses_what_it_is_for() {
    let Some(bench) = Bench::new("jail") else { return };
    each(&bench, Layers::JAIL, "devices", |attempt, outcome| {
        matches!(outcome, Outcome::Refused(_)) == (attempt.uid || attempt.jail) && outcome != Outcome::Killed
    });
}

#[test]
fn seccomp_alone_ends_the_process_on_the_device_thread() {
    let Some(bench) = Bench::new("devices") else { return };
    each(&bench, Layers::SECCOMP, "devices", |attempt, outcome| {
        (outcome == Outcome::Killed) == attempt.seccomp
    });
}

#[test]
fn seccomp_alone_ends_the_process_on_a_vcpu_thread() {
    let Some(bench) = Bench::new("vcpu") else { return };
    // a vCPU thread may write to files that were passed on, as its last words, and to nothing else
    each(&bench, Layers::SECCOMP, "vcpu", |attempt, outcome| {
        (outcome == Outcome::Killed) == (attempt.seccomp || attempt.name != "past-fsize")
    });
}

#[test]
fn nothing_passes_all_layers() {
    let Some(bench) = Bench::new("all") else { return };
    for thread in ["devices", "vcpu"] {
        each(&bench, Layers::ALL, thread, |_, outcome| outcome != Outcome::Passed);
    }
}

/// Nothing of the program that plays a compromised VMM is in the real one.
#[test]
fn the_shipped_program_holds_no_attempt() {
    let shipped = std::fs::read(env!("CARGO_BIN_EXE_pinfold-vmm")).expect("the program");
    let played = std::fs::read(bench::programs().join("compromised")).expect("the program");
    let holds =
        |program: &[u8], words: &str| program.windows(words.len()).any(|bytes| bytes == words.as_bytes());
    for words in ["process-vm-readv", "kvm-create-device", "make another virtual machine"] {
        assert!(holds(&played, words), "{words:?} is not in the program that tries it");
        assert!(!holds(&shipped, words), "{words:?} is in pinfold-vmm");
    }
}

#[test]
fn the_document_shows_every_attempt_and_who_refuses_it() {
    let attempts = bench::list(&bench::programs());
    let document = include_str!("../../../docs/security/compromised-vmm.md");
    let rows: Vec<&str> = document.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> = attempts.iter().map(Attempt::row).collect();
    for row in &expected {
        assert!(rows.contains(&row.as_str()), "docs/security/compromised-vmm.md has no row\n{row}");
    }
    assert_eq!(rows.len(), expected.len(), "a row of docs/security/compromised-vmm.md has no attempt");
    assert!(attempts.len() >= 40);
}
