//! One compromised VMM: its descriptors, its start with or without the jailer, its end.

use crate::bench::{Attempt, Bench, UID};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use pinfold_vmm_api::config::{CpuTemplate, MemoryBacking};
use pinfold_vmm_api::jail::{JailLimits, JailOutcome};
use pinfold_vmm_api::{JailConfig, MachineConfig, PassedFd};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// RLIMIT_FSIZE in the jail.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// For one machine on a busy host, until it is given up.
const TIME_LIMIT_MS: u16 = 30_000;
/// Numbers in the VMM: `FIRST` is that of its config.
const FIRST: i32 = 3;

/// Which layers hold the VMM.
#[derive(Debug, Clone, Copy)]
pub struct Layers {
    jail: bool,
    landlock: bool,
    seccomp: bool,
}

impl Layers {
    pub const OPEN: Self = Self { jail: false, landlock: false, seccomp: false };
    pub const LANDLOCK: Self = Self { landlock: true, ..Self::OPEN };
    pub const JAIL: Self = Self { jail: true, ..Self::OPEN };
    pub const SECCOMP: Self = Self { seccomp: true, ..Self::OPEN };
    pub const ALL: Self = Self { jail: true, landlock: true, seccomp: true };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// with this errno
    Refused(i32),
    /// by SIGSYS
    Killed,
}

/// Descriptors are inherited by every child that starts while they can be: one start at a time.
static STARTING: Mutex<()> = Mutex::new(());

pub fn run(bench: &Bench, layers: Layers, thread: &str, attempt: &Attempt) -> Outcome {
    let place = format!("{thread}-{}", attempt.name);
    let outside = bench.outside(&place);
    let (mut report, says) = std::io::pipe().expect("a pipe");
    let file = tempfile::tempfile().expect("a file");
    file.set_len(4096).expect("a page");
    let exit = tempfile::tempfile().expect("a file");
    let record = exit.try_clone().expect("a second descriptor");
    let files = files(&outside, layers, says.into(), file, exit);
    let port = bench.tcp.local_addr().expect("its address").port();
    let mut arguments = vec![
        "run".to_owned(),
        "--config-fd=3".to_owned(),
        "--report-fd=4".to_owned(),
        "--file-fd=5".to_owned(),
        format!("--attempt={}", attempt.name),
        format!("--thread={thread}"),
        format!("--outside={}", outside.display()),
        format!("--victim={}", bench.victim.id()),
        format!("--port={port}"),
        format!("--name={}", bench.abstract_name),
    ];
    if !layers.landlock {
        arguments.push("--without-landlock".into());
    }
    let pid = if layers.jail { jailed(bench, files, arguments) } else { unjailed(bench, files, arguments) };
    let said = read(&mut report, pid);
    let status = waitpid(pid, None).expect("its end");
    unlink_queue(pid);
    judge(&said, status, attempt).unwrap_or_else(|| {
        let record = std::io::read_to_string(record).unwrap_or_default();
        panic!("{}: said {said:?}, {status:?}, {record}", attempt.name)
    })
}

/// A message queue that an attempt has made outlives it where no namespace of its own ends with it.
fn unlink_queue(pid: Pid) {
    let name = CString::new(format!("pinfold{pid}")).expect("no NUL");
    // SAFETY: the name ends in NUL; mostly there is no such queue, which is an error that changes nothing.
    unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) };
}

fn judge(said: &str, status: WaitStatus, attempt: &Attempt) -> Option<Outcome> {
    let lines: Vec<&str> = said.lines().collect();
    match (lines.as_slice(), status) {
        (["begun"], WaitStatus::Signaled(_, Signal::SIGSYS, _)) => Some(Outcome::Killed),
        // another program ran and has ended well
        (["begun"], WaitStatus::Exited(_, 0 | 1)) if attempt.name.contains("exec") => Some(Outcome::Passed),
        (["begun", "passed"], WaitStatus::Exited(_, 0)) => Some(Outcome::Passed),
        (["begun", line], WaitStatus::Exited(_, 0)) => {
            line.strip_prefix("refused ").and_then(|errno| errno.parse().ok()).map(Outcome::Refused)
        }
        _ => None,
    }
}

/// What it says until it ends; a process that does not is ended.
fn read(report: &mut (impl Read + AsFd), pid: Pid) -> String {
    let mut said = String::new();
    loop {
        let mut waiting = [PollFd::new(report.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::from(TIME_LIMIT_MS)).expect("poll") == 0 {
            let _ = kill(pid, Signal::SIGKILL);
            said.push_str("it does not end\n");
            return said;
        }
        let mut chunk = [0; 256];
        match report.read(&mut chunk).expect("the report") {
            0 => return said,
            read => said.push_str(&String::from_utf8_lossy(&chunk[..read])),
        }
    }
}

/// From [`FIRST`] on: config, report, the attempts' file, and what the config names.
fn files(directory: &Path, layers: Layers, report: OwnedFd, file: File, exit: File) -> Vec<OwnedFd> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").expect("KVM");
    let mut kernel = tempfile::tempfile().expect("a file");
    kernel.write_all(&kernel_image()).expect("written");
    let config = MachineConfig {
        id: "compromised".into(),
        vcpus: 1,
        memory_mib: 96,
        kernel: Some(10),
        initrd: None,
        restore: None,
        memory_backing: MemoryBacking::default(),
        cpu_template: CpuTemplate::default(),
        cmdline: String::new(),
        mmio_on_cmdline: false,
        disks: Vec::new(),
        nets: Vec::new(),
        vsock: None,
        balloon: false,
        kvm: 6,
        control: 7,
        console: 8,
        exit: 9,
        without_seccomp: !layers.seccomp,
    };
    let mut text = tempfile::tempfile().expect("a file");
    text.write_all(&serde_json::to_vec(&config).expect("JSON")).expect("written");
    text.rewind().expect("its start");
    let scratch = || OwnedFd::from(tempfile::tempfile().expect("a file"));
    let control = UnixListener::bind(directory.join("control")).expect("a socket");
    vec![text.into(), report, file.into(), kvm.into(), control.into(), scratch(), exit.into(), kernel.into()]
}

