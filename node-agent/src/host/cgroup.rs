//! cgroup v2: `<root>/<sandbox id>/`, one for each VMM, with every limit written before a process can join.

use super::paths::make_directory;
use super::{Act, CgroupLimits, Cgroups, HostError, IoLimit};
use futures::future::BoxFuture;
use pinfold_domain::SandboxId;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// `cpu.max` is a quota for each period of this length, the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// `cpu.weight` of one full CPU, the kernel's default; its bounds are 1 and 10,000.
const CPU_WEIGHT: u64 = 100;
/// linux/magic.h
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "io", "pids"];
/// A killed process leaves its group some time after the signal was sent.
const EMPTY_TRIES: u32 = 250;
const EMPTY_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct CgroupTree {
    root: PathBuf,
    /// Processes that were killed and may be children of this agent (it is a subreaper): they stay as zombies until it
    /// has waited for them. A bring-up that is given up leaves nobody else who knows them.
    killed: Mutex<BTreeMap<SandboxId, BTreeSet<i32>>>,
}

impl CgroupTree {
    /// Makes `root` and turns on the controllers for its children. `root` must be on a cgroup v2 file system: elsewhere
    /// the same writes would succeed and limit nothing.
    pub fn open(root: &Path) -> Result<Self, HostError> {
        let above = root.parent().unwrap_or(root);
        let act = || format!("use {} for cgroups", root.display());
        if rustix::fs::statfs(above).act(act)?.f_type != CGROUP2_SUPER_MAGIC {
            let why = format!("{} is not on a cgroup v2 file system", above.display());
            return Err(io::Error::other(why)).act(act);
        }
        Self::prepare(root)
    }

    fn prepare(root: &Path) -> Result<Self, HostError> {
        if let Some(parent) = root.parent() {
            // The root group of the hierarchy may have them on already; a missing one shows in the next step.
            for controller in CONTROLLERS {
                let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        make_directory(root, 0o755)?;
        for controller in CONTROLLERS {
            fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"))
                .act(|| format!("turn on the controller {controller} below {}", root.display()))?;
        }
        let root = root.canonicalize().act(|| format!("resolve {}", root.display()))?;
        Ok(Self { root, killed: Mutex::default() })
    }

    fn set(&self, id: SandboxId, file: &str, value: &str) -> Result<(), HostError> {
        fs::write(self.path(id).join(file), value).act(|| format!("write {value} to {file} of {id}"))
    }

    /// Waits for what was killed and is a child of this agent. A group that could be removed has no live process, so
    /// there is nothing left to wait long for.
    fn reap(&self, id: SandboxId) {
        for pid in self.lock().remove(&id).into_iter().flatten().filter_map(Pid::from_raw) {
            // Most are children of another process, or waited for already: then this says so.
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SandboxId, BTreeSet<i32>>> {
        self.killed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk limit holds where the device under the disk file supports it (a block device does, a tmpfs or an
    /// overlay does not). A sandbox is not refused for it, but the operator is told.
    fn limit_io(&self, id: SandboxId, limit: &IoLimit) {
        let rate = limit.bytes_per_second;
        let result = device(&limit.file).and_then(|device| {
            fs::write(self.path(id).join("io.max"), format!("{device} rbps={rate} wbps={rate}"))
        });
        if let Err(error) = result {
            tracing::warn!(sandbox = %id, file = %limit.file.display(), %error, "the disk rate cannot be limited here");
        }
    }
}

impl Cgroups for CgroupTree {
    fn create(&self, id: SandboxId, limits: &CgroupLimits) -> Result<(), HostError> {
        make_directory(&self.path(id), 0o755)?;
        let quota_us = limits.cpu_millis * CPU_PERIOD_US / 1000;
        self.set(id, "cpu.max", &format!("{quota_us} {CPU_PERIOD_US}"))?;
        self.set(id, "cpu.weight", &cpu_weight(limits.cpu_millis).to_string())?;
        self.set(id, "memory.max", &limits.memory_bytes.to_string())?;
        // A kernel without swap accounting has no such file, and then no swap to forbid.
        if self.path(id).join("memory.swap.max").exists() {
            self.set(id, "memory.swap.max", "0")?;
        }
        self.set(id, "memory.oom.group", "1")?;
        self.set(id, "pids.max", &limits.pids.to_string())?;
        if let Some(io) = &limits.io {
            self.limit_io(id, io);
        }
        Ok(())
    }

    fn path(&self, id: SandboxId) -> PathBuf {
        self.root.join(id.to_string())
    }

    fn kill(&self, id: SandboxId) -> Result<(), HostError> {
        let members = fs::read_to_string(self.path(id).join("cgroup.procs")).unwrap_or_default();
        let members = members.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok());
        self.lock().entry(id).or_default().extend(members);
        match fs::write(self.path(id).join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.act(|| format!("kill the cgroup of {id}")),
        }
    }

    fn remove(&self, id: SandboxId) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            let path = self.path(id);
            // The kernel can tell that a group is empty, but not that rmdir would work now (the last task may still be
            // on its way out), so trying is the test; 5 s at most.
            for _ in 0..EMPTY_TRIES {
                match fs::remove_dir(&path) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(error).act(|| format!("remove the cgroup of {id}"));
                    }
                    Ok(()) | Err(_) => {
                        self.reap(id);
                        return Ok(());
                    }
                }
                tokio::time::sleep(EMPTY_PAUSE).await;
            }
            let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            let busy = io::Error::from(io::ErrorKind::ResourceBusy);
            let members = members.split_whitespace().collect::<Vec<_>>().join(" ");
            Err(HostError::new(format!("remove the cgroup of {id}, processes [{members}] are in it"), busy))
        })
    }

