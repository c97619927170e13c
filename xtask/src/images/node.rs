//! The virtual node: kernel, initramfs and the disk of images. `images/node/README.md` says how it is started.

use super::stock::StockKernel;
use super::{link_or_copy, replace};
use crate::command;
use crate::cpio::Archive;
use crate::progress::{self, Step};
use crate::stamp::{self, Key};
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "qemu_fw_cfg",
    "kvm-amd",
    "kvm-intel",
    "overlay",
    "erofs",
    "xfs",
    "loop",
    "tun",
    "nf_tables",
];
const BINARIES: &[&str] = &["pinfold-node-agent", "pinfold-vmm", "pinfold-jailer"];
/// Room in the disk of images for the file system's own structures.
const DISK_SLACK_BYTES: u64 = 32 << 20;

pub fn make(workspace: &Workspace, kernel: &StockKernel) -> Result<()> {
    let directory = workspace.build.join("node");
    let vmlinuz = directory.join("vmlinuz");
    let key = Key::new(1).with("kernel", &kernel.version);
    if !stamp::is_fresh(workspace, "node-kernel", &key, &[&vmlinuz]) {
        link_or_copy(&kernel.vmlinuz(), &vmlinuz)?;
        stamp::store(workspace, "node-kernel", &key)?;
    }
    initrd(workspace, kernel, &directory.join("initrd.cpio"))?;
    images_disk(workspace, &directory.join("images.ext4"))
}

fn initrd(workspace: &Workspace, kernel: &StockKernel, path: &Path) -> Result<()> {
    let scripts = files_below(&workspace.root.join("images/node/root"))?;
    let binaries: Vec<PathBuf> = BINARIES.iter().map(|name| workspace.binaries().join(name)).collect();
    let busybox = command::find("busybox").context("busybox is missing (package busybox-static)")?;
    let mke2fs = command::find("mke2fs").context("mke2fs is missing (package e2fsprogs)")?;
    let mkfs_xfs = command::find("mkfs.xfs").context("mkfs.xfs is missing (package xfsprogs)")?;
    let mut libraries = shared_libraries(&mke2fs)?;
    libraries.extend(shared_libraries(&mkfs_xfs)?);
    libraries.sort();
    libraries.dedup();
    let inputs = scripts
        .iter()
        .map(|(_, source)| source)
        .chain(&binaries)
        .chain([&busybox, &mke2fs, &mkfs_xfs])
        .chain(&libraries);
    let key = Key::new(1)
        .with("kernel", &kernel.version)
        .with("modules", MODULES.join(" "))
        .with_files(inputs.map(PathBuf::as_path))?;
    if stamp::is_fresh(workspace, "node-initrd", &key, &[path]) {
        return Ok(());
    }
    let step = Step::begin("virtual node", "initramfs of a worker host with real /dev/kvm semantics");
    let mut size = 0;
    replace(path, |out| {
        let mut archive = Archive::new(out);
        archive.character_device("dev/console", 0o600, 5, 1)?;
        for (name, source) in &scripts {
            let executable = fs::metadata(source)?.permissions();
            let mode = std::os::unix::fs::PermissionsExt::mode(&executable) & 0o111;
            archive.host_file(name, 0o644 | mode, source)?;
        }
        archive.host_file("bin/busybox", 0o755, &busybox)?;
        archive.host_file("sbin/mke2fs", 0o755, &mke2fs)?;
        archive.symlink("sbin/mkfs.ext4", "mke2fs")?;
        archive.host_file("sbin/mkfs.xfs", 0o755, &mkfs_xfs)?;
        for library in &libraries {
            let name = library.strip_prefix("/")?.to_string_lossy().into_owned();
            archive.host_file(&name, 0o755, library)?;
        }
        for (name, source) in BINARIES.iter().zip(&binaries) {
            archive.host_file(&format!("usr/bin/{name}"), 0o755, source)?;
        }
        let mut list = String::new();
        for module in kernel.modules(MODULES)? {
            list.push_str(&format!("{}\n", module.file_name));
            archive.file(&format!("lib/modules/{}", module.file_name), 0o644, &module.content()?)?;
        }
        archive.file("etc/pinfold/modules.list", 0o644, list.as_bytes())?;
        size = archive.finish()?;
        Ok(())
    })?;
    stamp::store(workspace, "node-initrd", &key)?;
    step.done(&progress::megabytes(size));
    Ok(())
}

/// The libraries of a dynamic program and its loader, by ldd(1), as absolute paths.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = command::output(Command::new("ldd").arg(program))?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// Regular files below `root` with their path from there, sorted.
fn files_below(root: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(root)?.to_string_lossy().into_owned();
                found.push((name, entry.path()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// `build/images` as an ext4 disk, made without mounting anything.
fn images_disk(workspace: &Workspace, path: &Path) -> Result<()> {
    let files = files_below(&workspace.images())?;
    // sizes and times, not sums: these are large, and only this program writes them
    let mut key = Key::new(1);
    let mut bytes = DISK_SLACK_BYTES;
    for (name, file) in &files {
        let metadata = fs::metadata(file)?;
        bytes += metadata.len() + 8192;
        let modified = metadata.modified()?.duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        key = key.with(name, format_args!("{} bytes, modified {modified}", metadata.len()));
    }
    if stamp::is_fresh(workspace, "node-images", &key, &[path]) {
        return Ok(());
    }
    let step = Step::begin("disk of images", "what the virtual node's agent finds in its images directory");
    let new = path.with_added_extension("new");
    fs::File::create(&new)?.set_len(bytes.next_multiple_of(1 << 20))?;
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
        "1024",
        "-O",
        "^has_journal,^resize_inode",
        "-d",
    ]);
    command::run(&step, &workspace.log("node-images"), command.arg(workspace.images()).arg(&new))?;
    fs::rename(&new, path)?;
    stamp::store(workspace, "node-images", &key)?;
    step.done(&progress::megabytes(bytes));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_files_with_their_relative_names() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(directory.path().join("b/c")).expect("mkdir");
        fs::write(directory.path().join("b/c/f"), "").expect("write");
        fs::write(directory.path().join("a"), "").expect("write");
        let names: Vec<String> =
            files_below(directory.path()).expect("list").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b/c/f"]);
    }

    #[test]
    fn knows_the_loader_of_a_dynamic_program() {
        let libraries = shared_libraries(&command::find("mke2fs").expect("mke2fs")).expect("ldd");
        assert!(libraries.iter().any(|path| path.to_string_lossy().contains("ld-linux")), "{libraries:?}");
    }
}
