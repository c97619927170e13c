//! What a node needs for measuring, as a read-only disk: our binaries, QEMU with its libraries and firmware, and initramfs
//! images with the benchmark's guest program as `/init`.

use crate::command;
use crate::cpio::Archive;
use crate::images::stock::StockKernel;
use crate::progress::{self, Step};
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a guest under test may need from a kernel that has everything as a module.
const MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "virtio_console",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
];
const BINARIES: &[&str] = &["pinfold-vmm", "pinfold-bench-node"];
const QEMU: &str = "qemu-system-x86_64";
/// Firmware of a `microvm` machine, and what `-kernel` needs.
const FIRMWARE: &[&str] = &["/usr/share/qemu", "/usr/share/seabios"];
const FIRMWARE_FILES: &[&str] = &[
    "qboot.rom",
    "bios-microvm.bin",
    "linuxboot_dma.bin",
    "linuxboot.bin",
    "kvmvapic.bin",
    "pvh.bin",
    "bios-256k.bin",
];
/// Runs once in a node: what QEMU wants to find at its usual places, and where the kernel counts and traces.
const PREPARE: &str = "#!/bin/sh
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
mkdir -p /usr/share /usr/bin
ln -s /bench/qemu/share/* /usr/share/
ln -s /bench/qemu/lib/* /lib/x86_64-linux-gnu/ 2>/dev/null
ln -s /bench/bin/* /usr/bin/ 2>/dev/null
ln -sf /bench/bin/pinfold-vmm /usr/bin/pinfold-vmm
[ -d /sys/kernel/debug/kvm ] && [ -d /sys/kernel/tracing/events/kvm ]
";
/// Room for the file system's own structures.
const SLACK_BYTES: u64 = 16 << 20;

/// Makes `build/bench/disk.ext4` anew: its binaries are what is measured.
pub fn make(workspace: &Workspace, stock: &StockKernel) -> Result<PathBuf> {
    let step =
        Step::begin("benchmark's disk", "our binaries, QEMU and the guest program, for the virtual node");
    let staging = workspace.build.join("bench/staging");
    if staging.exists() {
        fs::remove_dir_all(&staging).context("clearing the last disk's directory")?;
    }
    for directory in ["bin", "qemu/lib", "qemu/share"] {
        fs::create_dir_all(staging.join(directory))?;
    }
    for name in BINARIES {
        copy(&workspace.binaries().join(name), &staging.join("bin").join(name))?;
    }
    qemu(&staging)?;
    initramfs(workspace, None, &staging.join("hello.cpio"))?;
    initramfs(workspace, Some(stock), &staging.join("serve.cpio"))?;
    let prepare = staging.join("prepare");
    fs::write(&prepare, PREPARE)?;
    fs::set_permissions(&prepare, fs::Permissions::from_mode(0o755))?;
    let disk = workspace.build.join("bench/disk.ext4");
    let bytes = write(workspace, &step, &staging, &disk)?;
    step.done(&progress::megabytes(bytes));
    Ok(disk)
}

fn qemu(staging: &Path) -> Result<()> {
    let program = command::find(QEMU).context("QEMU is missing (package qemu-system-x86)")?;
    copy(&program, &staging.join("bin").join(QEMU))?;
    let text = command::output(Command::new("ldd").arg(&program))?;
    for library in text.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new) {
        let name = library.file_name().context("a library has a name")?;
        copy(library, &staging.join("qemu/lib").join(name))?;
    }
    for directory in FIRMWARE.iter().map(Path::new) {
        let target = staging.join("qemu/share").join(directory.file_name().context("it has a name")?);
        fs::create_dir_all(&target)?;
        for name in FIRMWARE_FILES.iter().filter(|name| directory.join(name).is_file()) {
            copy(&directory.join(name), &target.join(name))?;
        }
    }
    Ok(())
}

/// With what a guest that serves needs of a kernel that has everything as a module: those, and busybox's `ip`.
fn initramfs(workspace: &Workspace, modules_of: Option<&StockKernel>, path: &Path) -> Result<()> {
    let modules = modules_of.map(|kernel| kernel.modules(MODULES)).transpose()?.unwrap_or_default();
    let mut archive = Archive::new(fs::File::create(path)?);
    archive.directory("dev", 0o755)?;
    archive.directory("proc", 0o755)?;
    archive.directory("sys", 0o755)?;
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.host_file("init", 0o755, &workspace.binaries().join("pinfold-bench-guest"))?;
    if modules_of.is_some() {
        let busybox = command::find("busybox").context("busybox is missing (package busybox-static)")?;
        archive.host_file("busybox", 0o755, &busybox)?;
    }
    let mut list = String::new();
    for module in &modules {
        list.push_str(&format!("/modules/{}\n", module.file_name));
        archive.file(&format!("modules/{}", module.file_name), 0o644, &module.content()?)?;
    }
    archive.file("modules.list", 0o644, list.as_bytes())?;
    archive.finish().map(drop)
}

fn write(workspace: &Workspace, step: &Step, staging: &Path, disk: &Path) -> Result<u64> {
    let text = command::output(Command::new("du").args(["-sb", "--apparent-size"]).arg(staging))?;
    let used: u64 = text.split_whitespace().next().unwrap_or_default().parse().context("reading du")?;
    let bytes = (used + SLACK_BYTES).next_multiple_of(1 << 20);
    fs::File::create(disk)?.set_len(bytes)?;
    let mke2fs = command::find("mke2fs").context("mke2fs is missing (package e2fsprogs)")?;
    let mut command = Command::new(mke2fs);
    command.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-m",
        "0",
        "-N",
        "512",
        "-O",
        "^has_journal,^resize_inode",
        "-d",
    ]);
    command::run(step, &workspace.log("bench-disk"), command.arg(staging).arg(disk))?;
    Ok(bytes)
}

fn copy(source: &Path, target: &Path) -> Result<()> {
    fs::copy(source, target)
        .map(drop)
        .with_context(|| format!("copying {} to {}", source.display(), target.display()))
}
