//! What the jailer must set up before it becomes the VMM.
//!
//! The node agent makes the jail directory, the cgroup (with its limits already written) and every file, opens them,
//! and starts `pinfold-jailer --config-fd <n>`. The jailer prints one line of JSON, `{"pid": <host pid of the VMM>}`,
//! on its standard output once the VMM process exists in its namespaces, and exits with 0; or prints
//! `{"error": "..."}` and exits with 1. The VMM then runs on by itself, so it outlives the node agent.

use crate::config::FdNumber;
use serde::{Deserialize, Serialize};

/// JSON, unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    pub id: String,
    /// Absolute host path of an existing directory that becomes the VMM's root. Not a symbolic link; opened with
    /// O_NOFOLLOW.
    pub root: String,
    /// host uid and gid of this VMM alone; never 0
    pub uid: u32,
    pub gid: u32,
    /// Absolute path of an existing cgroup v2 directory; the jailer moves itself into it first.
    pub cgroup: String,
    pub limits: JailLimits,
    /// executable to become, by fd (`execveat` with AT_EMPTY_PATH)
    pub executable: FdNumber,
    /// arguments after argv[0]
    pub arguments: Vec<String>,
    /// every descriptor that stays open, renumbered; all others are closed
    pub passed: Vec<PassedFd>,
}

/// `source` in the jailer becomes `target` in the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassedFd {
    pub source: FdNumber,
    pub target: FdNumber,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailLimits {
    /// RLIMIT_NOFILE
    pub open_files: u64,
    /// RLIMIT_FSIZE in bytes: no file written by the VMM grows past this
    pub file_size_bytes: u64,
}

/// The line that the jailer prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JailOutcome {
    Pid(u32),
    Error(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JailConfigError {
    #[error("{field} is {path:?}, it must be an absolute path without `..`")]
    BadPath { field: &'static str, path: String },
    #[error("{field} is 0: a VMM never runs as root")]
    Root { field: &'static str },
    #[error("passed fd {source_fd} to {target}: targets begin at 3 and are distinct")]
    BadTarget { source_fd: FdNumber, target: FdNumber },
}

impl JailConfig {
    pub fn validate(&self) -> Result<(), JailConfigError> {
        for (field, path) in [("root", &self.root), ("cgroup", &self.cgroup)] {
            if !path.starts_with('/') || path.split('/').any(|part| part == "..") || path.contains('\0') {
                return Err(JailConfigError::BadPath { field, path: path.clone() });
            }
        }
        for (field, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id == 0 {
                return Err(JailConfigError::Root { field });
            }
        }
        let mut targets = std::collections::BTreeSet::new();
        for fd in &self.passed {
            if fd.target < 3 || !targets.insert(fd.target) {
                return Err(JailConfigError::BadTarget { source_fd: fd.source, target: fd.target });
            }
        }
        Ok(())
    }
}
