//! What a caller asks for.

use crate::ids::{IdError, SnapshotId, check_name};
use crate::resources::Resources;
use crate::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Published bounds of a spec.
pub mod limits {
    const MIB: u64 = 1024 * 1024;
    const GIB: u64 = 1024 * MIB;
    pub const CPU_MILLIS: (u64, u64) = (100, 32_000);
    pub const MEMORY_BYTES: (u64, u64) = (96 * MIB, 256 * GIB);
    pub const DISK_BYTES: (u64, u64) = (16 * MIB, 1024 * GIB);
    pub const PIDS: (u64, u64) = (16, 65_536);
    pub const TTL_SECONDS: (u64, u64) = (1, 30 * 24 * 3600);
    pub const START_TIMEOUT_SECONDS: (u64, u64) = (1, 3600);
    /// labels of a sandbox, and placement labels
    pub const LABELS: usize = 32;
    /// sandboxes of one fork
    pub const FORKS: usize = 64;
    pub const LABEL_BYTES: usize = 63;
    pub const ENVIRONMENT_VARIABLES: usize = 256;
    /// names and values together
    pub const ENVIRONMENT_BYTES: usize = 32 * 1024;
}

/// Used where a request leaves a field out.
pub mod defaults {
    use crate::resources::Resources;
    use crate::time::Millis;
    pub const IMAGE: &str = "base";
    pub const RESOURCES: Resources = Resources {
        cpu_millis: 1000,
        memory_bytes: 256 * 1024 * 1024,
        disk_bytes: 1024 * 1024 * 1024,
        pids: 512,
    };
    pub const TTL: Millis = Millis::from_secs(3600);
    pub const START_TIMEOUT: Millis = Millis::from_secs(60);
}

/// What a sandbox begins as.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// its image, booted
    #[default]
    Image,
    /// a template, by its name: restored where it is prepared, else booted
    Template(String),
    /// a snapshot: restored, on the node that holds it
    Snapshot(SnapshotId),
}

