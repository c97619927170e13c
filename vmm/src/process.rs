//! The process of one microVM, from its arguments to its exit code.
//!
//! ```text
//!   config read -> exit record taken -> smaps opened -> no dumps, no paths -> machine built -> bound, run -> record
//! ```
//!
//! From the fourth step on nothing can be opened; everything that a guest can shape (its kernel, its disks, its
//! snapshot) is read after it.

use crate::builder::{self, BuildError, Process};
use crate::descriptors::{self, Descriptors};
use crate::machine::Machine;
use crate::memory_use::OwnFiles;
use crate::seccomp::Thread;
use crate::{confinement, record};
use anyhow::Context;
use pinfold_vmm_api::MachineConfig;
use pinfold_vmm_api::control::{ExitReason, ExitRecord};
use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, RawFd};
use std::process::ExitCode;
use std::time::Instant;

/// A config is some hundred bytes; a longer one is none.
const CONFIG_BYTES_MAX: u64 = 64 * 1024;

/// What `pinfold-vmm run` was told.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub config_fd: RawFd,
    /// of a directory with a procfs, where the jail has none
    pub proc_fd: Option<RawFd>,
    /// when the process began
    pub began: Instant,
    /// Landlock is put in force. The program always does; a test that looks at the other layers does not.
    pub landlock: bool,
    /// Called on each thread once it is bound, before the guest runs. For the test that plays a VMM which a guest has
    /// taken over; the program has none.
    pub once_bound: Option<fn(Thread)>,
}

/// Microseconds that this process had of the processors, all its threads together; 0 where nobody counts them.
pub(crate) fn cpu_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which lives longer than it.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    if result != 0 {
        return 0;
    }
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1000
}

/// Runs the machine and ends the process. Returns only when there is no exit file to write to.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    name_the_process();
    let config = read_config(options.config_fd)?;
    // SAFETY: nothing in this process has used the descriptors of the config yet.
    let exit = unsafe { descriptors::take_exit(&config) }?;
    die_with_a_record(&exit)?;
    let own = OwnFiles::open(options.proc_fd);
    let record = match machine(&config, own, options, &exit) {
        Ok(machine) => machine.run(),
        Err(error) => ExitRecord::without_cost(error.reason(), error.to_string()),
    };
    eprintln!("pinfold-vmm {}: {:?}: {}", config.id, record.reason, record.message);
    let written = record::write(&exit, &record);
    // threads of vCPUs are still in the guest: nothing may be dropped, the process ends whole
    leave(i32::from(written.is_err()))
}

fn machine(
    config: &MachineConfig,
    own: OwnFiles,
    options: &Options,
    exit: &File,
) -> Result<Machine, BuildError> {
    config.validate()?;
    // SAFETY: nothing in this process has used the descriptors of the config yet, but for the exit record's.
    let descriptors = unsafe { Descriptors::take(config) }?;
    confinement::forbid_dumps()?;
    let landlock = if options.landlock { confinement::forbid_paths(config.vsock.as_ref())? } else { None };
    let confinement = confinement::told(landlock, !config.without_seccomp);
    let process = Process { own, confinement, began: options.began, exit };
    let mut machine = builder::build(config, descriptors, process)?;
    if let Some(call) = options.once_bound {
        machine.call_once_bound(call);
    }
    Ok(machine)
}

fn read_config(fd: RawFd) -> anyhow::Result<MachineConfig> {
    anyhow::ensure!(fd >= 3, "--config-fd is {fd}, it must be 3 or more");
    // SAFETY: nothing else in this process uses the descriptor; a wrong number makes the read fail.
    let file = unsafe { File::from_raw_fd(fd) };
    let mut text = String::new();
    file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).context("reading the config")?;
    anyhow::ensure!(
        text.len() as u64 <= CONFIG_BYTES_MAX,
        "the config takes more than {CONFIG_BYTES_MAX} bytes, which is its limit"
    );
    serde_json::from_str(&text).context("the config is not one")
}

/// A panic of any thread ends the machine, with a record.
fn die_with_a_record(exit: &File) -> anyhow::Result<()> {
    let exit = exit.try_clone().context("duplicating the exit descriptor")?;
    std::panic::set_hook(Box::new(move |panic| {
        end_with_a_record(&exit, ExitReason::Internal, format!("the VMM panicked: {panic}"))
    }));
    Ok(())
}

/// Ends the process at once, whatever its other threads do.
pub(crate) fn end_with_a_record(exit: &File, reason: ExitReason, message: String) -> ! {
    eprintln!("pinfold-vmm: {message}");
    let _ = record::write(exit, &ExitRecord::without_cost(reason, message));
    leave(1)
}

/// Executed by descriptor it is called by the number of that.
fn name_the_process() {
    // SAFETY: PR_SET_NAME reads a text that ends in NUL within 16 bytes. It cannot fail then.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"pinfold-vmm".as_ptr()) };
}

fn leave(code: i32) -> ! {
    // SAFETY: ends the process at once; nothing runs after it.
    unsafe { libc::_exit(code) }
}
