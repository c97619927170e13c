//! A machine by its options: its files opened, its sockets made, its VMM started.

use crate::wire::KEY;
use anyhow::Context;
use clap::Args;
use pinfold_vmm_api::{
    CpuTemplate, Disk, MachineConfig, MemoryBacking, Net, PageFaultHandler, RateLimit, Restore,
    RestoreMemory, Vsock,
};
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

#[derive(Debug, Args)]
pub struct Machine {
    #[arg(long)]
    pub vmm: PathBuf,
    #[arg(long, required_unless_present = "restore")]
    pub kernel: Option<PathBuf>,
    #[arg(long)]
    pub initrd: Option<PathBuf>,
    /// path, or path:ro
    #[arg(long)]
    pub disk: Vec<String>,
    #[arg(long, default_value = "console=ttyS0 panic=-1")]
    pub cmdline: String,
    #[arg(long, default_value_t = 1)]
    pub vcpus: u32,
    #[arg(long, default_value_t = 256)]
    pub memory_mib: u64,
    /// anonymous, memfd or huge_pages
    #[arg(long, default_value = "anonymous", value_parser = named::<MemoryBacking>)]
    pub backing: MemoryBacking,
    /// host, x8664_v2 or x8664_v3
    #[arg(long, default_value = "host", value_parser = named::<CpuTemplate>)]
    pub cpu_template: CpuTemplate,
    /// directory for sockets and files; made if missing
    #[arg(long, default_value = "/tmp/pinfold-boot")]
    pub directory: PathBuf,
    #[arg(long)]
    pub without_seccomp: bool,
    #[arg(long)]
    pub mmio_on_cmdline: bool,
    /// a tap of this name, made beforehand or now; the guest's address is 02:00:00:00:00:01
    #[arg(long)]
    pub tap: Option<String>,
    #[arg(long)]
    pub balloon: bool,
    /// go on from the snapshot in this directory instead of booting
    #[arg(long)]
    pub restore: Option<PathBuf>,
    /// so, with its memory from a page-fault handler, whose process id is in `handler`
    #[arg(long, requires = "restore")]
    pub handler: bool,
    /// which does not wait to be asked
    #[arg(long, requires = "handler")]
    pub fill: bool,
}

/// A value by its name in the machine's config.
fn named<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
}

impl Machine {
    /// Starts the VMM. `log` takes what it says, if that is not to be seen here.
    pub fn start(&self, log: Option<&Path>) -> anyhow::Result<Child> {
        std::fs::create_dir_all(&self.directory)?;
        let mut passed = Vec::new();
        let config = self.config(&mut passed)?;
        let mut file = scratch(&self.directory.join("config.json"))?;
        file.write_all(&serde_json::to_vec(&config)?)?;
        file.seek(SeekFrom::Start(0))?;
        let number = inherit(file, &mut passed)?;
        let mut command = Command::new(&self.vmm);
        command.args(["run", "--config-fd", &number.to_string()]);
        if let Some(log) = log {
            let log = scratch(log)?;
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        }
        command.spawn().with_context(|| format!("starting {}", self.vmm.display()))
    }

