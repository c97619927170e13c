//! Configuration of the node agent. Keys of the TOML file, environment (`PINFOLD_NODE_AGENT_<KEY>`) and flags have the
//! same names, with `-` for `_` in flags.

use crate::catalog::Bounds;
use pinfold_domain::{NodeId, Resources, spec};
use pinfold_service::config::{BadValue, Config, ConfigArgs, in_range};
use pinfold_service::logs::LogConfig;
use pinfold_vmm_api::RateLimit;
use pinfold_vmm_api::config::TokenBucket;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `sockaddr_un` has room for 107 bytes; the longest socket path below the state directory is
/// `/sandboxes/<36 bytes of id>/jail/v.sock_1025`.
const MAX_STATE_DIR_BYTES: usize = 43;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// name of this node: a DNS label
    pub node_id: String,
    /// `http://HOST:PORT` of the scheduler's listener for nodes
    pub scheduler: String,
    /// records, disks and sockets of sandboxes
    pub state_dir: PathBuf,
    /// images and kernels; `None`: `<state_dir>/images`
    pub images_dir: Option<PathBuf>,
    pub labels: BTreeMap<String, String>,
    /// failure domain; may be empty
    pub zone: String,
    /// cgroup v2 directory that holds one directory for each sandbox
    pub cgroup_root: PathBuf,
    pub vmm: PathBuf,
    pub jailer: PathBuf,
    /// what sandboxes may take in all; `None`: derived from the machine
    pub cpu_millis: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
    pub pids: Option<u64>,
    /// sandboxes run as uid and gid `uid_base` to `uid_base + uid_count - 1`, each as its own
    pub uid_base: u32,
    pub uid_count: u32,
    /// guest streams (exec, files, logs) at once
    pub max_relays: usize,
    /// snapshots that this node keeps, and the bytes that they may take; `None`: a share of the disk
    pub max_snapshots: usize,
    pub snapshot_bytes: Option<u64>,
    /// templates that this node keeps prepared, and the bytes that they may take; `None`: a share of the disk
    pub max_templates: usize,
    pub template_bytes: Option<u64>,
    /// machines that are being saved at once
    pub saves_at_once: usize,
    /// of each disk of each sandbox
    pub disk_rate: DiskRate,
    /// end all sandboxes when the agent is told to end; otherwise they go on and the next agent adopts them
    pub stop_on_exit: bool,
    pub log: LogConfig,
}

/// How the disk is divided where the operator does not say.
const SANDBOX_SHARE: u64 = 5;
const SNAPSHOT_SHARE: u64 = 2;
const TEMPLATE_SHARE: u64 = 1;

/// What a node gives.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    /// to sandboxes
    pub allocatable: Resources,
    /// to saved machines
    pub snapshots: Bounds,
    pub templates: Bounds,
    /// how much more of the disk the operator gave than there is
    pub promised_twice_bytes: u64,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            node_id: String::new(),
            scheduler: "http://127.0.0.1:7420".to_owned(),
            state_dir: PathBuf::from("/var/lib/pinfold"),
            images_dir: None,
            labels: BTreeMap::new(),
            zone: String::new(),
            cgroup_root: PathBuf::from("/sys/fs/cgroup/pinfold"),
            vmm: PathBuf::from("/usr/bin/pinfold-vmm"),
            jailer: PathBuf::from("/usr/bin/pinfold-jailer"),
            cpu_millis: None,
            memory_bytes: None,
            disk_bytes: None,
            pids: None,
            uid_base: 100_000,
            uid_count: 10_000,
            max_relays: 256,
            max_snapshots: 64,
            snapshot_bytes: None,
            max_templates: 16,
            template_bytes: None,
            saves_at_once: 2,
            disk_rate: DiskRate::default(),
            stop_on_exit: false,
            log: LogConfig::default(),
        }
    }
}

impl AgentConfig {
    pub fn images_dir(&self) -> PathBuf {
        self.images_dir.clone().unwrap_or_else(|| self.state_dir.join("images"))
    }

