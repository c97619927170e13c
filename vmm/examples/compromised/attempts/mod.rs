//! What a VMM tries that is no longer ours: one function each, as few system calls as show the point.
//!
//! An attempt is made by a process of an ordinary uid. [`Stops`] says which layer refuses it when it stands alone; the
//! test holds each of these claims against the kernel.

mod files;
mod kernel;
mod machine;
mod memory;
mod network;
mod processes;

use std::ffi::CString;
use std::fmt;

/// `Ok` when the forbidden thing was done, else the errno.
pub type Outcome = Result<i64, i32>;

pub struct Attempt {
    pub name: &'static str,
    pub what: &'static str,
    pub stops: Stops,
    pub act: fn(&World) -> Outcome,
}

/// Which layer refuses, alone.
#[derive(Debug, Clone, Copy)]
pub struct Stops {
    /// an ordinary uid without any capability is enough
    uid: bool,
    /// from this version of Landlock on
    landlock: Option<u32>,
    /// namespaces, own root, limits, closed descriptors
    jail: bool,
    /// the filter of the device thread; that of vCPU threads always, or the call is harmless there
    seccomp: bool,
}

/// What the test has put up for the attempts.
#[derive(Debug, Default)]
pub struct World {
    /// a directory of the host that everybody may write to, with a file `file`, a program `program` and a listening Unix
    /// socket `service`
    pub outside: CString,
    /// a process of the same uid
    pub victim: i32,
    /// a TCP and UDP port of the loopback with a listener
    pub port: u16,
    /// an abstract Unix socket with a listener
    pub abstract_name: String,
    /// a regular file that was passed on, open for writing
    pub file: i32,
}

pub const ALL: &[&[Attempt]] =
    &[files::ALL, processes::ALL, memory::ALL, network::ALL, kernel::ALL, machine::ALL];

/// Nobody but the seccomp filter.
const SECCOMP: Stops = Stops { uid: false, landlock: None, jail: false, seccomp: true };
const JAIL: Stops = Stops { jail: true, ..SECCOMP };
const fn landlock(version: u32) -> Stops {
    Stops { landlock: Some(version), ..SECCOMP }
}
/// The jail, and Landlock from this version on.
const fn both(version: u32) -> Stops {
    Stops { landlock: Some(version), ..JAIL }
}
/// It needs a privilege.
const UID: Stops = Stops { uid: true, ..SECCOMP };

impl fmt::Display for Stops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.landlock.map_or("-".to_owned(), |version| version.to_string());
        write!(f, "{}\t{version}\t{}\t{}", self.uid, self.jail, self.seccomp)
    }
}

/// A system call by number; pointers go as addresses.
fn call<const N: usize>(number: i64, arguments: [usize; N]) -> Outcome {
    let [a, b, c, d, e, f] = std::array::from_fn(|index| arguments.get(index).copied().unwrap_or(0));
    // SAFETY: that of the process that tries it: what an attempt passes lives through the call, and the process ends.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result >= 0 { Ok(result) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

fn at(text: &CString) -> usize {
    text.as_ptr() as usize
}

/// The number as the kernel takes a negative one.
fn number(value: i32) -> usize {
    value as usize
}

const HERE: i32 = libc::AT_FDCWD;

impl World {
    /// A path below the directory outside.
    fn path(&self, name: &str) -> CString {
        let mut bytes = self.outside.as_bytes().to_vec();
        bytes.extend([b"/", name.as_bytes()].concat());
        CString::new(bytes).expect("a name of this program holds no NUL")
    }
}
