//! Everything that a node needs besides our binaries: images, kernels, and the virtual node itself.
//!
//! ```text
//!   distribution packages --> stock kernel ----+--> images/kernels/stock ---+
//!                        \--> root file system |    images/base             +--> node/images.ext4
//!   linux-source --> own_kernel ---------------|--> images/kernels/pinfold -+
//!                                              +--> node/vmlinuz, node/initrd.cpio
//! ```
//!
//! The layout of `build/images` is the contract with the node agent; `images/README.md` has it.

pub mod elf;
pub mod guest;
mod hostile;
mod node;
pub mod own_kernel;
mod rootfs;
pub mod stock;

use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

pub fn run(workspace: &Workspace) -> Result<()> {
    let stock = stock::fetch(workspace)?;
    rootfs::make(workspace)?;
    guest::stock(workspace, &stock)?;
    guest::newer(workspace, stock::fetch_newer(workspace)?.as_ref())?;
    let own = own_kernel::built(workspace)?;
    guest::own(workspace, own.as_ref())?;
    hostile::make(workspace, &stock)?;
    let default = if own.is_some() { guest::OWN } else { guest::STOCK };
    write_if_changed(&default_kernel_file(workspace), default.as_bytes())?;
    node::make(workspace, &stock)
}

/// Name of the kernel that sandboxes get when they ask for none.
pub fn default_kernel(workspace: &Workspace) -> String {
    fs::read_to_string(default_kernel_file(workspace)).unwrap_or_default().trim().to_owned()
}

fn default_kernel_file(workspace: &Workspace) -> std::path::PathBuf {
    workspace.images().join("default-kernel")
}

/// Leaves the file alone when it already has this content, so that what is made from it stays fresh.
fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    replace(path, |out| Ok(out.write_all(content)?))
}

/// Writes a file beside `path` and renames it into place: a running node keeps what it has opened.
fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<fs::File>) -> Result<()>) -> Result<()> {
    let context = || format!("writing {}", path.display());
    let directory = path.parent().with_context(context)?;
    fs::create_dir_all(directory).with_context(context)?;
    let new = path.with_added_extension("new");
    let mut out = BufWriter::new(fs::File::create(&new).with_context(context)?);
    write(&mut out)?;
    out.flush().with_context(context)?;
    fs::rename(&new, path).with_context(context)
}

/// A copy of `source` at `target`, by hard link where that works.
fn link_or_copy(source: &Path, target: &Path) -> Result<()> {
    let context = || format!("copying {} to {}", source.display(), target.display());
    if let Some(directory) = target.parent() {
        fs::create_dir_all(directory).with_context(context)?;
    }
    let new = target.with_added_extension("new");
    if new.exists() {
        fs::remove_file(&new).with_context(context)?;
    }
    if fs::hard_link(source, &new).is_err() {
        fs::copy(source, &new).with_context(context)?;
    }
    // rename(2) of two links to one inode leaves both names
    if target.exists() {
        fs::remove_file(target).with_context(context)?;
    }
    fs::rename(&new, target).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_file_is_not_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sub/file");
        write_if_changed(&path, b"a").expect("write");
        let before = fs::metadata(&path).expect("there").modified().expect("a time");
        write_if_changed(&path, b"a").expect("write");
        assert_eq!(fs::metadata(&path).expect("there").modified().expect("a time"), before);
        write_if_changed(&path, b"b").expect("write");
        assert_eq!(fs::read(&path).expect("there"), b"b");
    }

    #[test]
    fn linking_over_an_own_link_leaves_one_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let (source, target) = (directory.path().join("s"), directory.path().join("t"));
        fs::write(&source, "x").expect("write");
        link_or_copy(&source, &target).expect("first");
        link_or_copy(&source, &target).expect("second");
        assert_eq!(fs::read(&target).expect("there"), b"x");
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 2);
    }
}
