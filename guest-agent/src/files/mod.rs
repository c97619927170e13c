//! Files of the guest, read and written with the rights of a guest user.
//!
//! The agent is root, so it takes on the user's file-system identity for each step ([`identity`]), on threads of its own
//! ([`workers`]). A step is short: no thread waits for a caller. Only regular files are read and written.

pub mod identity;
pub mod read;
pub mod workers;
pub mod write;

pub use workers::Workers;

use nix::errno::Errno;
use pinfold_domain::{Cause, Reason};
use std::fs::FileType;
use std::io;
use std::os::unix::fs::FileTypeExt;

/// What a caller is told of `error`, which came of doing `act` ("read", "write") with `path`.
fn cause(act: &str, path: &str, error: &io::Error) -> Cause {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let reason = match errno {
        Errno::ENOENT => Reason::FileNotFound,
        Errno::EACCES | Errno::EPERM | Errno::EROFS => Reason::FilePermission,
        Errno::ENOTDIR | Errno::EISDIR | Errno::ELOOP | Errno::ENXIO | Errno::ETXTBSY => {
            Reason::FileWrongType
        }
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => Reason::DiskFull,
        Errno::ENAMETOOLONG => Reason::InvalidArgument,
        _ => Reason::Internal,
    };
    let why = match error.raw_os_error() {
        Some(_) => errno.desc().to_lowercase(),
        None => error.to_string(),
    };
    Cause::new(reason, format!("cannot {act} {}: {why}", excerpt(path)))
}

fn wrong_type(act: &str, path: &str, kind: &str) -> Cause {
    let path = excerpt(path);
    Cause::new(Reason::FileWrongType, format!("cannot {act} {path}: it is {kind}, not a regular file"))
}

/// A path for a message: whole paths are up to 4,095 bytes.
fn excerpt(path: &str) -> String {
    let mut short: String = path.chars().take(200).collect();
    if short.len() < path.len() {
        short.push_str("...");
    }
    short
}

/// What stands in the way of a regular file, with its article.
fn kind_of(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_block_device() || kind.is_char_device() => "a device",
        kind if kind.is_symlink() => "a symbolic link to nowhere",
        _ => "of an unknown kind",
    }
}
