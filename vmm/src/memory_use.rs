//! What the process costs in memory, from `/proc/self/smaps`.
//!
//! The file is opened before the seccomp filters are there and read again by position. In a jail without `/proc` the
//! guest's part comes from `mincore`, and the VMM's own part is unknown: zero.

use crate::memory::GuestMemory;
use pinfold_vmm_api::control::MemoryUse;
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

const PAGE_BYTES: usize = crate::memory::PAGE_BYTES as usize;
/// The text of some 60 mappings has 50 KiB, that of a guest which gave much of its memory back tens of MiB: it is read in
/// pieces, each line of it once.
const CHUNK_BYTES: usize = 16 * 1024;
/// A line ends with a path, of at most 4 KiB. More is no text of the kernel's.
const LINE_BYTES_MAX: usize = 8 * 1024;

#[derive(Debug)]
pub struct MemoryMeter {
    smaps: Option<File>,
    guest: Vec<(u64, u64)>,
    memory: GuestMemory,
}

impl MemoryMeter {
    pub fn new(smaps: Option<File>, memory: &GuestMemory) -> Self {
        Self { smaps, guest: crate::memory::host_ranges(memory), memory: memory.clone() }
    }

    pub fn measure(&self) -> MemoryUse {
        let mut sum = Sum::of(&self.guest);
        let from_smaps = self.smaps.as_ref().map(|file| for_each_line(file, |line| sum.add(line)));
        match from_smaps {
            Some(Ok(1..)) => sum.total,
            _ => MemoryUse { guest_resident_bytes: self.resident(), ..MemoryUse::default() },
        }
    }

    /// Host addresses within guest memory that show a file. Without smaps all of guest memory may.
    pub fn guest_files(&self) -> Vec<Range<u64>> {
        let mut files = Vec::new();
        let of_guest =
            |range: &Range<u64>| self.guest.iter().any(|(from, to)| (*from..*to).contains(&range.start));
        let of_line = |line: &str| {
            let file = header(line).filter(|(range, path)| path.starts_with('/') && of_guest(range));
            files.extend(file.map(|(range, _)| range));
        };
        match self.smaps.as_ref().map(|file| for_each_line(file, of_line)) {
            Some(Ok(_)) => files,
            _ => self.guest.iter().map(|(from, to)| *from..*to).collect(),
        }
    }

    fn resident(&self) -> u64 {
        let mut pages = 0;
        for region in self.memory.iter() {
            let mut map = vec![0u8; (region.len() as usize).div_ceil(PAGE_BYTES)];
            // SAFETY: the region is mapped, and `map` has a byte for each of its pages.
            let result = unsafe { libc::mincore(region.as_ptr().cast(), region.size(), map.as_mut_ptr()) };
            if result == 0 {
                pages += map.iter().filter(|page| **page & 1 != 0).count() as u64;
            }
        }
        pages * PAGE_BYTES as u64
    }
}

/// What the process reads of itself under `/proc`; none where there is no procfs.
#[derive(Debug, Default)]
pub struct OwnFiles {
    pub smaps: Option<File>,
    pub pagemap: Option<File>,
    /// for writing
    pub clear_refs: Option<File>,
}

impl OwnFiles {
    /// Opens them under a directory given by descriptor, which is closed, or under `/proc`.
    pub fn open(proc_directory: Option<RawFd>) -> Self {
        let Some(number) = proc_directory else {
            let open = |path| File::open(path).ok();
            let clear_refs = OpenOptions::new().write(true).open("/proc/self/clear_refs").ok();
            return Self { smaps: open("/proc/self/smaps"), pagemap: open("/proc/self/pagemap"), clear_refs };
        };
        if number < 3 {
            return Self::default();
        }
        // SAFETY: nothing else in this process uses the descriptor; a wrong number makes the look-up fail.
        let directory = unsafe { OwnedFd::from_raw_fd(number) };
        let open = |path: &CStr, mode| {
            // SAFETY: the path ends in NUL, and the flags make no file.
            let fd = unsafe { libc::openat(directory.as_raw_fd(), path.as_ptr(), mode | libc::O_CLOEXEC) };
            // SAFETY: the descriptor is new and nobody else's.
            (fd >= 0).then(|| unsafe { File::from_raw_fd(fd) })
        };
        let read = |path| open(path, libc::O_RDONLY);
        let clear_refs = open(c"self/clear_refs", libc::O_WRONLY);
        Self { smaps: read(c"self/smaps"), pagemap: read(c"self/pagemap"), clear_refs }
    }
}

/// Reads a text from its beginning to its end, line by line; how many lines there were.
fn for_each_line(file: &File, mut act: impl FnMut(&str)) -> io::Result<usize> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut rest, mut offset, mut lines) = (Vec::new(), 0, 0);
    loop {
        let read = file.read_at(&mut chunk, offset)?;
        if read == 0 {
            return Ok(lines);
        }
        offset += read as u64;
        for piece in chunk[..read].split_inclusive(|byte| *byte == b'\n') {
            rest.extend_from_slice(piece);
            if rest.len() > LINE_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if rest.ends_with(b"\n") {
                act(String::from_utf8_lossy(&rest).trim_end());
                rest.clear();
                lines += 1;
            }
        }
    }
}

