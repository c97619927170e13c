//! Opens everything that the VMM needs, and starts the jailer with it.
//!
//! The VMM opens no path, so what is opened here is all that it will ever have. Descriptor numbers in the VMM are fixed:
//!
//! ```text
//!   3 config    4 /dev/kvm    5 control socket    6 console ring    7 exit file
//!   8 kernel    9 root image (read-only)   10 disk   11 vsock socket   12 initramfs   13 /proc
//! ```
//!
//! A machine that is restored has, read-only, 8 its state, 12 its memory, and 14 its working set instead of a kernel.
//!
//! The VMM takes `/proc` to open its own memory map, as its first act, and closes it before it reads anything that a
//! guest had a hand in.

use super::{LaunchError, LaunchPlan, Start};
use crate::host::paths::{GUEST_CONNECT_NAME, SandboxPaths, remove_file};
use crate::host::{Act, HostError};
use command_fds::{CommandFdExt, FdMapping};
use pinfold_vmm_api::jail::{JailLimits, JailOutcome};
use pinfold_vmm_api::{
    CpuTemplate, Disk, FdNumber, JailConfig, MachineConfig, MemoryBacking, PassedFd, RateLimit,
    RestoreMemory, Vsock, config,
};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

const CONFIG: FdNumber = 3;
const KVM: FdNumber = 4;
const CONTROL: FdNumber = 5;
const CONSOLE: FdNumber = 6;
const EXIT: FdNumber = 7;
const KERNEL: FdNumber = 8;
const ROOT_IMAGE: FdNumber = 9;
const DISK: FdNumber = 10;
const VSOCK: FdNumber = 11;
const INITRD: FdNumber = 12;
const PROC: FdNumber = 13;
const STATE: FdNumber = KERNEL;
const MEMORY: FdNumber = INITRD;
const WORKING_SET: FdNumber = 14;

/// In the jailer: its config, the executable, then what is passed on.
const JAIL_CONFIG: FdNumber = 3;
const EXECUTABLE: FdNumber = 4;
const FIRST_PASSED: FdNumber = 5;

/// The guest's context id. Each VMM has a vsock of its own, so all guests may have the same.
const GUEST_CID: u32 = 3;
/// RLIMIT_NOFILE of a VMM: its devices, KVM's descriptors, and one for each vsock connection.
const OPEN_FILES: u64 = 1024;
/// For the jailer, which does some twenty system calls.
const JAIL_TIMEOUT: Duration = Duration::from_secs(30);

/// What is executed.
#[derive(Debug, Clone)]
pub struct Programs {
    pub jailer: PathBuf,
    pub vmm: PathBuf,
}

/// Runs the jailer; returns the host pid of the VMM. `disk_rate`: of each disk of the machine.
pub async fn start(programs: &Programs, plan: &LaunchPlan, disk_rate: RateLimit) -> Result<u32, LaunchError> {
    let passed = open_all(plan, disk_rate)?;
    let vmm = read_only(&programs.vmm)?;
    let jail_config = jail_config(plan, &passed);
    let mut mappings = vec![
        FdMapping { parent_fd: in_memory("jail-config", &jail_config)?.into(), child_fd: JAIL_CONFIG },
        FdMapping { parent_fd: vmm.into(), child_fd: EXECUTABLE },
    ];
    for (index, (_, parent_fd)) in (FIRST_PASSED..).zip(passed) {
        mappings.push(FdMapping { parent_fd, child_fd: index });
    }
    let mut command = Command::new(&programs.jailer);
    command
        .args(["--config-fd", &JAIL_CONFIG.to_string()])
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .fd_mappings(mappings)
        .map_err(|error| HostError::new("pass descriptors to the jailer", std::io::Error::other(error)))?;
    let output = tokio::time::timeout(JAIL_TIMEOUT, command.output())
        .await
        .map_err(|_| LaunchError::Jail(format!("nothing for {} s", JAIL_TIMEOUT.as_secs())))?
        .act(|| format!("run {}", programs.jailer.display()))?;
    match serde_json::from_slice(&output.stdout) {
        Ok(JailOutcome::Pid(pid)) => Ok(pid),
        Ok(JailOutcome::Error(text)) => Err(LaunchError::Jail(text)),
        Err(_) => Err(LaunchError::Jail(format!(
            "{}, {:?} {:?}",
            output.status,
            excerpt(&output.stdout),
            excerpt(&output.stderr)
        ))),
    }
}

fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().chars().take(200).collect()
}

