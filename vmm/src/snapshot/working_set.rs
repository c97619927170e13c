//! Which pages a restored guest has used: written after a first restore, and put in place before the next ones begin.
//!
//! ```text
//!   0  magic "PINFWSET"   8  version, u32   12  number of runs, u32      all little endian
//!   16 each run: guest address u64, with bit 0 set when the guest wrote there; length in bytes u64
//! ```
//!
//! It is advice: a page too many costs its memory, one too few a page fault. So it is not authenticated, but every run has
//! to lie in guest memory.

use super::pages;
use crate::memory::{GuestMemory, PAGE_BYTES};
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

const MAGIC: [u8; 8] = *b"PINFWSET";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
const RUN_BYTES: usize = 16;
/// Runs of a file at most; those that would be more are joined across what lies between them.
pub const RUNS_MAX: usize = 16 * 1024;
const WRITTEN: u64 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    /// guest addresses
    range: Range<u64>,
    written: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum WorkingSetError {
    #[error("this process cannot see which pages are in use: it has no procfs")]
    Blind,
    #[error("the working set cannot be read or written: {0}")]
    Io(#[from] io::Error),
    #[error("the file is no working set of version {VERSION} with at most {RUNS_MAX} runs")]
    Format,
    #[error(
        "run {index} of the working set, {bytes:#x} bytes at {start:#x}, is not whole pages of guest memory"
    )]
    Run { index: usize, start: u64, bytes: u64 },
}

/// Writes the pages of `memory` that are mapped now; how many bytes they have.
pub fn write(memory: &GuestMemory, pagemap: Option<&File>, file: &File) -> Result<u64, WorkingSetError> {
    let pagemap = pagemap.ok_or(WorkingSetError::Blind)?;
    let mut runs = Vec::new();
    for region in memory.iter() {
        let (address, bytes) = (region.as_ptr() as u64, region.len());
        let own = pages::own(pagemap, address, bytes)?;
        let others = pages::without(&pages::mapped(pagemap, address, bytes)?, &own);
        let start = region.start_addr().0;
        let of =
            |written| move |range: Range<u64>| Run { range: start + range.start..start + range.end, written };
        runs.extend(own.into_iter().map(of(true)));
        runs.extend(others.into_iter().map(of(false)));
    }
    runs.sort_by_key(|run| run.range.start);
    let mut gap = PAGE_BYTES;
    while runs.len() > RUNS_MAX {
        runs = join(runs, gap);
        gap *= 2;
    }
    file.set_len(0)?;
    file.write_all_at(&encode(&runs), 0)?;
    Ok(runs.iter().map(|run| run.range.end - run.range.start).sum())
}

/// Joins runs that are less than `gap` bytes apart. What lies between two of them counts as read.
fn join(runs: Vec<Run>, gap: u64) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.range.start - last.range.end < gap => {
                last.range.end = run.range.end;
                last.written &= run.written;
            }
            _ => joined.push(run),
        }
    }
    joined
}

fn encode(runs: &[Run]) -> Vec<u8> {
    let mut all = MAGIC.to_vec();
    all.extend(VERSION.to_le_bytes());
    all.extend((runs.len() as u32).to_le_bytes());
    for run in runs {
        all.extend((run.range.start | if run.written { WRITTEN } else { 0 }).to_le_bytes());
        all.extend((run.range.end - run.range.start).to_le_bytes());
    }
    all
}

