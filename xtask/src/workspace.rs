//! Where things are.

use crate::command;
use anyhow::{Context, Result};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target triple is always named: without it, `crt-static` would reach build scripts and proc macros too.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Paths of this checkout.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// the checkout
    pub root: PathBuf,
    /// everything that is made and is not cargo's
    pub build: PathBuf,
}

impl Workspace {
    /// The checkout that this program was built from.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the directory of xtask has no parent")?
            .to_path_buf();
        let build = root.join("build");
        fs::create_dir_all(build.join("logs")).with_context(|| format!("making {}", build.display()))?;
        Ok(Self { root, build })
    }

    /// Release binaries of the product.
    pub fn binaries(&self) -> PathBuf {
        self.target().join(TARGET).join("release")
    }

    pub fn target(&self) -> PathBuf {
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from)
    }

    /// Guest images and kernels: what a node agent calls its images directory.
    pub fn images(&self) -> PathBuf {
        self.build.join("images")
    }

    /// Downloads and intermediate products.
    pub fn cache(&self) -> PathBuf {
        self.build.join("cache")
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.build.join("logs").join(format!("{name}.log"))
    }

    /// One xtask at a time per checkout. The lock ends with the process.
    pub fn lock(&self) -> Result<File> {
        let path = self.build.join(".lock");
        let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                println!("waiting: another xtask is at work in this checkout");
                file.lock().with_context(|| format!("locking {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
        Ok(file)
    }

    /// Removes `build/`. Parts of it may belong to root when it was made through sudo.
    pub fn clean(&self) -> Result<()> {
        command::output(command::privileged("rm")?.args(["-rf", "--one-file-system"]).arg(&self.build))?;
        println!("removed {}", self.build.display());
        Ok(())
    }

    /// A path as a person in the checkout would write it.
    pub fn shown<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }

    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root);
        cargo
    }
}
