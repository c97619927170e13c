//! Saved machines on this node's disk.
//!
//! ```text
//!   <state>/snapshot-key                  what authenticates them: 64 hexadecimal digits, for root alone
//!   <state>/snapshots/<id>/               taken of a sandbox
//!   <state>/templates/<id>/               of a machine that was booted for it
//!   <state>/sandboxes/<id>/saved/         of a paused sandbox, whose disk stays where it is
//!       manifest.json state memory [disk] [working-set]
//! ```
//!
//! A directory is filled under another name (`.new-...`), brought to the disk and renamed: a name without a suffix holds a
//! machine that is whole. Nothing in it is written after that, but the working set, which is a hint. One that is found
//! damaged is renamed (`.damaged`), told of and never used.

pub mod draft;
pub mod key;
pub mod store;

pub use draft::Draft;
pub use key::SnapshotKey;
pub use store::{Found, SnapshotStore};

use super::clone::data_bytes;
use super::{Act, HostError, Images, Kernel};
use crate::machine::Made;
use pinfold_domain::{SandboxSpec, SnapshotSizes};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Of [`Manifest`]; another one is refused.
const FORMAT: u32 = 1;
/// Longest manifest that is read: some names and numbers.
const MAX_MANIFEST_BYTES: u64 = 64 * 1024;

/// Names what is on the disk: the machine's size, and what it must meet again when it is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    pub tenant: String,
    /// the sandbox that it was saved of
    pub source: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub disk_bytes: u64,
    /// the root image that the guest has mounted
    pub image: FileIdentity,
    /// the node's kernel at the time of the save; none in those of earlier agents
    #[serde(default)]
    pub kernel: Option<KernelIdentity>,
    /// whether its kernel found its devices on the command line: a machine that is restored has to be made the same way
    #[serde(default)]
    pub mmio_on_cmdline: bool,
    #[serde(default)]
    pub balloon: bool,
    /// bytes of the state file
    pub state_bytes: u64,
    /// bytes of data
    pub sizes: SnapshotSizes,
    /// milliseconds since the Unix epoch, by the node's clock; for a person
    pub created_ms: u64,
}

impl Manifest {
    pub fn made(&self) -> Made {
        Made { mmio_on_cmdline: self.mmio_on_cmdline, balloon: self.balloon }
    }
}

/// Tells whether a file is still the one that it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileIdentity {
    pub name: String,
    pub inode: u64,
    pub bytes: u64,
    /// since the Unix epoch
    pub modified_ns: i128,
}

impl FileIdentity {
    pub fn of(name: &str, path: &Path) -> Result<Self, HostError> {
        let metadata = fs::metadata(path).act(|| format!("look at {}", path.display()))?;
        let seconds = i128::from(metadata.mtime()) * 1_000_000_000;
        Ok(Self {
            name: name.to_owned(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified_ns: seconds + i128::from(metadata.mtime_nsec()),
        })
    }
}

/// The kernel that a machine boots with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelIdentity {
    /// by the spec; `None`: the node's default
    pub asked: Option<String>,
    pub file: FileIdentity,
    pub initrd: Option<FileIdentity>,
    pub cmdline: String,
    pub mmio_on_cmdline: bool,
}

impl KernelIdentity {
    pub fn of(asked: Option<&str>, kernel: &Kernel) -> Result<Self, HostError> {
        let identity = |path: &PathBuf| FileIdentity::of(&kernel.name, path);
        Ok(Self {
            asked: asked.map(str::to_owned),
            file: identity(&kernel.file)?,
            initrd: kernel.initrd.as_ref().map(identity).transpose()?,
            cmdline: kernel.cmdline.clone(),
            mmio_on_cmdline: kernel.mmio_on_cmdline,
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("{0}")]
    Damaged(String),
    #[error("its {what} is {saved}, {asked} is asked for")]
    DoesNotFit { what: &'static str, saved: String, asked: String },
    #[error("the image {0} was replaced since it was saved")]
    OtherImage(String),
    #[error("the kernel {0} was replaced since it was saved")]
    OtherKernel(String),
    #[error("it was made without a balloon")]
    NoBalloon,
}

/// A memory file. Whoever has it in an `Arc` says that a machine maps it: then its blocks are in use, under whatever name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapped {
    /// no other file has it while this one is mapped
    pub inode: u64,
    pub bytes: u64,
}

/// A machine that is whole on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    directory: PathBuf,
    pub manifest: Manifest,
    mapped: Arc<Mapped>,
}

impl Saved {
    /// Reads and checks `directory`. Whether the state is authentic only the VMM can say.
    pub fn open(directory: &Path, has_disk: bool) -> Result<Self, Unusable> {
        let damaged = |file: &str, why: String| Unusable::Damaged(format!("its {file}: {why}"));
        let mut text = Vec::new();
        File::open(directory.join("manifest.json"))
            .and_then(|file| file.take(MAX_MANIFEST_BYTES).read_to_end(&mut text))
            .map_err(|error| damaged("manifest", error.to_string()))?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| damaged("manifest", error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(damaged(
                "manifest",
                format!("format {}, this agent knows {FORMAT}", manifest.format),
            ));
        }
        let mapped = Mapped { inode: 0, bytes: manifest.sizes.memory_bytes };
        let mut saved = Self { directory: directory.to_owned(), manifest, mapped: Arc::new(mapped) };
        let manifest = &saved.manifest;
        let mut expected = vec![
            ("state", saved.state(), manifest.state_bytes),
            ("memory", saved.memory(), manifest.memory_mib << 20),
        ];
        if has_disk {
            expected.push(("disk", saved.disk(), manifest.disk_bytes));
        }
        let mut inode = 0;
        for (file, path, bytes) in expected {
            let metadata = fs::symlink_metadata(&path).map_err(|error| damaged(file, error.to_string()))?;
            if !metadata.is_file() || metadata.len() != bytes {
                return Err(damaged(file, format!("{} bytes instead of {bytes}", metadata.len())));
            }
            if file == "memory" {
                inode = metadata.ino();
            }
        }
        saved.mapped = Arc::new(Mapped { inode, ..mapped });
        Ok(saved)
    }

