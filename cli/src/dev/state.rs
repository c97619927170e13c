//! What `dev` has started, in `state.json` of the state directory.
//!
//! The file is written whole and renamed into place. A lock on the directory keeps two commands from changing the
//! fleet at once.

use super::process::ProcessRef;
use crate::failure::advised;
use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Names the state directory.
pub const DIR_VARIABLE: &str = "PINFOLD_STATE_DIR";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub scheduler: Option<SchedulerState>,
    pub nodes: Vec<NodeState>,
    /// nodes that fell silent while they started and were started again
    pub silent_nodes_restarted: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerState {
    pub endpoint: String,
    pub process: ProcessRef,
    pub log: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// a QEMU machine
    Virtual,
    /// a node agent on this machine
    Host,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeState {
    pub name: String,
    pub kind: NodeKind,
    pub process: ProcessRef,
    /// files of this node
    pub directory: PathBuf,
    /// `None`: a host node has all of the machine's
    pub memory_mib: Option<u64>,
    pub log: PathBuf,
}

/// `$PINFOLD_STATE_DIR`, `$XDG_STATE_HOME/pinfold/dev` or `~/.local/state/pinfold/dev`.
pub fn directory() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = variable(DIR_VARIABLE)
        .or_else(|| variable("XDG_STATE_HOME").map(|base| base.join("pinfold/dev")))
        .or_else(|| variable("HOME").map(|home| home.join(".local/state/pinfold/dev")));
    let directory = directory.ok_or_else(|| {
        advised(
            "there is no place for the state of the dev fleet: HOME is not set",
            format!("set {DIR_VARIABLE}"),
        )
    })?;
    std::path::absolute(&directory).with_context(|| format!("{} is not usable", directory.display()))
}

impl State {
    /// Of the fleet that runs; `None` when there is none.
    pub fn load() -> Result<Option<Self>> {
        Self::load_from(&directory()?)
    }

    pub fn load_from(directory: &Path) -> Result<Option<Self>> {
        let path = file(directory);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let state = serde_json::from_slice(&text);
        Ok(Some(state.with_context(|| format!("{} is not a state file of this version", path.display()))?))
    }

    pub fn save(&self, directory: &Path) -> Result<()> {
        let path = file(directory);
        let context = || format!("cannot write {}", path.display());
        let temporary = tempfile::NamedTempFile::new_in(directory).with_context(context)?;
        serde_json::to_writer_pretty(&temporary, self).with_context(context)?;
        temporary.as_file().sync_all().with_context(context)?;
        temporary.persist(&path).with_context(context)?;
        Ok(())
    }

    /// Every process of the fleet.
    pub fn processes(&self) -> impl Iterator<Item = (&str, ProcessRef)> {
        let scheduler = self.scheduler.iter().map(|scheduler| ("scheduler", scheduler.process));
        scheduler.chain(self.nodes.iter().map(|node| (node.name.as_str(), node.process)))
    }
}

fn file(directory: &Path) -> PathBuf {
    directory.join("state.json")
}

/// Makes the state directory for this user alone and locks it until the answer is dropped.
pub fn lock(directory: &Path) -> Result<File> {
    let context = || format!("cannot use the state directory {}", directory.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(context)?;
    // it may have been there with other rights
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).with_context(context)?;
    let handle = File::open(directory).with_context(context)?;
    match flock(&handle, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(handle),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(advised(
            format!("another `pinfold dev` is at work in {}", directory.display()),
            "wait until it has ended",
        )),
        Err(error) => Err(error).with_context(context),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_and_loaded() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(State::load_from(directory.path()).unwrap(), None);
        let state = State { silent_nodes_restarted: 1, ..State::default() };
        state.save(directory.path()).unwrap();
        assert_eq!(State::load_from(directory.path()).unwrap(), Some(state));
        std::fs::write(file(directory.path()), "{").unwrap();
        assert!(State::load_from(directory.path()).is_err());
    }

    #[test]
    fn one_command_at_a_time_and_nobody_else_may_look() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("a/dev");
        let held = lock(&directory).unwrap();
        assert_eq!(std::fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(lock(&directory).unwrap_err().to_string().contains("is at work"));
        drop(held);
        assert!(lock(&directory).is_ok());
    }
}