/// A checked spec: every bound in [`limits`] holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// for people; need not be unique; may be empty
    pub name: String,
    pub image: String,
    /// `None`: the node's default kernel
    pub kernel: Option<String>,
    pub resources: Resources,
    pub labels: BTreeMap<String, String>,
    pub environment: BTreeMap<String, String>,
    /// from acceptance on
    pub ttl: Millis,
    /// from assignment to guest ready
    pub start_timeout: Millis,
    /// only nodes that carry all of these
    pub node_labels: BTreeMap<String, String>,
    /// bytes per second of each disk direction; `None`: not limited
    pub io_bytes_per_second: Option<u64>,
    /// when it is not [`Source::Image`], image, kernel and resources are those of the source
    #[serde(default)]
    pub source: Source,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            image: defaults::IMAGE.to_owned(),
            kernel: None,
            resources: defaults::RESOURCES,
            labels: BTreeMap::new(),
            environment: BTreeMap::new(),
            ttl: defaults::TTL,
            start_timeout: defaults::START_TIMEOUT,
            node_labels: BTreeMap::new(),
            io_bytes_per_second: None,
            source: Source::Image,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error(transparent)]
    Name(#[from] IdError),
    #[error("{field} is {value}, outside {min} to {max}")]
    OutOfRange { field: &'static str, value: u64, min: u64, max: u64 },
    #[error("{field} has {count} entries, the limit is {max}")]
    TooMany { field: &'static str, count: usize, max: usize },
    #[error("{field} takes {bytes} bytes, the limit is {max}")]
    TooLarge { field: &'static str, bytes: usize, max: usize },
    #[error("{field}: {key:?} is not allowed: {why}")]
    BadKey { field: &'static str, key: String, why: &'static str },
}

impl SandboxSpec {
    /// Checks every bound; the first that does not hold is returned.
    pub fn validate(&self) -> Result<(), SpecError> {
        if !self.name.is_empty() {
            check_name("name", &self.name)?;
        }
        if let Source::Template(template) = &self.source {
            check_name("template", template)?;
        }
        check_name("image", &self.image)?;
        if let Some(kernel) = &self.kernel {
            check_name("kernel", kernel)?;
        }
        in_range("resources.cpu_millis", self.resources.cpu_millis, limits::CPU_MILLIS)?;
        in_range("resources.memory_bytes", self.resources.memory_bytes, limits::MEMORY_BYTES)?;
        in_range("resources.disk_bytes", self.resources.disk_bytes, limits::DISK_BYTES)?;
        in_range("resources.pids", self.resources.pids, limits::PIDS)?;
        in_range("ttl_seconds", self.ttl.0 / 1000, limits::TTL_SECONDS)?;
        in_range("start_timeout_seconds", self.start_timeout.0 / 1000, limits::START_TIMEOUT_SECONDS)?;
        if let Some(rate) = self.io_bytes_per_second {
            in_range("io_bytes_per_second", rate, (1024 * 1024, u64::MAX / 2))?;
        }
        check_labels("labels", &self.labels)?;
        check_labels("node_labels", &self.node_labels)?;
        check_environment("environment", &self.environment)
    }

    /// The same as far as a caller chooses it: what the source gives is left out.
    pub fn is_same_request(&self, other: &Self) -> bool {
        if self.source == Source::Image {
            return self == other;
        }
        let chosen = |spec: &Self| Self {
            image: String::new(),
            kernel: None,
            resources: Resources::default(),
            ..spec.clone()
        };
        chosen(self) == chosen(other)
    }

    /// Guest CPUs: enough for `cpu_millis`, which the cgroup then enforces exactly.
    pub fn vcpus(&self) -> u32 {
        u32::try_from(self.resources.cpu_millis.div_ceil(1000)).unwrap_or(u32::MAX).max(1)
    }
}

fn in_range(field: &'static str, value: u64, (min, max): (u64, u64)) -> Result<(), SpecError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(SpecError::OutOfRange { field, value, min, max }) }
}

/// Label keys and values: 1 to 63 of `a-z A-Z 0-9 - _ . /`, the value may be empty.
pub fn check_labels(field: &'static str, labels: &BTreeMap<String, String>) -> Result<(), SpecError> {
    if labels.len() > limits::LABELS {
        return Err(SpecError::TooMany { field, count: labels.len(), max: limits::LABELS });
    }
    for (key, value) in labels {
        let bad = |why| Err(SpecError::BadKey { field, key: key.chars().take(80).collect(), why });
        let allowed = |text: &str| {
            text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
        };
        if key.is_empty() || key.len() > limits::LABEL_BYTES || value.len() > limits::LABEL_BYTES {
            return bad("a key has 1 to 63 bytes, a value at most 63");
        }
        if !allowed(key) || !allowed(value) {
            return bad("allowed in keys and values are a-z A-Z 0-9 - _ . /");
        }
    }
    Ok(())
}

/// Environment: names of `A-Z a-z 0-9 _` that do not begin with a digit, values without NUL.
pub fn check_environment(
    field: &'static str,
    environment: &BTreeMap<String, String>,
) -> Result<(), SpecError> {
    if environment.len() > limits::ENVIRONMENT_VARIABLES {
        let (count, max) = (environment.len(), limits::ENVIRONMENT_VARIABLES);
        return Err(SpecError::TooMany { field, count, max });
    }
    let bytes: usize = environment.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > limits::ENVIRONMENT_BYTES {
        return Err(SpecError::TooLarge { field, bytes, max: limits::ENVIRONMENT_BYTES });
    }
    for (name, value) in environment {
        let bad = |why| Err(SpecError::BadKey { field, key: name.chars().take(80).collect(), why });
        let first_is_digit = name.starts_with(|c: char| c.is_ascii_digit());
        if name.is_empty() || first_is_digit || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        {
            return bad("a name is made of A-Z a-z 0-9 _ and does not begin with a digit");
        }
        if value.contains('\0') {
            return bad("its value holds a NUL byte");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
