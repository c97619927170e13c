//! Our own guest kernel: the distribution's `linux-source` package with `images/kernel/pinfold.config`.
//!
//! A build is kept under `build/kernel/<digest of configuration and source version>`; `build/kernel/current` names the
//! one in use. Everything that a sandbox needs is built in, so its initramfs holds the guest agent alone.

use super::write_if_changed;
use crate::apt::{self, Fetched};
use crate::command;
use crate::progress::{self, Step};
use crate::setup;
use crate::stamp::Key;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// In order of preference.
const SOURCE_PACKAGES: &[&str] = &["linux-source-6.12", "linux-source"];

#[derive(Debug, Clone)]
pub struct OwnKernel {
    /// such as `linux-source-6.12 6.12.117-1, configuration 1f0c5a...`
    pub version: String,
    /// ELF with a PVH note, symbols stripped
    pub vmlinux: PathBuf,
}

/// The kernel that an earlier [`run`] left.
pub fn built(workspace: &Workspace) -> Result<Option<OwnKernel>> {
    let directory = workspace.build.join("kernel");
    let Ok(current) = fs::read_to_string(directory.join("current")) else { return Ok(None) };
    let directory = directory.join(current.trim());
    let vmlinux = directory.join("vmlinux");
    if !vmlinux.is_file() {
        return Ok(None);
    }
    let version = fs::read_to_string(directory.join("version")).context("reading the kernel's version")?;
    Ok(Some(OwnKernel { version: version.trim().to_owned(), vmlinux }))
}

/// Builds the kernel unless the same configuration of the same source was built before.
pub fn run(workspace: &Workspace) -> Result<()> {
    setup::ensure(workspace, setup::KERNEL_PACKAGES, "what building a Linux kernel takes")?;
    let package = source_package()?;
    let version = apt::candidate(&package)?.with_context(|| format!("apt knows no package {package}"))?;
    let fragment = workspace.root.join("images/kernel/pinfold.config");
    let key =
        Key::new(1).with("package", &package).with("version", &version).with_files([fragment.as_path()])?;
    let digest = key.digest()?;
    let kernels = workspace.build.join("kernel");
    let result = kernels.join(&digest);
    if !result.join("vmlinux").is_file() {
        let step = Step::begin(
            "guest kernel",
            &format!(
                "our configuration of {package} {version}: starts several times faster than the stock one (5 to 10 minutes, once)"
            ),
        );
        let fetched = apt::fetch(workspace, &step, &package)?;
        build(workspace, &step, &fetched, &fragment, &result)?;
        fs::write(result.join("version"), format!("{package} {version}, configuration {digest}\n"))?;
        let size = fs::metadata(result.join("vmlinux"))?.len();
        step.done(&format!("{} vmlinux, kept in {}", progress::megabytes(size), workspace.shown(&result)));
    }
    fs::write(workspace.build.join("kernel.versions"), format!("{package} {version}\n"))?;
    write_if_changed(&kernels.join("current"), digest.as_bytes())
}

/// The newest `linux-source` package that apt knows.
fn source_package() -> Result<String> {
    for name in SOURCE_PACKAGES {
        if apt::candidate(name)?.is_none() {
            continue;
        }
        // the plain name is a meta-package
        let real =
            apt::dependencies(name)?.into_iter().find(|dependency| dependency.starts_with("linux-source-"));
        return Ok(real.unwrap_or_else(|| (*name).to_owned()));
    }
    bail!("apt knows none of the packages {}", SOURCE_PACKAGES.join(", "))
}

fn build(
    workspace: &Workspace,
    step: &Step,
    fetched: &Fetched,
    fragment: &Path,
    result: &Path,
) -> Result<()> {
    // beside the result, which exists only once it is complete
    let work = workspace.cache().join("kernel-build");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    apt::unpack(fetched, &work)?;
    let tar = archive_below(&work.join("usr/src"))?;
    let source = work.join("source");
    let output = work.join("output");
    fs::create_dir_all(&source)?;
    fs::create_dir_all(&output)?;
    step.note("unpacking the source");
    command::output(
        Command::new("tar").arg("-xf").arg(&tar).arg("--strip-components=1").arg("-C").arg(&source),
    )?;

    let log = workspace.log("kernel");
    let mut configure = make(&source, &output);
    configure.arg(format!("KCONFIG_ALLCONFIG={}", fragment.display())).arg("allnoconfig");
    command::run(step, &log, &mut configure)?;
    let lost = lost_options(&fs::read_to_string(fragment)?, &fs::read_to_string(output.join(".config"))?);
    if !lost.is_empty() {
        bail!("these options of {} did not survive Kconfig: {}", workspace.shown(fragment), lost.join(", "));
    }
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    command::run(step, &log, make(&source, &output).args([format!("-j{jobs}").as_str(), "vmlinux"]))?;

    let finished = work.join("finished");
    fs::create_dir_all(&finished)?;
    let stripped = finished.join("vmlinux");
    command::output(Command::new("strip").arg("-s").arg("-o").arg(&stripped).arg(output.join("vmlinux")))?;
    fs::copy(output.join(".config"), finished.join("config"))?;
    if let Some(parent) = result.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::rename(&finished, result).with_context(|| format!("moving the kernel to {}", result.display()))?;
    fs::remove_dir_all(&work).context("removing the kernel's build directory")
}

/// `make` at low priority, with the build's own traces (time, user, host) fixed.
fn make(source: &Path, output: &Path) -> Command {
    let mut make = Command::new("nice");
    make.args(["-n", "10", "make", "-C"]).arg(source).arg(format!("O={}", output.display()));
    make.env("KBUILD_BUILD_TIMESTAMP", "2026-01-01 00:00:00 UTC");
    make.env("KBUILD_BUILD_USER", "pinfold").env("KBUILD_BUILD_HOST", "pinfold");
    // variables of an outer make would reach the kernel's
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL");
    make
}

fn archive_below(directory: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut archives = entries.flatten().map(|entry| entry.path());
    archives
        .find(|path| path.to_string_lossy().contains(".tar."))
        .with_context(|| format!("{} holds no source archive", directory.display()))
}

/// Options of the fragment that the configuration does not hold with the same value.
fn lost_options(fragment: &str, configuration: &str) -> Vec<String> {
    let have: std::collections::BTreeSet<&str> = configuration.lines().collect();
    let wanted = fragment.lines().map(str::trim).filter(|line| line.starts_with("CONFIG_"));
    wanted.filter(|line| !have.contains(line)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_options_that_kconfig_dropped() {
        let fragment = "# a comment\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=\"x\"\n";
        let configuration = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\nCONFIG_D=y\n";
        assert_eq!(lost_options(fragment, configuration), ["CONFIG_B=y"]);
    }
}