    fn config(&self, passed: &mut Vec<OwnedFd>) -> anyhow::Result<MachineConfig> {
        let directory = &self.directory;
        let mut disks = Vec::new();
        for (index, disk) in self.disk.iter().enumerate() {
            let (path, read_only) =
                disk.strip_suffix(":ro").map_or((disk.as_str(), false), |path| (path, true));
            let file =
                OpenOptions::new().read(true).write(!read_only).open(path).with_context(|| disk.clone())?;
            disks.push(Disk {
                serial: format!("disk{index}"),
                file: inherit(file, passed)?,
                read_only,
                rate: RateLimit::default(),
            });
        }
        // a restored machine has its kernel in memory
        let kernel = self.kernel.as_ref().filter(|_| self.restore.is_none()).map(open).transpose()?;
        let initrd = self.initrd.as_ref().map(open).transpose()?;
        Ok(MachineConfig {
            id: "boot".into(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            kernel: kernel.map(|file| inherit(file, passed)).transpose()?,
            initrd: initrd.map(|file| inherit(file, passed)).transpose()?,
            restore: self.restore.as_ref().map(|from| self.restored(from, passed)).transpose()?,
            memory_backing: self.backing,
            cpu_template: self.cpu_template,
            cmdline: self.cmdline.clone(),
            mmio_on_cmdline: self.mmio_on_cmdline,
            disks,
            nets: match &self.tap {
                Some(name) => vec![Net {
                    tap: inherit(open_tap(name)?, passed)?,
                    mac: [2, 0, 0, 0, 0, 1],
                    receive_rate: RateLimit::default(),
                    transmit_rate: RateLimit::default(),
                }],
                None => Vec::new(),
            },
            balloon: self.balloon,
            vsock: Some(Vsock {
                cid: 3,
                listener: inherit(listen(&directory.join("vsock"))?, passed)?,
                guest_connect_prefix: directory.join("vsock").display().to_string(),
            }),
            kvm: inherit(OpenOptions::new().read(true).write(true).open("/dev/kvm")?, passed)?,
            control: inherit(listen(&directory.join("control"))?, passed)?,
            console: inherit(scratch(&directory.join("console"))?, passed)?,
            exit: inherit(scratch(&directory.join("exit"))?, passed)?,
            without_seccomp: self.without_seccomp,
        })
    }

    fn restored(&self, from: &Path, passed: &mut Vec<OwnedFd>) -> anyhow::Result<Restore> {
        let memory = from.join("memory");
        let memory = if self.handler {
            RestoreMemory::Handler(PageFaultHandler {
                socket: inherit(self.start_handler(&memory)?, passed)?,
                userfaultfd: inherit(open(&PathBuf::from("/dev/userfaultfd"))?, passed)?,
            })
        } else {
            RestoreMemory::File(inherit(open(&memory)?, passed)?)
        };
        Ok(Restore {
            state: inherit(open(&from.join("state"))?, passed)?,
            memory,
            working_set: None,
            key: KEY.into(),
            paused: false,
        })
    }

    /// The machine's end of a connection to a process that serves `memory`.
    fn start_handler(&self, memory: &Path) -> anyhow::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut passed = Vec::new();
        let mut command = Command::new(&self.vmm);
        command.arg("serve-pages").arg("--socket-fd").arg(inherit(theirs, &mut passed)?.to_string());
        command.arg("--memory").arg(memory).args(self.fill.then_some("--fill"));
        let log = scratch(&self.directory.join("handler.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let handler = command.spawn()?;
        std::fs::write(self.directory.join("handler"), handler.id().to_string())?;
        Ok(ours)
    }
}

/// Attaches to a tap: TUNSETIFF with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR.
fn open_tap(name: &str) -> anyhow::Result<File> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *slot = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = 0x0002 | 0x1000 | 0x4000;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &mut request) };
    anyhow::ensure!(result == 0, "the tap {name}: {}", std::io::Error::last_os_error());
    Ok(tap)
}

fn open(path: &PathBuf) -> anyhow::Result<File> {
    File::open(path).with_context(|| path.display().to_string())
}

pub fn scratch(path: &Path) -> anyhow::Result<File> {
    Ok(OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?)
}

pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    Ok(UnixListener::bind(path)?)
}

/// Keeps the descriptor open across exec and in this process.
fn inherit(file: impl Into<OwnedFd>, passed: &mut Vec<OwnedFd>) -> anyhow::Result<RawFd> {
    let fd: OwnedFd = file.into();
    let number = fd.as_raw_fd();
    // SAFETY: clears FD_CLOEXEC of an open descriptor.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
    anyhow::ensure!(result == 0, "cannot pass descriptor {number} on");
    passed.push(fd);
    Ok(number)
}
