//! File systems, modules and devices, in that order.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use std::fs::{self, File};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

const MODULES: &str = "/modules.list";
/// Looks for a device, 10 ms apart.
const LOOKS: u32 = 500;

pub fn proc() -> Result<()> {
    mount_at("proc", "/proc")
}

pub fn the_rest() -> Result<()> {
    mount_at("sysfs", "/sys")?;
    mount_at("devtmpfs", "/dev")?;
    let list = fs::read_to_string(MODULES).unwrap_or_default();
    for path in list.lines() {
        let file = File::open(path).with_context(|| path.to_owned())?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => println!("module {path}: {error}"),
        }
    }
    Ok(())
}

/// Waits a bounded time until `there` says yes. Devices appear some milliseconds after their driver.
pub fn appears(mut there: impl FnMut() -> bool) -> bool {
    for _ in 0..LOOKS {
        if there() {
            return true;
        }
        sleep(Duration::from_millis(10));
    }
    false
}

fn mount_at(kind: &str, path: &str) -> Result<()> {
    fs::create_dir_all(path)?;
    if kind == "devtmpfs" && Path::new("/dev/null").exists() {
        return Ok(());
    }
    mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting {kind} on {path}"))
}
