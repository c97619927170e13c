//! The sandbox's root: the shared image, never written, under the sandbox's own disk.
//!
//! ```text
//! /dev/vda  erofs, read-only ───────── lower ┐
//! /dev/vdb  ext4, as large as its limit upper├ overlay = /        a write past the limit is ENOSPC of vdb
//!                                       work ┘
//! ```

use super::devices::{DeviceError, Devices};
use super::image::{self, HEAD_BYTES, Kind};
use super::mounts;
use crate::console::Fatal;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};

const IMAGE: &str = "/dev/vda";
const DISK: &str = "/dev/vdb";
const LOWER: &str = "/pinfold/image";
const UPPER: &str = "/pinfold/disk";
const ROOT: &str = "/pinfold/root";

/// Makes the root and moves there with `/dev`, `/proc` and `/sys`. Returns the disk's mount, which no path reaches any more.
pub fn assemble_and_switch() -> Result<OwnedFd, Fatal> {
    for path in [LOWER, UPPER, ROOT] {
        DirBuilder::new()
            .recursive(true)
            .create(path)
            .map_err(Fatal::internal("cannot make a mount point"))?;
    }
    let devices = Devices::listen().map_err(Fatal::internal("devices"))?;
    devices.wait_for(IMAGE).map_err(device_error(Fatal::RootImage))?;
    mount_image().map_err(Fatal::RootImage)?;
    devices.wait_for(DISK).map_err(device_error(Fatal::Disk))?;
    mount_disk().map_err(Fatal::Disk)?;
    mount_overlay()?;
    let disk = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(UPPER)
        .map_err(Fatal::internal("cannot hold the disk"))?;
    mounts::move_into(ROOT)?;
    switch().map_err(Fatal::internal("cannot change to the root"))?;
    Ok(disk.into())
}

fn device_error(whose: fn(String) -> Fatal) -> impl FnOnce(DeviceError) -> Fatal {
    move |error| match error {
        DeviceError::Missing { .. } => whose(error.to_string()),
        DeviceError::Listen(_) => Fatal::Internal(error.to_string()),
    }
}

fn mount_image() -> Result<(), String> {
    let (head, device_bytes) = read_head().map_err(|error| format!("cannot read {IMAGE}: {error}"))?;
    let kind: Kind = image::identify(&head, device_bytes)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
    mount(Some(IMAGE), LOWER, Some(kind.name()), flags, kind.options())
        .map_err(|errno| format!("cannot mount {IMAGE} as {}: {}", kind.name(), explain(errno)))?;
    // an image whose root cannot be listed is damaged
    fs::read_dir(LOWER)
        .and_then(|mut entries| entries.next().transpose())
        .map_err(|error| format!("cannot read the root directory of its {}: {error}", kind.name()))?;
    Ok(())
}

fn read_head() -> io::Result<([u8; HEAD_BYTES], u64)> {
    let mut device = File::open(IMAGE)?;
    let device_bytes = device.seek(SeekFrom::End(0))?;
    let mut head = [0; HEAD_BYTES];
    if device_bytes < HEAD_BYTES as u64 {
        // too small for a file system of any kind: no magic is found
        return Ok((head, device_bytes));
    }
    device.read_exact_at(&mut head, 0)?;
    Ok((head, device_bytes))
}

fn mount_disk() -> Result<(), String> {
    mount(Some(DISK), UPPER, Some("ext4"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| format!("cannot mount {DISK} as ext4: {}", explain(errno)))?;
    for directory in ["upper", "work"] {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(format!("{UPPER}/{directory}"));
        made.map_err(|error| format!("cannot make {directory}/ on {DISK}: {error}"))?;
    }
    Ok(())
}

fn mount_overlay() -> Result<(), Fatal> {
    let options = format!("lowerdir={LOWER},upperdir={UPPER}/upper,workdir={UPPER}/work");
    mount(Some("overlay"), ROOT, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|errno| Fatal::Internal(format!("cannot mount the overlay: {}", explain(errno))))
}

/// ENODEV of mount(2) is about the kernel, not the device.
fn explain(errno: Errno) -> String {
    match errno {
        Errno::ENODEV => "this kernel does not know that file system".to_owned(),
        Errno::EINVAL => "it is damaged (EINVAL)".to_owned(),
        other => format!("{} ({other:?})", other.desc().to_lowercase()),
    }
}

/// The initramfs cannot be left by pivot_root(2), so the new root is moved over it.
fn switch() -> nix::Result<()> {
    chdir(ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")
}
