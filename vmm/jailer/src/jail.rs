//! The procedure. **Its order is the security argument**: each step needs what the steps after it take away, and from
//! `execveat` on nothing of the host can be named any more.
//!
//! ```text
//!   jailer (root, host namespaces)
//!    1 join the cgroup              every page and every thread from here on counts against the sandbox
//!    2 unshare mount net ipc uts    the host's own namespaces are never changed
//!      and pid, then fork           the child is process 1: when it dies, all that it started dies
//!      |
//!      child (root, own namespaces)                                     parent
//!    3 setsid                       no terminal, no process group         waits on a pipe: the child's last word,
//!    4 own root, read-only          no path of the host is left           or its end by a successful exec;
//!    5 host name, signals           nothing inherited from the agent      prints the pid or the error, exits
//!    6 descriptors                  only what was passed stays open
//!    7 limits, umask
//!    8 no new privileges            before ids change: exec can never give anything back
//!    9 bounding set, groups, ids    the bounding set first: dropping it needs CAP_SETPCAP
//!   10 verify                       what was taken is gone, or the VMM is not started
//!   11 execveat(fd)                 by descriptor: the new root has no file to run
//! ```
//!
//! Nothing here follows a symbolic link: both paths are opened with RESOLVE_NO_SYMLINKS, everything else is a
//! descriptor.

use crate::steps::{cgroup, fds, identity, process, root};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2};
use pinfold_vmm_api::JailConfig;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};

/// argv[0] of what the jailer becomes.
pub const PROGRAM_NAME: &str = "pinfold-vmm";
/// Written to the report pipe just before `execveat`: what follows it is the error of the exec itself.
const ABOUT_TO_EXEC: u8 = b'X';
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
        | CloneFlags::CLONE_NEWUTS;
    unshare(namespaces).act("make new namespaces")?;
    let (report_read, report_write) = pipe2(OFlag::O_CLOEXEC).act("make a pipe")?;
    // SAFETY: this process has one thread, so the child may do anything that the parent could.
    match unsafe { fork() }.act("fork")? {
        ForkResult::Parent { child } => {
            drop(report_write);
            await_exec(File::from(report_read), child)
        }
        ForkResult::Child => {
            drop(report_read);
            child(config, report_write)
        }
    }
}

/// Reads the report until the pipe closes, which a successful exec does (the pipe is close-on-exec).
fn await_exec(report: File, child: Pid) -> Result<u32, JailError> {
    let mut text = Vec::new();
    let read = report.take(MAX_REPORT_BYTES).read_to_end(&mut text);
    let failure = match (read, text.as_slice()) {
        (Ok(_), [ABOUT_TO_EXEC]) => return Ok(child.as_raw().unsigned_abs()),
        (Ok(_), []) => "the jailed process was ended before it could become the VMM".to_owned(),
        (Ok(_), [ABOUT_TO_EXEC, error @ ..] | error) => String::from_utf8_lossy(error).into_owned(),
        (Err(error), _) => format!("cannot read the report of the jailed process: {error}"),
    };
    // It has written its error and ends now.
    let _ = waitpid(child, None);
    Err(JailError::Child(failure))
}

/// The child's side: becomes the VMM, or reports why not and ends.
fn child(config: &JailConfig, report: OwnedFd) -> ! {
    // From here on descriptors are plain numbers: step 6 closes most of them under their owners.
    let mut report_number = report.into_raw_fd();
    let Err(error) = confine(config, &mut report_number);
    let text = crate::describe(&error);
    let mut pipe = fds::borrow_file(report_number);
    // Without a reader there is nobody to tell.
    let _ = pipe.write_all(text.as_bytes());
    // SAFETY: ends this process at once; no destructor of the parent's copies may run here.
    unsafe { libc::_exit(1) }
}

fn confine(config: &JailConfig, report: &mut RawFd) -> Result<std::convert::Infallible, JailError> {
    process::new_session()?;
    let null = fds::open_null()?;
    root::enter(&config.root)?;
    process::set_host_name()?;
    process::reset_signals()?;
    let executable = fds::keep_only(&config.passed, config.executable, &null, report)?;
    process::set_limits(&config.limits)?;
    process::set_no_new_privileges()?;
    identity::drop_bounding_set()?;
    identity::become_user(config.uid, config.gid)?;
    identity::verify(config.uid, config.gid)?;
    fds::borrow_file(*report)
        .write_all(&[ABOUT_TO_EXEC])
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
        .act("write the report")?;
    process::execute(executable, PROGRAM_NAME, &config.arguments)
}
