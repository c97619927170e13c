//! Where the programs and the files of a virtual node are.

use crate::failure::advised;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Names the directory of Pinfold's programs.
pub const BIN_DIR_VARIABLE: &str = "PINFOLD_BIN_DIR";
/// Names the directory that holds `node/` and `images/`.
pub const BUILD_DIR_VARIABLE: &str = "PINFOLD_BUILD_DIR";

/// One of our programs: in `$PINFOLD_BIN_DIR`, else beside this one, else in PATH.
pub fn program(name: &str) -> Result<PathBuf> {
    let named = std::env::var_os(BIN_DIR_VARIABLE).map(PathBuf::from);
    let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_path_buf));
    // a test binary lies one directory deeper
    let above = beside.as_deref().and_then(Path::parent).map(Path::to_path_buf);
    let found = named.into_iter().chain(beside).chain(above).map(|directory| directory.join(name));
    found.into_iter().find(|path| path.is_file()).or_else(|| in_path(name)).ok_or_else(|| {
        advised(
            format!("the program {name} is not beside pinfold and not in PATH"),
            format!("build it (`cargo build`), or name its directory in {BIN_DIR_VARIABLE}"),
        )
    })
}

pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// QEMU, which emulates a worker host.
pub fn qemu() -> Result<PathBuf> {
    in_path("qemu-system-x86_64").ok_or_else(|| {
        advised(
            "qemu-system-x86_64 is not in PATH: virtual nodes run in it",
            "`apt-get install qemu-system-x86`",
        )
    })
}

/// The files that all virtual nodes share; no node writes to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFiles {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub images: PathBuf,
}

impl NodeFiles {
    /// In `given`, else in `$PINFOLD_BUILD_DIR/node`, else in the nearest `build/node` above the working directory or
    /// this program.
    pub fn find(given: Option<&Path>) -> Result<Self> {
        if let Some(given) = given {
            return Self::in_directory(given).with_context(|| format!("--node-files {}", given.display()));
        }
        if let Some(build) = std::env::var_os(BUILD_DIR_VARIABLE) {
            return Self::in_directory(&Path::new(&build).join("node"))
                .with_context(|| format!("{BUILD_DIR_VARIABLE} is {}", Path::new(&build).display()));
        }
        let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
        let above = starts.iter().flatten().flat_map(|start| start.ancestors());
        let directory =
            above.map(|ancestor| ancestor.join("build/node")).find(|directory| directory.is_dir());
        let Some(directory) = directory else {
            return Err(advised(
                "the files of the virtual node are not there: no build/node here or above",
                "`cargo xtask images` makes them, `make demo` does all of it",
            ));
        };
        Self::in_directory(&directory)
    }

    fn in_directory(directory: &Path) -> Result<Self> {
        let directory = directory
            .canonicalize()
            .with_context(|| format!("the directory {} cannot be used", directory.display()))?;
        let file = |name: &str| {
            let path = directory.join(name);
            if path.is_file() {
                return Ok(path);
            }
            Err(advised(format!("{} is missing", path.display()), "`cargo xtask images` makes it"))
        };
        Ok(Self { kernel: file("vmlinuz")?, initrd: file("initrd.cpio")?, images: file("images.ext4")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named_with_what_makes_it() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("vmlinuz"), "x").unwrap();
        let error = NodeFiles::find(Some(directory.path())).unwrap_err();
        assert!(format!("{error:#}").contains("initrd.cpio is missing"), "{error:#}");
        for name in ["initrd.cpio", "images.ext4"] {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        assert!(NodeFiles::find(Some(directory.path())).is_ok());
    }
}
