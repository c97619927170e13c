//! A sandbox's disk: a sparse file with an empty ext4 in it. The guest sees a device of exactly that size, so a full
//! disk is the guest's ENOSPC and never the host's.
//!
//! `mke2fs` options and why:
//! - `^has_journal`: the disk lives as long as its VMM; nothing ever replays a journal, and every write would go twice.
//! - `assume_storage_prezeroed`: the file is new, so its tables read as zero: neither mke2fs nor the guest writes them.
//! - `nodiscard`: there is nothing to discard in a new file.
//! - `-m 0`: no share for root: root is who uses it.

use super::clone::{Cloned, clone_file};
use super::paths::remove_file;
use super::{Act, Disks, HostError, blocking};
use futures::future::BoxFuture;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;

/// Longest excerpt of mke2fs's complaint.
const MAX_COMPLAINT_BYTES: usize = 300;

/// Formats with e2fsprogs' mke2fs (1.47 or newer), found in PATH.
#[derive(Debug, Default)]
pub struct Ext4Disks;

impl Disks for Ext4Disks {
    fn create<'a>(&'a self, path: &'a Path, bytes: u64) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move {
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .act(|| format!("make {}", path.display()))?;
            file.set_len(bytes).act(|| format!("set the size of {} to {bytes}", path.display()))?;
            format(path).await.act(|| "format the disk with mke2fs".to_owned())
        })
    }

    fn copy<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, Result<Cloned, HostError>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        Box::pin(blocking(move || clone_file(&from, &to)))
    }

    fn sync<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<(), HostError>> {
        let path = path.to_owned();
        Box::pin(blocking(move || {
            let synced = std::fs::File::open(&path).and_then(|file| file.sync_all());
            synced.act(|| format!("bring {} to the disk", path.display()))
        }))
    }

    fn remove(&self, path: &Path) -> Result<(), HostError> {
        remove_file(path)
    }
}

async fn format(path: &Path) -> io::Result<()> {
    let output = Command::new("mke2fs")
        .args(["-F", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal"])
        .args(["-E", "assume_storage_prezeroed=1,nodiscard"])
        .arg(path)
        .stdin(Stdio::null())
        // a bring-up that is given up takes its formatter with it
        .kill_on_drop(true)
        .output()
        .await?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint: String = complaint.trim().chars().take(MAX_COMPLAINT_BYTES).collect();
    Err(io::Error::other(format!("{}: {complaint}", output.status)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[tokio::test]
    async fn a_disk_is_ext4_and_sparse() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.ext4");
        Ext4Disks.create(&path, 1 << 30).await.unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() * 512 < 4 << 20, "{} bytes on the host", metadata.blocks() * 512);
        let mut magic = [0; 2];
        // s_magic of the superblock, which begins at byte 1024
        let file = std::fs::File::open(&path).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut magic, 1024 + 0x38).unwrap();
        assert_eq!(u16::from_le_bytes(magic), 0xef53);
        Ext4Disks.remove(&path).unwrap();
        Ext4Disks.remove(&path).unwrap();
    }

    #[tokio::test]
    async fn what_stands_in_the_way_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.ext4");
        std::fs::write(&path, "someone else's").unwrap();
        let error = Ext4Disks.create(&path, 1 << 24).await.unwrap_err();
        assert!(error.sentence().contains("File exists"), "{}", error.sentence());
        let path = directory.path().join("tiny");
        let error = Ext4Disks.create(&path, 1024).await.unwrap_err();
        assert!(error.sentence().contains("mke2fs"), "{}", error.sentence());
    }
}
