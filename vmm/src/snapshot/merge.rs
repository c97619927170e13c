//! A snapshot and a diff that was taken after it become one full snapshot. The files of both stay as they are: others may
//! have them mapped.

use super::format::{self, FormatError, Key};
use super::manifest::{Contents, Saved};
use super::memory::data_of;
use super::restore::{self, RestoreError};
use super::save::{self, SaveError};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// `FICLONE` of `linux/fs.h`: share all blocks of another file.
const FICLONE: libc::Ioctl = 0x4004_9409;
const COPY_BYTES: u64 = 1 << 20;

/// State and memory of one snapshot.
#[derive(Debug)]
pub struct Files {
    pub state: File,
    pub memory: File,
}

#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("{which}: {source}")]
    Open { which: &'static str, source: RestoreError },
    #[error("the first snapshot is a diff itself: merge it with the one before it")]
    BaseIsDiff,
    #[error("the second snapshot is no diff")]
    NoDiff,
    #[error("the diff was taken after another snapshot than the first")]
    Strangers,
    #[error("{which} memory file has {found} bytes, not the {wanted} of its manifest")]
    Length { which: &'static str, found: u64, wanted: u64 },
    #[error("extent {start:#x} to {end:#x} of the diff is not whole pages of the memory file")]
    Extent { start: u64, end: u64 },
    #[error("memory cannot be copied: {0}")]
    Copy(#[from] io::Error),
    #[error("{0}")]
    Save(#[from] SaveError),
    #[error("{0}")]
    Format(#[from] FormatError),
}

/// Writes `base` with what changed in `diff` to `into`, whose files are empty. All have the same key.
pub fn merge(base: &Files, diff: &Files, into: &Files, key: &Key) -> Result<(), MergeError> {
    let read = |files: &Files, which| {
        format::open(&files.state, key)
            .map_err(RestoreError::from)
            .and_then(|body| restore::decode(&body))
            .map_err(|source| MergeError::Open { which, source })
    };
    let (first, mut second) = (read(base, "the first")?, read(diff, "the second")?);
    let extents = agree(&first, &second)?;
    let length = first.manifest.memory.file_bytes();
    for (which, file) in [("the first", &base.memory), ("the second", &diff.memory)] {
        let found = file.metadata()?.len();
        if found != length {
            return Err(MergeError::Length { which, found, wanted: length });
        }
    }
    copy_whole(&base.memory, &into.memory, length)?;
    for extent in extents {
        replace(&diff.memory, &into.memory, extent)?;
    }
    second.manifest.memory.contents = Contents::Full;
    format::seal(&into.state, key, &save::encode(&second)?)?;
    Ok(())
}

/// The extents in which `second` changes `first`.
fn agree(first: &Saved, second: &Saved) -> Result<Vec<Range<u64>>, MergeError> {
    let (base, diff) = (&first.manifest, &second.manifest);
    if base.memory.contents != Contents::Full {
        return Err(MergeError::BaseIsDiff);
    }
    let Contents::Diff { parent, extents } = &diff.memory.contents else { return Err(MergeError::NoDiff) };
    if *parent != base.id || base.memory.ranges != diff.memory.ranges {
        return Err(MergeError::Strangers);
    }
    let (page, length) = (crate::memory::PAGE_BYTES, base.memory.file_bytes());
    let whole = |(start, bytes): &(u64, u64)| {
        let end = start.saturating_add(*bytes);
        let fits = start.is_multiple_of(page) && end.is_multiple_of(page) && end <= length;
        if fits { Ok(*start..end) } else { Err(MergeError::Extent { start: *start, end }) }
    };
    extents.iter().map(whole).collect()
}

/// Blocks are shared where the file system can.
fn copy_whole(from: &File, to: &File, length: u64) -> io::Result<()> {
    to.set_len(0)?;
    // SAFETY: both descriptors are open; the call changes nothing in this process.
    if unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, from.as_raw_fd()) } == 0 {
        return Ok(());
    }
    to.set_len(length)?;
    copy_data(from, to, 0..length)
}

/// A hole of the diff within an extent is a page that became zero.
fn replace(from: &File, to: &File, extent: Range<u64>) -> io::Result<()> {
    let (start, bytes) = (extent.start as libc::off_t, (extent.end - extent.start) as libc::off_t);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is open; the call changes nothing in this process.
    if unsafe { libc::fallocate(to.as_raw_fd(), punch, start, bytes) } != 0 {
        return Err(io::Error::last_os_error());
    }
    copy_data(from, to, extent)
}

fn copy_data(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES as usize];
    for run in data_of(from, range.start, range.end - range.start)? {
        let mut at = range.start + run.start;
        let end = range.start + run.end;
        while at < end {
            let part = &mut buffer[..(end - at).min(COPY_BYTES) as usize];
            from.read_exact_at(part, at)?;
            to.write_all_at(part, at)?;
            at += part.len() as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
