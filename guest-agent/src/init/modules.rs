//! Kernel modules of the initramfs: `/modules.list` names one file a line, in the order in which to load them.
//!
//! A module that fails is not the end: what needed it says what is missing, and a kernel may have it built in.

use crate::console;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use std::fs::{self, File};
use std::io;

const LIST: &str = "/modules.list";

/// Loads them and removes their files, which would hold memory of the guest.
pub fn load_all() {
    // a kernel with all built in comes without a list
    let Ok(list) = fs::read_to_string(LIST) else { return };
    for path in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Err(error) = load(path) {
            console::say(format_args!("module {path}: {error}"));
        }
        // left where it is when this fails, which costs memory only
        drop(fs::remove_file(path));
    }
    drop(fs::remove_file(LIST));
}

fn load(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Err(Errno::EEXIST) => Ok(()),
        other => Ok(other?),
    }
}
