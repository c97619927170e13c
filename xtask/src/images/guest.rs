//! Guest kernels as the node agent finds them: `images/kernels/<name>/{kernel.json, vmlinuz or vmlinux, initrd.cpio}`.
//!
//! The initramfs holds the guest agent as `/init`, and for a kernel with modules those that lead to the root file
//! system, with their order in `/modules.list`.

use super::own_kernel::OwnKernel;
use super::stock::{Module, StockKernel};
use super::{elf, link_or_copy, replace, write_if_changed};
use crate::cpio::Archive;
use crate::stamp::{self, Key};
use crate::workspace::Workspace;
use anyhow::Result;
use serde::Serialize;
use std::fs;
use std::io::Write;
use std::path::Path;

pub const STOCK: &str = "stock";
pub const NEWER: &str = "stock-6-12";
pub const OWN: &str = "pinfold";

/// What a sandbox needs from a kernel that has everything as a module.
const MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio-rng",
    "virtio_net",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "erofs",
    "overlay",
    // tells the VMM of a panic
    "pvpanic-mmio",
];

/// `quiet` keeps the boot's own lines off the serial port, each byte of which costs an exit; warnings still show.
/// `panic=-1` with `reboot=t` turns a panic into a reset, which ends the VMM. There is no PCI bus to look
/// for, though its first configuration mechanism answers; no keyboard controller to wait for; one serial port. A stock
/// kernel would test each of its ciphers against known answers, for half of its boot; they have been tested where it was made.
pub const CMDLINE: &str = "console=ttyS0 reboot=t panic=-1 quiet pci=conf1,noearly 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd cryptomgr.notests";

#[derive(Debug, Serialize)]
struct KernelDescription<'a> {
    name: &'a str,
    version: &'a str,
    file: &'a str,
    initrd: &'a str,
    cmdline: &'a str,
    /// whether virtio-mmio devices are named on the command line too
    mmio_on_cmdline: bool,
}

/// Where the kernel comes from.
pub struct Recipe<'a> {
    pub name: &'a str,
    pub version: &'a str,
    /// `vmlinuz` or `vmlinux`
    pub file: &'a str,
    pub source: &'a Path,
    pub cmdline: &'a str,
}

/// Writes the kernel and its description; the caller writes `initrd.cpio` beside them.
pub fn describe(workspace: &Workspace, recipe: &Recipe<'_>) -> Result<()> {
    let directory = workspace.images().join("kernels").join(recipe.name);
    let description = KernelDescription {
        name: recipe.name,
        version: recipe.version,
        file: recipe.file,
        initrd: "initrd.cpio",
        cmdline: recipe.cmdline,
        mmio_on_cmdline: false,
    };
    let target = directory.join(recipe.file);
    let key = Key::new(1).with("version", recipe.version).with_files([recipe.source])?;
    let stamp_name = format!("kernel-{}", recipe.name);
    if !stamp::is_fresh(workspace, &stamp_name, &key, &[&target]) {
        link_or_copy(recipe.source, &target)?;
        stamp::store(workspace, &stamp_name, &key)?;
    }
    write_if_changed(&directory.join("kernel.json"), &serde_json::to_vec_pretty(&description)?)
}

/// The stock kernel as an ELF image, which VMMs map, and beside it the bzImage that it comes from.
pub fn stock(workspace: &Workspace, kernel: &StockKernel) -> Result<()> {
    let unpacked = workspace.cache().join("stock-kernel.vmlinux");
    let key = Key::new(1).with("version", &kernel.version);
    if !stamp::is_fresh(workspace, "stock-kernel-elf", &key, &[&unpacked]) {
        let elf = elf::unpack(&kernel.vmlinuz())?;
        replace(&unpacked, |out| Ok(out.write_all(&elf)?))?;
        stamp::store(workspace, "stock-kernel-elf", &key)?;
    }
    let packed = workspace.images().join("kernels").join(STOCK).join("vmlinuz");
    let key = Key::new(1).with("version", &kernel.version);
    if !stamp::is_fresh(workspace, "stock-kernel-packed", &key, &[&packed]) {
        link_or_copy(&kernel.vmlinuz(), &packed)?;
        stamp::store(workspace, "stock-kernel-packed", &key)?;
    }
    let recipe = Recipe {
        name: STOCK,
        version: &kernel.version,
        file: "vmlinux",
        source: &unpacked,
        cmdline: CMDLINE,
    };
    describe(workspace, &recipe)?;
    initrd(workspace, STOCK, &kernel.version, || kernel.modules(MODULES))
}

/// The newer stock kernel as it is packaged: a bzImage.
pub fn newer(workspace: &Workspace, kernel: Option<&StockKernel>) -> Result<()> {
    let Some(kernel) = kernel else { return remove(workspace, NEWER) };
    let recipe = Recipe {
        name: NEWER,
        version: &kernel.version,
        file: "vmlinuz",
        source: &kernel.vmlinuz(),
        cmdline: CMDLINE,
    };
    describe(workspace, &recipe)?;
    initrd(workspace, NEWER, &kernel.version, || kernel.modules(MODULES))
}

/// Our own kernel when it is built; else what an earlier build left is removed.
pub fn own(workspace: &Workspace, kernel: Option<&OwnKernel>) -> Result<()> {
    let Some(kernel) = kernel else { return remove(workspace, OWN) };
    let recipe = Recipe {
        name: OWN,
        version: &kernel.version,
        file: "vmlinux",
        source: &kernel.vmlinux,
        cmdline: CMDLINE,
    };
    describe(workspace, &recipe)?;
    initrd(workspace, OWN, &kernel.version, || Ok(Vec::new()))
}

fn remove(workspace: &Workspace, name: &str) -> Result<()> {
    let directory = workspace.images().join("kernels").join(name);
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    Ok(())
}

fn initrd(
    workspace: &Workspace,
    name: &str,
    version: &str,
    modules: impl FnOnce() -> Result<Vec<Module>>,
) -> Result<()> {
    let init = workspace.binaries().join("pinfold-guest-agent");
    let path = workspace.images().join("kernels").join(name).join("initrd.cpio");
    let key = Key::new(1)
        .with("kernel", version)
        .with("modules", MODULES.join(" "))
        .with_files([init.as_path()])?;
    let stamp_name = format!("initrd-{name}");
    if stamp::is_fresh(workspace, &stamp_name, &key, &[&path]) {
        return Ok(());
    }
    let modules = modules()?;
    replace(&path, |out| {
        let mut archive = Archive::new(out);
        archive.directory("dev", 0o755)?;
        // the kernel opens it for init's standard streams
        archive.character_device("dev/console", 0o600, 5, 1)?;
        archive.host_file("init", 0o755, &init)?;
        let mut list = String::new();
        for module in &modules {
            list.push_str(&format!("/modules/{}\n", module.file_name));
            archive.file(&format!("modules/{}", module.file_name), 0o644, &module.content()?)?;
        }
        archive.file("modules.list", 0o644, list.as_bytes())?;
        archive.finish().map(drop)
    })?;
    stamp::store(workspace, &stamp_name, &key)
}
