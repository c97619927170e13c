//! The distribution's own kernel for virtual machines, taken from its package without installing it.

use crate::apt::{self, Distribution};
use crate::command;
use crate::progress::Step;
use crate::stamp::{self, Key};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const NEWER: &str = "linux-image-6.12-cloud-amd64";

/// The unpacked package.
#[derive(Debug, Clone)]
pub struct StockKernel {
    /// such as `linux-image-6.1.0-50-cloud-amd64 6.1.176-1`
    pub version: String,
    /// what `uname -r` will say
    pub release: String,
    root: PathBuf,
}

/// One module in the order of loading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// `virtio.ko`
    pub file_name: String,
    source: PathBuf,
}

/// The kernel of the distribution's release.
pub fn fetch(workspace: &Workspace) -> Result<StockKernel> {
    let distribution = Distribution::of_this_machine()?;
    let meta = match distribution.id.as_str() {
        "ubuntu" => "linux-image-virtual",
        _ => "linux-image-cloud-amd64",
    };
    kept(workspace, &distribution, meta, "stock-kernel", "boots the virtual node and, by default, sandboxes")
}

/// The newer kernel that Debian 12 offers beside its own. None elsewhere.
pub fn fetch_newer(workspace: &Workspace) -> Result<Option<StockKernel>> {
    let distribution = Distribution::of_this_machine()?;
    if distribution.id != "debian" || apt::candidate(NEWER)?.is_none() {
        return Ok(None);
    }
    kept(workspace, &distribution, NEWER, "stock-kernel-6.12", "for sandboxes that want it").map(Some)
}

/// The package is fetched once and kept until `cargo xtask clean`, under `name`.
fn kept(
    workspace: &Workspace,
    distribution: &Distribution,
    meta: &str,
    name: &str,
    what_for: &str,
) -> Result<StockKernel> {
    let root = workspace.cache().join(name);
    let key = Key::new(2).with("package", meta).with("codename", &distribution.codename);
    let versions = workspace.build.join(format!("{name}.versions"));
    if !stamp::is_fresh(workspace, name, &key, &[&root, &versions]) {
        let step = Step::begin("stock kernel", &format!("{meta} {what_for}"));
        let version = unpack(workspace, &step, meta, &root)?;
        fs::write(&versions, format!("{version}\n"))?;
        stamp::store(workspace, name, &key)?;
        step.done(&version);
    }
    let version = fs::read_to_string(&versions)?.trim().to_owned();
    Ok(StockKernel { version, release: release_in(&root)?, root })
}

fn unpack(workspace: &Workspace, step: &Step, meta: &str, root: &Path) -> Result<String> {
    apt::ensure_lists(workspace, step)?;
    let image = apt::dependencies(meta)?
        .into_iter()
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{meta} depends on no linux-image package"))?;
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    let fetched = apt::fetch(workspace, step, &image)?;
    apt::unpack(&fetched, root)?;
    if !root.join("lib/modules").exists() && !root.join("usr/lib/modules").exists() {
        // Ubuntu keeps the modules in two packages of their own
        for prefix in ["linux-modules-", "linux-modules-extra-"] {
            let modules = image.replacen("linux-image-", prefix, 1);
            apt::unpack(&apt::fetch(workspace, step, &modules)?, root)?;
        }
    }
    if !root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
    }
    let release = release_in(root)?;
    let depmod = command::find("depmod").context("depmod is missing (package kmod)")?;
    command::output(Command::new(depmod).arg("-b").arg(root).arg(&release))?;
    Ok(format!("{} {}", fetched.package, fetched.version))
}

fn release_in(root: &Path) -> Result<String> {
    let boot = root.join("boot");
    for entry in fs::read_dir(&boot).with_context(|| format!("reading {}", boot.display()))? {
        if let Some(release) = entry?.file_name().to_string_lossy().strip_prefix("vmlinuz-") {
            return Ok(release.to_owned());
        }
    }
    bail!("{} holds no vmlinuz", boot.display())
}

impl StockKernel {
    pub fn vmlinuz(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// `names` and all that they need, each once, what is needed first. What is built in is left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let modprobe = command::find("modprobe").context("modprobe is missing (package kmod)")?;
        let mut modules = Vec::new();
        for name in names {
            let mut command = Command::new(&modprobe);
            command.args(["-C", "/dev/null", "-S", &self.release, "-d"]).arg(&self.root);
            let text = command::output(command.args(["--show-depends", name]))?;
            for module in parse_depends(&text) {
                if !modules.contains(&module) {
                    modules.push(module);
                }
            }
        }
        Ok(modules)
    }
}

/// Reads `modprobe --show-depends`. CPU-specific implementations of ciphers are left out: they are soft dependencies with a
/// portable form that is built in, and they refuse to load on a CPU without the instructions.
fn parse_depends(text: &str) -> Vec<Module> {
    let paths = text.lines().filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next());
    paths
        .filter(|path| !path.contains("/arch/x86/crypto/"))
        .filter_map(|path| {
            let source = PathBuf::from(path);
            let name = source.file_name()?.to_string_lossy().into_owned();
            let plain = name.find(".ko").map(|at| name[..at + 3].to_owned())?;
            Some(Module { file_name: plain, source })
        })
        .collect()
}

impl Module {
    /// The module's bytes, unpacked: the guest inserts it with `init_module(2)`.
    pub fn content(&self) -> Result<Vec<u8>> {
        let context = || format!("reading {}", self.source.display());
        let tool = match self.source.extension().and_then(|end| end.to_str()) {
            Some("zst") => "zstd",
            Some("xz") => "xz",
            Some("gz") => "gzip",
            _ => return fs::read(&self.source).with_context(context),
        };
        let output = Command::new(tool).arg("-dc").arg(&self.source).output().with_context(context)?;
        if !output.status.success() {
            bail!("{tool} could not unpack {}", self.source.display());
        }
        Ok(output.stdout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_load_order() {
        let text = "builtin virtio_pci\ninsmod /r/virtio_ring.ko \ninsmod /r/arch/x86/crypto/crc32c-intel.ko\n\
                    insmod /r/virtio.ko.zst opt=1\n";
        let names: Vec<String> = parse_depends(text).into_iter().map(|module| module.file_name).collect();
        assert_eq!(names, ["virtio_ring.ko", "virtio.ko"]);
    }
}