    /// What the operator gave, the rest from `machine`. Parts of the disk that were not given share what the others leave of it:
    /// no byte is promised twice, unless the operator does.
    pub fn capacity(&self, machine: Resources) -> Capacity {
        let parts = [
            (self.disk_bytes, SANDBOX_SHARE),
            (self.snapshot_bytes, SNAPSHOT_SHARE),
            (self.template_bytes, TEMPLATE_SHARE),
        ];
        let given = parts.iter().filter_map(|(given, _)| *given).fold(0, u64::saturating_add);
        let rest = machine.disk_bytes.saturating_sub(given);
        let shares: u64 = parts.iter().filter(|(given, _)| given.is_none()).map(|(_, share)| share).sum();
        let [disk_bytes, snapshots, templates] =
            parts.map(|(given, share)| given.unwrap_or_else(|| rest / shares.max(1) * share));
        Capacity {
            allocatable: Resources {
                cpu_millis: self.cpu_millis.unwrap_or(machine.cpu_millis),
                memory_bytes: self.memory_bytes.unwrap_or(machine.memory_bytes),
                disk_bytes,
                pids: self.pids.unwrap_or(machine.pids),
            },
            snapshots: Bounds { number: self.max_snapshots, bytes: snapshots },
            templates: Bounds { number: self.max_templates, bytes: templates },
            promised_twice_bytes: given.saturating_sub(machine.disk_bytes),
        }
    }
}

impl Config for AgentConfig {
    const ENV_PREFIX: &'static str = "PINFOLD_NODE_AGENT_";

    fn check(&self) -> Result<(), BadValue> {
        self.node_id
            .parse::<NodeId>()
            .map_err(|error| BadValue::new("node_id", &self.node_id, error.to_string()))?;
        if !self.scheduler.starts_with("http://") || self.scheduler.parse::<tonic::transport::Uri>().is_err()
        {
            return Err(BadValue::new("scheduler", &self.scheduler, "it has the form http://HOST:PORT"));
        }
        for (field, path) in [
            ("state_dir", &self.state_dir),
            ("cgroup_root", &self.cgroup_root),
            ("vmm", &self.vmm),
            ("jailer", &self.jailer),
        ] {
            absolute(field, path)?;
        }
        let length = self.state_dir.as_os_str().len();
        in_range("state_dir length", length, 1, MAX_STATE_DIR_BYTES)?;
        spec::check_labels("labels", &self.labels)
            .map_err(|error| BadValue::new("labels", self.labels.len(), error.to_string()))?;
        in_range("uid_base", self.uid_base, 1000, u32::MAX / 2)?;
        in_range("uid_count", self.uid_count, 1, 1_000_000)?;
        in_range("max_relays", self.max_relays, 1, 10_000)?;
        in_range("max_snapshots", self.max_snapshots, 0, 10_000)?;
        in_range("max_templates", self.max_templates, 0, 1000)?;
        in_range("saves_at_once", self.saves_at_once, 1, 64)?;
        self.disk_rate.check()
    }
}

/// A table of the configuration. What has no rate is free; a rate without a burst has that of one second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskRate {
    pub bytes_per_second: Option<u64>,
    pub bytes_burst: Option<u64>,
    pub operations_per_second: Option<u64>,
    pub operations_burst: Option<u64>,
}

/// Below these a guest cannot boot, or come to rest to be saved, within its limits.
const MIN_DISK_BYTES: u64 = 1 << 20;
const MIN_DISK_OPERATIONS: u64 = 32;
/// Beyond what any disk does.
const MAX_DISK_RATE: u64 = 1 << 50;

