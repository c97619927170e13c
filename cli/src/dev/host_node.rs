//! A node agent on this machine itself, where it has hardware virtualisation and we are root.

use super::artifacts::{self, NodeFiles};
use super::process::spawn_detached;
use super::state::{NodeKind, NodeState};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Sockets of sandboxes lie below it, so its path is short.
const STATE_DIR: &str = "/var/lib/pinfold-dev";
const CGROUP: &str = "/sys/fs/cgroup/pinfold-dev";
const LEFTOVERS_LIMIT: Duration = Duration::from_secs(30);

/// `None` when a node can run here; otherwise why it cannot, for a person.
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("a node agent on this machine itself needs root".to_owned());
    }
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").is_file() {
        return Some("this machine has no cgroup v2 at /sys/fs/cgroup".to_owned());
    }
    None
}

/// `files` are those of a virtual node: the images lie beside them.
pub fn launch(directory: &Path, name: &str, scheduler: &str, files: &NodeFiles) -> Result<NodeState> {
    let program = artifacts::program("pinfold-node-agent")?;
    let build =
        files.images.parent().and_then(Path::parent).context("the node's files have a build directory")?;
    let log = directory.join(format!("{name}.log"));
    std::fs::create_dir_all(STATE_DIR).with_context(|| format!("cannot make {STATE_DIR}"))?;
    let text = |path: &Path| path.display().to_string();
    let arguments = [
        "run".to_owned(),
        "--node-id".to_owned(),
        name.to_owned(),
        "--scheduler".to_owned(),
        scheduler.to_owned(),
        "--state-dir".to_owned(),
        STATE_DIR.to_owned(),
        "--images-dir".to_owned(),
        text(&build.join("images")),
        "--cgroup-root".to_owned(),
        CGROUP.to_owned(),
        "--vmm".to_owned(),
        text(&artifacts::program("pinfold-vmm")?),
        "--jailer".to_owned(),
        text(&artifacts::program("pinfold-jailer")?),
        "--stop-on-exit".to_owned(),
    ];
    let process = spawn_detached(&program, &arguments, directory, &log)?;
    let directory = PathBuf::from(STATE_DIR);
    Ok(NodeState { name: name.to_owned(), kind: NodeKind::Host, process, directory, memory_mib: None, log })
}

/// What the node agent finds of sandboxes on this machine, as JSON.
pub async fn leftovers() -> Result<String> {
    let program = artifacts::program("pinfold-node-agent")?;
    let mut command = tokio::process::Command::new(&program);
    command.args(["leftovers", "-o", "json", "--state-dir", STATE_DIR, "--cgroup-root", CGROUP]);
    let output = command.kill_on_drop(true).stdin(std::process::Stdio::null()).output();
    let output = tokio::time::timeout(LEFTOVERS_LIMIT, output).await;
    let output = output.with_context(|| format!("{} leftovers did not end", program.display()))?;
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes what the agent keeps between its runs, once it has ended.
pub fn remove_files() -> Result<()> {
    match std::fs::remove_dir_all(STATE_DIR) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {STATE_DIR}"))
        }
        _ => match std::fs::remove_dir(CGROUP) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {CGROUP}"))
            }
            _ => Ok(()),
        },
    }
}
