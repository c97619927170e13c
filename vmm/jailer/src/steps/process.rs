//! Steps 3, 5, 6, 9, 10 and 13: attributes of the process, and the exec.

use crate::jail::{Act, JailError};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{sethostname, setsid};
use pinfold_vmm_api::jail::JailLimits;
use std::ffi::CString;
use std::os::fd::{BorrowedFd, RawFd};

/// RLIMIT_STACK, of the main thread; the others have their own size.
const STACK_BYTES: u64 = 8 << 20;
/// RLIMIT_NPROC: 32 vCPUs, the device thread, the kernel's own threads for KVM and io_uring.
const THREADS_MAX: u64 = 64;
/// RLIMIT_MEMLOCK: the queues of an io_uring for each disk are counted against it.
const LOCKED_BYTES_MAX: u64 = 1 << 20;
/// RLIMIT_SIGPENDING
const SIGNALS_MAX: u64 = 1024;

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

/// Limits of the process, while the privilege to raise those that were inherited too low is still there.
pub fn set_limits(limits: &JailLimits) -> Result<(), JailError> {
    let values = [
        (Resource::RLIMIT_NOFILE, limits.open_files),
        (Resource::RLIMIT_FSIZE, limits.file_size_bytes),
        // guest memory must not land in a core file on the host
        (Resource::RLIMIT_CORE, 0),
        // an unlimited stack would make the kernel lay out memory bottom up, with fewer random bits
        (Resource::RLIMIT_STACK, STACK_BYTES),
        (Resource::RLIMIT_NICE, 0),
        (Resource::RLIMIT_RTPRIO, 0),
    ];
    set(&values)?;
    // See `set_counted_limits`. Root in a container may not raise it; what it inherited bounds its own processes already.
    let _ = setrlimit(Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY);
    umask(Mode::from_bits_truncate(0o077));
    Ok(())
}

/// Limits that the kernel counts for a uid. A user namespace keeps those of its maker as the bound of all that it counts
/// for him, which are the processes of the whole host, so these come after it.
pub fn set_counted_limits() -> Result<(), JailError> {
    set(&[
        (Resource::RLIMIT_NPROC, THREADS_MAX),
        (Resource::RLIMIT_SIGPENDING, SIGNALS_MAX),
        (Resource::RLIMIT_MEMLOCK, LOCKED_BYTES_MAX),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ])
}

fn set(values: &[(Resource, u64)]) -> Result<(), JailError> {
    for &(resource, value) in values {
        setrlimit(resource, value, value).act("set a resource limit")?;
    }
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
    // SAFETY: step 8 has just made this descriptor, and nothing closes it before the exec does.
    let file = unsafe { BorrowedFd::borrow_raw(executable) };
    nix::unistd::execveat(file, c"", &words, &environment, nix::fcntl::AtFlags::AT_EMPTY_PATH)
        .act("execute the VMM")
}
