//! Boots one microVM without a node agent or a jail, for work on the VMM itself.
//!
//! Opens every file by path, starts `pinfold-vmm` with the descriptors, copies the console to standard output, prints
//! a status while the guest runs and the exit record at the end.
//!
//! ```text
//!   boot --vmm pinfold-vmm --kernel vmlinuz --initrd initrd.gz --disk root.img:ro --cmdline 'console=ttyS0'
//! ```

use anyhow::{Context, bail};
use clap::Parser;
use pinfold_vmm_api::console::Reader;
use pinfold_vmm_api::control::{ExitRecord, Request, Response, SnapshotKind, SnapshotRequest};
use pinfold_vmm_api::{
    CpuTemplate, Disk, MachineConfig, MemoryBacking, Net, PageFaultHandler, RateLimit, Restore,
    RestoreMemory, Vsock,
};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Whoever works on the VMM by hand has nothing to hide.
const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long)]
    vmm: PathBuf,
    #[arg(long, required_unless_present = "restore")]
    kernel: Option<PathBuf>,
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// path, or path:ro
    #[arg(long)]
    disk: Vec<String>,
    #[arg(long, default_value = "console=ttyS0 panic=-1")]
    cmdline: String,
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    #[arg(long, default_value_t = 256)]
    memory_mib: u64,
    /// directory for sockets and files; made if missing
    #[arg(long, default_value = "/tmp/pinfold-boot")]
    directory: PathBuf,
    #[arg(long)]
    without_seccomp: bool,
    #[arg(long)]
    mmio_on_cmdline: bool,
    /// ask for the status when the console has said this
    #[arg(long, default_value = "HELLO")]
    status_after: String,
    /// then connect to this vsock port of the guest, send a line and print what comes back
    #[arg(long)]
    connect: Option<u32>,
    /// listen for guest connections to this vsock port and send back what comes
    #[arg(long)]
    listen: Option<u32>,
    /// a tap of this name, made and brought up beforehand; the guest's address is 02:00:00:00:00:01
    #[arg(long)]
    tap: Option<String>,
    #[arg(long)]
    balloon: bool,
    /// then ask for so much of the guest's memory, and for the status a second later
    #[arg(long)]
    balloon_mib: Option<u64>,
    /// then press the power button
    #[arg(long)]
    power_button: bool,
    /// then ask the VMM to end
    #[arg(long)]
    kill: bool,
    /// then pause for so long, and resume
    #[arg(long)]
    pause_ms: Option<u64>,
    /// then pause, save to `state` and `memory` in this directory, and resume
    #[arg(long)]
    snapshot: Option<PathBuf>,
    /// then let it run for a second, and save what changed to this directory
    #[arg(long)]
    diff: Option<PathBuf>,
    /// go on from the snapshot in this directory instead of booting
    #[arg(long)]
    restore: Option<PathBuf>,
    /// so, with its memory from a page-fault handler
    #[arg(long, requires = "restore")]
    handler: bool,
    /// which does not wait to be asked
    #[arg(long, requires = "handler")]
    fill: bool,
    #[arg(long, default_value_t = 120)]
    timeout_seconds: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.directory)?;
    let mut passed = Vec::new();
    let config = config(&arguments, &mut passed)?;
    if let Some(port) = arguments.listen {
        echo_server(&arguments.directory.join(format!("vsock_{port}")))?;
    }
    let mut config_file = scratch(&arguments.directory.join("config.json"))?;
    config_file.write_all(&serde_json::to_vec(&config)?)?;
    config_file.seek(SeekFrom::Start(0))?;
    let config_fd = inherit(config_file, &mut passed)?;

    let began = Instant::now();
    let child =
        Command::new(&arguments.vmm).arg("run").arg("--config-fd").arg(config_fd.to_string()).spawn()?;
    follow(&arguments, child, began)
}