    fn oom_kills(&self, id: SandboxId) -> u64 {
        let events = fs::read_to_string(self.path(id).join("memory.events")).unwrap_or_default();
        oom_kills(&events)
    }

    fn list(&self) -> Result<BTreeSet<SandboxId>, HostError> {
        let act = || format!("list {}", self.root.display());
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(&self.root).act(act)? {
            let name = entry.act(act)?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<SandboxId>().ok()));
        }
        Ok(ids)
    }
}

/// In proportion to the share of a CPU.
fn cpu_weight(cpu_millis: u64) -> u64 {
    (cpu_millis * CPU_WEIGHT / 1000).clamp(1, 10_000)
}

fn oom_kills(events: &str) -> u64 {
    let line = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// `MAJOR:MINOR` of the whole device that `file` is on: `io.max` takes no partition.
fn device(file: &Path) -> io::Result<String> {
    let number = fs::metadata(file)?.dev();
    let name = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let link = Path::new("/sys/dev/block").join(&name);
    if !link.join("partition").exists() {
        return Ok(name);
    }
    let whole = link.canonicalize()?;
    let parent = whole.parent().unwrap_or(&whole).join("dev");
    Ok(fs::read_to_string(parent)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_follows_the_share() {
        assert_eq!(
            [cpu_weight(1000), cpu_weight(500), cpu_weight(1), cpu_weight(1_000_000)],
            [100, 50, 1, 10_000]
        );
    }

    #[test]
    fn oom_kills_are_counted_apart_from_other_events() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(oom_kills(events), 2);
        assert_eq!(oom_kills(""), 0);
    }

    /// A plain directory takes the writes as files: shows what is written, not that the kernel obeys (the tests in a
    /// virtual node show that).
    #[tokio::test]
    async fn every_limit_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let error = CgroupTree::open(&directory.path().join("pinfold")).unwrap_err();
        assert!(error.sentence().contains("not on a cgroup v2 file system"), "{}", error.sentence());
        assert!(!directory.path().join("pinfold").exists());
        let tree = CgroupTree::prepare(&directory.path().join("pinfold")).unwrap();
        let id: SandboxId = "0190b3f0-5a00-7000-8000-000000000001".parse().unwrap();
        let limits = CgroupLimits { cpu_millis: 1500, memory_bytes: 1 << 28, pids: 64, io: None };
        tree.create(id, &limits).unwrap();
        let read = |file: &str| fs::read_to_string(tree.path(id).join(file)).unwrap();
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!(read("memory.max"), "268435456");
        assert_eq!(read("memory.oom.group"), "1");
        assert_eq!(read("pids.max"), "64");
        assert_eq!(tree.list().unwrap().into_iter().collect::<Vec<_>>(), [id]);
        assert_eq!(tree.oom_kills(id), 0);
        for file in fs::read_dir(tree.path(id)).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        tree.remove(id).await.unwrap();
        tree.remove(id).await.unwrap();
        tree.kill(id).unwrap();
    }
}
