//! Kernels and images that must fail, for the system tests. A sandbox that names one ends with the true reason.

use super::guest::{self, Recipe};
use super::stock::StockKernel;
use super::{replace, rootfs, write_if_changed};
use crate::command;
use crate::cpio::Archive;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{Read, Write};

/// Enough for a superblock and some inodes, far from a whole root file system.
const TRUNCATED_BYTES: u64 = 64 * 1024;

pub fn make(workspace: &Workspace, stock: &StockKernel) -> Result<()> {
    not_a_kernel(workspace)?;
    panicking_initramfs(workspace, stock)?;
    truncated_image(workspace)
}

/// A file that is neither a bzImage nor an ELF.
fn not_a_kernel(workspace: &Workspace) -> Result<()> {
    let name = "test-not-a-kernel";
    let directory = workspace.images().join("kernels").join(name);
    let garbage = workspace.cache().join(name);
    write_if_changed(&garbage, "this is not a kernel\n".repeat(1000).as_bytes())?;
    let recipe = Recipe { name, version: "none", file: "vmlinuz", source: &garbage, cmdline: guest::CMDLINE };
    guest::describe(workspace, &recipe)?;
    write_if_changed(&directory.join("initrd.cpio"), &initramfs(|_| Ok(()))?)
}

/// The stock kernel with an `/init` that ends at once, at which Linux panics.
fn panicking_initramfs(workspace: &Workspace, stock: &StockKernel) -> Result<()> {
    let name = "test-panic-initrd";
    let directory = workspace.images().join("kernels").join(name);
    let recipe = Recipe {
        name,
        version: &stock.version,
        file: "vmlinuz",
        source: &stock.vmlinuz(),
        cmdline: guest::CMDLINE,
    };
    guest::describe(workspace, &recipe)?;
    let busybox = command::find("busybox").context("busybox is missing (package busybox-static)")?;
    let archive = initramfs(|archive| {
        archive.host_file("bin/busybox", 0o755, &busybox)?;
        archive.file("init", 0o755, b"#!/bin/busybox false\n")
    })?;
    write_if_changed(&directory.join("initrd.cpio"), &archive)
}

fn initramfs(fill: impl FnOnce(&mut Archive<&mut Vec<u8>>) -> Result<()>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut archive = Archive::new(&mut bytes);
    archive.character_device("dev/console", 0o600, 5, 1)?;
    fill(&mut archive)?;
    archive.finish()?;
    Ok(bytes)
}

/// The beginning of the base image: it mounts or not, and reading past its end fails.
fn truncated_image(workspace: &Workspace) -> Result<()> {
    let name = "test-truncated";
    rootfs::describe(workspace, name, "the first bytes of base: for tests of a damaged image")?;
    let whole = workspace.images().join("base/rootfs.erofs");
    let path = workspace.images().join(name).join("rootfs.erofs");
    let mut beginning = Vec::new();
    let file = File::open(&whole).with_context(|| format!("opening {}", whole.display()))?;
    file.take(TRUNCATED_BYTES).read_to_end(&mut beginning)?;
    if fs::read(&path).is_ok_and(|old| old == beginning) {
        return Ok(());
    }
    replace(&path, |out| Ok(out.write_all(&beginning)?))
}
