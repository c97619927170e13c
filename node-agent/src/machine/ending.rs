//! Why a microVM ended that nobody asked to end: one reason out of the fixed list, from what the VMM wrote, what the
//! kernel counted, and what the guest said last.
//!
//! The VMM's own record comes first. The guest's console is asked only about what the record leaves open (a reset may
//! be a panic), because a guest may print what it likes: by a forged line it can only blame itself.

use super::Exit;
use pinfold_domain::{Cause, Reason};
use pinfold_vmm_api::control::{ExitReason, ExitRecord};

/// Printed by PID 1 of the guest, followed by `<code>: <why>`.
const FATAL: &str = "pinfold-guest: fatal: ";
const PANIC: &str = "Kernel panic - not syncing";
/// Longest line of the console that is quoted.
const MAX_LINE_CHARS: usize = 300;

/// What is known of an end.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    pub exit: Exit,
    /// how often the kernel ended something in the sandbox's cgroup for want of memory
    pub oom_kills: u64,
    /// last part of the guest's console
    pub console: String,
    /// its PID 1 had called in: what it says of its start after that is not true
    pub was_ready: bool,
}

/// The true reason.
pub fn classify(evidence: &Evidence) -> Cause {
    match &evidence.exit.record {
        Some(record) => from_record(record, evidence),
        None if evidence.oom_kills > 0 => {
            Cause::new(Reason::OutOfMemory, "the VMM hit its memory limit and was ended by the kernel")
        }
        None => match evidence.exit.signal {
            Some(signal) => Cause::new(Reason::VmmFailed, format!("the VMM was ended by signal {signal}")),
            None => Cause::new(Reason::VmmFailed, "the VMM is gone and left no record: it was killed"),
        },
    }
}

fn from_record(record: &ExitRecord, evidence: &Evidence) -> Cause {
    let in_console = |default: Cause| in_console(&evidence.console, evidence.was_ready).unwrap_or(default);
    let said = |reason, default: &str| {
        Cause::new(reason, if record.message.is_empty() { default } else { record.message.as_str() })
    };
    match record.reason {
        ExitReason::BadKernel => said(Reason::KernelInvalid, "the kernel cannot be booted"),
        ExitReason::BadInitrd => said(Reason::KernelInvalid, "the initramfs cannot be loaded"),
        ExitReason::BadDisk => said(Reason::RootImageInvalid, "a disk cannot be used"),
        ExitReason::BadNet => said(Reason::VmmFailed, "a network device cannot be used"),
        ExitReason::BadSnapshot => said(Reason::SnapshotInvalid, "the saved machine cannot be used"),
        ExitReason::PageFaultHandler => {
            said(Reason::VmmFailed, "its memory came from a process that is gone")
        }
        ExitReason::GuestPanic => said(Reason::GuestPanic, "the guest's kernel panicked"),
        ExitReason::Killed => said(Reason::VmmFailed, "the VMM was told to end, but not by this agent"),
        ExitReason::BadConfig => said(Reason::VmmFailed, "the VMM refused its configuration"),
        ExitReason::Kvm => said(Reason::VmmFailed, "KVM refused something"),
        ExitReason::Internal => said(Reason::VmmFailed, "a fault of the VMM"),
        // a kernel that cannot go on may end in a triple fault or in a halt for good
        ExitReason::VcpuFailed => in_console(said(Reason::VmmFailed, "a virtual CPU failed")),
        ExitReason::GuestReset => in_console(said(Reason::GuestReset, "the guest reset itself")),
        ExitReason::GuestPowerOff => in_console(said(Reason::GuestPowerOff, "the guest powered itself off")),
    }
}

/// A fatal line of the guest's PID 1, else a kernel panic. PID 1 dies of its fatal error, so the kernel panics after
/// it: the first of them is the cause. A guest that `was_ready` had its root image and its disk.
pub fn in_console(console: &str, was_ready: bool) -> Option<Cause> {
    if let Some(line) = console.lines().find_map(|line| after(line, FATAL)).filter(|_| !was_ready) {
        let reason = match line.split(':').next() {
            Some("root-image") => Reason::RootImageInvalid,
            Some("disk") => Reason::HostResources,
            _ => Reason::GuestPanic,
        };
        return Some(Cause::new(reason, format!("the guest could not start: {}", printable(line))));
    }
    let line = console.lines().find(|line| line.contains(PANIC))?;
    let line = after(line, PANIC).map(|rest| format!("{PANIC}{rest}"))?;
    Some(Cause::new(Reason::GuestPanic, format!("the guest's kernel: {}", printable(&line))))
}