/// The smallest that the VMM takes: an ELF with a PVH note (Xen's `XEN_ELFNOTE_PHYS32_ENTRY`) whose code halts for ever.
fn kernel_image() -> Vec<u8> {
    const ADDRESS: u64 = 0x10_0000;
    const CODE: [u8; 4] = [0xf4, 0xeb, 0xfd, 0x90];
    const HEADERS: u64 = 64 + 2 * 56;
    let note: Vec<u8> = [4_u32, 4, 18].into_iter().flat_map(u32::to_le_bytes).chain(*b"Xen\0").collect();
    let note = [note, (ADDRESS as u32).to_le_bytes().to_vec()].concat();
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half =
        |image: &mut Vec<u8>, values: &[u16]| image.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    half(&mut image, &[2, 62, 1, 0]);
    image.extend([ADDRESS, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    half(&mut image, &[0, 0, 64, 56, 2, 0, 0, 0]);
    // load the code, then the note
    for (kind, offset, bytes) in [(1_u32, HEADERS, CODE.len()), (4, HEADERS + CODE.len() as u64, note.len())]
    {
        image.extend([kind, 5].into_iter().flat_map(u32::to_le_bytes));
        let bytes = bytes as u64;
        image.extend([offset, ADDRESS, ADDRESS, bytes, bytes, 4].into_iter().flat_map(u64::to_le_bytes));
    }
    image.extend(CODE);
    image.extend(note);
    image
}

/// Above all numbers in the VMM, so that putting one in its place never closes another.
fn lifted(files: Vec<OwnedFd>) -> Vec<OwnedFd> {
    let lift = |file: OwnedFd| {
        let number = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(64)).expect("a duplicate");
        // SAFETY: fcntl(2) has just made this descriptor, and nothing else owns it.
        unsafe { std::os::fd::FromRawFd::from_raw_fd(number) }
    };
    files.into_iter().map(lift).collect()
}

fn unjailed(bench: &Bench, files: Vec<OwnedFd>, arguments: Vec<String>) -> Pid {
    let files = lifted(files);
    let numbers: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let mut command = Command::new(bench.directory.path().join("compromised"));
    command.args(arguments).env_clear().stdin(Stdio::null()).uid(UID).gid(UID);
    let place = move || {
        for (target, &source) in (FIRST..).zip(&numbers) {
            // SAFETY: dup2(2) takes two numbers; this process is about to become another program.
            if unsafe { libc::dup2(source, target) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only, in the child.
    unsafe { command.pre_exec(place) };
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    #[allow(clippy::zombie_processes, reason = "its pid is waited for, as that of a jailed one is")]
    let child = command.spawn().expect("the program starts");
    Pid::from_raw(i32::try_from(child.id()).expect("a pid"))
}

fn jailed(bench: &Bench, files: Vec<OwnedFd>, arguments: Vec<String>) -> Pid {
    let executable =
        OwnedFd::from(File::open(bench.directory.path().join("compromised")).expect("the program"));
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let config = JailConfig {
        id: "compromised".into(),
        root: text(&bench.directory.path().join("root").canonicalize().expect("a real path")),
        uid: UID,
        gid: UID,
        cgroup: text(&bench.cgroup),
        limits: JailLimits { open_files: 256, file_size_bytes: FILE_BYTES_MAX },
        executable: executable.as_raw_fd(),
        arguments,
        passed: (FIRST..)
            .zip(&files)
            .map(|(target, file)| PassedFd { source: file.as_raw_fd(), target })
            .collect(),
    };
    let mut config_file = tempfile::tempfile().expect("a file");
    config_file.write_all(&serde_json::to_vec(&config).expect("JSON")).expect("written");
    let config_fd = OwnedFd::from(config_file);
    let starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    let inherited: Vec<&OwnedFd> = files.iter().chain([&executable, &config_fd]).collect();
    let keep = |flag: FdFlag| {
        for file in &inherited {
            fcntl(*file, FcntlArg::F_SETFD(flag)).expect("a flag");
        }
    };
    keep(FdFlag::empty());
    let output = Command::new(bench.programs.join("pinfold-jailer"))
        .args(["--config-fd", &config_fd.as_raw_fd().to_string()])
        .env_clear()
        .output();
    keep(FdFlag::FD_CLOEXEC);
    drop(starting);
    let output = output.expect("the jailer runs");
    match serde_json::from_slice(&output.stdout) {
        Ok(JailOutcome::Pid(pid)) => Pid::from_raw(i32::try_from(pid).expect("a pid")),
        other => panic!("{other:?}: {output:?}"),
    }
}
