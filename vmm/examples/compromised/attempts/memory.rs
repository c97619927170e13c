//! Memory that can run, memory that is shared, memory that is pinned.

use super::{Attempt, JAIL, Outcome, SECCOMP, World, both, call, number};

pub const ALL: &[Attempt] = &[
    Attempt { name: "mmap-exec", what: "map memory that can run", stops: SECCOMP, act: mmap_exec },
    Attempt {
        name: "mprotect-exec",
        what: "let memory run that was written",
        stops: SECCOMP,
        act: mprotect_exec,
    },
    Attempt { name: "mmap-file", what: "map a passed file", stops: SECCOMP, act: mmap_file },
    Attempt { name: "memfd", what: "make a file in memory", stops: SECCOMP, act: memfd },
    Attempt { name: "mlock", what: "pin memory", stops: JAIL, act: mlock },
    Attempt { name: "shmget", what: "make shared memory", stops: SECCOMP, act: shmget },
    Attempt { name: "mq-open", what: "make a message queue", stops: both(1), act: mq_open },
    Attempt { name: "userfaultfd", what: "handle page faults", stops: SECCOMP, act: userfaultfd },
];

const PAGE: usize = 4096;
const ANONYMOUS: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
const WRITABLE: usize = (libc::PROT_READ | libc::PROT_WRITE) as usize;

fn mmap_exec(_: &World) -> Outcome {
    call(libc::SYS_mmap, [0, PAGE, WRITABLE | libc::PROT_EXEC as usize, ANONYMOUS, usize::MAX, 0])
}

fn mprotect_exec(_: &World) -> Outcome {
    let page = call(libc::SYS_mmap, [0, PAGE, WRITABLE, ANONYMOUS, usize::MAX, 0])? as usize;
    call(libc::SYS_mprotect, [page, PAGE, (libc::PROT_READ | libc::PROT_EXEC) as usize])
}

fn mmap_file(world: &World) -> Outcome {
    call(libc::SYS_mmap, [0, PAGE, WRITABLE, libc::MAP_SHARED as usize, number(world.file), 0])
}

fn memfd(_: &World) -> Outcome {
    call(libc::SYS_memfd_create, [c"m".as_ptr() as usize, 0])
}

/// Two MiB: the jail leaves one, for the queues of io_uring.
fn mlock(_: &World) -> Outcome {
    const BYTES: usize = 2 << 20;
    let memory = call(libc::SYS_mmap, [0, BYTES, WRITABLE, ANONYMOUS, usize::MAX, 0])? as usize;
    call(libc::SYS_mlock, [memory, BYTES])
}

fn shmget(_: &World) -> Outcome {
    call(libc::SYS_shmget, [libc::IPC_PRIVATE as usize, PAGE, libc::IPC_CREAT as usize | 0o600])
}

fn mq_open(_: &World) -> Outcome {
    let name = format!("pinfold{}\0", std::process::id());
    let flags = (libc::O_CREAT | libc::O_RDWR) as usize;
    call(libc::SYS_mq_open, [name.as_ptr() as usize, flags, 0o600, 0])?;
    call(libc::SYS_mq_unlink, [name.as_ptr() as usize])
}

fn userfaultfd(_: &World) -> Outcome {
    // UFFD_USER_MODE_ONLY, which needs no privilege
    call(libc::SYS_userfaultfd, [1])
}
