//! The child's side, between fork and exec. Only async-signal-safe calls (signal-safety(7)): no allocation, no lock, no
//! panic. All that it needs was made ready by its parent.

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::ptr;

/// Where a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// cgroup, session, terminal, standard streams: a fault of the agent's
    Setup = 1,
    Credentials = 2,
    Directory = 3,
    Exec = 4,
    /// the file is there, but what it names as its interpreter is not
    Interpreter = 5,
}

impl Step {
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Setup, Self::Credentials, Self::Directory, Self::Exec, Self::Interpreter]
            .into_iter()
            .find(|&step| step as u8 == byte)
    }
}

/// Length of what a child that fails writes to its report: the step, three zeros, errno in native order.
pub const REPORT_BYTES: usize = 8;

/// Raw, because a child must not own: dropping would close or free what its parent has.
pub struct Orders<'a> {
    /// `cgroup.procs` of its cgroup, or -1
    pub entrance: RawFd,
    pub stdin: RawFd,
    pub stdout: RawFd,
    pub stderr: RawFd,
    /// stdin is a terminal that becomes the controlling one
    pub on_terminal: bool,
    pub report: RawFd,
    /// whether this process may take another user's identity
    pub change_user: bool,
    pub uid: u32,
    pub gid: u32,
    pub groups: &'a [u32],
    pub directory: &'a CStr,
    pub directory_is_default: bool,
    pub candidates: &'a [*const libc::c_char],
    /// the arguments, NULL at the end
    pub arguments: &'a [*const libc::c_char],
    /// `/bin/sh`, a place for the path of a script without `#!`, its arguments, NULL
    pub script_arguments: &'a mut [*const libc::c_char],
    /// NULL at the end
    pub environment: &'a [*const libc::c_char],
}

struct Failure(Step, i32);

/// Becomes the program, or reports why not and ends with 127.
pub fn run(mut orders: Orders<'_>) -> ! {
    let Failure(step, errno) = match prepare(&orders) {
        Ok(()) => exec(&mut orders),
        Err(failure) => failure,
    };
    let mut report = [0; REPORT_BYTES];
    report[0] = step as u8;
    report[4..].copy_from_slice(&errno.to_ne_bytes());
    // SAFETY: `report` is that many bytes; a pipe takes them whole or not at all.
    unsafe { libc::write(orders.report, report.as_ptr().cast(), report.len()) };
    // SAFETY: ends this process without running the parent's exit handlers.
    unsafe { libc::_exit(127) }
}

fn prepare(orders: &Orders<'_>) -> Result<(), Failure> {
    if orders.entrance >= 0 {
        // SAFETY: one byte of a literal. `0` means the writing process itself; a move is not held up by pids.max.
        let written = unsafe { libc::write(orders.entrance, c"0".as_ptr().cast(), 1) };
        check(Step::Setup, written)?;
    }
    be_an_ordinary_victim();
    reset_signals();
    raise_open_files();
    // SAFETY: takes no argument; a fresh child leads no group, so it may.
    check(Step::Setup, unsafe { libc::setsid() } as isize)?;
    if orders.on_terminal {
        // SAFETY: stdin is an open terminal; the last argument is a number.
        check(Step::Setup, unsafe { libc::ioctl(orders.stdin, libc::TIOCSCTTY, 0) } as isize)?;
    }
    for (from, to) in [(orders.stdin, 0), (orders.stdout, 1), (orders.stderr, 2)] {
        // SAFETY: both are numbers of descriptors; the copy stays open over exec.
        check(Step::Setup, unsafe { libc::dup2(from, to) } as isize)?;
    }
    keep_descriptors_from_the_program();
    if orders.change_user {
        take_identity(orders)?;
    }
    enter_directory(orders)
}

fn take_identity(orders: &Orders<'_>) -> Result<(), Failure> {
    // raw calls: the C library's would make the parent's other threads, which are not here, follow
    let (count, list) = (orders.groups.len(), orders.groups.as_ptr());
    // SAFETY: `list` points to `count` group numbers.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, count, list) };
    check(Step::Credentials, done as isize)?;
    // SAFETY: takes numbers only.
    let done = unsafe { libc::syscall(libc::SYS_setresgid, orders.gid, orders.gid, orders.gid) };
    check(Step::Credentials, done as isize)?;
    // SAFETY: takes numbers only.
    let done = unsafe { libc::syscall(libc::SYS_setresuid, orders.uid, orders.uid, orders.uid) };
    check(Step::Credentials, done as isize)
}