fn config(arguments: &Arguments, passed: &mut Vec<OwnedFd>) -> anyhow::Result<MachineConfig> {
    let directory = &arguments.directory;
    let mut disks = Vec::new();
    for (index, disk) in arguments.disk.iter().enumerate() {
        let (path, read_only) = disk.strip_suffix(":ro").map_or((disk.as_str(), false), |path| (path, true));
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
    let kernel = arguments.kernel.as_ref().filter(|_| arguments.restore.is_none()).map(open).transpose()?;
    let initrd = arguments.initrd.as_ref().map(open).transpose()?;
    Ok(MachineConfig {
        id: "boot".into(),
        vcpus: arguments.vcpus,
        memory_mib: arguments.memory_mib,
        kernel: kernel.map(|file| inherit(file, passed)).transpose()?,
        initrd: initrd.map(|file| inherit(file, passed)).transpose()?,
        restore: arguments.restore.as_ref().map(|from| restore(arguments, from, passed)).transpose()?,
        memory_backing: MemoryBacking::default(),
        cpu_template: CpuTemplate::default(),
        cmdline: arguments.cmdline.clone(),
        mmio_on_cmdline: arguments.mmio_on_cmdline,
        disks,
        nets: match &arguments.tap {
            Some(name) => vec![Net {
                tap: inherit(open_tap(name)?, passed)?,
                mac: [2, 0, 0, 0, 0, 1],
                receive_rate: RateLimit::default(),
                transmit_rate: RateLimit::default(),
            }],
            None => Vec::new(),
        },
        balloon: arguments.balloon,
        vsock: Some(Vsock {
            cid: 3,
            listener: inherit(listen(&directory.join("vsock"))?, passed)?,
            guest_connect_prefix: directory.join("vsock").display().to_string(),
        }),
        kvm: inherit(OpenOptions::new().read(true).write(true).open("/dev/kvm")?, passed)?,
        control: inherit(listen(&directory.join("control"))?, passed)?,
        console: inherit(scratch(&directory.join("console"))?, passed)?,
        exit: inherit(scratch(&directory.join("exit"))?, passed)?,
        without_seccomp: arguments.without_seccomp,
    })
}

fn follow(arguments: &Arguments, mut child: Child, began: Instant) -> anyhow::Result<()> {
    let console = Reader::new(File::open(arguments.directory.join("console"))?);
    let (mut offset, mut seen, mut asked) = (0, Vec::new(), false);
    let mut ended = None;
    loop {
        let chunk = console.read(offset, 64 * 1024)?;
        offset = chunk.offset + chunk.data.len() as u64;
        std::io::stdout().write_all(&chunk.data)?;
        seen.extend(&chunk.data);
        if !asked && String::from_utf8_lossy(&seen).contains(&arguments.status_after) {
            asked = true;
            println!("[boot] {:?} seen after {} ms", arguments.status_after, began.elapsed().as_millis());
            at_mark(arguments)?;
        }
        if let Some(status) = ended {
            let record = std::fs::read(arguments.directory.join("exit"))?;
            println!("[boot] {status} after {} ms", began.elapsed().as_millis());
            let record: ExitRecord = serde_json::from_slice(&record).context("no exit record")?;
            println!("[boot] {record:#?}");
            return Ok(());
        }
        ended = child.try_wait()?;
        if began.elapsed() > Duration::from_secs(arguments.timeout_seconds) {
            child.kill()?;
            bail!("no end within {} s", arguments.timeout_seconds);
        }
        // the console is a file: there is nothing to wait on but time
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What to do once the guest has said that it is up.
fn at_mark(arguments: &Arguments) -> anyhow::Result<()> {
    let control = arguments.directory.join("control");
    println!("[boot] {:?}", ask(&control, &Request::Status)?);
    if let Some(port) = arguments.connect {
        let text = talk(&arguments.directory.join("vsock"), port)?;
        println!("[boot] port {port} answered {text:?}");
        println!("[boot] {:?}", ask(&control, &Request::Status)?);
    }
    if let Some(pause_ms) = arguments.pause_ms {
        println!("[boot] {:?}", ask(&control, &Request::Pause)?);
        std::thread::sleep(Duration::from_millis(pause_ms));
        println!("[boot] {:?}", ask(&control, &Request::Resume)?);
    }
    if let Some(to) = &arguments.snapshot {
        println!("[boot] {:?}", ask(&control, &Request::Pause)?);
        println!("[boot] {:?}", snapshot(&control, to, SnapshotKind::FullTracked)?);
        println!("[boot] {:?}", ask(&control, &Request::Resume)?);
    }
    if let Some(to) = &arguments.diff {
        std::thread::sleep(Duration::from_secs(1));
        println!("[boot] {:?}", ask(&control, &Request::Pause)?);
        println!("[boot] {:?}", snapshot(&control, to, SnapshotKind::Diff)?);
        println!("[boot] {:?}", ask(&control, &Request::Resume)?);
    }
    if let Some(mib) = arguments.balloon_mib {
        let request = Request::SetBalloon { target_bytes: mib << 20 };
        println!("[boot] {:?}", ask(&control, &request)?);
        std::thread::sleep(Duration::from_secs(3));
        println!("[boot] {:?}", ask(&control, &Request::Status)?);
    }
    if arguments.power_button {
        println!("[boot] {:?}", ask(&control, &Request::PowerButton)?);
    }
    if arguments.kill {
        println!("[boot] {:?}", ask(&control, &Request::Kill)?);
    }
    Ok(())
}

fn ask(socket: &Path, request: &Request) -> anyhow::Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

fn snapshot(socket: &Path, to: &Path, kind: SnapshotKind) -> anyhow::Result<Response> {
    std::fs::create_dir_all(to)?;
    let (state, memory) = (scratch(&to.join("state"))?, scratch(&to.join("memory"))?);
    let request = Request::Snapshot(SnapshotRequest { kind, key: KEY.into() });
    let line = format!("{}\n", serde_json::to_string(&request)?);
    let stream = UnixStream::connect(socket)?;
    stream
        .send_with_fds(&[line.as_bytes()], &[state.as_raw_fd(), memory.as_raw_fd()])
        .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

fn restore(arguments: &Arguments, from: &Path, passed: &mut Vec<OwnedFd>) -> anyhow::Result<Restore> {
    let memory = from.join("memory");
    let memory = if arguments.handler {
        RestoreMemory::Handler(PageFaultHandler {
            socket: inherit(start_handler(arguments, &memory)?, passed)?,
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
fn start_handler(arguments: &Arguments, memory: &Path) -> anyhow::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut passed = Vec::new();
    let mut command = Command::new(&arguments.vmm);
    command.arg("serve-pages").arg("--socket-fd").arg(inherit(theirs, &mut passed)?.to_string());
    command.arg("--memory").arg(memory).args(arguments.fill.then_some("--fill"));
    let handler = command.spawn()?;
    println!("[boot] page-fault handler {}", handler.id());
    Ok(ours)
}

/// Sends a line and half-closes; returns the greeting and all that comes until the end.
fn talk(socket: &Path, port: u32) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut text = String::new();
    reader.read_line(&mut text)?;
    stream.write_all(b"a line from the host\n")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut all = Vec::new();
    let result = reader.read_to_end(&mut all);
    text += &format!(
        "then {} bytes, {:?}, end {result:?}",
        all.len(),
        String::from_utf8_lossy(&all[..all.len().min(60)])
    );
    Ok(text)
}

fn echo_server(path: &Path) -> anyhow::Result<()> {
    let listener = listen(path)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                let result = (&stream).read_to_end(&mut all);
                println!("[boot] the guest sent {} bytes, end {result:?}", all.len());
                let _ = (&stream).write_all(format!("{} bytes\n", all.len()).as_bytes());
            });
        }
    });
    Ok(())
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

fn scratch(path: &Path) -> anyhow::Result<File> {
    Ok(OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?)
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
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
