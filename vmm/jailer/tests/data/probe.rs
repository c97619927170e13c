//! Stands in for the VMM in the jailer's test: says on descriptor 3 what it sees, then waits for the end of
//! descriptor 4. The test compiles it statically, since the jail has no library to load.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

/// asm-generic/fcntl.h: a FIFO without a writer must not hold the probe up
const O_NONBLOCK: i32 = 0o4000;

fn main() {
    // SAFETY: the jailer's test passes this descriptor, and nothing else uses it.
    let mut out = unsafe { File::from_raw_fd(3) };
    let arguments: Vec<String> = std::env::args().collect();
    let mut entries: Vec<String> = std::fs::read_dir("/")
        .expect("list the root")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    entries.sort();
    let create = File::create("/made").map(drop).map_err(|error| error.raw_os_error());
    let up = std::fs::metadata("/../../dev/null").map(drop).map_err(|error| error.raw_os_error());
    let lines = [
        format!("arguments {arguments:?}"),
        format!("environment {}", std::env::vars_os().count()),
        format!("pid {}", std::process::id()),
        format!("root {entries:?}"),
        format!("directory {:?}", std::env::current_dir().expect("a working directory")),
        format!("create {create:?}"),
        format!("up {up:?}"),
    ];
    let mut lines = lines.to_vec();
    for entry in &entries {
        let open = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(format!("/{entry}"));
        lines.push(format!("opened {entry} {:?}", open.map(drop).map_err(|error| error.raw_os_error())));
        let run = Command::new(format!("/{entry}")).spawn();
        lines.push(format!("run {entry} {:?}", run.map(drop).map_err(|error| error.raw_os_error())));
        let connect = UnixStream::connect(format!("/{entry}"));
        lines.push(format!("connected {entry} {:?}", connect.map(drop).map_err(|error| error.raw_os_error())));
    }
    out.write_all((lines.join("\n") + "\n").as_bytes()).expect("write");
    drop(out);
    // SAFETY: the same.
    let mut wait = unsafe { File::from_raw_fd(4) };
    wait.read_to_end(&mut Vec::new()).expect("wait");
}
