//! Where microVMs will run: on this machine, or in virtual nodes. Decided by a probe guest, never by the device node.

use super::artifacts;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The probe runs a guest of some twenty instructions; it has a limit of its own far below this one.
const LIMIT: Duration = Duration::from_secs(30);

/// What `pinfold-vmm probe` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {
    pub verdict: Verdict,
    /// for a person
    pub sentence: String,
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// stock guests run on this machine's KVM
    #[serde(alias = "ok", alias = "kvm")]
    Usable,
    #[serde(other)]
    Unusable,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    pub detail: String,
}

/// Asks the VMM.
pub async fn probe() -> Result<Preflight> {
    let vmm = artifacts::program("pinfold-vmm")?;
    let mut command = tokio::process::Command::new(&vmm);
    command.arg("probe").kill_on_drop(true).stdin(std::process::Stdio::null());
    let output = tokio::time::timeout(LIMIT, command.output()).await;
    let output = output.with_context(|| format!("the probe did not end within {} s", LIMIT.as_secs()))?;
    let output = output.with_context(|| format!("cannot run {} probe", vmm.display()))?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        format!("{} probe ({}) gave no answer: {}", vmm.display(), output.status, stderr.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_the_probe() {
        let json =
            r#"{"verdict":"paravirtual","sentence":"s","checks":[{"name":"open","ok":true,"detail":"d"}]}"#;
        let preflight: Preflight = serde_json::from_str(json).unwrap();
        assert_eq!(preflight.verdict, Verdict::Unusable);
        let json = r#"{"verdict":"usable","sentence":"s","checks":[]}"#;
        assert_eq!(serde_json::from_str::<Preflight>(json).unwrap().verdict, Verdict::Usable);
    }
}