impl DiskRate {
    fn check(&self) -> Result<(), BadValue> {
        let fields = [
            ("disk_rate.bytes_per_second", self.bytes_per_second, MIN_DISK_BYTES),
            ("disk_rate.operations_per_second", self.operations_per_second, MIN_DISK_OPERATIONS),
        ];
        let bursts = [
            ("disk_rate.bytes_burst", self.bytes_burst),
            ("disk_rate.operations_burst", self.operations_burst),
        ];
        for ((field, rate, least), (burst_field, burst)) in fields.into_iter().zip(bursts) {
            if let Some(rate) = rate {
                in_range(field, rate, least, MAX_DISK_RATE)?;
            }
            match (rate, burst) {
                (None, Some(burst)) => {
                    return Err(BadValue::new(burst_field, burst, format!("a burst needs {field}")));
                }
                (_, Some(burst)) => in_range(burst_field, burst, 1, MAX_DISK_RATE)?,
                (_, None) => {}
            }
        }
        Ok(())
    }

    pub fn limit(&self) -> RateLimit {
        let bucket = |rate: Option<u64>, burst: Option<u64>| {
            rate.map(|per_second| TokenBucket {
                per_second,
                burst: burst.unwrap_or(per_second),
                first_burst: 0,
            })
        };
        RateLimit {
            bytes: bucket(self.bytes_per_second, self.bytes_burst),
            operations: bucket(self.operations_per_second, self.operations_burst),
        }
    }
}

fn absolute(field: &'static str, path: &Path) -> Result<(), BadValue> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err(BadValue::new(field, path.display(), "it must be an absolute path"))
    }
}

/// Flags of `pinfold-node-agent run`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub flags: Flags,
}

