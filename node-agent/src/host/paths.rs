//! The layout of the state directory. Fixed names only: no part of a path comes from a caller but the sandbox id, which
//! is a UUID.

use super::{Act, HostError};
use pinfold_domain::SandboxId;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// `<state_dir>`, without a symbolic link in it (the jailer refuses them).
#[derive(Debug, Clone)]
pub struct StateDirectory {
    root: PathBuf,
}

impl StateDirectory {
    /// Makes `<root>/sandboxes` with mode 0700.
    pub fn open(root: &Path) -> Result<Self, HostError> {
        fs::create_dir_all(root).act(|| format!("make the state directory {}", root.display()))?;
        let root = root.canonicalize().act(|| format!("resolve {}", root.display()))?;
        let sandboxes = root.join("sandboxes");
        make_directory(&sandboxes, 0o711)?;
        Ok(Self { root })
    }

    pub fn term_file(&self) -> PathBuf {
        self.root.join("term")
    }

    pub fn snapshot_key(&self) -> PathBuf {
        self.root.join("snapshot-key")
    }

    /// How much of the disk was free when there was no sandbox.
    pub fn disk_when_empty(&self) -> PathBuf {
        self.root.join("disk-when-empty")
    }

    pub fn below(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub fn sandbox(&self, id: SandboxId) -> SandboxPaths {
        SandboxPaths { directory: self.sandboxes().join(id.to_string()) }
    }

    /// Ids of all directories; names that are no id are left out.
    pub fn list(&self) -> Result<Vec<SandboxId>, HostError> {
        let directory = self.sandboxes();
        let act = || format!("list {}", directory.display());
        let mut ids = Vec::new();
        for entry in fs::read_dir(&directory).act(act)? {
            let name = entry.act(act)?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<SandboxId>().ok()));
        }
        Ok(ids)
    }
}

/// The files of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPaths {
    directory: PathBuf,
}

impl SandboxPaths {
    /// Reachable for the sandbox's uid, readable for root only.
    pub fn create(&self) -> Result<(), HostError> {
        make_directory(&self.directory, 0o700)
    }

    pub fn record(&self) -> PathBuf {
        self.directory.join("record.json")
    }

    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk.ext4")
    }

    /// Where the machine of a paused sandbox lies.
    pub fn saved(&self) -> PathBuf {
        self.directory.join("saved")
    }

    pub fn console(&self) -> PathBuf {
        self.directory.join("console.ring")
    }

    pub fn exit(&self) -> PathBuf {
        self.directory.join("exit.json")
    }

    pub fn control(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    pub fn vsock(&self) -> PathBuf {
        self.directory.join("vsock.sock")
    }

    pub fn jail(&self) -> PathBuf {
        self.directory.join("jail")
    }

    /// Where the guest's hello arrives.
    pub fn hello(&self) -> PathBuf {
        self.jail().join(format!("{GUEST_CONNECT_NAME}_{}", pinfold_proto::limits::HELLO_PORT))
    }

    /// Sockets and the jail, but not what tells of the sandbox after its end (record, console, exit).
    pub fn remove_run_files(&self) -> Result<(), HostError> {
        for path in [self.control(), self.vsock()] {
            remove_file(&path)?;
        }
        remove_tree(&self.jail())
    }

    /// The machine of a paused sandbox, half made or whole.
    pub fn remove_saved(&self) -> Result<(), HostError> {
        self.remove_half_saved()?;
        remove_tree(&self.saved())
    }

    /// Under other names: half made, or given up.
    pub fn remove_half_saved(&self) -> Result<(), HostError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.act(|| format!("list {}", self.directory.display()))?,
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_some() && path.file_stem() == self.saved().file_stem() {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Everything.
    pub fn remove(&self) -> Result<(), HostError> {
        remove_tree(&self.directory)
    }
}

/// The VMM connects to `/<this>_<port>` in its root for a connection of the guest to the host.
pub const GUEST_CONNECT_NAME: &str = "v.sock";

pub fn make_directory(path: &Path, mode: u32) -> Result<(), HostError> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result.act(|| format!("make the directory {}", path.display())),
    }
}

pub fn remove_file(path: &Path) -> Result<(), HostError> {
    gone(fs::remove_file(path)).act(|| format!("remove {}", path.display()))
}

/// Does not follow symbolic links.
pub fn remove_tree(path: &Path) -> Result<(), HostError> {
    gone(fs::remove_dir_all(path)).act(|| format!("remove {}", path.display()))
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Replaces `path` with `content` as one act. `durable`: it has reached the disk when this returns.
pub fn write_atomically(path: &Path, content: &[u8], durable: bool) -> Result<(), HostError> {
    let act = || format!("write {}", path.display());
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new).act(act)?;
    io::Write::write_all(&mut file, content).act(act)?;
    if durable {
        file.sync_all().act(act)?;
    }
    fs::rename(&new, path).act(act)?;
    if let (true, Some(directory)) = (durable, path.parent()) {
        fs::File::open(directory).and_then(|directory| directory.sync_all()).act(act)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_socket_path_fits_a_socket_address() {
        let id: SandboxId = "0190b3f0-5a00-7000-8000-000000000001".parse().unwrap();
        let state = StateDirectory { root: PathBuf::from(format!("/{}", "s".repeat(42))) };
        let paths = state.sandbox(id);
        for path in [paths.control(), paths.vsock(), paths.hello()] {
            assert!(path.as_os_str().len() <= 107, "{}", path.display());
        }
    }

    #[test]
    fn removal_is_idempotent_and_keeps_what_tells_of_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let id: SandboxId = "0190b3f0-5a00-7000-8000-000000000001".parse().unwrap();
        let paths = state.sandbox(id);
        paths.create().unwrap();
        paths.create().unwrap();
        make_directory(&paths.jail(), 0o700).unwrap();
        fs::write(paths.hello(), "").unwrap();
        fs::write(paths.console(), "").unwrap();
        assert_eq!(state.list().unwrap(), [id]);
        paths.remove_run_files().unwrap();
        paths.remove_run_files().unwrap();
        assert!(paths.console().exists() && !paths.jail().exists());
        paths.remove().unwrap();
        paths.remove().unwrap();
        assert_eq!(state.list().unwrap(), []);
    }

    #[test]
    fn an_atomic_write_replaces_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        write_atomically(&path, b"one", true).unwrap();
        write_atomically(&path, b"two", false).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