/// Sums a text in the form of `/proc/<pid>/smaps`.
struct Sum<'a> {
    guest: &'a [(u64, u64)],
    total: MemoryUse,
    in_guest: bool,
    of_file: bool,
}

impl<'a> Sum<'a> {
    fn of(guest: &'a [(u64, u64)]) -> Self {
        Self { guest, total: MemoryUse::default(), in_guest: false, of_file: false }
    }

    fn add(&mut self, line: &str) {
        if let Some((range, path)) = header(line) {
            self.in_guest = self.guest.iter().any(|(from, to)| (*from..*to).contains(&range.start));
            self.of_file = path.starts_with('/');
            return;
        }
        let Some((key, value)) = line.split_once(':') else { return };
        let bytes = || value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024;
        let total = &mut self.total;
        match key {
            "Rss" if self.in_guest => total.guest_resident_bytes += bytes(),
            "Rss" if self.of_file => total.vmm_file_bytes += bytes(),
            "Anonymous" if !self.in_guest && !self.of_file => total.vmm_private_bytes += bytes(),
            // copies of the binary's pages that were written to
            "Anonymous" if self.of_file && !self.in_guest => {
                total.vmm_private_bytes += bytes();
                total.vmm_file_bytes = total.vmm_file_bytes.saturating_sub(bytes());
            }
            _ => {}
        }
    }
}

/// `start-end perms offset dev inode path` of a mapping's first line.
fn header(line: &str) -> Option<(Range<u64>, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let path = rest.split_ascii_whitespace().nth(4).unwrap_or("");
    Some((u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    const TEXT: &str = "\
55d000000000-55d000100000 r-xp 00000000 08:01 42                         /bin/vmm
Size:               1024 kB
Rss:                 512 kB
Anonymous:             0 kB
55d000200000-55d000210000 rw-p 00100000 08:01 42                         /bin/vmm
Rss:                  64 kB
Anonymous:            16 kB
55d001000000-55d001100000 rw-p 00000000 00:00 0                          [heap]
Rss:                 128 kB
Anonymous:           128 kB
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Rss:              102400 kB
Anonymous:        102400 kB
VmFlags: rd wr mr
7f0010000000-7f0010200000 rw-p 00200000 08:01 43                         /images/vmlinux
Rss:                 100 kB
Anonymous:            40 kB
";

    #[test]
    fn guest_memory_the_vmm_and_its_binary_are_told_apart() {
        let guest = [(0x7f00_0000_0000, 0x7f00_1020_0000)];
        let mut sum = Sum::of(&guest);
        TEXT.lines().for_each(|line| sum.add(line));
        let used = sum.total;
        assert_eq!(used.guest_resident_bytes, (102_400 + 100) * 1024, "with its kernel's file");
        assert_eq!(used.vmm_private_bytes, (128 + 16) * 1024);
        assert_eq!(used.vmm_file_bytes, (512 + 64 - 16) * 1024);
    }

    /// As many as the balloon can make.
    #[test]
    fn all_mappings_count_however_many_there_are() {
        let memory = crate::memory::allocate(96 << 20).expect("memory");
        let file = tempfile::tempfile().expect("a temporary file");
        let mapping = TEXT.lines().skip(7).take(3).collect::<Vec<_>>().join("\n") + "\n";
        let count = 50_000;
        file.write_all_at(mapping.repeat(count).as_bytes(), 0).expect("written");
        let meter = MemoryMeter::new(Some(file), &memory);
        assert_eq!(meter.measure().vmm_private_bytes, count as u64 * 128 * 1024);
    }

    #[test]
    fn a_directory_by_descriptor_serves_as_well() {
        let directory = File::open("/proc").expect("procfs");
        let own = OwnFiles::open(Some(crate::descriptors::give(directory)));
        assert!(for_each_line(&own.smaps.expect("own smaps"), |_| {}).expect("read") > 100);
        assert!(own.pagemap.is_some());
        let elsewhere = File::open("/").expect("the root");
        assert!(OwnFiles::open(Some(crate::descriptors::give(elsewhere))).smaps.is_none());
        assert!(OwnFiles::open(Some(0)).pagemap.is_none());
    }

    #[test]
    fn touched_guest_pages_are_seen_with_and_without_proc() {
        let memory = crate::memory::allocate(96 << 20).expect("memory");
        let mut meter = MemoryMeter::new(OwnFiles::open(None).smaps, &memory);
        let before = meter.measure().guest_resident_bytes;
        for page in 0..2048u64 {
            memory.write_obj(1u8, GuestAddress(page * 4096)).expect("in memory");
        }
        let measured = meter.measure();
        assert!(measured.guest_resident_bytes >= before + 8 * 1024 * 1024, "{measured:?}");
        assert!(measured.vmm_private_bytes > 0);
        meter.smaps = None;
        assert!(meter.measure().guest_resident_bytes >= 8 * 1024 * 1024);
    }
}
