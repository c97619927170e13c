//! Can this machine run sandboxes? Each check is a line; the verdict is one sentence that a person can act on.
//!
//! `required` checks decide the verdict. `warning` checks name settings with which sandboxes run, but are isolated less
//! well from each other.

use crate::host::Images;
use crate::host::images::ImageDirectory;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// The oldest kernel with all that the jailer uses (`mount_setattr`, 5.12; `cgroup.kill`, 5.14).
const LEAST_KERNEL: (u32, u32) = (5, 14);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Required,
    Warning,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    pub severity: Severity,
    pub detail: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub ok: bool,
    pub verdict: &'static str,
    pub sentence: String,
    pub checks: Vec<Check>,
}

/// What `pinfold-vmm probe` prints.
#[derive(Debug, Deserialize)]
struct Probe {
    verdict: String,
    sentence: String,
    checks: Vec<ProbeCheck>,
}

#[derive(Debug, Deserialize)]
struct ProbeCheck {
    name: String,
    ok: bool,
    detail: String,
}

impl Report {
    fn new(checks: Vec<Check>, kvm_sentence: &str) -> Self {
        let failed: Vec<&Check> = checks.iter().filter(|check| is_fatal(check)).collect();
        let warnings = checks.iter().filter(|check| !check.ok && check.severity == Severity::Warning).count();
        let sentence = match failed.as_slice() {
            [] if warnings == 0 => "this machine can run sandboxes".to_owned(),
            [] => format!(
                "this machine can run sandboxes; {warnings} settings should be changed before it serves tenants"
            ),
            all if all.iter().any(|check| check.name.starts_with("kvm")) => {
                format!("this machine cannot run sandboxes: {kvm_sentence}")
            }
            [first, rest @ ..] => {
                let more =
                    if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
                format!("this machine cannot run sandboxes: {}: {}{more}", first.name, first.detail)
            }
        };
        let ok = failed.is_empty();
        Self { ok, verdict: if ok { "usable" } else { "unusable" }, sentence, checks }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let mark = match (check.ok, check.severity) {
                (true, _) => "ok  ",
                (false, Severity::Required) => "FAIL",
                (false, Severity::Warning) => "warn",
            };
            text.push_str(&format!("{mark}  {:<16} {}\n", check.name, check.detail));
        }
        text.push_str(&self.sentence);
        text.push('\n');
        text
    }
}

fn is_fatal(check: &Check) -> bool {
    !check.ok && check.severity == Severity::Required
}

fn required(name: &str, result: Result<String, String>) -> Check {
    check(name, Severity::Required, result)
}

fn warning(name: &str, result: Result<String, String>) -> Check {
    check(name, Severity::Warning, result)
}

fn check(name: &str, severity: Severity, result: Result<String, String>) -> Check {
    let (ok, detail) = match result {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    Check { name: name.to_owned(), ok, severity, detail }
}

pub fn run(vmm: &Path, images_dir: &Path) -> Report {
    let (mut checks, kvm_sentence) = kvm(vmm);
    checks.extend([
        required("root", root()),
        required("kernel", kernel_version(&read("/proc/sys/kernel/osrelease"))),
        required("cgroup", cgroup()),
        required("mke2fs", mke2fs()),
        required("images", images(images_dir)),
        warning(
            "same-page merging",
            off("/sys/kernel/mm/ksm/run", "tenants could tell each other's memory by timing"),
        ),
        warning("swap", swap(&read("/proc/swaps"))),
        warning("nested guests", nested()),
        warning("processor flaws", processor_flaws()),
    ]);
    Report::new(checks, &kvm_sentence)
}

/// The VMM's own probe: it runs a small guest, because a `/dev/kvm` that opens proves little.
fn kvm(vmm: &Path) -> (Vec<Check>, String) {
    let output = Command::new(vmm).arg("probe").stdin(Stdio::null()).output();
    let probe = output.map_err(|error| format!("{}: {error}", vmm.display())).and_then(|output| {
        serde_json::from_slice::<Probe>(&output.stdout)
            .map_err(|error| format!("{} probe: {}, {error}", vmm.display(), output.status))
    });
    match probe {
        Ok(probe) => {
            let usable = probe.verdict == "usable";
            let mut checks = vec![required(
                "kvm",
                if usable { Ok(probe.sentence.clone()) } else { Err(probe.sentence.clone()) },
            )];
            // Its parts explain the verdict above; they do not decide again.
            checks.extend(probe.checks.into_iter().map(|part| Check {
                name: format!("kvm {}", part.name),
                ok: part.ok,
                severity: Severity::Warning,
                detail: part.detail,
            }));
            (checks, probe.sentence)
        }
        Err(error) => (vec![required("kvm", Err(error.clone()))], error),
    }
}

fn root() -> Result<String, String> {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        Ok("runs as root".to_owned())
    } else {
        Err(format!("runs as uid {}, but namespaces, cgroups and uids need root", uid.as_raw()))
    }
}

