//! Guest memory: one mapping below the hole at 3 GiB, one above 4 GiB for what is left.
//!
//! Host and guest addresses of a page are the same modulo 2 MiB, so that one huge page of the host serves 2 MiB of the
//! guest: an exit per 2 MiB instead of one per 4 KiB. Guest memory is never in a core dump of the VMM. It lives as
//! long as the process: the vCPUs may be in the guest until the very end, so nothing ever unmaps it.

use crate::layout;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use pinfold_vmm_api::MemoryBacking;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionCollectionError,
    GuestRegionMmap,
};

/// What every part of the VMM means by guest memory. Cloning shares it.
pub type GuestMemory = GuestMemoryMmap<()>;

pub const HUGE_PAGE_BYTES: u64 = 2 << 20;
pub const PAGE_BYTES: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("cannot map {bytes} bytes of guest memory: {source}")]
    Map { bytes: u64, source: io::Error },
    #[error("cannot take over a mapping of {bytes} bytes as guest memory")]
    Region { bytes: u64, source: MmapRegionError },
    #[error("cannot lay out guest memory")]
    Layout(#[source] GuestRegionCollectionError),
    #[error("cannot give guest memory at {start:#x} to KVM")]
    Register { start: u64, source: kvm_ioctls::Error },
    #[error("cannot set an advice on guest memory at {start:#x}")]
    Advise { start: u64, source: io::Error },
    #[error("memory_mib is {bytes} bytes, huge pages come in {HUGE_PAGE_BYTES}")]
    NotHuge { bytes: u64 },
    #[error(
        "{bytes} bytes of huge pages are not free on this host ({source}); it sets them aside in /proc/sys/vm/nr_hugepages"
    )]
    NoHugePages { bytes: u64, source: io::Error },
    #[error("cannot make a memfd of {bytes} bytes for guest memory")]
    Memfd { bytes: u64, source: io::Error },
    #[error("the memory file has {found} bytes, this machine has {wanted} of memory")]
    FileLength { found: u64, wanted: u64 },
    #[error("cannot map a file over guest memory at {start:#x}: {source}")]
    MapFile { start: u64, source: io::Error },
}

/// Ranges of RAM (start, length in bytes) for a guest of `bytes`.
pub fn ranges(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= layout::HOLE_START {
        vec![(0, bytes)]
    } else {
        vec![(0, layout::HOLE_START), (layout::HOLE_END, bytes - layout::HOLE_START)]
    }
}

/// Private anonymous memory for a guest of `bytes`, a multiple of the page size.
pub fn allocate(bytes: u64) -> Result<GuestMemory, MemoryError> {
    allocate_backed(bytes, MemoryBacking::Anonymous)
}

/// Memory of the kind that a config asks for.
pub fn allocate_backed(bytes: u64, backing: MemoryBacking) -> Result<GuestMemory, MemoryError> {
    let memory = match backing {
        MemoryBacking::Anonymous => map(bytes, &Source::Anonymous)?,
        MemoryBacking::Memfd => map(bytes, &Source::Shared(&memfd(bytes)?))?,
        MemoryBacking::HugePages if !bytes.is_multiple_of(HUGE_PAGE_BYTES) => {
            return Err(MemoryError::NotHuge { bytes });
        }
        MemoryBacking::HugePages => map(bytes, &Source::HugePages)?,
    };
    for region in memory.iter() {
        // A kernel without transparent huge pages refuses this one; the guest then runs on small pages.
        let _ = advise(region, libc::MADV_HUGEPAGE);
    }
    // Below 2 MiB a boot uses some pages here and there: a whole huge page would cost its clearing before the start.
    let _ = advise_range(&memory, GuestAddress(0), HUGE_PAGE_BYTES, libc::MADV_NOHUGEPAGE);
    Ok(memory)
}

/// Maps `file` privately as the memory of a guest of `bytes`: its ranges follow each other in the file without the
/// hole. A page is read when it is touched, and copied when it is written; the file never changes.
pub fn map_private(bytes: u64, file: &File) -> Result<GuestMemory, MemoryError> {
    let found = file.metadata().map_err(|source| MemoryError::Map { bytes, source })?.len();
    if found != bytes {
        return Err(MemoryError::FileLength { found, wanted: bytes });
    }
    map(bytes, &Source::Private(file))
}