/// The keys of [`AgentConfig`] as flags.
#[derive(Debug, Clone, Default, Serialize, clap::Args)]
pub struct Flags {
    /// Name of this node (a DNS label)
    #[arg(long)]
    pub node_id: Option<String>,
    /// http://HOST:PORT of the scheduler's listener for nodes
    #[arg(long)]
    pub scheduler: Option<String>,
    #[arg(long)]
    pub state_dir: Option<PathBuf>,
    #[arg(long)]
    pub images_dir: Option<PathBuf>,
    /// Label of this node; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    #[serde(serialize_with = "label_map", rename = "labels")]
    pub labels: Vec<(String, String)>,
    #[arg(long)]
    pub zone: Option<String>,
    #[arg(long)]
    pub cgroup_root: Option<PathBuf>,
    #[arg(long)]
    pub vmm: Option<PathBuf>,
    #[arg(long)]
    pub jailer: Option<PathBuf>,
    #[arg(long)]
    pub cpu_millis: Option<u64>,
    #[arg(long)]
    pub memory_bytes: Option<u64>,
    #[arg(long)]
    pub disk_bytes: Option<u64>,
    #[arg(long)]
    pub pids: Option<u64>,
    #[arg(long)]
    pub uid_base: Option<u32>,
    #[arg(long)]
    pub uid_count: Option<u32>,
    #[arg(long)]
    pub max_relays: Option<usize>,
    #[arg(long)]
    pub max_snapshots: Option<usize>,
    #[arg(long)]
    pub snapshot_bytes: Option<u64>,
    #[arg(long)]
    pub max_templates: Option<usize>,
    #[arg(long)]
    pub template_bytes: Option<u64>,
    #[arg(long)]
    pub saves_at_once: Option<usize>,
    /// End all sandboxes when the agent is told to end
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub stop_on_exit: Option<bool>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} has no `=`"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// No label given leaves the configured ones alone.
fn label_map<S: serde::Serializer>(labels: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    if labels.is_empty() {
        return serializer.serialize_none();
    }
    serializer.collect_map(labels.iter().map(|(key, value)| (key, value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use pinfold_service::config::load;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn from_flags(flags: &[&str]) -> Result<AgentConfig, String> {
        let line = Line::try_parse_from(std::iter::once(&"agent").chain(flags)).map_err(|e| e.to_string())?;
        load(line.run.config.config.as_deref(), &line.run.flags)
            .map_err(|e| format!("{:#}", anyhow::Error::from(e)))
    }

    #[test]
    fn flags_become_a_config() {
        let flags = ["--node-id", "n1", "--label", "disk=fast", "--label", "gpu=", "--stop-on-exit"];
        let config = from_flags(&flags).unwrap();
        assert_eq!(config.node_id, "n1");
        assert_eq!(config.labels.get("disk").map(String::as_str), Some("fast"));
        assert_eq!(config.labels.len(), 2);
        assert!(config.stop_on_exit);
        assert_eq!(config.images_dir(), PathBuf::from("/var/lib/pinfold/images"));
    }

    #[test]
    fn rates_of_disks_are_off_unless_they_are_given_and_are_checked() {
        let loaded = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), format!("node_id = \"n\"\n[disk_rate]\n{text}")).unwrap();
            from_flags(&["--config", file.path().to_str().unwrap()])
        };
        assert_eq!(from_flags(&["--node-id", "n"]).unwrap().disk_rate.limit(), RateLimit::default());
        let limit = loaded("bytes_per_second = 5000000\nbytes_burst = 7").unwrap().disk_rate.limit();
        let bytes = TokenBucket { per_second: 5_000_000, burst: 7, first_burst: 0 };
        assert_eq!((limit.bytes, limit.operations), (Some(bytes), None));
        let limit = loaded("operations_per_second = 100").unwrap().disk_rate.limit();
        assert_eq!(limit.operations.map(|bucket| (bucket.per_second, bucket.burst)), Some((100, 100)));
        limit.validate().unwrap();
        for (text, expected) in [
            ("bytes_per_second = 1048575", "disk_rate.bytes_per_second"),
            ("operations_per_second = 31", "disk_rate.operations_per_second"),
            ("operations_per_second = 100\noperations_burst = 0", "disk_rate.operations_burst"),
            ("bytes_burst = 9", "a burst needs disk_rate.bytes_per_second"),
            ("bytes = 9", "unknown field"),
        ] {
            let error = loaded(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn no_byte_of_the_disk_is_promised_twice() {
        let machine = Resources { cpu_millis: 1, memory_bytes: 2, disk_bytes: 8000, pids: 3 };
        let parts = |disk, snapshots, templates| {
            let config = AgentConfig {
                disk_bytes: disk,
                snapshot_bytes: snapshots,
                template_bytes: templates,
                ..AgentConfig::default()
            };
            let capacity = config.capacity(machine);
            let [disk, snapshots, templates] =
                [capacity.allocatable.disk_bytes, capacity.snapshots.bytes, capacity.templates.bytes];
            ([disk, snapshots, templates], capacity.promised_twice_bytes)
        };
        assert_eq!(parts(None, None, None), ([5000, 2000, 1000], 0));
        assert_eq!(parts(Some(2000), None, None), ([2000, 4000, 2000], 0));
        assert_eq!(parts(None, Some(0), Some(0)), ([8000, 0, 0], 0));
        assert_eq!(parts(Some(1), Some(2), Some(3)), ([1, 2, 3], 0));
        // that the operator does it is told
        assert_eq!(parts(Some(9000), Some(10), None), ([9000, 10, 0], 1010));
    }

    #[test]
    fn labels_of_a_file_stay_when_no_flag_is_given() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "node_id = \"n2\"\n[labels]\nzone = \"a\"\n").unwrap();
        let config = from_flags(&["--config", file.path().to_str().unwrap()]).unwrap();
        assert_eq!((config.node_id.as_str(), config.labels.len()), ("n2", 1));
    }

    #[test]
    fn bad_values_are_named() {
        for (flags, field) in [
            (&["--node-id", "Upper"][..], "node_id"),
            (&["--node-id", "n", "--scheduler", "127.0.0.1:1"], "scheduler"),
            (&["--node-id", "n", "--vmm", "pinfold-vmm"], "vmm"),
            (&["--node-id", "n", "--uid-base", "0"], "uid_base"),
            (&["--node-id", "n", "--label", "a b=c"], "labels"),
            (&["--node-id", "n", "--state-dir", &format!("/{}", "s".repeat(60))], "state_dir"),
        ] {
            let error = from_flags(flags).unwrap_err();
            assert!(error.contains(field), "{field}: {error}");
        }
        assert!(from_flags(&["--node-id", "n", "--label", "x"]).unwrap_err().contains("no `=`"));
    }
}