    /// Whether a sandbox of `spec` can be it. `image` is the root image as it is now.
    pub fn fits(&self, spec: &SandboxSpec, image: &FileIdentity) -> Result<(), Unusable> {
        let manifest = &self.manifest;
        let memory_mib = crate::sandbox::policy::memory_mib(spec);
        for (what, saved, asked) in [
            ("number of virtual CPUs", u64::from(manifest.vcpus), u64::from(spec.vcpus())),
            ("memory in MiB", manifest.memory_mib, memory_mib),
            ("disk in bytes", manifest.disk_bytes, spec.resources.disk_bytes),
        ] {
            if saved != asked {
                let (saved, asked) = (saved.to_string(), asked.to_string());
                return Err(Unusable::DoesNotFit { what, saved, asked });
            }
        }
        if manifest.image.name != image.name {
            let (saved, asked) = (manifest.image.name.clone(), image.name.clone());
            return Err(Unusable::DoesNotFit { what: "image", saved, asked });
        }
        if manifest.image != *image {
            return Err(Unusable::OtherImage(image.name.clone()));
        }
        Ok(())
    }

    /// Why a machine that is booted now would be another one: a template is of no use then. What cannot be told now, because
    /// this node has no such image or kernel, says nothing.
    pub fn outdated(&self, images: &dyn Images) -> Option<Unusable> {
        let Manifest { image, kernel, .. } = &self.manifest;
        let now =
            images.root_image(&image.name).ok().and_then(|path| FileIdentity::of(&image.name, &path).ok());
        if now.is_some_and(|now| now != *image) {
            return Some(Unusable::OtherImage(image.name.clone()));
        }
        if !self.manifest.balloon {
            return Some(Unusable::NoBalloon);
        }
        let Some(kernel) = kernel else { return Some(Unusable::OtherKernel("of an earlier agent".into())) };
        let asked = kernel.asked.as_deref();
        let now = images.kernel(asked).ok().and_then(|now| KernelIdentity::of(asked, &now).ok());
        now.filter(|now| now != kernel).map(|_| Unusable::OtherKernel(kernel.file.name.clone()))
    }

    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub fn memory(&self) -> PathBuf {
        self.directory.join("memory")
    }

    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk")
    }

    /// The pages that the first machine restored from it had in use, once that is known.
    pub fn working_set(&self) -> Option<PathBuf> {
        Some(self.working_set_path()).filter(|path| path.is_file())
    }

    fn working_set_path(&self) -> PathBuf {
        self.directory.join("working-set")
    }

    /// A file to be filled; [`Self::keep_working_set`] gives it its name.
    pub fn new_working_set(&self) -> Result<File, HostError> {
        let path = self.working_set_path().with_extension("new");
        // its loss costs time only, so it is not brought to the disk
        draft::new_file(&path)
    }

    pub fn keep_working_set(&self) -> Result<(), HostError> {
        let path = self.working_set_path();
        fs::rename(path.with_extension("new"), &path).act(|| format!("keep {}", path.display()))
    }

    pub fn mapped(&self) -> &Arc<Mapped> {
        &self.mapped
    }

    /// Bytes on the disk.
    pub fn data_bytes(&self) -> u64 {
        let SnapshotSizes { state_bytes, memory_bytes, disk_bytes } = self.manifest.sizes;
        state_bytes.saturating_add(memory_bytes).saturating_add(disk_bytes)
    }
}

/// What the files of a directory take.
fn sizes(directory: &Path, has_disk: bool) -> Result<SnapshotSizes, HostError> {
    Ok(SnapshotSizes {
        state_bytes: data_bytes(&directory.join("state"))?,
        memory_bytes: data_bytes(&directory.join("memory"))?,
        disk_bytes: if has_disk { data_bytes(&directory.join("disk"))? } else { 0 },
    })
}

#[cfg(test)]
pub mod tests;
