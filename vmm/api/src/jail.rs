//! What the jailer must set up before it becomes the VMM.
//!
//! The node agent makes the jail directory, the cgroup (with its limits already written) and every file, opens them,
//! and starts `pinfold-jailer --config-fd <n>`. The jailer prints one line of JSON, `{"pid": <host pid of the VMM>}`,
//! on its standard output once the VMM runs in its jail, and exits with 0; or prints `{"error": "..."}` and exits
//! with 1. The VMM then runs on by itself, so it outlives the node agent.

use crate::config::FdNumber;
use serde::{Deserialize, Serialize};

/// Upper bounds of a jail.
pub mod limits {
    /// bytes of the configuration
    pub const MAX_CONFIG_BYTES: u64 = 64 * 1024;
    /// descriptors that are passed on
    pub const MAX_PASSED_FDS: usize = 64;
    /// arguments of the executable
    pub const MAX_ARGUMENTS: usize = 16;
    /// RLIMIT_NOFILE, least: standard streams, passed descriptors and what KVM hands out
    pub const MIN_OPEN_FILES: u64 = 16;
    /// RLIMIT_NOFILE, most
    pub const MAX_OPEN_FILES: u64 = 65_536;
}

/// JSON, unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    pub id: String,
    /// Absolute host path of an existing directory that becomes the VMM's root, read-only. No component of the path
    /// may be a symbolic link.
    pub root: String,
    /// host uid and gid of this VMM alone; never 0
    pub uid: u32,
    pub gid: u32,
    /// Absolute path of an existing cgroup v2 directory; the jailer moves itself into it first. No component may be a
    /// symbolic link.
    pub cgroup: String,
    pub limits: JailLimits,
    /// executable to become, by fd (`execveat` with AT_EMPTY_PATH); `uid` must be allowed to run it
    pub executable: FdNumber,
    /// arguments after argv[0], which is `pinfold-vmm`
    pub arguments: Vec<String>,
    /// every descriptor that stays open, renumbered; all others are closed, and 0 to 2 become `/dev/null`
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

/// The line that the jailer prints: `{"pid":1234}` or `{"error":"..."}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JailOutcome {
    Pid(u32),
    Error(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JailConfigError {
    #[error("{field} is {path:?}, it must be an absolute path without `..` and NUL")]
    BadPath { field: &'static str, path: String },
    #[error("{field} is 0: a VMM never runs as root")]
    Root { field: &'static str },
    #[error("passed fd {source_fd} to {target}: targets are distinct, at least 3 and below open_files")]
    BadTarget { source_fd: FdNumber, target: FdNumber },
    #[error("{field} is {value}, outside {min} to {max}")]
    OutOfRange { field: &'static str, value: u64, min: u64, max: u64 },
    #[error("argument {index} holds a NUL byte")]
    BadArgument { index: usize },
}

impl JailConfig {
    /// Checks every bound; the first that does not hold is returned.
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
        let in_range = |field, value, min, max| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(JailConfigError::OutOfRange { field, value, min, max })
            }
        };
        let open_files = self.limits.open_files;
        in_range("limits.open_files", open_files, limits::MIN_OPEN_FILES, limits::MAX_OPEN_FILES)?;
        in_range("passed", self.passed.len() as u64, 0, limits::MAX_PASSED_FDS as u64)?;
        in_range("arguments", self.arguments.len() as u64, 0, limits::MAX_ARGUMENTS as u64)?;
        if let Some(index) = self.arguments.iter().position(|argument| argument.contains('\0')) {
            return Err(JailConfigError::BadArgument { index });
        }
        let mut targets = std::collections::BTreeSet::new();
        for fd in &self.passed {
            let in_bounds = u64::try_from(fd.target).is_ok_and(|target| (3..open_files).contains(&target));
            if !in_bounds || !targets.insert(fd.target) {
                return Err(JailConfigError::BadTarget { source_fd: fd.source, target: fd.target });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> JailConfig {
        JailConfig {
            id: "a".into(),
            root: "/run/jail".into(),
            uid: 100_000,
            gid: 100_000,
            cgroup: "/sys/fs/cgroup/pinfold/a".into(),
            limits: JailLimits { open_files: 64, file_size_bytes: 1 << 30 },
            executable: 9,
            arguments: vec!["run".into()],
            passed: vec![PassedFd { source: 12, target: 3 }, PassedFd { source: 11, target: 4 }],
        }
    }

    #[test]
    fn each_bound_is_named() {
        assert_eq!(good().validate(), Ok(()));
        type Change = fn(&mut JailConfig);
        let cases: [(Change, &str); 9] = [
            (|c| c.root = "jail".into(), "root"),
            (|c| c.cgroup = "/sys/../etc".into(), "cgroup"),
            (|c| c.uid = 0, "uid"),
            (|c| c.gid = 0, "gid"),
            (|c| c.passed[0].target = 2, "passed fd 12 to 2"),
            (|c| c.passed[1].target = 3, "passed fd 11 to 3"),
            (|c| c.passed[0].target = 64, "passed fd 12 to 64"),
            (|c| c.limits.open_files = 3, "limits.open_files is 3"),
            (|c| c.arguments[0] = "a\0b".into(), "argument 0"),
        ];
        for (change, text) in cases {
            let mut config = good();
            change(&mut config);
            let error = config.validate().expect_err(text).to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn the_outcome_is_one_json_object() {
        let pid = serde_json::to_string(&JailOutcome::Pid(7)).expect("json");
        let error = serde_json::to_string(&JailOutcome::Error("no".into())).expect("json");
        assert_eq!((pid.as_str(), error.as_str()), (r#"{"pid":7}"#, r#"{"error":"no"}"#));
    }
}
