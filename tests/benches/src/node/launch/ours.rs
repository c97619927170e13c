//! `pinfold-vmm`, with every file passed by descriptor, as the node agent does it; without a jail, like its peers.

use super::{Console, KEY, Machine, Origin, Running, spawn};
use crate::net;
use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};
use pinfold_vmm_api::{
    CpuTemplate, Disk, MachineConfig, MemoryBacking, Net, RateLimit, Restore, RestoreMemory, Vsock,
};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

/// The vsock port on which a guest agent says hello (`proto/pinfold/guest/v1/guest.proto`).
const HELLO_PORT: u32 = 1025;
/// Where the benchmark's guest calls in (`guest/channel.rs`).
const BENCH_PORT: u32 = 5000;
/// Descriptors of the VMM begin here.
const FIRST_FD: RawFd = 3;

/// Descriptors by the number that they will have in the VMM.
#[derive(Default)]
pub struct Passed(Vec<FdMapping>);

impl Passed {
    pub fn add(&mut self, fd: impl Into<OwnedFd>) -> RawFd {
        let child_fd = FIRST_FD + self.0.len() as RawFd;
        self.0.push(FdMapping { parent_fd: fd.into(), child_fd });
        child_fd
    }
}

pub fn start(machine: &Machine, origin: Origin<'_>) -> Result<Running> {
    let directory = machine.directory.as_path();
    let mut passed = Passed::default();
    let config = config(machine, origin, &mut passed)?;
    let bench = listen(&directory.join(format!("vsock_{BENCH_PORT}")))?;
    let hello = listen(&directory.join(format!("vsock_{HELLO_PORT}")))?;
    let mut file = scratch(&directory.join("config.json"))?;
    file.write_all(&serde_json::to_vec(&config)?)?;
    file.seek(SeekFrom::Start(0))?;
    let config_fd = passed.add(file);
    let mut command = Command::new(&machine.program);
    command.args(["run", "--config-fd", &config_fd.to_string()]).stdin(Stdio::null());
    command.fd_mappings(passed.0).context("two descriptors with one number")?;
    let (child, began_us) = spawn(&mut command)?;
    Ok(Running {
        child,
        console: Console::ring(&directory.join("console"))?,
        control: Some(directory.join("control")),
        hello: Some(hello),
        bench_listener: Some(bench),
        bench_socket: None,
        began_us,
    })
}

fn config(machine: &Machine, origin: Origin<'_>, passed: &mut Passed) -> Result<MachineConfig> {
    let directory = machine.directory.as_path();
    let mut disks = Vec::new();
    for (index, (path, read_only)) in machine.disks().iter().enumerate() {
        let file = OpenOptions::new().read(true).write(!*read_only).open(path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        disks.push(Disk {
            serial: format!("disk{index}"),
            file: passed.add(file),
            read_only: *read_only,
            rate: RateLimit::default(),
        });
    }
    let (mut kernel, mut initrd, mut restore) = (None, None, None);
    match origin {
        Origin::Kernel => {
            kernel = Some(passed.add(open(&machine.kernel)?));
            initrd = machine.initrd.as_deref().map(open).transpose()?.map(|file| passed.add(file));
        }
        Origin::Snapshot(template) => {
            let working_set = template.working_set.as_deref().map(open).transpose()?;
            restore = Some(Restore {
                state: passed.add(open(&template.state)?),
                memory: RestoreMemory::File(passed.add(open(&template.memory)?)),
                working_set: working_set.map(|file| passed.add(file)),
                key: KEY.to_owned(),
                paused: false,
            });
        }
    }
    let mut nets = Vec::new();
    if machine.tap {
        nets.push(Net {
            tap: passed.add(net::tap()?),
            mac: super::MAC,
            receive_rate: RateLimit::default(),
            transmit_rate: RateLimit::default(),
        });
    }
    let vsock = directory.join("vsock");
    Ok(MachineConfig {
        id: "bench".into(),
        vcpus: machine.vcpus,
        memory_mib: machine.memory_mib,
        kernel,
        initrd,
        restore,
        memory_backing: MemoryBacking::default(),
        cpu_template: CpuTemplate::default(),
        cmdline: if kernel.is_some() { machine.cmdline.clone() } else { String::new() },
        mmio_on_cmdline: false,
        disks,
        nets,
        balloon: machine.balloon,
        vsock: Some(Vsock {
            cid: 3,
            listener: passed.add(listen(&vsock)?),
            guest_connect_prefix: vsock.display().to_string(),
        }),
        kvm: passed
            .add(OpenOptions::new().read(true).write(true).open("/dev/kvm").context("opening /dev/kvm")?),
        control: passed.add(listen(&directory.join("control"))?),
        console: passed.add(scratch(&directory.join("console"))?),
        exit: passed.add(scratch(&directory.join("exit"))?),
        without_seccomp: machine.without_seccomp,
    })
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("opening {}", path.display()))
}

fn scratch(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    file.with_context(|| format!("making {}", path.display()))
}

fn listen(path: &Path) -> Result<UnixListener> {
    UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))
}