fn decode(all: &[u8]) -> Result<Vec<Run>, WorkingSetError> {
    let (header, body) = all.split_at_checked(HEADER_BYTES).ok_or(WorkingSetError::Format)?;
    let expected = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
    let (entries, rest) = body.as_chunks::<RUN_BYTES>();
    let count = (entries.len() as u32).to_le_bytes();
    if header[..12] != expected || header[12..] != count || !rest.is_empty() {
        return Err(WorkingSetError::Format);
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
    let run = |(index, entry): (usize, &[u8; RUN_BYTES])| {
        let (first, bytes) = (number(&entry[..8]), number(&entry[8..]));
        let start = first & !WRITTEN;
        let whole = start.is_multiple_of(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES) && bytes > 0;
        let end = start.checked_add(bytes).filter(|_| whole);
        let end = end.ok_or(WorkingSetError::Run { index, start, bytes })?;
        Ok(Run { range: start..end, written: first & WRITTEN != 0 })
    };
    entries.iter().enumerate().map(run).collect()
}

/// Guest addresses that a file lists, whole pages.
pub fn runs(file: &File) -> Result<Vec<Range<u64>>, WorkingSetError> {
    Ok(read(file)?.into_iter().map(|run| run.range).collect())
}

fn read(file: &File) -> Result<Vec<Run>, WorkingSetError> {
    let mut all = Vec::new();
    let limit = HEADER_BYTES + RUNS_MAX * RUN_BYTES;
    file.take(limit as u64 + 1).read_to_end(&mut all)?;
    if all.len() > limit {
        return Err(WorkingSetError::Format);
    }
    decode(&all)
}

/// Runs that could not be put in place, and what came of the first.
#[derive(Debug, thiserror::Error)]
#[error(
    "{failed} of {all} runs of the working set are not in place, the first at {start:#x}: {source}; the guest waits for their pages"
)]
pub struct Left {
    pub failed: usize,
    pub all: usize,
    pub start: u64,
    pub source: io::Error,
}