/// What pages of guest memory come from.
enum Source<'a> {
    Anonymous,
    HugePages,
    Shared(&'a File),
    Private(&'a File),
}

fn map(bytes: u64, source: &Source<'_>) -> Result<GuestMemory, MemoryError> {
    let mut regions = Vec::new();
    let mut offset = 0;
    for (start, length) in ranges(bytes) {
        let address = reserve(length).map_err(|source| MemoryError::Map { bytes: length, source })?;
        let (flags, file) = match source {
            Source::Anonymous => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, None),
            Source::HugePages => {
                (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB, None)
            }
            Source::Shared(file) => (libc::MAP_SHARED | libc::MAP_NORESERVE, Some(*file)),
            Source::Private(file) => (libc::MAP_PRIVATE | libc::MAP_NORESERVE, Some(*file)),
        };
        place(address, length, flags, file, offset).map_err(|error| match source {
            Source::HugePages => MemoryError::NoHugePages { bytes: length, source: error },
            _ => MemoryError::Map { bytes: length, source: error },
        })?;
        // SAFETY: the mapping was just made, has this length and protection, and is never unmapped.
        let builder = unsafe { MmapRegionBuilder::new(length as usize).with_raw_mmap_pointer(address) };
        let mapping = builder
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags)
            .build()
            .map_err(|source| MemoryError::Region { bytes: length, source })?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .expect("no range reaches the end of the address space");
        advise(&region, libc::MADV_DONTDUMP)?;
        regions.push(region);
        offset += length;
    }
    GuestMemory::from_regions(regions).map_err(MemoryError::Layout)
}

/// Address space of `length` bytes that begins on a huge page's boundary.
fn reserve(length: u64) -> io::Result<*mut u8> {
    let (length, huge) = (length as usize, HUGE_PAGE_BYTES as usize);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let begin = unsafe { libc::mmap(ptr::null_mut(), length + huge, libc::PROT_NONE, flags, -1, 0) };
    if begin == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = begin.align_offset(huge);
    let address = begin.wrapping_byte_add(before);
    let unmap = |from: *mut libc::c_void, bytes: usize| {
        if bytes > 0 {
            // SAFETY: this part of the new mapping is used by nobody.
            unsafe { libc::munmap(from, bytes) };
        }
    };
    unmap(begin, before);
    unmap(address.wrapping_byte_add(length), huge - before);
    Ok(address.cast())
}

/// Puts a readable and writable mapping over reserved address space.
fn place(address: *mut u8, length: u64, flags: i32, file: Option<&File>, offset: u64) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: the callers give a range that is reserved or is guest memory, which no reference points into.
    let mapped = unsafe {
        libc::mmap(address.cast(), length as usize, protection, flags | libc::MAP_FIXED, fd, offset)
    };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A file of `bytes` in memory that cannot shrink under the mapping.
fn memfd(bytes: u64) -> Result<File, MemoryError> {
    let failed = |source| MemoryError::Memfd { bytes, source };
    // SAFETY: the name is a literal that ends in NUL.
    let fd =
        unsafe { libc::memfd_create(c"guest-memory".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes).map_err(failed)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: sets the seals of an open descriptor.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    Ok(file)
}

/// Maps `bytes` of `file` from `offset` on privately over guest memory at `start`, in place of what is there. The guest
/// shares unwritten pages with all who have the file in use; it never changes. All three are multiples of the page size.
pub fn map_over(
    memory: &GuestMemory,
    start: GuestAddress,
    bytes: u64,
    file: &File,
    offset: u64,
) -> Result<(), MemoryError> {
    let failed = |source| MemoryError::MapFile { start: start.0, source };
    let slice = memory
        .get_slice(start, bytes as usize)
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    place(slice.ptr_guard_mut().as_ptr(), bytes, flags, Some(file), offset).map_err(failed)?;
    advise_range(memory, start, bytes, libc::MADV_DONTDUMP).map_err(failed)
}

fn advise_range(
    memory: &GuestMemory,
    start: GuestAddress,
    bytes: u64,
    advice: libc::c_int,
) -> io::Result<()> {
    let slice = memory.get_slice(start, bytes as usize).map_err(io::Error::other)?;
    // SAFETY: the range is guest memory, which is mapped for ever; none of our advices changes its contents.
    let result = unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), bytes as usize, advice) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn advise(region: &GuestRegionMmap<()>, advice: libc::c_int) -> Result<(), MemoryError> {
    // SAFETY: the mapping is owned by `region`, which outlives the call; neither advice changes its contents.
    let result = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
    if result == 0 {
        return Ok(());
    }
    let source = std::io::Error::last_os_error();
    Err(MemoryError::Advise { start: region.start_addr().0, source })
}

/// Makes every region a memory slot of the virtual machine.
pub fn register(memory: &GuestMemory, vm: &VmFd) -> Result<(), MemoryError> {
    for (slot, region) in memory.iter().enumerate() {
        let start = region.start_addr().0;
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: start,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the mapping lives as long as the process: the machine holds it and leaves by `_exit`.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(|source| MemoryError::Register { start, source })?;
    }
    Ok(())
}

