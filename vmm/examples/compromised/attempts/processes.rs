//! Other processes, more processes, other ids.

use super::{Attempt, JAIL, Outcome, SECCOMP, UID, World, both, call, number};

pub const ALL: &[Attempt] = &[
    Attempt { name: "fork", what: "become two processes", stops: SECCOMP, act: fork },
    Attempt { name: "clone3", what: "start a process by the newer call", stops: SECCOMP, act: clone3 },
    Attempt { name: "ptrace", what: "trace another process", stops: both(1), act: ptrace },
    Attempt {
        name: "process-vm-readv",
        what: "read another process's memory",
        stops: both(1),
        act: process_vm_readv,
    },
    Attempt { name: "pidfd-open", what: "hold another process", stops: JAIL, act: pidfd_open },
    Attempt {
        name: "pidfd-getfd",
        what: "take another process's descriptor",
        stops: both(1),
        act: pidfd_getfd,
    },
    Attempt { name: "kill", what: "signal another process", stops: both(6), act: kill },
    Attempt { name: "prlimit", what: "change another process's limits", stops: JAIL, act: prlimit },
    Attempt { name: "unshare-user", what: "be root in a user namespace", stops: JAIL, act: unshare_user },
    Attempt { name: "unshare-mount", what: "make a mount namespace", stops: UID, act: unshare_mount },
    Attempt { name: "setns", what: "enter another process's namespaces", stops: UID, act: setns },
    Attempt { name: "setuid", what: "become root", stops: UID, act: setuid },
    Attempt { name: "setuid-other", what: "become the neighbour's uid", stops: UID, act: setuid_other },
    Attempt { name: "setgroups", what: "join a group", stops: UID, act: setgroups },
    Attempt { name: "capset", what: "take a capability", stops: UID, act: capset },
    Attempt { name: "new-privileges", what: "allow new privileges again", stops: UID, act: new_privileges },
    Attempt { name: "dumpable", what: "let itself be dumped", stops: SECCOMP, act: dumpable },
    Attempt { name: "personality", what: "turn off random addresses", stops: SECCOMP, act: personality },
];

fn fork(_: &World) -> Outcome {
    let child = call(libc::SYS_fork, [])?;
    if child == 0 {
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    Ok(child)
}

fn clone3(_: &World) -> Outcome {
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, ...
    let mut arguments = [0_u64; 11];
    arguments[4] = libc::SIGCHLD as u64;
    let child = call(libc::SYS_clone3, [arguments.as_ptr() as usize, size_of_val(&arguments)])?;
    if child == 0 {
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    Ok(child)
}

fn ptrace(world: &World) -> Outcome {
    call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as usize, number(world.victim), 0, 0])
}

fn process_vm_readv(world: &World) -> Outcome {
    // Nothing is mapped at that address: EFAULT says that the reading itself was allowed.
    let mut bytes = [0_u8; 8];
    let local = [bytes.as_mut_ptr() as usize, bytes.len()];
    let remote = [4096_usize, bytes.len()];
    let (local, remote) = (local.as_ptr() as usize, remote.as_ptr() as usize);
    match call(libc::SYS_process_vm_readv, [number(world.victim), local, 1, remote, 1, 0]) {
        Err(libc::EFAULT) => Ok(0),
        other => other,
    }
}

fn pidfd_open(world: &World) -> Outcome {
    call(libc::SYS_pidfd_open, [number(world.victim), 0])
}

fn pidfd_getfd(world: &World) -> Outcome {
    let process = pidfd_open(world)? as usize;
    call(libc::SYS_pidfd_getfd, [process, 0, 0])
}

fn kill(world: &World) -> Outcome {
    call(libc::SYS_kill, [number(world.victim), libc::SIGURG as usize])
}

fn prlimit(world: &World) -> Outcome {
    let none = [0_u64, 0];
    call(libc::SYS_prlimit64, [number(world.victim), libc::RLIMIT_CORE as usize, none.as_ptr() as usize])
}

fn unshare_user(_: &World) -> Outcome {
    // A process with several threads cannot: it would begin with a fork.
    let child = call(libc::SYS_fork, [])?;
    if child == 0 {
        let errno = call(libc::SYS_unshare, [libc::CLONE_NEWUSER as usize]).err().unwrap_or(0);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(errno) };
    }
    let mut status = 0_i32;
    call(libc::SYS_wait4, [child as usize, (&raw mut status) as usize])?;
    match libc::WEXITSTATUS(status) {
        0 => Ok(0),
        errno => Err(errno),
    }
}

fn unshare_mount(_: &World) -> Outcome {
    call(libc::SYS_unshare, [libc::CLONE_NEWNS as usize])
}

fn setns(world: &World) -> Outcome {
    let process = pidfd_open(world)? as usize;
    call(libc::SYS_setns, [process, (libc::CLONE_NEWNET | libc::CLONE_NEWIPC) as usize])
}

fn setuid(_: &World) -> Outcome {
    call(libc::SYS_setresuid, [0, 0, 0])
}

fn setuid_other(_: &World) -> Outcome {
    call(libc::SYS_setresuid, [100_001, 100_001, 100_001])
}

fn setgroups(_: &World) -> Outcome {
    let group = [0_u32];
    call(libc::SYS_setgroups, [1, group.as_ptr() as usize])
}

fn capset(_: &World) -> Outcome {
    let header = [0x2008_0522_u32, 0];
    // CAP_SYS_ADMIN is bit 21
    let wanted = [1_u32 << 21, 1 << 21, 0, 0, 0, 0];
    call(libc::SYS_capset, [header.as_ptr() as usize, wanted.as_ptr() as usize])
}

fn new_privileges(_: &World) -> Outcome {
    call(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as usize, 0])
}

fn dumpable(_: &World) -> Outcome {
    call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1])
}

fn personality(_: &World) -> Outcome {
    call(libc::SYS_personality, [libc::ADDR_NO_RANDOMIZE as usize])
}
