//! Which pages of guest memory hold something, as the host's kernel tells by `/proc/self/pagemap`.
//!
//! A private anonymous page exists once it was written; where a file is mapped below it, what was not written shows the
//! file. So three kinds of page: the guest's own, the file's, and none, which is zero.

use crate::memory::PAGE_BYTES;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Entries read at once: 32 MiB of memory.
const ENTRIES: usize = 8192;
const ENTRY_BYTES: usize = 8;
/// Bits of an entry (Linux, Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE_OR_SHARED: u64 = 1 << 61;
const SOFT_DIRTY: u64 = 1 << 55;

/// Runs of pages, as ranges of bytes from the start of a mapping; ascending, apart from each other.
pub type Runs = Vec<Range<u64>>;

/// Adds `run` after all others, and joins it with the last where they touch.
pub fn push(runs: &mut Runs, run: Range<u64>) {
    match runs.last_mut() {
        _ if run.is_empty() => {}
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}

/// Pages of the mapping at `address`, `bytes` long, that the process has for itself: written anonymous pages, also
/// swapped ones, and copies of a file's.
pub fn own(pagemap: &File, address: u64, bytes: u64) -> io::Result<Runs> {
    matching(pagemap, address, bytes, |entry| {
        entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE_OR_SHARED == 0
    })
}

/// Pages of it that were written since the soft-dirty bits were cleared.
pub fn changed(pagemap: &File, address: u64, bytes: u64) -> io::Result<Runs> {
    matching(pagemap, address, bytes, |entry| entry & (PRESENT | SWAPPED) != 0 && entry & SOFT_DIRTY != 0)
}

/// Pages of it that are mapped now, whoever they belong to.
pub fn mapped(pagemap: &File, address: u64, bytes: u64) -> io::Result<Runs> {
    matching(pagemap, address, bytes, |entry| entry & (PRESENT | SWAPPED) != 0)
}

fn matching(pagemap: &File, address: u64, bytes: u64, wanted: impl Fn(u64) -> bool) -> io::Result<Runs> {
    let mut runs = Runs::new();
    let mut buffer = vec![0; ENTRIES * ENTRY_BYTES];
    let (first, pages) = (address / PAGE_BYTES, bytes / PAGE_BYTES);
    let mut page = 0;
    while page < pages {
        let count = (pages - page).min(ENTRIES as u64) as usize;
        let entries = &mut buffer[..count * ENTRY_BYTES];
        pagemap.read_exact_at(entries, (first + page) * ENTRY_BYTES as u64)?;
        for (index, entry) in entries.as_chunks::<ENTRY_BYTES>().0.iter().enumerate() {
            if wanted(u64::from_ne_bytes(*entry)) {
                let start = (page + index as u64) * PAGE_BYTES;
                push(&mut runs, start..start + PAGE_BYTES);
            }
        }
        page += count as u64;
    }
    Ok(runs)
}

/// What of `one` is not in `other`.
pub fn without(one: &[Range<u64>], other: &[Range<u64>]) -> Runs {
    let mut runs = Runs::new();
    let mut others = other.iter().peekable();
    for run in one {
        let mut at = run.start;
        while let Some(cut) = others.peek() {
            if cut.start >= run.end {
                break;
            }
            push(&mut runs, at..cut.start.max(at));
            at = at.max(cut.end);
            if cut.end > run.end {
                break;
            }
            others.next();
        }
        push(&mut runs, at.min(run.end)..run.end);
    }
    runs
}

/// All that is in one or the other.
pub fn union(one: &[Range<u64>], other: &[Range<u64>]) -> Runs {
    let mut all: Vec<_> = one.iter().chain(other).cloned().collect();
    all.sort_by_key(|run| run.start);
    let mut runs = Runs::new();
    for run in all {
        match runs.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => runs.push(run),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

    fn pagemap() -> File {
        File::open("/proc/self/pagemap").expect("procfs")
    }

    #[test]
    fn written_pages_are_own_and_others_are_not() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(96 << 20).expect("a sparse file");
        file.write_all_at(&[1; 3 * 4096], 0).expect("written");
        let memory = crate::memory::map_private(96 << 20, &file).expect("mapped");
        memory.write_obj(1u8, GuestAddress(0x1000)).expect("in memory");
        memory.write_obj(1u8, GuestAddress(0x2fff)).expect("in memory");
        memory.write_obj(1u8, GuestAddress((96 << 20) - 1)).expect("in memory");
        let read: u8 = memory.read_obj(GuestAddress(0)).expect("in memory");
        assert_eq!(read, 1);
        let region = memory.iter().next().expect("one region");
        let (address, bytes) = (region.as_ptr() as u64, region.len());
        let last = (96 << 20) - 4096..96 << 20;
        assert_eq!(own(&pagemap(), address, bytes).expect("read"), [0x1000..0x3000, last]);
        let mapped = mapped(&pagemap(), address, bytes).expect("read");
        assert_eq!(mapped[0].start, 0, "read pages are mapped: {mapped:x?}");
    }

    #[test]
    fn differences_are_what_is_left() {
        assert_eq!(without(&[0..10, 20..30], &[2..4, 6..22, 29..40]), [0..2, 4..6, 22..29]);
        assert_eq!(without(&[0..10, 12..14], &[]), [0..10, 12..14]);
        assert_eq!(without(&[5..6, 7..8], &[0..6, 7..10]), []);
    }

    #[test]
    fn unions_are_ascending_and_apart() {
        assert_eq!(union(&[0..10, 20..30], &[5..15, 30..40, 50..60]), [0..15, 20..40, 50..60]);
        assert_eq!(union(&[], &[]), []);
    }
}
