//! Paths: to read, to write, to make, to run, and ways around the root.

use super::{Attempt, HERE, Outcome, SECCOMP, UID, World, at, both, call, landlock, number};
use super::{JAIL, Stops};
use std::ffi::CString;

pub const ALL: &[Attempt] = &[
    Attempt { name: "open", what: "read a file of the host", stops: both(1), act: open },
    Attempt { name: "openat-create", what: "make a file of the host", stops: both(1), act: openat_create },
    Attempt { name: "openat2", what: "read a file by the newer call", stops: both(1), act: openat2 },
    Attempt { name: "open-write", what: "open a file to write to it", stops: both(1), act: open_write },
    Attempt { name: "open-root", what: "list its own root", stops: landlock(1), act: open_root },
    Attempt { name: "climb", what: "read a file through `..` of its root", stops: both(1), act: climb },
    Attempt {
        name: "other-root",
        what: "read a file through `/proc/<pid>/root` of another process",
        stops: both(1),
        act: other_root,
    },
    Attempt {
        name: "open-relative",
        what: "read a file relative to every open descriptor",
        stops: Stops { uid: true, ..JAIL },
        act: open_relative,
    },
    Attempt { name: "symlink-out", what: "read a file through a link", stops: both(1), act: symlink_out },
    Attempt { name: "truncate", what: "cut a file by its path", stops: both(3), act: truncate },
    Attempt { name: "mkdir", what: "make a directory", stops: both(1), act: mkdir },
    Attempt { name: "symlink", what: "make a link", stops: both(1), act: symlink },
    Attempt { name: "link", what: "make a second name of a file", stops: both(1), act: link },
    Attempt { name: "rename", what: "rename a file", stops: both(1), act: rename },
    Attempt { name: "unlink", what: "remove a file", stops: both(1), act: unlink },
    Attempt { name: "mknod-fifo", what: "make a FIFO", stops: both(1), act: mknod_fifo },
    Attempt { name: "mknod-device", what: "make a device", stops: UID, act: mknod_device },
    Attempt { name: "chmod", what: "change the mode of a file by its path", stops: JAIL, act: chmod },
    Attempt { name: "execve", what: "run a program", stops: both(1), act: execve },
    Attempt { name: "memfd-exec", what: "run a program from memory", stops: SECCOMP, act: memfd_exec },
    Attempt {
        name: "past-fsize",
        what: "write to a passed file past its limit of size",
        stops: Stops { seccomp: false, ..JAIL },
        act: past_fsize,
    },
    Attempt { name: "chroot", what: "change its root", stops: UID, act: chroot },
    Attempt { name: "pivot-root", what: "change the root of its namespace", stops: UID, act: pivot_root },
    Attempt { name: "mount", what: "mount a file system", stops: UID, act: mount },
    Attempt { name: "umount", what: "unmount its root", stops: UID, act: umount },
    Attempt { name: "open-tree", what: "clone a mount", stops: UID, act: open_tree },
    Attempt { name: "fsopen", what: "prepare a file system by the newer calls", stops: UID, act: fsopen },
    Attempt { name: "open-by-handle", what: "open a file by its handle", stops: UID, act: open_by_handle },
    Attempt { name: "inotify", what: "watch files", stops: JAIL, act: inotify },
];

const READ: usize = libc::O_RDONLY as usize;

fn open(world: &World) -> Outcome {
    call(libc::SYS_open, [at(&world.path("file")), READ])
}

fn openat_create(world: &World) -> Outcome {
    let flags = (libc::O_CREAT | libc::O_WRONLY) as usize;
    call(libc::SYS_openat, [number(HERE), at(&world.path("made")), flags, 0o600])
}

fn openat2(world: &World) -> Outcome {
    let how = [READ as u64, 0, 0];
    call(libc::SYS_openat2, [number(HERE), at(&world.path("file")), how.as_ptr() as usize, size_of_val(&how)])
}

fn open_write(world: &World) -> Outcome {
    call(libc::SYS_openat, [number(HERE), at(&world.path("file")), libc::O_WRONLY as usize])
}

fn open_root(_: &World) -> Outcome {
    call(libc::SYS_openat, [number(HERE), c"/".as_ptr() as usize, libc::O_DIRECTORY as usize])
}

fn climb(world: &World) -> Outcome {
    let path = CString::new(["/../../../..".as_bytes(), world.path("file").as_bytes()].concat());
    call(libc::SYS_openat, [number(HERE), at(&path.expect("no NUL")), READ])
}

fn other_root(world: &World) -> Outcome {
    let root = format!("/proc/{}/root", world.victim);
    let path = CString::new([root.as_bytes(), world.path("file").as_bytes()].concat());
    call(libc::SYS_openat, [number(HERE), at(&path.expect("no NUL")), READ])
}

