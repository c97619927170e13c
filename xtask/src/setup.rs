//! The distribution packages that building and running needs, by name.

use crate::apt::{self, Distribution};
use crate::progress::Step;
use crate::workspace::Workspace;
use anyhow::Result;

/// What each is for stands beside it.
const PACKAGES: &[&str] = &[
    "gcc",             // the linker of every Rust binary
    "libc6-dev",       // static binaries link with its libc.a
    "make",            // the Makefile, the guest kernel
    "git",             // the demo's files come and go with it
    "mmdebstrap",      // root file system of the guest
    "erofs-utils",     // its read-only image
    "e2fsprogs",       // disks of the virtual node, and mke2fs in it
    "xfsprogs",        // the virtual node's scratch disk shares blocks between files
    "busybox-static",  // user space of the virtual node
    "kmod",            // which kernel module needs which
    "cpio",            // the tests read our archives with it
    "zstd",            // modules and kernel of Ubuntu
    "lz4",             // Debian's kernel
    "qemu-system-x86", // the virtual node itself
    "iproute2",        // the tap of a hostile guest
];

/// Needed by `cargo xtask kernel` only.
pub const KERNEL_PACKAGES: &[&str] =
    &["gcc", "make", "flex", "bison", "bc", "libelf-dev", "libssl-dev", "xz-utils", "perl", "python3"];

pub fn run(workspace: &Workspace) -> Result<()> {
    ensure(workspace, PACKAGES, "the tools that build and run the product, from the distribution")
}

/// Installs what is missing of `packages`.
pub fn ensure(workspace: &Workspace, packages: &[&str], why: &str) -> Result<()> {
    let missing = apt::missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let distribution = Distribution::of_this_machine()?;
    let step = Step::begin("packages", &format!("{why}; missing: {}", missing.join(" ")));
    apt::install(workspace, &step, &missing)?;
    step.done(&format!("{} installed from {} {}", missing.len(), distribution.id, distribution.codename));
    Ok(())
}