fn enter_directory(orders: &Orders<'_>) -> Result<(), Failure> {
    // SAFETY: a C string that the parent keeps.
    let entered = check(Step::Directory, unsafe { libc::chdir(orders.directory.as_ptr()) } as isize);
    if entered.is_err() && orders.directory_is_default {
        // SAFETY: a C string literal.
        return check(Step::Directory, unsafe { libc::chdir(c"/".as_ptr()) } as isize);
    }
    entered
}

/// The agent is the last that the kernel ends when memory runs out; what it starts is not.
fn be_an_ordinary_victim() {
    // SAFETY: a C string literal and a number.
    let fd = unsafe { libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd >= 0 {
        // SAFETY: one byte of a literal. Where it fails, the process is only harder to end.
        unsafe { libc::write(fd, c"0".as_ptr().cast(), 1) };
    }
}

/// Every descriptor of the agent closes at exec by itself; should a library have opened one that does not, it does now.
fn keep_descriptors_from_the_program() {
    // SAFETY: takes three numbers. A kernel before 5.11 refuses the flag, and nothing has changed then.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

fn reset_signals() {
    // the kernel's struct sigaction (sigaction(2), NOTES): no handler, no flags, no restorer, no mask; raw, because the C
    // library keeps two signals to itself, and this process may have inherited one as ignored
    let default_action = [0_u64; 4];
    for number in 1..=64 {
        let (action, mask_bytes) = (default_action.as_ptr(), size_of::<u64>());
        let nothing = ptr::null_mut::<u64>();
        // SAFETY: `action` is a whole kernel sigaction of zeros; no old one is asked for. SIGKILL and SIGSTOP refuse.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, action, nothing, mask_bytes) };
    }
    // SAFETY: all zeros is a valid signal set, the empty one.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is read; no old set is asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
}

/// Open files: what a login session of a common distribution has. Where it may not, the parent's limits stay.
fn raise_open_files() {
    let limit = libc::rlimit { rlim_cur: 1024, rlim_max: 524_288 };
    // SAFETY: `limit` is read.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}

/// Tries each candidate as execvp(3) does. Returns only when none can be run.
fn exec(orders: &mut Orders<'_>) -> Failure {
    let mut failure = Failure(Step::Exec, libc::ENOENT);
    for &candidate in orders.candidates {
        let (arguments, environment) = (orders.arguments.as_ptr(), orders.environment.as_ptr());
        // SAFETY: a C string and two lists of C strings with NULL at their ends.
        unsafe { libc::execve(candidate, arguments, environment) };
        match last_errno() {
            libc::ENOEXEC => return exec_script(orders, candidate),
            libc::ENOENT if exists(candidate) => return Failure(Step::Interpreter, libc::ENOENT),
            libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG => {}
            // another directory of PATH may have one that may be run
            libc::EACCES => failure = Failure(Step::Exec, libc::EACCES),
            other => return Failure(Step::Exec, other),
        }
    }
    failure
}

/// A text file without `#!` is run by the shell, as POSIX has it for execvp.
fn exec_script(orders: &mut Orders<'_>, script: *const libc::c_char) -> Failure {
    orders.script_arguments[1] = script;
    let (arguments, environment) = (orders.script_arguments.as_ptr(), orders.environment.as_ptr());
    // SAFETY: a C string literal and two lists of C strings with NULL at their ends.
    unsafe { libc::execve(c"/bin/sh".as_ptr(), arguments, environment) };
    Failure(Step::Exec, libc::ENOEXEC)
}

fn exists(path: *const libc::c_char) -> bool {
    // SAFETY: `path` is a C string of the candidates.
    unsafe { libc::access(path, libc::F_OK) == 0 }
}

fn check(step: Step, result: isize) -> Result<(), Failure> {
    if result < 0 { Err(Failure(step, last_errno())) } else { Ok(()) }
}

fn last_errno() -> i32 {
    // SAFETY: the address of this thread's errno.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: valid as long as the thread.
    unsafe { *place }
}
