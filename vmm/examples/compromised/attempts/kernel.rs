//! Parts of the kernel that a VMM has no business with.

use super::{Attempt, Outcome, SECCOMP, UID, World, call, number};

pub const ALL: &[Attempt] = &[
    Attempt { name: "io-uring", what: "make an io_uring", stops: SECCOMP, act: io_uring },
    Attempt { name: "bpf", what: "make a BPF map", stops: UID, act: bpf },
    Attempt { name: "seccomp", what: "install a filter of its own", stops: SECCOMP, act: seccomp },
    Attempt { name: "landlock", what: "make a Landlock ruleset", stops: SECCOMP, act: landlock },
    Attempt { name: "keyctl", what: "make a session keyring", stops: SECCOMP, act: keyctl },
    Attempt { name: "add-key", what: "store a key", stops: SECCOMP, act: add_key },
    Attempt { name: "perf-event", what: "measure the processor", stops: UID, act: perf_event },
    Attempt { name: "kexec", what: "load another kernel", stops: UID, act: kexec },
    Attempt { name: "init-module", what: "load a module", stops: UID, act: init_module },
    Attempt { name: "reboot", what: "restart the host", stops: UID, act: reboot },
    Attempt { name: "iopl", what: "reach I/O ports", stops: UID, act: iopl },
    Attempt { name: "clock-settime", what: "set the host's clock", stops: UID, act: clock_settime },
    Attempt { name: "sethostname", what: "change the host's name", stops: UID, act: sethostname },
    Attempt { name: "swapoff", what: "turn off swap", stops: UID, act: swapoff },
    Attempt { name: "modify-ldt", what: "change its segments", stops: SECCOMP, act: modify_ldt },
    Attempt { name: "tiocsti", what: "type into the terminal", stops: UID, act: tiocsti },
];

fn io_uring(_: &World) -> Outcome {
    let parameters = [0_u8; 120];
    call(libc::SYS_io_uring_setup, [4, parameters.as_ptr() as usize])
}

fn bpf(_: &World) -> Outcome {
    // BPF_MAP_CREATE of an array: type, key size, value size, entries
    let attributes = [2_u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    call(libc::SYS_bpf, [0, attributes.as_ptr() as usize, size_of_val(&attributes)])
}

fn seccomp(_: &World) -> Outcome {
    call(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as usize, 1])?;
    // one instruction: allow
    let program = [0x06_u64 | 0x7fff_0000 << 32];
    let filter = [1_usize, program.as_ptr() as usize];
    call(libc::SYS_seccomp, [1, 0, filter.as_ptr() as usize])
}

fn landlock(_: &World) -> Outcome {
    // LANDLOCK_CREATE_RULESET_VERSION
    match call(libc::SYS_landlock_create_ruleset, [0, 0, 1]) {
        // the kernel has none: what counts is that the filter is asked first
        Err(libc::ENOSYS | libc::EOPNOTSUPP) => Ok(0),
        other => other,
    }
}

fn keyctl(_: &World) -> Outcome {
    // KEYCTL_JOIN_SESSION_KEYRING, without a name
    call(libc::SYS_keyctl, [1, 0])
}

fn add_key(_: &World) -> Outcome {
    const PROCESS_KEYRING: i32 = -2;
    let (kind, name) = (c"user".as_ptr() as usize, c"k".as_ptr() as usize);
    call(libc::SYS_add_key, [kind, name, name, 1, number(PROCESS_KEYRING)])
}

fn perf_event(_: &World) -> Outcome {
    // PERF_TYPE_HARDWARE, of all processes on processor 0
    let mut attributes = [0_u64; 16];
    attributes[0] = 128 << 32;
    call(libc::SYS_perf_event_open, [attributes.as_ptr() as usize, usize::MAX, 0, usize::MAX, 0])
}

fn kexec(_: &World) -> Outcome {
    call(libc::SYS_kexec_load, [0, 1, 0, 0])
}

fn init_module(_: &World) -> Outcome {
    call(libc::SYS_init_module, [0, 0, c"".as_ptr() as usize])
}

/// With a second word that the kernel does not know, so that even root gets an error.
fn reboot(_: &World) -> Outcome {
    call(libc::SYS_reboot, [0xfee1_dead, 1, 0])
}

fn iopl(_: &World) -> Outcome {
    call(libc::SYS_iopl, [3])
}

fn clock_settime(_: &World) -> Outcome {
    let time = [1_i64, 0];
    call(libc::SYS_clock_settime, [libc::CLOCK_REALTIME as usize, time.as_ptr() as usize])
}

fn sethostname(_: &World) -> Outcome {
    call(libc::SYS_sethostname, [c"taken".as_ptr() as usize, 5])
}

fn swapoff(_: &World) -> Outcome {
    call(libc::SYS_swapoff, [c"/none".as_ptr() as usize])
}

/// Reading is harmless and shows that the call is there, if it was built in.
fn modify_ldt(_: &World) -> Outcome {
    let mut entry = [0_u8; 16];
    match call(libc::SYS_modify_ldt, [0, entry.as_mut_ptr() as usize, entry.len()]) {
        Err(libc::ENOSYS) => Ok(0),
        other => other,
    }
}

/// There is no terminal among the descriptors: this is refused by what is not there.
fn tiocsti(_: &World) -> Outcome {
    let mut last = Err(libc::EBADF);
    for descriptor in 0..256 {
        last = call(libc::SYS_ioctl, [descriptor, libc::TIOCSTI as usize, c"x".as_ptr() as usize]);
        if last.is_ok() {
            break;
        }
    }
    last
}
