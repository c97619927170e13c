//! Writer of the "newc" cpio format, which the kernel unpacks as an initramfs
//! (`Documentation/driver-api/early-userspace/buffer-format.rst` of Linux).
//!
//! The same entries give the same bytes: owner 0, time 0, inode numbers in order.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;
const TYPE_CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive under construction. Parent directories are added by themselves.
pub struct Archive<W: Write> {
    out: W,
    written: u64,
    entries: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self { out, written: 0, entries: 0, directories: BTreeSet::new() }
    }

    /// `path` is relative to the root, without a leading slash; `mode` holds the permission bits.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.entry(path, TYPE_FILE | mode, (0, 0), content)
    }

    /// Copies a file of the host, symbolic links followed.
    pub fn host_file(&mut self, path: &str, mode: u32, source: &Path) -> Result<()> {
        let content = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        self.file(path, mode, &content)
    }

    pub fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        self.parents(path)?;
        if self.directories.insert(path.to_owned()) {
            self.entry(path, TYPE_DIRECTORY | mode, (0, 0), b"")?;
        }
        Ok(())
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.parents(path)?;
        self.entry(path, TYPE_SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Result<()> {
        self.parents(path)?;
        self.entry(path, TYPE_CHARACTER_DEVICE | mode, (major, minor), b"")
    }

    /// Writes the trailer; returns the size of the archive in bytes.
    pub fn finish(mut self) -> Result<u64> {
        self.entry("TRAILER!!!", 0, (0, 0), b"")?;
        self.out.flush()?;
        Ok(self.written)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        if path.is_empty()
            || path.starts_with('/')
            || path.split('/').any(|part| part.is_empty() || part == "..")
        {
            bail!("{path:?} is not a plain relative path");
        }
        let mut end = 0;
        while let Some(slash) = path[end..].find('/') {
            let parent = path[..end + slash].to_owned();
            if self.directories.insert(parent.clone()) {
                self.entry(&parent, TYPE_DIRECTORY | 0o755, (0, 0), b"")?;
            }
            end += slash + 1;
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).with_context(|| format!("{name} has 4 GiB or more"))?;
        let links = if mode & TYPE_DIRECTORY != 0 && mode & TYPE_FILE == 0 { 2 } else { 1 };
        self.entries += 1;
        let fields = [
            self.entries,
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            size,
            0, // device major
            0, // device minor
            device.0,
            device.1,
            name.len() as u32 + 1,
            0, // checksum, unused in this variant
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.bytes(header.as_bytes())?;
        self.bytes(name.as_bytes())?;
        self.bytes(b"\0")?;
        self.pad()?;
        self.bytes(content)?;
        self.pad()
    }

    fn bytes(&mut self, data: &[u8]) -> Result<()> {
        self.written += data.len() as u64;
        self.out.write_all(data).context("writing a cpio archive")
    }

    fn pad(&mut self) -> Result<()> {
        let missing = (4 - self.written % 4) % 4;
        self.bytes(&[0; 3][..missing as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file("init", 0o755, b"hello").expect("file");
        archive.file("a/b/c", 0o640, b"").expect("file");
        archive.directory("a/b", 0o755).expect("a directory that is there");
        archive.symlink("a/link", "b/c").expect("link");
        archive.character_device("dev/console", 0o600, 5, 1).expect("device");
        archive.finish().expect("trailer");
        bytes
    }

    #[test]
    fn cpio_lists_what_was_written() {
        let mut child = Command::new("cpio")
            .args(["-itv", "--quiet", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio");
        child.stdin.take().expect("piped").write_all(&sample()).expect("write");
        let output = child.wait_with_output().expect("cpio");
        let listing = String::from_utf8(output.stdout).expect("text");
        let lines: Vec<Vec<&str>> = listing.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(output.status.success());
        assert_eq!(lines.len(), 7, "{listing}");
        assert_eq!((lines[0][0], lines[0][4]), ("-rwxr-xr-x", "5"));
        assert!(lines[1][0].starts_with('d') && lines[2][0].starts_with('d'), "{listing}");
        assert!(listing.contains("a/link -> b/c"), "{listing}");
        assert!(listing.lines().any(|line| line.starts_with("crw-------") && line.ends_with("dev/console")));
    }

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        assert_eq!(sample(), sample());
        assert_eq!(sample().len() % 4, 0);
    }

    #[test]
    fn refuses_paths_that_leave_the_root() {
        let mut archive = Archive::new(Vec::new());
        for path in ["/etc", "a/../b", "", "a//b"] {
            assert!(archive.file(path, 0o644, b"").is_err(), "{path}");
        }
    }
}