/// Host address ranges (start, end) of guest memory, to tell it apart in `/proc/self/smaps`.
pub fn host_ranges(memory: &GuestMemory) -> Vec<(u64, u64)> {
    let range = |region: &GuestRegionMmap<()>| {
        let start = region.as_ptr() as u64;
        (start, start + region.len())
    };
    memory.iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use vm_memory::Bytes;

    const GIB: u64 = 1 << 30;

    #[test]
    fn small_memory_is_one_range() {
        assert_eq!(ranges(256 << 20), [(0, 256 << 20)]);
        assert_eq!(ranges(3 * GIB), [(0, 3 * GIB)]);
    }

    #[test]
    fn large_memory_skips_the_hole_and_loses_nothing() {
        assert_eq!(ranges(4 * GIB), [(0, 3 * GIB), (4 * GIB, GIB)]);
        for gib in [3, 4, 5, 64] {
            let all = ranges(gib * GIB);
            assert_eq!(all.iter().map(|range| range.1).sum::<u64>(), gib * GIB);
            assert!(all.iter().all(|(start, length)| start + length <= layout::HOLE_START || *start >= layout::HOLE_END));
        }
    }

    #[test]
    fn the_hole_is_no_memory() {
        let memory = allocate(4 * GIB).expect("address space");
        assert!(memory.write_obj(1u8, GuestAddress(layout::HOLE_START - 1)).is_ok());
        assert!(memory.write_obj(1u8, GuestAddress(layout::HOLE_START)).is_err());
        assert!(memory.write_obj(1u16, GuestAddress(layout::HOLE_START - 1)).is_err());
        assert!(memory.write_obj(1u8, GuestAddress(layout::HOLE_END)).is_ok());
    }

    #[test]
    fn a_huge_page_of_the_host_serves_one_of_the_guest() {
        for backing in [MemoryBacking::Anonymous, MemoryBacking::Memfd] {
            for bytes in [96 << 20, (97 << 20) + PAGE_BYTES, 4 * GIB] {
                for region in allocate_backed(bytes, backing).expect("address space").iter() {
                    assert_eq!(
                        region.as_ptr() as u64 % HUGE_PAGE_BYTES,
                        region.start_addr().0 % HUGE_PAGE_BYTES
                    );
                }
            }
        }
    }

    #[test]
    fn huge_pages_come_whole_and_only_where_the_host_has_them() {
        let odd = allocate_backed(97 << 20, MemoryBacking::HugePages).expect_err("97 MiB are no whole pages");
        assert!(matches!(odd, MemoryError::NotHuge { bytes } if bytes == 97 << 20), "{odd}");
        // more than any host has set aside
        let error = allocate_backed(200 * 1024 * GIB, MemoryBacking::HugePages).expect_err("200 TiB");
        assert!(error.to_string().contains("/proc/sys/vm/nr_hugepages"), "{error}");
    }

    #[test]
    fn a_memory_file_is_mapped_privately_range_after_range() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(4 * GIB).expect("a sparse file");
        file.write_all_at(b"first", 0x1000).expect("written");
        file.write_all_at(b"past the hole", 3 * GIB).expect("written");
        let memory = map_private(4 * GIB, &file).expect("mapped");
        let read = |address| memory.read_obj::<[u8; 5]>(GuestAddress(address)).expect("in memory");
        assert_eq!(&read(0x1000), b"first");
        assert_eq!(&read(layout::HOLE_END), b"past ");
        memory.write_slice(b"other", GuestAddress(0x1000)).expect("in memory");
        assert_eq!(&read(0x1000), b"other");
        let mut kept = [0; 5];
        file.read_exact_at(&mut kept, 0x1000).expect("read");
        assert_eq!(&kept, b"first", "the file is as it was");
        let short = map_private(5 * GIB, &file).expect_err("the file is shorter");
        assert!(matches!(short, MemoryError::FileLength { .. }), "{short}");
    }

    #[test]
    fn a_file_over_guest_memory_is_seen_there_and_never_written() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(&[7; 3 * 4096], 0).expect("written");
        let memory = allocate(96 << 20).expect("memory");
        memory.write_slice(&[1; 4 * 4096], GuestAddress(0x10_0000)).expect("in memory");
        map_over(&memory, GuestAddress(0x10_1000), 2 * PAGE_BYTES, &file, PAGE_BYTES).expect("mapped");
        let read = |address| memory.read_obj::<u8>(GuestAddress(address)).expect("in memory");
        assert_eq!([read(0x10_0fff), read(0x10_1000), read(0x10_2fff), read(0x10_3000)], [1, 7, 7, 1]);
        memory.write_obj(9u8, GuestAddress(0x10_1000)).expect("in memory");
        let mut kept = [0];
        file.read_exact_at(&mut kept, 4096).expect("read");
        assert_eq!(kept, [7]);
        for (start, bytes) in [(96 << 20, PAGE_BYTES), ((96 << 20) - PAGE_BYTES, 2 * PAGE_BYTES)] {
            let error = map_over(&memory, GuestAddress(start), bytes, &file, 0).expect_err("outside");
            assert!(matches!(error, MemoryError::MapFile { .. }), "{error}");
        }
    }
}
