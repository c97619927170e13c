//! The procedure. **Its order is the security argument**: each step needs what the steps after it take away, and from
//! `execveat` on nothing of the host can be named any more.
//!
//! ```text
//!   jailer (root, host namespaces)
//!    1 join the cgroup              every page and every thread from here on counts against the sandbox
//!    2 unshare mount net ipc uts    the host's own namespaces are never changed
//!      cgroup and pid, then fork    the child is process 1: when it dies, all that it started dies
//!      |
//!      child (root, own namespaces)                                     parent
//!    3 setsid                       no terminal, no process group         waits on a socket: maps the ids,
//!    4 own root, read-only          no path of the host is left           takes the child's last word,
//!    5 host name, signals           nothing inherited from the agent      or its end by a successful exec;
//!    6 limits, umask, groups        raising a limit needs the host's root prints the pid or the error, exits
//!    7 user namespace of one uid    <- mapped by the parent ->
//!    8 descriptors                  only what was passed stays open
//!    9 limits that are counted      after 7, or they would bound root's processes
//!   10 no new privileges            before ids change: exec can never give anything back
//!   11 securebits, bounding set,    both before the ids: they need CAP_SETPCAP
//!      ids, capabilities
//!   12 verify                       what was taken is gone, or the VMM is not started
//!   13 execveat(fd)                 by descriptor: the new root has no file to run
//! ```
//!
//! Nothing here follows a symbolic link: both paths are opened with RESOLVE_NO_SYMLINKS, everything else is a
//! descriptor. In the jail's root nothing is opened at all, so what lies in it does not matter.
//!
//! Left out on purpose: a signal at the parent's death. A VMM outlives the jailer at once and its node agent whenever
//! that is restarted; what ends it with certainty is its cgroup. What only the VMM can do, since exec undoes it, it
//! does: see `forbid_dumps` and `forbid_paths` in the VMM's `confinement`, and its seccomp filters.

