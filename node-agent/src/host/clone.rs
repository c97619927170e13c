//! A copy of a disk file, of one instant when nobody writes to it meanwhile.
//!
//! Where the file system shares blocks between files (XFS, btrfs) the copy is an entry in its tables (FICLONE, ioctl_ficlonerange(2))
//! and costs the same for any size; elsewhere the data is copied and the holes are left out (lseek(2), SEEK_DATA).

use super::{Act, HostError};
use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// At a time, where the kernel cannot copy between the two files by itself.
const PIECE_BYTES: usize = 256 * 1024;

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// no data was moved
    Shared,
    Copied,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cloned {
    pub method: Method,
    /// bytes of data that were moved; 0 when shared
    pub copied_bytes: u64,
    pub took: Duration,
}

/// Makes `to`, which must not exist, readable for root alone. Blocks. What a failure leaves is the caller's to remove.
pub fn clone_file(from: &Path, to: &Path) -> Result<Cloned, HostError> {
    clone_by(from, to, |from, to| ioctl_ficlone(to, from))
}

fn clone_by(
    from: &Path,
    to: &Path,
    share: impl FnOnce(&File, &File) -> Result<(), Errno>,
) -> Result<Cloned, HostError> {
    let begun = Instant::now();
    let source = File::open(from).act(|| format!("open {}", from.display()))?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let target = target.act(|| format!("make {}", to.display()))?;
    let act = || format!("copy {} to {}", from.display(), to.display());
    let (method, copied_bytes) = match share(&source, &target) {
        Ok(()) => (Method::Shared, 0),
        // what it says depends on the file system: none of these is about the files' content
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS) => {
            (Method::Copied, copy_data(&source, &target).act(act)?)
        }
        Err(error) => return Err(error).act(act),
    };
    Ok(Cloned { method, copied_bytes, took: begun.elapsed() })
}

/// Data only; `to` is as long as `from`, and what is a hole there is one here.
fn copy_data(from: &File, to: &File) -> io::Result<u64> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut copied = 0;
    let mut at = 0;
    while at < length {
        let begin = match seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // no data behind it
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        // every file ends in a hole
        let end = seek(from, SeekFrom::Hole(begin))?.min(length);
        copy_range(from, to, begin, end)?;
        copied += end - begin;
        at = end;
    }
    Ok(copied)
}

fn copy_range(from: &File, to: &File, begin: u64, end: u64) -> io::Result<()> {
    let mut at = begin;
    while at < end {
        let (mut offset_in, mut offset_out) = (at, at);
        let length = usize::try_from(end - at).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut offset_in), to, Some(&mut offset_out), length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => at += bytes as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                return copy_by_hand(from, to, at, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, begin: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = begin;
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        from.read_exact_at(&mut buffer[..length], at)?;
        to.write_all_at(&buffer[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

/// Bytes that `file` takes on its file system; holes are not counted.
pub fn data_bytes(path: &Path) -> Result<u64, HostError> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).act(|| format!("look at {}", path.display()))?;
    // st_blocks is in units of 512 bytes (inode(7))
    Ok(metadata.blocks().saturating_mul(512))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// 64 MiB with data at 1 MiB and just before the end.
    fn sparse(path: &Path) -> File {
        let file = File::create_new(path).unwrap();
        file.set_len(64 * MIB).unwrap();
        file.write_all_at(&[7; 5000], MIB).unwrap();
        file.write_all_at(&[8; 100], 64 * MIB - 100).unwrap();
        file
    }

    fn check(path: &Path) {
        let file = File::open(path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 64 * MIB);
        let at = |offset, length| {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).unwrap();
            bytes
        };
        assert_eq!(at(MIB, 5000), [7; 5000]);
        assert_eq!(at(64 * MIB - 100, 100), [8; 100]);
        assert!(at(MIB + 5000, 3000).iter().all(|&byte| byte == 0));
        assert!(data_bytes(path).unwrap() < MIB, "{} bytes of data", data_bytes(path).unwrap());
    }

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let directory = tempfile::tempdir().unwrap();
        let [from, first, second] = ["from", "first", "second"].map(|name| directory.path().join(name));
        let source = sparse(&from);
        // whichever way this machine's file system takes
        clone_file(&from, &first).unwrap();
        check(&first);
        let copied = clone_by(&from, &second, |_, _| Err(Errno::OPNOTSUPP)).unwrap();
        assert_eq!(copied.method, Method::Copied);
        assert!((5100..MIB).contains(&copied.copied_bytes), "{copied:?}");
        check(&second);
        // they are of their own
        source.write_all_at(&[9; 5000], MIB).unwrap();
        check(&first);
        check(&second);
        let by_hand = File::create_new(directory.path().join("by-hand")).unwrap();
        by_hand.set_len(64 * MIB).unwrap();
        copy_by_hand(&File::open(&second).unwrap(), &by_hand, MIB, 2 * MIB).unwrap();
        let mut bytes = vec![0; 5000];
        File::open(directory.path().join("by-hand")).unwrap().read_exact_at(&mut bytes, MIB).unwrap();
        assert_eq!(bytes, [7; 5000]);
    }

    #[test]
    fn nothing_is_overwritten_and_a_true_error_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| directory.path().join(name));
        let missing = clone_file(&from, &to).unwrap_err().sentence();
        assert!(missing.contains("from"), "{missing}");
        drop(sparse(&from));
        let full = clone_by(&from, &to, |_, _| Err(Errno::NOSPC)).unwrap_err().sentence();
        assert!(full.contains("No space"), "{full}");
        assert!(clone_file(&from, &to).unwrap_err().sentence().contains("File exists"));
    }
}