fn kernel_version(release: &str) -> Result<String, String> {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (least_major, least_minor) = LEAST_KERNEL;
    if (major, minor) >= LEAST_KERNEL {
        Ok(release.trim().to_owned())
    } else {
        Err(format!("{} is older than {least_major}.{least_minor}", release.trim()))
    }
}

/// cgroup v2 at its usual place, with all controllers that limits need.
fn cgroup() -> Result<String, String> {
    let path = "/sys/fs/cgroup/cgroup.controllers";
    let text = fs::read_to_string(path).map_err(|error| format!("no cgroup v2: {path}: {error}"))?;
    let missing: Vec<&str> = ["cpu", "memory", "io", "pids"]
        .into_iter()
        .filter(|name| !text.split_whitespace().any(|there| there == *name))
        .collect();
    if missing.is_empty() {
        Ok(format!("v2 with {}", text.trim()))
    } else {
        Err(format!("v2 lacks the controllers {}", missing.join(", ")))
    }
}

fn mke2fs() -> Result<String, String> {
    let output = Command::new("mke2fs").arg("-V").stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("install e2fsprogs: {error}"))?;
    // e2fsprogs prints its version on the error stream
    let text = String::from_utf8_lossy(&output.stderr);
    match text.lines().next().filter(|line| line.starts_with("mke2fs")) {
        Some(line) => Ok(line.to_owned()),
        None => Err(format!("not e2fsprogs' mke2fs: {}", output.status)),
    }
}

fn images(directory: &Path) -> Result<String, String> {
    let images = ImageDirectory::new(directory.to_owned());
    let list = |names: std::collections::BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(", ");
    let found = list(images.images());
    if found.is_empty() {
        return Err(format!("no image in {}: run `make images`", directory.display()));
    }
    let kernel = images.kernel(None).map_err(|error| error.to_string())?;
    Ok(format!("{found}; kernels {}; default {}", list(images.kernels()), kernel.name))
}

/// A file that holds 0, or does not exist.
fn off(path: &str, why: &str) -> Result<String, String> {
    match read(path).trim() {
        "" | "0" => Ok("off".to_owned()),
        value => Err(format!("{path} is {value}: {why}")),
    }
}

fn swap(swaps: &str) -> Result<String, String> {
    match swaps.lines().skip(1).count() {
        0 => Ok("off".to_owned()),
        count => Err(format!("{count} swap areas: guest memory could reach a disk")),
    }
}

fn nested() -> Result<String, String> {
    for module in ["kvm_amd", "kvm_intel"] {
        let path = format!("/sys/module/{module}/parameters/nested");
        if matches!(read(&path).trim(), "1" | "Y") {
            return Err(format!(
                "{path} is on: the VMM hides it from guests, but KVM's code for it is reachable"
            ));
        }
    }
    Ok("off".to_owned())
}

fn processor_flaws() -> Result<String, String> {
    let entries = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten();
    let mut open: Vec<String> = entries
        .filter(|entry| fs::read_to_string(entry.path()).is_ok_and(|text| text.starts_with("Vulnerable")))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    open.sort();
    if open.is_empty() {
        Ok("none open".to_owned())
    } else {
        Err(format!("not mitigated: {}", open.join(", ")))
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_names_the_first_failure() {
        let good = || required("root", Ok("yes".into()));
        let report = Report::new(vec![good(), warning("swap", Ok("off".into()))], "");
        assert!(report.ok && report.sentence == "this machine can run sandboxes");
        let report = Report::new(vec![good(), warning("swap", Err("on".into()))], "");
        assert!(report.ok && report.sentence.contains("1 settings"), "{}", report.sentence);
        let bad = vec![required("cgroup", Err("no cgroup v2".into())), required("mke2fs", Err("x".into()))];
        let report = Report::new(bad, "");
        assert!(!report.ok);
        assert!(report.sentence.ends_with("cgroup: no cgroup v2 (and 1 more)"), "{}", report.sentence);
        assert!(report.text().contains("FAIL  cgroup"));
        let report = Report::new(vec![required("kvm", Err("x".into()))], "no SVM here");
        assert!(report.sentence.ends_with("no SVM here"));
    }

    #[test]
    fn kernels_are_compared_by_number() {
        assert!(kernel_version("6.1.0-18-cloud-amd64\n").is_ok());
        assert!(kernel_version("5.14.0").is_ok());
        assert!(kernel_version("5.4.0-150-generic").unwrap_err().contains("older than 5.14"));
        assert!(kernel_version("").is_err());
    }

    #[test]
    fn a_vmm_that_is_missing_fails_the_probe() {
        let report = run(Path::new("/no/such/vmm"), Path::new("/no/such/images"));
        assert!(!report.ok && report.sentence.contains("/no/such/vmm"), "{}", report.sentence);
        assert!(report.checks.iter().any(|check| check.name == "images" && !check.ok));
    }
}