/// Each with its number in the VMM.
fn open_all(plan: &LaunchPlan, disk_rate: RateLimit) -> Result<Vec<(FdNumber, OwnedFd)>, HostError> {
    let paths = &plan.paths;
    let mut passed: Vec<(FdNumber, OwnedFd)> = vec![
        (CONFIG, in_memory("machine-config", &machine_config(plan, disk_rate))?.into()),
        (KVM, open(Path::new("/dev/kvm"), OpenOptions::new().read(true).write(true))?.into()),
        (CONTROL, listener(&paths.control())?.into()),
        (CONSOLE, new_file(&paths.console())?.into()),
        (EXIT, new_file(&paths.exit())?.into()),
        (ROOT_IMAGE, read_only(&plan.root_image)?.into()),
        (DISK, open(&paths.disk(), OpenOptions::new().read(true).write(true))?.into()),
        (VSOCK, listener(&paths.vsock())?.into()),
        (PROC, read_only(Path::new("/proc"))?.into()),
    ];
    match &plan.start {
        Start::Boot(kernel) => {
            passed.push((KERNEL, read_only(&kernel.file)?.into()));
            if let Some(initrd) = &kernel.initrd {
                passed.push((INITRD, read_only(initrd)?.into()));
            }
        }
        Start::Restore(restore) => {
            passed.push((STATE, read_only(&restore.state)?.into()));
            passed.push((MEMORY, read_only(&restore.memory)?.into()));
            if let Some(working_set) = &restore.working_set {
                passed.push((WORKING_SET, read_only(working_set)?.into()));
            }
        }
    }
    Ok(passed)
}

fn machine_config(plan: &LaunchPlan, disk_rate: RateLimit) -> MachineConfig {
    let made = plan.start.made();
    let (kernel, restore) = match &plan.start {
        Start::Boot(kernel) => (Some(kernel), None),
        Start::Restore(restore) => (None, Some(restore)),
    };
    MachineConfig {
        id: plan.id.to_string(),
        vcpus: plan.vcpus,
        memory_mib: plan.memory_mib,
        kernel: kernel.map(|_| KERNEL),
        initrd: kernel.and_then(|kernel| kernel.initrd.as_ref()).map(|_| INITRD),
        restore: restore.map(|restore| config::Restore {
            state: STATE,
            memory: RestoreMemory::File(MEMORY),
            working_set: restore.working_set.as_ref().map(|_| WORKING_SET),
            key: restore.key.digits().to_owned(),
            paused: restore.paused,
        }),
        memory_backing: MemoryBacking::default(),
        cpu_template: CpuTemplate::default(),
        cmdline: kernel.map(|kernel| kernel.cmdline.clone()).unwrap_or_default(),
        mmio_on_cmdline: made.mmio_on_cmdline,
        disks: vec![
            Disk { serial: "root".to_owned(), file: ROOT_IMAGE, read_only: true, rate: disk_rate },
            Disk { serial: "disk".to_owned(), file: DISK, read_only: false, rate: disk_rate },
        ],
        nets: Vec::new(),
        balloon: made.balloon,
        vsock: Some(Vsock {
            cid: GUEST_CID,
            listener: VSOCK,
            guest_connect_prefix: format!("/{GUEST_CONNECT_NAME}"),
        }),
        kvm: KVM,
        control: CONTROL,
        console: CONSOLE,
        exit: EXIT,
        without_seccomp: false,
    }
}

fn jail_config(plan: &LaunchPlan, passed: &[(FdNumber, OwnedFd)]) -> JailConfig {
    let passed = (FIRST_PASSED..).zip(passed).map(|(source, &(target, _))| PassedFd { source, target });
    JailConfig {
        id: plan.id.to_string(),
        root: plan.paths.jail().to_string_lossy().into_owned(),
        uid: plan.uid,
        gid: plan.uid,
        cgroup: plan.cgroup.to_string_lossy().into_owned(),
        limits: JailLimits { open_files: OPEN_FILES, file_size_bytes: plan.file_size_bytes },
        executable: EXECUTABLE,
        arguments: ["run", "--config-fd", &CONFIG.to_string(), "--proc-fd", &PROC.to_string()]
            .map(str::to_owned)
            .to_vec(),
        passed: passed.collect(),
    }
}

/// A file without a name that holds `value` as JSON.
fn in_memory(name: &str, value: &impl Serialize) -> Result<File, HostError> {
    let act = || format!("write {name} to memory");
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC).act(act)?);
    let text = serde_json::to_vec(value).map_err(std::io::Error::other).act(act)?;
    file.write_all(&text).act(act)?;
    file.rewind().act(act)?;
    Ok(file)
}

fn read_only(path: &Path) -> Result<File, HostError> {
    open(path, OpenOptions::new().read(true))
}

/// Empty, and for root alone.
fn new_file(path: &Path) -> Result<File, HostError> {
    open(path, OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600))
}

fn open(path: &Path, options: &OpenOptions) -> Result<File, HostError> {
    options.open(path).act(|| format!("open {}", path.display()))
}

/// The agent's copy of the listener is closed when the VMM has it: a VMM that is gone refuses connections.
fn listener(path: &Path) -> Result<UnixListener, HostError> {
    remove_file(path)?;
    UnixListener::bind(path).act(|| format!("listen on {}", path.display()))
}

/// The VMM's root: nothing in it but the socket for the guest's hello.
pub fn make_jail(paths: &SandboxPaths, uid: u32) -> Result<(), HostError> {
    let jail = paths.jail();
    crate::host::paths::make_directory(&jail, 0o500)?;
    give(&jail, uid)
}

