//! Processes that the demo started and that still live, as `/proc` shows them.
//!
//! A child inherits its parent's environment, so each of them, at whatever depth, carries the demo's state directory.

use super::pinfold::STATE_VARIABLE;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// `(pid, command)` of every process with this state directory in its environment, but for this one.
pub fn with_state_directory(directory: &Path) -> Result<Vec<(u32, String)>> {
    let wanted = format!("{STATE_VARIABLE}={}", directory.display());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // a process that has ended meanwhile, or that belongs to another user, is none of the demo's
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        if pid != std::process::id()
            && environment.split(|byte| *byte == 0).any(|pair| pair == wanted.as_bytes())
        {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            found.push((pid, words.chars().take(80).collect()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn finds_grandchildren_and_no_others() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(with_state_directory(directory.path()).expect("/proc"), []);
        let mut child = Command::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .env(STATE_VARIABLE, directory.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("sh");
        let mut found = Vec::new();
        // the shell needs a moment to start its child; nothing tells us when
        for _ in 0..200 {
            found = with_state_directory(directory.path()).expect("/proc");
            if found.len() == 2 && found.iter().any(|(_, words)| words.starts_with("sleep")) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let (sleep, _) = found.iter().find(|(_, words)| words.starts_with("sleep")).expect("the grandchild");
        assert!(Command::new("kill").arg(sleep.to_string()).status().expect("kill").success());
        child.wait().expect("sh ends with its child");
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(with_state_directory(directory.path()).expect("/proc"), []);
    }
}