use crate::steps::{cgroup, fds, identity, process, root, user};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use pinfold_vmm_api::JailConfig;
use std::io::{Read, Write};
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// argv[0] of what the jailer becomes.
pub const PROGRAM_NAME: &str = "pinfold-vmm";
/// Written to the report socket when there is a user namespace to map; the answer is [`MAPPED`]. No error begins with it.
const NAMESPACE_MADE: u8 = 1;
const MAPPED: u8 = 2;
/// Written to the report socket just before `execveat`: what follows it is the error of the exec itself.
const ABOUT_TO_EXEC: u8 = 3;
/// Longest error text that the parent takes from the child.
const MAX_REPORT_BYTES: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum JailError {
    #[error("usage: pinfold-jailer --config-fd <n>, with n of 3 or more")]
    Usage,
    #[error("configuration: {0}")]
    Config(String),
    #[error("cannot {act}")]
    Step { act: &'static str, source: Errno },
    #[error("{what} after all privileges were dropped")]
    StillPrivileged { what: &'static str },
    #[error("{0}")]
    Child(String),
}

/// Names the act that failed.
pub trait Act<T> {
    fn act(self, act: &'static str) -> Result<T, JailError>;
}

impl<T> Act<T> for Result<T, Errno> {
    fn act(self, act: &'static str) -> Result<T, JailError> {
        self.map_err(|source| JailError::Step { act, source })
    }
}

/// Starts the VMM in its jail. Returns its pid in the caller's pid namespace once it has been executed.
pub fn run(config: &JailConfig) -> Result<u32, JailError> {
    cgroup::join(&config.cgroup)?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWUTS;
    unshare(namespaces).act("make new namespaces")?;
    let proc = user::open_proc()?;
    let (parents, childs) = UnixStream::pair()
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
        .act("make a pair of sockets")?;
    // SAFETY: this process has one thread, so the child may do anything that the parent could.
    match unsafe { fork() }.act("fork")? {
        ForkResult::Parent { child } => {
            drop(childs);
            let result = await_exec(parents, &proc, child, config);
            if result.is_err() {
                // It has written its error, or finds the socket closed, and ends now.
                let _ = waitpid(child, None);
            }
            result
        }
        ForkResult::Child => {
            drop(parents);
            child(config, childs, proc)
        }
    }
}

/// Maps the ids, then reads the report until the socket closes, which a successful exec does (it is close-on-exec).
fn await_exec(
    mut report: UnixStream,
    proc: &OwnedFd,
    child: Pid,
    config: &JailConfig,
) -> Result<u32, JailError> {
    let mut text = Vec::new();
    let mut first = [0];
    let mut read = report.read(&mut first);
    if let (Ok(1), [NAMESPACE_MADE]) = (&read, first) {
        user::map(proc, child, config.uid, config.gid)?;
        // A child that is gone has closed its side, which the next read finds out.
        let _ = report.write_all(&[MAPPED]);
    } else if let Ok(1) = read {
        text.push(first[0]);
    }
    if !matches!(read, Ok(0)) {
        read = report.take(MAX_REPORT_BYTES).read_to_end(&mut text);
    }
    let failure = match (read, text.as_slice()) {
        (Ok(_), [ABOUT_TO_EXEC]) => return Ok(child.as_raw().unsigned_abs()),
        (Ok(_), []) => "the jailed process was ended before it could become the VMM".to_owned(),
        (Ok(_), [ABOUT_TO_EXEC, error @ ..] | error) => String::from_utf8_lossy(error).into_owned(),
        (Err(error), _) => format!("cannot read the report of the jailed process: {error}"),
    };
    Err(JailError::Child(failure))
}

/// The child's side: becomes the VMM, or reports why not and ends.
fn child(config: &JailConfig, report: UnixStream, proc: OwnedFd) -> ! {
    // From here on descriptors are plain numbers: step 8 closes most of them under their owners.
    let mut report_number = report.into_raw_fd();
    let Err(error) = confine(config, &mut report_number, proc);
    let text = crate::describe(&error);
    let mut pipe = fds::borrow_file(report_number);
    // Without a reader there is nobody to tell.
    let _ = pipe.write_all(text.as_bytes());
    // SAFETY: ends this process at once; no destructor of the parent's copies may run here.
    unsafe { libc::_exit(1) }
}

fn confine(
    config: &JailConfig,
    report: &mut RawFd,
    proc: OwnedFd,
) -> Result<std::convert::Infallible, JailError> {
    process::new_session()?;
    let null = fds::open_null()?;
    root::enter(&config.root)?;
    process::set_host_name()?;
    process::reset_signals()?;
    process::set_limits(&config.limits)?;
    identity::leave_groups()?;
    if user::make()? {
        await_map(*report)?;
        user::forbid_more(&proc)?;
    }
    // closed by number with all others
    let _ = proc.into_raw_fd();
    let executable = fds::keep_only(&config.passed, config.executable, &null, report)?;
    process::set_counted_limits()?;
    process::set_no_new_privileges()?;
    identity::lock_securebits()?;
    identity::drop_bounding_set()?;
    identity::become_user(config.uid, config.gid)?;
    identity::verify(config.uid, config.gid)?;
    say(*report, ABOUT_TO_EXEC).act("write the report")?;
    process::execute(executable, PROGRAM_NAME, &config.arguments)
}

fn await_map(report: RawFd) -> Result<(), JailError> {
    say(report, NAMESPACE_MADE).act("ask for the map of the user namespace")?;
    let mut answer = [0];
    match fds::borrow_file(report).read(&mut answer) {
        Ok(1) if answer == [MAPPED] => Ok(()),
        // the parent says why
        _ => Err(Errno::EPIPE).act("have the user namespace mapped"),
    }
}

fn say(report: RawFd, byte: u8) -> Result<(), Errno> {
    fds::borrow_file(report)
        .write_all(&[byte])
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}