/// Makes `uid` the owner.
pub fn give(path: &Path, uid: u32) -> Result<(), HostError> {
    std::os::unix::fs::chown(path, Some(uid), Some(uid)).act(|| format!("give {} to {uid}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Kernel;
    use crate::host::paths::StateDirectory;
    use crate::host::snapshots::SnapshotKey;
    use crate::machine::{Made, Restore};
    use pinfold_vmm_api::config::TokenBucket;

    fn plan(directory: &Path) -> LaunchPlan {
        let id = "0190b3f0-5a00-7000-8000-000000000001".parse().unwrap();
        let paths = StateDirectory::open(directory).unwrap().sandbox(id);
        paths.create().unwrap();
        LaunchPlan {
            id,
            paths,
            cgroup: PathBuf::from("/sys/fs/cgroup/pinfold/x"),
            uid: 100_000,
            vcpus: 2,
            memory_mib: 128,
            start: Start::Boot(Kernel {
                name: "stock".into(),
                file: directory.join("vmlinuz"),
                initrd: Some(directory.join("initrd.cpio")),
                cmdline: "console=ttyS0".into(),
                mmio_on_cmdline: false,
            }),
            root_image: directory.join("rootfs.erofs"),
            file_size_bytes: 1 << 30,
        }
    }

    #[test]
    fn the_configs_agree_with_each_other_and_are_valid() {
        let directory = tempfile::tempdir().unwrap();
        let boot = plan(directory.path());
        let restored = Start::Restore(Restore {
            state: directory.path().join("state"),
            memory: directory.path().join("memory"),
            working_set: Some(directory.path().join("working-set")),
            key: SnapshotKey::generate().unwrap(),
            made: Made { mmio_on_cmdline: false, balloon: false },
            paused: true,
        });
        let restored = LaunchPlan { start: restored, ..boot.clone() };
        let fixed = [CONFIG, KVM, CONTROL, CONSOLE, EXIT, ROOT_IMAGE, DISK, VSOCK, PROC];
        for (plan, own) in [(boot, vec![KERNEL, INITRD]), (restored, vec![STATE, MEMORY, WORKING_SET])] {
            let null = || OwnedFd::from(File::open("/dev/null").unwrap());
            let numbers: Vec<_> = fixed.iter().chain(&own).map(|&number| (number, null())).collect();
            let jail = jail_config(&plan, &numbers);
            jail.validate().unwrap();
            let machine = machine_config(&plan, RateLimit::default());
            machine.validate().unwrap();
            let targets: Vec<FdNumber> = jail.passed.iter().map(|fd| fd.target).collect();
            let mut used = vec![machine.kvm, machine.control, machine.console, machine.exit];
            used.extend(machine.kernel);
            used.extend(machine.initrd);
            if let Some(restore) = machine.restore {
                let RestoreMemory::File(memory) = restore.memory else { panic!("a file") };
                used.extend([restore.state, memory]);
                used.extend(restore.working_set);
            }
            used.extend(machine.disks.iter().map(|disk| disk.file));
            used.extend(machine.vsock.map(|vsock| vsock.listener));
            assert!(used.iter().all(|number| targets.contains(number)), "{used:?} in {targets:?}");
            // the config and /proc are named on the command line
            assert_eq!(used.len() + 2, targets.len(), "{used:?} and {targets:?}");
            assert_eq!(jail.arguments, ["run", "--config-fd", "3", "--proc-fd", "13"]);
        }
    }

    #[test]
    fn a_machine_has_a_balloon_unless_it_was_saved_without_one_and_the_rates_of_its_node() {
        let directory = tempfile::tempdir().unwrap();
        let boot = plan(directory.path());
        let bucket = |per_second| Some(TokenBucket { per_second, burst: 7, first_burst: 0 });
        let rate = RateLimit { bytes: bucket(5000), operations: bucket(60) };
        let machine = machine_config(&boot, rate);
        assert!(machine.balloon);
        assert_eq!(machine.disks.iter().map(|disk| disk.rate).collect::<Vec<_>>(), [rate, rate]);
        for made in [Made::default(), Made { mmio_on_cmdline: true, balloon: true }] {
            let start = Start::Restore(Restore {
                state: directory.path().join("state"),
                memory: directory.path().join("memory"),
                working_set: None,
                key: SnapshotKey::generate().unwrap(),
                made,
                paused: false,
            });
            let machine = machine_config(&LaunchPlan { start, ..boot.clone() }, RateLimit::default());
            assert_eq!((machine.mmio_on_cmdline, machine.balloon), (made.mmio_on_cmdline, made.balloon));
        }
    }

    #[tokio::test]
    async fn a_file_that_is_missing_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan(directory.path());
        let programs = Programs { jailer: "/no/jailer".into(), vmm: "/no/vmm".into() };
        std::fs::write(directory.path().join("vmlinuz"), "").unwrap();
        let error = start(&programs, &plan, RateLimit::default()).await.unwrap_err();
        let LaunchError::Host(error) = error else { panic!("{error}") };
        let text = error.sentence();
        assert!(text.contains("rootfs.erofs") || text.contains("/dev/kvm"), "{text}");
    }
}
