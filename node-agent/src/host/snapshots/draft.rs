//! A saved machine in the making: `<target>.new-<when>-<number>`, until it is whole. No two have one name: what an act that
//! was given up still does on the disk touches no later try.

use super::super::paths::{make_directory, remove_tree, write_atomically};
use super::super::{Act, HostError};
use super::{FORMAT, FileIdentity, KernelIdentity, Manifest, Saved, Unusable, sizes};
use crate::clock::BootTime;
use crate::machine::Made;
use pinfold_domain::SandboxSpec;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Dropped before [`Self::publish`] has returned, it removes what it made.
#[derive(Debug)]
pub struct Draft {
    target: PathBuf,
    directory: PathBuf,
    /// whether the disk is saved with it
    has_disk: bool,
    published: bool,
}

/// What is saved, for the manifest.
#[derive(Debug, Clone)]
pub struct Subject {
    pub tenant: String,
    pub source: String,
    pub spec: SandboxSpec,
    pub image: FileIdentity,
    pub kernel: KernelIdentity,
    pub made: Made,
}

impl Draft {
    /// Makes a directory of its own beside `target`.
    pub fn begin(target: PathBuf, has_disk: bool) -> Result<Self, HostError> {
        let directory = target.with_extension(format!("new-{}", new_number()));
        make_directory(&directory, 0o700)?;
        Ok(Self { target, directory, has_disk, published: false })
    }

    /// Empty files for the VMM: state and memory.
    pub fn files(&self) -> Result<(File, File), HostError> {
        Ok((new_file(&self.directory.join("state"))?, new_file(&self.directory.join("memory"))?))
    }

    /// Where the copy of the disk goes.
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk")
    }

    /// Brings everything to the disk and gives it its name, if it is still `wanted` by then. What had that name is
    /// replaced. Blocks.
    pub fn publish(mut self, subject: &Subject, wanted: impl FnOnce() -> bool) -> Result<Saved, HostError> {
        let directory = self.directory.clone();
        let sync = |file: &str| {
            let path = directory.join(file);
            let synced = File::open(&path).and_then(|file| file.sync_all());
            synced.act(|| format!("bring {} to the disk", path.display()))
        };
        sync("state")?;
        sync("memory")?;
        if self.has_disk {
            sync("disk")?;
        }
        // sizes after the sync: before it a file system may not have decided where the data goes
        let manifest = self.manifest(subject)?;
        let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other);
        write_atomically(
            &directory.join("manifest.json"),
            &text.act(|| "write a manifest".to_owned())?,
            true,
        )?;
        let saved = Saved::open(&directory, self.has_disk).map_err(|error: Unusable| {
            HostError::new(format!("use what was saved in {}", directory.display()), io::Error::other(error))
        })?;
        if !wanted() {
            return Err(io::Error::from(io::ErrorKind::TimedOut))
                .act(|| format!("name {}", self.target.display()));
        }
        remove_tree(&self.target)?;
        fs::rename(&directory, &self.target).act(|| format!("name {}", self.target.display()))?;
        self.published = true;
        sync_directory(&self.target)?;
        Ok(Saved { directory: self.target.clone(), ..saved })
    }

    fn manifest(&self, subject: &Subject) -> Result<Manifest, HostError> {
        let directory = &self.directory;
        let state = directory.join("state");
        let state_bytes = fs::metadata(&state).act(|| format!("look at {}", state.display()))?.len();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Manifest {
            format: FORMAT,
            tenant: subject.tenant.clone(),
            source: subject.source.clone(),
            vcpus: subject.spec.vcpus(),
            memory_mib: crate::sandbox::policy::memory_mib(&subject.spec),
            disk_bytes: subject.spec.resources.disk_bytes,
            image: subject.image.clone(),
            mmio_on_cmdline: subject.made.mmio_on_cmdline,
            balloon: subject.made.balloon,
            kernel: Some(subject.kernel.clone()),
            state_bytes,
            sizes: sizes(directory, self.has_disk)?,
            created_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            discard(&self.directory);
        }
    }
}

/// Part of a name that nothing on the disk has: when, since the machine's start, and which of this agent.
fn new_number() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", BootTime::now().0, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Takes `directory` out of the way at once; what is in it is removed where no task waits for the disk. An agent that ends before
/// leaves half of a saved machine to the next one, by a name that no machine has.
fn discard(directory: &Path) {
    let going = directory.with_extension(format!("going-{}", new_number()));
    if let Err(error) = fs::rename(directory, &going) {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::error!(%error, directory = %directory.display(), "half of a saved machine is left");
        }
        return;
    }
    let remove = move || {
        if let Err(error) = remove_tree(&going) {
            tracing::error!(error = error.sentence(), "half of a saved machine is left");
        }
    };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(remove)),
        Err(_) => remove(),
    }
}

/// Empty, for root alone, for reading and writing.
pub fn new_file(path: &Path) -> Result<File, HostError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    options.open(path).act(|| format!("make {}", path.display()))
}

/// The entry of `path` in its directory has reached the disk when this returns.
pub fn sync_directory(path: &Path) -> Result<(), HostError> {
    let directory = path.parent().unwrap_or(path);
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.act(|| format!("bring {} to the disk", directory.display()))
}
