//! Processes of a local fleet on this machine, as `/proc` shows them.

use anyhow::{Context, Result};
use std::fs;

/// `(pid, command)` of every scheduler, node agent, jailer, VMM and virtual node of ours. The pid tells two runs apart.
pub fn ours() -> Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // a process that has ended meanwhile is none of ours any more
        let Ok(words) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if is_ours(&words) {
            found.push((pid, words.chars().take(80).collect()));
        }
    }
    Ok(found)
}

fn is_ours(command_line: &str) -> bool {
    let mut words = command_line.split_whitespace();
    let program = words.next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    match program {
        "pinfold-scheduler" | "pinfold-node-agent" | "pinfold-vmm" | "pinfold-jailer" => true,
        "qemu-system-x86_64" => words.any(|word| word.starts_with("pinfold-")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_our_programs_from_others() {
        assert!(is_ours("/x/pinfold-scheduler --config a"));
        assert!(is_ours("/usr/bin/qemu-system-x86_64 -name pinfold-node-1 -m 3072"));
        assert!(!is_ours("/usr/bin/qemu-system-x86_64 -name other"));
        assert!(!is_ours("vim pinfold-scheduler"));
        assert!(!is_ours(""));
    }
}