fn after<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    line.find(marker).map(|at| &line[at + marker.len()..])
}

/// Bytes from a guest, for a message: bounded, without control characters.
fn printable(line: &str) -> String {
    line.trim().chars().filter(|c| !c.is_control()).take(MAX_LINE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(reason: ExitReason, message: &str) -> Exit {
        let record = ExitRecord::without_cost(reason, message);
        Exit { record: Some(record), signal: None }
    }

    fn reason_of(exit: Exit, oom_kills: u64, console: &str) -> (Reason, String) {
        let cause = classify(&Evidence { exit, oom_kills, console: console.to_owned(), was_ready: false });
        (cause.reason, cause.message)
    }

    const PANIC_LINE: &str =
        "[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs\x07 on unknown-block(0,0)";

    #[test]
    fn the_record_of_the_vmm_decides() {
        for (reason, expected) in [
            (ExitReason::BadKernel, Reason::KernelInvalid),
            (ExitReason::BadInitrd, Reason::KernelInvalid),
            (ExitReason::BadDisk, Reason::RootImageInvalid),
            (ExitReason::BadSnapshot, Reason::SnapshotInvalid),
            (ExitReason::PageFaultHandler, Reason::VmmFailed),
            (ExitReason::BadConfig, Reason::VmmFailed),
            (ExitReason::Kvm, Reason::VmmFailed),
            (ExitReason::Internal, Reason::VmmFailed),
            (ExitReason::Killed, Reason::VmmFailed),
        ] {
            // whatever the guest printed
            let (found, message) = reason_of(record(reason, "why"), 0, PANIC_LINE);
            assert_eq!((found, message.as_str()), (expected, "why"));
        }
    }

    #[test]
    fn a_reset_is_a_panic_when_the_console_says_so() {
        let reset = || record(ExitReason::GuestReset, "");
        assert_eq!(reason_of(reset(), 0, "login:").0, Reason::GuestReset);
        let (reason, message) = reason_of(reset(), 0, &format!("boot\n{PANIC_LINE}\nRebooting"));
        assert_eq!(reason, Reason::GuestPanic);
        assert!(message.contains("Unable to mount root fs on unknown-block"), "{message}");
        assert_eq!(reason_of(record(ExitReason::GuestPowerOff, ""), 0, "").0, Reason::GuestPowerOff);
        assert_eq!(reason_of(record(ExitReason::VcpuFailed, ""), 0, "").0, Reason::VmmFailed);
    }

    #[test]
    fn the_fatal_line_wins_over_the_panic_that_it_causes() {
        let console = format!("pinfold-guest: fatal: root-image: no erofs on /dev/vda\n{PANIC_LINE}\n");
        let (reason, message) = reason_of(record(ExitReason::GuestReset, ""), 0, &console);
        assert_eq!(reason, Reason::RootImageInvalid);
        assert!(message.contains("no erofs on /dev/vda"), "{message}");
        let console = "pinfold-guest: fatal: internal: no cgroup2";
        assert_eq!(reason_of(record(ExitReason::GuestReset, ""), 0, console).0, Reason::GuestPanic);
    }

    #[test]
    fn a_guest_that_was_ready_cannot_blame_its_node() {
        let exit = record(ExitReason::GuestReset, "");
        let console = format!("pinfold-guest: fatal: root-image: forged\n{PANIC_LINE}");
        let cause = classify(&Evidence { exit: exit.clone(), oom_kills: 0, console, was_ready: true });
        assert_eq!(cause.reason, Reason::GuestPanic);
        let console = "pinfold-guest: fatal: disk: forged".to_owned();
        let cause = classify(&Evidence { exit, oom_kills: 0, console, was_ready: true });
        assert_eq!(cause.reason, Reason::GuestReset);
    }

    #[test]
    fn without_a_record_the_kernel_is_asked() {
        assert_eq!(reason_of(Exit::default(), 1, PANIC_LINE).0, Reason::OutOfMemory);
        let (reason, message) = reason_of(Exit { record: None, signal: Some(31) }, 0, "");
        assert_eq!((reason, message.contains("signal 31")), (Reason::VmmFailed, true));
        assert_eq!(reason_of(Exit::default(), 0, "").0, Reason::VmmFailed);
    }
}
