//! One microVM without a node agent and a jail: its VMM, its files, its control socket.

use anyhow::{Context as _, Result, bail, ensure};
use command_fds::CommandFdExt;
use pinfold_cli::dev::artifacts;
use pinfold_vmm_api::console::{Chunk, Reader};
use pinfold_vmm_api::control::{Event, ExitRecord, Request, Response, Status};
use pinfold_vmm_api::{Disk, MachineConfig, Net, RateLimit, Vsock};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IoSlice, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The image, built by `build.rs`.
const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/evil-guest"));
pub const DISK_BYTES: u64 = 8 << 20;
const GUEST_CID: u32 = 3;
/// The guest's, and the host's end of its tap: an address for documentation (RFC 5737) that brings no route.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_ADDRESS: &str = "192.0.2.1/32";
/// Every answer of the control socket, whatever the guest does meanwhile.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

pub struct Shape<'a> {
    pub case: &'a str,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// read-only or not, in order
    pub disks: &'a [bool],
    pub balloon: bool,
    /// a network device over a tap of this name
    pub tap: Option<&'a str>,
}

pub struct Machine {
    child: Child,
    directory: TempDir,
    console: Reader,
    events: Arc<Mutex<Vec<(Instant, Event)>>>,
    pub began: Instant,
}

/// What happened on the control socket.
pub struct Asked {
    pub response: Response,
    pub took: Duration,
}

impl Machine {
    /// An empty directory for a machine, so that its host's listeners are there before it is.
    pub fn directory() -> Result<TempDir> {
        // short: sockets lie below it
        Ok(tempfile::Builder::new().prefix("pfevil-").tempdir()?)
    }

    pub fn vsock_prefix(directory: &Path) -> PathBuf {
        directory.join("v")
    }

    pub fn start(shape: &Shape<'_>, directory: TempDir) -> Result<Self> {
        let mut passed = Vec::new();
        let config = config(shape, directory.path(), &mut passed)?;
        let mut file = scratch(&directory.path().join("config"))?;
        file.write_all(&serde_json::to_vec(&config)?)?;
        file.seek(SeekFrom::Start(0))?;
        let number = pass(file, &mut passed);
        let mut command = Command::new(artifacts::program("pinfold-vmm")?);
        command.args(["run", "--config-fd", &number.to_string()]);
        command.stderr(scratch(&directory.path().join("stderr"))?).stdin(std::process::Stdio::null());
        command.preserved_fds(passed);
        let began = Instant::now();
        let child = command.spawn().context("starting pinfold-vmm")?;
        let console = Reader::new(File::open(directory.path().join("console"))?);
        let machine = Self { child, directory, console, events: Arc::default(), began };
        machine.watch()?;
        Ok(machine)
    }

    /// Collects events in a thread that ends with the machine.
    fn watch(&self) -> Result<()> {
        let mut stream = UnixStream::connect(self.path("control"))?;
        stream.write_all(b"{\"request\":\"watch\"}\n")?;
        let events = Arc::clone(&self.events);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if let Ok(Response::Event(event)) = serde_json::from_str(&line) {
                    events.lock().expect("nobody panics with it").push((Instant::now(), event));
                }
            }
        });
        Ok(())
    }

    pub fn events(&self) -> Vec<(Instant, Event)> {
        self.events.lock().expect("nobody panics with it").clone()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn console(&self, from: u64) -> Result<Chunk> {
        Ok(self.console.read(from, 1 << 20)?)
    }

    pub fn ask(&self, request: &Request) -> Result<Asked> {
        self.ask_with(request, &[])
    }

    /// One request on a connection of its own, with descriptors (unix(7), SCM_RIGHTS).
    pub fn ask_with(&self, request: &Request, files: &[BorrowedFd<'_>]) -> Result<Asked> {
        let began = Instant::now();
        let stream = UnixStream::connect(self.path("control"))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            ensure!(control.push(SendAncillaryMessage::ScmRights(files)), "more than two descriptors");
        }
        let sent = sendmsg(&stream, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
        ensure!(sent == line.len(), "{sent} bytes of a request were sent");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).with_context(|| format!("no answer to {request:?}"))?;
        let response = serde_json::from_str(&answer).with_context(|| format!("an answer: {answer:?}"))?;
        Ok(Asked { response, took: began.elapsed() })
    }

    pub fn status(&self) -> Result<(Status, Duration)> {
        let asked = self.ask(&Request::Status)?;
        match asked.response {
            Response::Status(status) => Ok((status, asked.took)),
            other => bail!("the answer to a status is {other:?}"),
        }
    }

    /// `None` while it runs.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            ensure!(began.elapsed() < limit, "the VMM has not ended within {} s", limit.as_secs());
            // a child's end is not something to wait for with a limit
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn record(&self) -> Result<ExitRecord> {
        let text = std::fs::read(self.path("exit"))?;
        serde_json::from_slice(&text).context("the VMM left no exit record")
    }

    /// What it has written to its standard error.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path("stderr")).unwrap_or_default()).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // ends with its directory whatever became of the case
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(shape: &Shape<'_>, directory: &Path, passed: &mut Vec<OwnedFd>) -> Result<MachineConfig> {
    std::fs::write(directory.join("guest"), GUEST)?;
    let mut disks = Vec::new();
    for (index, read_only) in shape.disks.iter().enumerate() {
        let path = directory.join(format!("disk{index}"));
        File::create(&path)?.set_len(DISK_BYTES)?;
        let file = OpenOptions::new().read(true).write(!read_only).open(&path)?;
        let rate = RateLimit::default();
        disks.push(Disk {
            serial: format!("disk{index}"),
            file: pass(file, passed),
            read_only: *read_only,
            rate,
        });
    }
    let mut nets = Vec::new();
    if let Some(name) = shape.tap {
        let tap = pinfold_bench::tap::make(name, HOST_ADDRESS)?;
        let rate = RateLimit::default();
        nets.push(Net { tap: pass(tap, passed), mac: MAC, receive_rate: rate, transmit_rate: rate });
    }
    let prefix = Machine::vsock_prefix(directory);
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").context("opening /dev/kvm")?;
    Ok(MachineConfig {
        id: shape.case.to_owned(),
        vcpus: shape.vcpus,
        memory_mib: shape.memory_mib,
        kernel: Some(pass(File::open(directory.join("guest"))?, passed)),
        initrd: None,
        restore: None,
        memory_backing: Default::default(),
        cpu_template: Default::default(),
        cmdline: shape.case.to_owned(),
        mmio_on_cmdline: false,
        disks,
        nets,
        vsock: Some(Vsock {
            cid: GUEST_CID,
            listener: pass(UnixListener::bind(&prefix)?, passed),
            guest_connect_prefix: prefix.display().to_string(),
        }),
        balloon: shape.balloon,
        kvm: pass(kvm, passed),
        control: pass(UnixListener::bind(directory.join("control"))?, passed),
        console: pass(scratch(&directory.join("console"))?, passed),
        exit: pass(scratch(&directory.join("exit"))?, passed),
        without_seccomp: false,
    })
}

/// The number under which the VMM will have the descriptor.
fn pass(file: impl Into<OwnedFd>, passed: &mut Vec<OwnedFd>) -> RawFd {
    let fd: OwnedFd = file.into();
    let number = fd.as_raw_fd();
    passed.push(fd);
    number
}

fn scratch(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?)
}