/// A directory among the descriptors would be a way out of any root.
fn open_relative(_: &World) -> Outcome {
    let mut last = Err(libc::EBADF);
    for descriptor in 3..256 {
        last = call(libc::SYS_openat, [descriptor, c"../etc/passwd".as_ptr() as usize, READ]);
        if last != Err(libc::EBADF) && last != Err(libc::ENOTDIR) {
            break;
        }
    }
    last
}

fn symlink_out(world: &World) -> Outcome {
    call(libc::SYS_openat, [number(HERE), at(&world.path("link")), READ])
}

fn truncate(world: &World) -> Outcome {
    call(libc::SYS_truncate, [at(&world.path("file")), 0])
}

fn mkdir(world: &World) -> Outcome {
    call(libc::SYS_mkdirat, [number(HERE), at(&world.path("directory")), 0o700])
}

fn symlink(world: &World) -> Outcome {
    call(libc::SYS_symlink, [c"/etc".as_ptr() as usize, at(&world.path("to-etc"))])
}

fn link(world: &World) -> Outcome {
    call(libc::SYS_link, [at(&world.path("own")), at(&world.path("second"))])
}

fn rename(world: &World) -> Outcome {
    call(libc::SYS_rename, [at(&world.path("own")), at(&world.path("renamed"))])
}

fn unlink(world: &World) -> Outcome {
    call(libc::SYS_unlink, [at(&world.path("own"))])
}

fn mknod_fifo(world: &World) -> Outcome {
    call(libc::SYS_mknod, [at(&world.path("fifo")), libc::S_IFIFO as usize | 0o600, 0])
}

fn mknod_device(world: &World) -> Outcome {
    let memory = libc::makedev(1, 1) as usize;
    call(libc::SYS_mknod, [at(&world.path("mem")), libc::S_IFCHR as usize | 0o600, memory])
}

fn chmod(world: &World) -> Outcome {
    call(libc::SYS_chmod, [at(&world.path("own")), 0o777])
}

fn execve(world: &World) -> Outcome {
    let path = world.path("program");
    let words = [at(&path), 0];
    call(libc::SYS_execve, [at(&path), words.as_ptr() as usize, words[1..].as_ptr() as usize])
}

/// `exit(0)`: an ELF header, one program header that loads the whole file, seven bytes of code.
#[rustfmt::skip]
const PROGRAM: [u8; 129] = [
    0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    2, 0, 62, 0, 1, 0, 0, 0, 0x78, 0, 0x40, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0,
    1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0,
    129, 0, 0, 0, 0, 0, 0, 0, 129, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0,
    0x31, 0xff,                   // xor edi, edi
    0xb8, 0x3c, 0x00, 0x00, 0x00, // mov eax, 60
    0x0f, 0x05,                   // syscall
];

fn memfd_exec(_: &World) -> Outcome {
    let file = call(libc::SYS_memfd_create, [c"p".as_ptr() as usize, 0])? as usize;
    call(libc::SYS_write, [file, PROGRAM.as_ptr() as usize, PROGRAM.len()])?;
    let words = [c"p".as_ptr() as usize, 0];
    let arguments = words.as_ptr() as usize;
    let environment = words[1..].as_ptr() as usize;
    call(
        libc::SYS_execveat,
        [file, c"".as_ptr() as usize, arguments, environment, libc::AT_EMPTY_PATH as usize],
    )
}

/// The limit is 16 MiB in the test. SIGXFSZ is blocked in a VMM, so this is an error.
fn past_fsize(world: &World) -> Outcome {
    call(libc::SYS_pwrite64, [number(world.file), c"x".as_ptr() as usize, 1, 64 << 20])
}

fn chroot(world: &World) -> Outcome {
    call(libc::SYS_chroot, [at(&world.outside)])
}

fn pivot_root(_: &World) -> Outcome {
    call(libc::SYS_pivot_root, [c"/".as_ptr() as usize, c"/".as_ptr() as usize])
}

fn mount(world: &World) -> Outcome {
    let kind = c"tmpfs".as_ptr() as usize;
    call(libc::SYS_mount, [kind, at(&world.outside), kind])
}

fn umount(_: &World) -> Outcome {
    call(libc::SYS_umount2, [c"/".as_ptr() as usize, libc::MNT_DETACH as usize])
}

fn open_tree(_: &World) -> Outcome {
    call(libc::SYS_open_tree, [number(HERE), c"/".as_ptr() as usize, 1])
}

fn fsopen(_: &World) -> Outcome {
    call(libc::SYS_fsopen, [c"tmpfs".as_ptr() as usize, 0])
}

fn open_by_handle(world: &World) -> Outcome {
    let handle = [8_u32, 1, 2, 0, 0, 0];
    call(libc::SYS_open_by_handle_at, [number(world.file), handle.as_ptr() as usize, READ])
}

fn inotify(_: &World) -> Outcome {
    call(libc::SYS_inotify_init1, [0])
}
