//! The memory file of a full snapshot: ranges of RAM one after another, as long as all of them, with a hole for every
//! page that is zero.

use super::pages::{self, Runs};
use crate::memory::{GuestMemory, PAGE_BYTES};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// Bytes that one write takes at most.
const WRITE_BYTES_MAX: u64 = 4 << 20;

/// Where guest memory comes from, and with it what an untouched page holds.
#[derive(Debug)]
pub enum Origin {
    /// Made by this process: zero. Files that a kernel was mapped from lie over it.
    Booted,
    /// The memory file that this machine was restored from, in its order.
    File(File),
    /// A page-fault handler fills it: nothing is known before it is read, so all of it is.
    Handler,
}

#[derive(Debug, thiserror::Error)]
pub enum SaveMemoryError {
    #[error("the memory file cannot be written: {0}")]
    Write(#[source] io::Error),
    #[error("it cannot be told which pages of guest memory are in use: {0}")]
    Pages(#[source] io::Error),
}

/// Writes all of `memory`, which nobody changes meanwhile, to `file`; bytes of data in it.
///
/// `pagemap`: the process's own. Without it every page is read. `over`: ranges of host addresses that show a file.
pub fn write_full(
    memory: &GuestMemory,
    origin: &Origin,
    pagemap: Option<&File>,
    over: &[Range<u64>],
    file: &File,
) -> Result<u64, SaveMemoryError> {
    let length: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    // holes all over, also where the file had something
    file.set_len(0).map_err(SaveMemoryError::Write)?;
    file.set_len(length).map_err(SaveMemoryError::Write)?;
    let (mut offset, mut written) = (0, 0);
    for region in memory.iter() {
        let runs = candidates(region, offset, origin, pagemap, over).map_err(SaveMemoryError::Pages)?;
        for run in runs {
            written += write_run(region, run, offset, file).map_err(SaveMemoryError::Write)?;
        }
        offset += region.len();
    }
    Ok(written)
}

/// Writes `runs` of the memory file, and nothing else; bytes of data in it.
pub fn write_runs(memory: &GuestMemory, runs: &[Range<u64>], file: &File) -> Result<u64, SaveMemoryError> {
    let length: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    file.set_len(0).map_err(SaveMemoryError::Write)?;
    file.set_len(length).map_err(SaveMemoryError::Write)?;
    let (mut offset, mut written) = (0, 0);
    for region in memory.iter() {
        let end = offset + region.len();
        for run in runs {
            let part = run.start.clamp(offset, end) - offset..run.end.clamp(offset, end) - offset;
            written += write_run(region, part, offset, file).map_err(SaveMemoryError::Write)?;
        }
        offset = end;
    }
    Ok(written)
}

/// Runs of the region outside of which everything is zero. `offset`: of the region in a memory file.
fn candidates(
    region: &GuestRegionMmap<()>,
    offset: u64,
    origin: &Origin,
    pagemap: Option<&File>,
    over: &[Range<u64>],
) -> io::Result<Runs> {
    let all = || std::iter::once(0..region.len()).collect();
    let address = region.as_ptr() as u64;
    let Some(pagemap) = pagemap else { return Ok(all()) };
    let of_file = match origin {
        Origin::Handler => return Ok(all()),
        Origin::File(base) => data_of(base, offset, region.len())?,
        Origin::Booted => over
            .iter()
            .map(|range| {
                let within = |at: u64| at.clamp(address, address + region.len()) - address;
                within(range.start)..within(range.end)
            })
            .filter(|range| !range.is_empty())
            .collect(),
    };
    Ok(pages::union(&pages::own(pagemap, address, region.len())?, &of_file))
}

/// Extents of `file` between `offset` and `offset + bytes` that are no holes, from `offset` on, as whole pages.
pub fn data_of(file: &File, offset: u64, bytes: u64) -> io::Result<Runs> {
    let end = offset + bytes;
    let mut runs = Runs::new();
    let mut at = offset;
    while at < end {
        let Some(data) = seek(file, at, libc::SEEK_DATA)?.filter(|data| *data < end) else { break };
        let hole = seek(file, data, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
        let start = (data - offset) / PAGE_BYTES * PAGE_BYTES;
        runs.push(start..(hole - offset).next_multiple_of(PAGE_BYTES));
        at = hole;
    }
    Ok(pages::union(&runs, &[]))
}

fn seek(file: &File, from: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    // SAFETY: moves the offset of an open file, which nothing here uses.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            // no data, or no hole, from here on
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// Writes what is not zero of a run; bytes written.
fn write_run(region: &GuestRegionMmap<()>, run: Range<u64>, offset: u64, file: &File) -> io::Result<u64> {
    let mut written = 0;
    let mut pending: Option<Range<u64>> = None;
    for start in run.step_by(PAGE_BYTES as usize) {
        if is_zero(region, start) {
            continue;
        }
        pending = Some(match pending.take() {
            Some(run) if run.end == start && run.end - run.start < WRITE_BYTES_MAX => {
                run.start..start + PAGE_BYTES
            }
            other => {
                written += other.map_or(Ok(0), |run| write_out(region, run, offset, file))?;
                start..start + PAGE_BYTES
            }
        });
    }
    Ok(written + pending.map_or(Ok(0), |run| write_out(region, run, offset, file))?)
}

fn is_zero(region: &GuestRegionMmap<()>, start: u64) -> bool {
    let page = region.as_ptr().wrapping_add(start as usize).cast::<[u64; PAGE_BYTES as usize / 8]>();
    // SAFETY: the page lies in the region, which is mapped for ever and aligned to pages; while the machine is paused
    // nobody writes to it.
    let words = unsafe { &*page };
    words.iter().fold(0, |all, word| all | word) == 0
}

fn write_out(region: &GuestRegionMmap<()>, run: Range<u64>, offset: u64, file: &File) -> io::Result<u64> {
    let mut at = run.start;
    while at < run.end {
        let from = region.as_ptr().wrapping_add(at as usize);
        let (left, place) = ((run.end - at) as usize, (offset + at) as libc::off_t);
        // SAFETY: the kernel reads `left` bytes from `from`, all within the region.
        let wrote = unsafe { libc::pwrite(file.as_raw_fd(), from.cast(), left, place) };
        match u64::try_from(wrote) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(wrote) => at += wrote,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(run.end - run.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use vm_memory::{Bytes, GuestAddress};

    const MIB: u64 = 1 << 20;

    fn pagemap() -> File {
        File::open("/proc/self/pagemap").expect("procfs")
    }

    fn read(file: &File, at: u64) -> u8 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        byte[0]
    }

    fn save(memory: &GuestMemory, origin: &Origin, pagemap: Option<&File>) -> (File, u64) {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(&[0xff; 8192], 4096).expect("something that must go");
        let written = write_full(memory, origin, pagemap, &[], &file).expect("saved");
        (file, written)
    }

    #[test]
    fn only_pages_that_hold_something_are_written() {
        let memory = crate::memory::allocate(96 * MIB).expect("memory");
        memory.write_slice(&[7; 3 * 4096], GuestAddress(5 * MIB)).expect("in memory");
        memory.write_obj(0u8, GuestAddress(9 * MIB)).expect("touched, and zero");
        memory.write_obj(8u8, GuestAddress(96 * MIB - 1)).expect("in memory");
        for pagemap in [Some(pagemap()), None] {
            let (file, written) = save(&memory, &Origin::Booted, pagemap.as_ref());
            assert_eq!(written, 4 * 4096);
            assert_eq!(file.metadata().expect("a file").len(), 96 * MIB);
            let places = [4096, 5 * MIB, 5 * MIB + 3 * 4096 - 1, 9 * MIB, 96 * MIB - 1];
            assert_eq!(places.map(|at| read(&file, at)), [0, 7, 7, 0, 8]);
            let data = data_of(&file, 0, 96 * MIB).expect("extents");
            assert_eq!(data, [5 * MIB..5 * MIB + 3 * 4096, 96 * MIB - 4096..96 * MIB]);
        }
    }

    /// Memory above the hole follows at once in the file.
    #[test]
    fn ranges_follow_each_other_without_the_hole() {
        let bytes = 5 << 30;
        let memory = crate::memory::allocate(bytes).expect("address space");
        let above = crate::layout::HOLE_END;
        memory.write_obj(1u8, GuestAddress(crate::layout::HOLE_START - 1)).expect("in memory");
        memory.write_obj(2u8, GuestAddress(above)).expect("in memory");
        memory.write_obj(3u8, GuestAddress(above + (2 << 30) - 1)).expect("in memory");
        let (file, written) = save(&memory, &Origin::Booted, Some(&pagemap()));
        assert_eq!((written, file.metadata().expect("a file").len()), (3 * 4096, bytes));
        let hole = crate::layout::HOLE_START;
        assert_eq!([hole - 1, hole, bytes - 1].map(|at| read(&file, at)), [1, 2, 3]);
        let again = crate::memory::map_private(bytes, &file).expect("mapped");
        assert_eq!(again.read_obj::<u8>(GuestAddress(above)).expect("in memory"), 2);
    }

    /// A snapshot of a restored machine holds what it wrote and what it never touched, and the file it came from stays.
    #[test]
    fn a_restored_machine_saves_its_base_and_what_it_wrote_over_it() {
        let base = tempfile::tempfile().expect("a temporary file");
        base.set_len(96 * MIB).expect("a sparse file");
        base.write_all_at(&[1; 2 * 4096], 0).expect("written");
        base.write_all_at(&[2; 4096], 8 * MIB).expect("written");
        let memory = crate::memory::map_private(96 * MIB, &base).expect("mapped");
        memory.write_slice(&[0; 4096], GuestAddress(4096)).expect("zero over what was there");
        memory.write_obj(9u8, GuestAddress(20 * MIB)).expect("in memory");
        let origin = Origin::File(base.try_clone().expect("a second descriptor"));
        let (file, written) = save(&memory, &origin, Some(&pagemap()));
        assert_eq!(written, 3 * 4096);
        assert_eq!([0, 4096, 8 * MIB, 20 * MIB].map(|at| read(&file, at)), [1, 0, 2, 9]);
        assert_eq!([0, 4096, 8 * MIB, 20 * MIB].map(|at| read(&base, at)), [1, 1, 2, 0]);
    }

    #[test]
    fn a_file_that_lies_over_booted_memory_is_saved_too() {
        let kernel = tempfile::tempfile().expect("a temporary file");
        kernel.write_all_at(&[5; 2 * 4096], 0).expect("written");
        let memory = crate::memory::allocate(96 * MIB).expect("memory");
        crate::memory::map_over(&memory, GuestAddress(MIB), 8192, &kernel, 0).expect("mapped");
        let region = memory.iter().next().expect("one region");
        let at = region.as_ptr() as u64 + MIB;
        let file = tempfile::tempfile().expect("a temporary file");
        let over = [at..at + 4096, at + 4096..at + 8192];
        let written = write_full(&memory, &Origin::Booted, Some(&pagemap()), &over, &file).expect("saved");
        assert_eq!((written, read(&file, MIB), read(&file, MIB + 8191)), (8192, 5, 5));
    }
}