/// Puts the pages of `file` in place; what is left of them comes when the guest touches it. All of them are left by a host
/// without MADV_POPULATE (Linux 5.14).
pub fn fetch(memory: &GuestMemory, file: &File) -> Result<Option<Left>, WorkingSetError> {
    let runs = read(file)?;
    let all = runs.len();
    let mut left: Option<Left> = None;
    for (index, run) in runs.into_iter().enumerate() {
        let (start, bytes) = (run.range.start, run.range.end - run.range.start);
        let slice = memory
            .get_slice(GuestAddress(start), bytes as usize)
            .map_err(|_| WorkingSetError::Run { index, start, bytes })?;
        let advice = if run.written { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        // SAFETY: the range is guest memory, page by page; populating changes nothing that can be seen in it.
        let result = unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), bytes as usize, advice) };
        if result != 0 {
            let source = io::Error::last_os_error();
            left.get_or_insert(Left { failed: 0, all, start, source }).failed += 1;
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    const MIB: u64 = 1 << 20;

    fn pagemap() -> File {
        File::open("/proc/self/pagemap").expect("procfs")
    }

    fn base() -> File {
        let base = tempfile::tempfile().expect("a temporary file");
        base.write_all_at(&vec![7; 96 * MIB as usize], 0).expect("written");
        base
    }

    fn resident(memory: &GuestMemory) -> u64 {
        let region = memory.iter().next().expect("one region");
        let runs = pages::mapped(&pagemap(), region.as_ptr() as u64, region.len()).expect("read");
        runs.iter().map(|run| run.end - run.start).sum()
    }

    #[test]
    fn what_one_machine_used_is_in_place_for_the_next() {
        let base = base();
        let first = crate::memory::map_private(96 * MIB, &base).expect("mapped");
        first.write_obj(1u8, GuestAddress(20 * MIB)).expect("in memory");
        let _: u8 = first.read_obj(GuestAddress(40 * MIB)).expect("in memory");
        let file = tempfile::tempfile().expect("a temporary file");
        let bytes = write(&first, Some(&pagemap()), &file).expect("written");
        assert!(bytes >= 2 * PAGE_BYTES, "{bytes}");
        let next = crate::memory::map_private(96 * MIB, &base).expect("mapped");
        assert_eq!(resident(&next), 0);
        assert!(fetch(&next, &file).expect("fetched").is_none());
        assert_eq!(resident(&next), bytes);
        let region = next.iter().next().expect("one region");
        let own = pages::own(&pagemap(), region.as_ptr() as u64, region.len()).expect("read");
        let copied = own.iter().map(|run| (run.start, run.end)).collect::<Vec<_>>();
        assert_eq!(copied, [(20 * MIB, 20 * MIB + PAGE_BYTES)], "what was written is copied ahead");
        let read: u8 = next.read_obj(GuestAddress(20 * MIB)).expect("in memory");
        assert_eq!(read, 7, "from the file, not from the other machine");
    }

    /// The memory file is shorter than it was: its last pages cannot be read.
    #[test]
    fn what_cannot_be_put_in_place_is_told_and_keeps_nothing_else_back() {
        let run = |at: u64, written| Run { range: at..at + 2 * PAGE_BYTES, written };
        let runs = [run(MIB, false), run(50 * MIB, false), run(60 * MIB, true), run(40 * MIB, true)];
        let mut ascending = runs.to_vec();
        ascending.swap(1, 3);
        for order in [&runs[..], &ascending] {
            let base = base();
            let memory = crate::memory::map_private(96 * MIB, &base).expect("mapped");
            base.set_len(48 * MIB).expect("cut");
            let file = tempfile::tempfile().expect("a temporary file");
            file.write_all_at(&encode(order), 0).expect("written");
            let left = fetch(&memory, &file).expect("fetched").expect("some are left");
            assert_eq!((left.failed, left.all), (2, 4), "{left}");
            assert!([50 * MIB, 60 * MIB].contains(&left.start), "{left}");
            assert!(left.to_string().starts_with("2 of 4 runs"), "{left}");
            let region = memory.iter().next().expect("one region");
            let runs = pages::mapped(&pagemap(), region.as_ptr() as u64, region.len()).expect("read");
            for at in [MIB, 40 * MIB] {
                assert!(runs.iter().any(|run| run.contains(&at)), "{at:#x} is in place: {runs:x?}");
            }
        }
    }

    #[test]
    fn only_whole_files_with_runs_in_guest_memory_are_taken() {
        let memory = crate::memory::allocate(96 * MIB).expect("memory");
        let run = |start, end| Run { range: start..end, written: false };
        let attempt = |bytes: &[u8]| {
            let file = tempfile::tempfile().expect("a temporary file");
            file.write_all_at(bytes, 0).expect("written");
            fetch(&memory, &file).map(drop)
        };
        let good = encode(&[run(0, PAGE_BYTES), run(MIB, 2 * MIB)]);
        attempt(&good).expect("fetched");
        for length in 0..good.len() {
            assert!(matches!(attempt(&good[..length]), Err(WorkingSetError::Format)), "{length} bytes");
        }
        assert!(matches!(attempt(&[&good[..], b"x"].concat()), Err(WorkingSetError::Format)));
        for wrong in [run(96 * MIB, 97 * MIB), run(1 << 40, (1 << 40) + 4096), run(2, 4098), run(4096, 4097)]
        {
            let error = attempt(&encode(std::slice::from_ref(&wrong)));
            assert!(matches!(error, Err(WorkingSetError::Run { index: 0, .. })), "{wrong:?}: {error:?}");
        }
        let many = vec![run(0, PAGE_BYTES); RUNS_MAX + 1];
        assert!(matches!(attempt(&encode(&many)), Err(WorkingSetError::Format)));
    }

    #[test]
    fn runs_past_the_limit_are_joined_across_gaps() {
        let run = |start: u64, written| Run { range: start..start + 4096, written };
        let runs = vec![run(0, true), run(8192, false), run(1 << 20, true)];
        assert_eq!(join(runs.clone(), 4096), runs);
        let joined = Run { range: 0..12288, written: false };
        assert_eq!(join(runs, 8192), [joined, run(1 << 20, true)]);
    }
}
