//! Pre-flight: can this machine run stock guests?
//!
//! A device node is no proof: there are KVM backends for paravirtual guests only, on which machines are created, small
//! code runs through an emulator, and a stock kernel never leaves its decompressor. So the question is put in steps, and
//! the answer is one sentence that a person can act on.

mod guest;

use kvm_ioctls::{Cap, Kvm};
use serde::Serialize;
use std::fs::OpenOptions;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::Path;

/// What the VMM cannot do without.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "user memory"),
    (Cap::Irqchip, "interrupt controllers in the kernel"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::ExtCpuid, "CPUID of guests"),
    (Cap::SetTssAddr, "place of the TSS"),
    (Cap::SetIdentityMapAddr, "place of the identity map"),
    (Cap::ImmediateExit, "immediate exit"),
    (Cap::MpState, "state of several vCPUs"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Usable,
    Unusable,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    pub detail: String,
}

/// The answer, as JSON for other programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub verdict: Verdict,
    pub sentence: String,
    pub checks: Vec<Check>,
}

const DEVICE: &str = "device";
const OPENS: &str = "opens";
const API_VERSION: &str = "api_version";
const CAPABILITIES: &str = "capabilities";
const CPU_FLAGS: &str = "cpu_flags";
const PROBE_GUEST: &str = "probe_guest";

/// Looks at `device`, normally `/dev/kvm`, and at the processor.
pub fn probe(device: &Path) -> Report {
    let mut checks = Vec::new();
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    checks.push(cpu_flags(&flags));
    if let Some(kvm) = open(device, &mut checks) {
        let version = kvm.get_api_version();
        let ok = version == crate::builder::KVM_API_VERSION;
        checks.push(Check { name: API_VERSION, ok, detail: format!("version {version}, 12 is wanted") });
        checks.push(capabilities(&kvm));
        checks.push(match guest::run(&kvm) {
            Ok(elapsed) => Check {
                name: PROBE_GUEST,
                ok: true,
                detail: format!(
                    "took two exceptions through its own IDT and came back in {} µs",
                    elapsed.as_micros()
                ),
            },
            Err(error) => Check { name: PROBE_GUEST, ok: false, detail: error.to_string() },
        });
    }
    conclude(checks)
}

fn open(device: &Path, checks: &mut Vec<Check>) -> Option<Kvm> {
    let shown = device.display();
    let exists = device.exists();
    let detail = if exists { format!("{shown} is there") } else { format!("{shown} is missing") };
    checks.push(Check { name: DEVICE, ok: exists, detail });
    if !exists {
        return None;
    }
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(file) => {
            checks.push(Check {
                name: OPENS,
                ok: true,
                detail: format!("{shown} opens for reading and writing"),
            });
            // SAFETY: the descriptor is open and given up by the file; what it is, the version tells.
            Some(unsafe { Kvm::from_raw_fd(file.into_raw_fd()) })
        }
        Err(error) => {
            checks.push(Check { name: OPENS, ok: false, detail: format!("{shown} does not open: {error}") });
            None
        }
    }
}

fn capabilities(kvm: &Kvm) -> Check {
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(capability, _)| !kvm.check_extension(*capability))
        .map(|(_, name)| *name)
        .collect();
    let detail = if missing.is_empty() {
        "all that are needed".into()
    } else {
        format!("missing: {}", missing.join(", "))
    };
    Check { name: CAPABILITIES, ok: missing.is_empty(), detail }
}

fn cpu_flags(cpuinfo: &str) -> Check {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_ascii_whitespace().any(|word| word == flag);
    let found: Vec<_> = ["vmx", "svm"].into_iter().filter(|flag| has(flag)).collect();
    let detail = match found.first() {
        Some(flag) => format!("the processor has {flag}"),
        None => "the processor shows neither vmx nor svm".into(),
    };
    Check { name: CPU_FLAGS, ok: !found.is_empty(), detail }
}

/// The first thing that is wrong, in the order in which a person would mend it.
fn conclude(checks: Vec<Check>) -> Report {
    let failed = |name: &str| checks.iter().find(|check| check.name == name && !check.ok);
    let present = failed(DEVICE).is_none();
    let sentence = if !present && failed(CPU_FLAGS).is_some() {
        "There is no /dev/kvm and the processor shows neither VMX nor SVM, so microVMs need a virtual node here: \
         QEMU with emulated SVM."
            .into()
    } else if !present {
        "There is no /dev/kvm although the processor has hardware virtualisation: load the kvm-intel or kvm-amd module."
            .into()
    } else if let Some(check) = failed(OPENS) {
        format!("{}: run as root or join the group kvm.", check.detail)
    } else if failed(CPU_FLAGS).is_some() {
        "/dev/kvm is there but the processor shows neither VMX nor SVM: it is a backend for paravirtual guests only, \
         like PVM, and cannot run stock guest kernels, so microVMs need a virtual node here: QEMU with emulated SVM."
            .into()
    } else if let Some(check) = failed(API_VERSION).or(failed(CAPABILITIES)) {
        format!("This kernel's KVM is too old or cut down ({}): use Linux 5.10 or newer.", check.detail)
    } else if let Some(check) = failed(PROBE_GUEST) {
        format!(
            "/dev/kvm does not run guests as hardware does ({}), so microVMs need a virtual node here: QEMU with \
             emulated SVM.",
            check.detail
        )
    } else {
        "This machine runs stock guests on /dev/kvm.".into()
    };
    let verdict = if checks.iter().all(|check| check.ok) { Verdict::Usable } else { Verdict::Unusable };
    Report { verdict, sentence, checks }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_ok() -> Vec<Check> {
        [DEVICE, OPENS, API_VERSION, CAPABILITIES, CPU_FLAGS, PROBE_GUEST]
            .into_iter()
            .map(|name| Check { name, ok: true, detail: String::new() })
            .collect()
    }

    #[test]
    fn a_machine_with_everything_is_usable() {
        assert_eq!(conclude(all_ok()).verdict, Verdict::Usable);
    }

    #[test]
    fn every_single_failure_makes_it_unusable_with_a_sentence_of_its_own() {
        let mut sentences = std::collections::BTreeSet::from([conclude(all_ok()).sentence]);
        for index in 0..all_ok().len() {
            let mut checks = all_ok();
            checks[index].ok = false;
            checks[index].detail = format!("detail {index}");
            let report = conclude(checks);
            assert_eq!(report.verdict, Verdict::Unusable);
            assert!(sentences.insert(report.sentence.clone()), "{}", report.sentence);
        }
    }

    #[test]
    fn a_backend_without_hardware_virtualisation_is_named_even_if_its_probe_guest_runs() {
        let mut checks = all_ok();
        checks[4].ok = false;
        assert!(conclude(checks).sentence.contains("paravirtual"));
    }

    #[test]
    fn flags_are_whole_words() {
        assert!(cpu_flags("flags\t\t: fpu svm lm").ok);
        assert!(cpu_flags("flags\t\t: fpu vmx").ok);
        assert!(!cpu_flags("flags\t\t: fpu svm_lock vmxnet hypervisor").ok);
        assert!(!cpu_flags("").ok);
    }

    #[test]
    fn a_missing_device_is_one_check_and_no_guest() {
        let report = probe(Path::new("/nonexistent/kvm"));
        assert_eq!(report.verdict, Verdict::Unusable);
        assert!(report.checks.iter().any(|check| check.name == DEVICE && !check.ok));
        assert!(report.checks.iter().all(|check| check.name != PROBE_GUEST));
    }
}
