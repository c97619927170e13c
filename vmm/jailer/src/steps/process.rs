//! Steps 3, 5, 7, 8 and 11: attributes of the process, and the exec.

use crate::jail::{Act, JailError};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{sethostname, setsid};
use pinfold_vmm_api::jail::JailLimits;
use std::ffi::CString;
use std::os::fd::{BorrowedFd, RawFd};

/// Away from the node agent's session: no terminal, and no signal that is sent to its process group.
pub fn new_session() -> Result<(), JailError> {
    setsid().map(drop).act("start a session")
}

pub fn set_host_name() -> Result<(), JailError> {
    sethostname("pinfold").act("set the host name")
}

/// Ignored and blocked signals are inherited over exec; the VMM begins with none.
pub fn reset_signals() -> Result<(), JailError> {
    for number in Signal::iterator() {
        if matches!(number, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        // SAFETY: the default action runs no code of this process.
        unsafe { signal(number, SigHandler::SigDfl) }.act("reset a signal's action")?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).act("unblock signals")
}

pub fn set_limits(limits: &JailLimits) -> Result<(), JailError> {
    let values = [
        (Resource::RLIMIT_NOFILE, limits.open_files),
        (Resource::RLIMIT_FSIZE, limits.file_size_bytes),
        // guest memory must not land in a core file on the host
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ];
    for (resource, value) in values {
        setrlimit(resource, value, value).act("set a resource limit")?;
    }
    umask(Mode::from_bits_truncate(0o077));
    Ok(())
}

pub fn set_no_new_privileges() -> Result<(), JailError> {
    prctl::set_no_new_privs().act("forbid new privileges")
}

/// Becomes the file behind `executable`, with an empty environment. Returns only when that fails.
pub fn execute(
    executable: RawFd,
    name: &str,
    arguments: &[String],
) -> Result<std::convert::Infallible, JailError> {
    let words: Result<Vec<CString>, _> =
        std::iter::once(name).chain(arguments.iter().map(String::as_str)).map(CString::new).collect();
    let words = words.map_err(|_| Errno::EINVAL).act("pass the arguments on")?;
    let environment: [CString; 0] = [];
    // SAFETY: step 6 has just made this descriptor, and nothing closes it before the exec does.
    let file = unsafe { BorrowedFd::borrow_raw(executable) };
    nix::unistd::execveat(file, c"", &words, &environment, nix::fcntl::AtFlags::AT_EMPTY_PATH)
        .act("execute the VMM")
}
