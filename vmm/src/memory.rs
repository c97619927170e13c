//! Guest memory: one private anonymous mapping below the hole at 3 GiB, one above 4 GiB for what is left.
//!
//! It is never in a core dump of the VMM, and it asks for huge pages: an exit per 2 MiB instead of one per 4 KiB.

use crate::layout;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::{FromRangesError, MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionCollectionError,
    GuestRegionMmap,
};

/// What every part of the VMM means by guest memory. Cloning shares it.
pub type GuestMemory = GuestMemoryMmap<()>;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("cannot map {bytes} bytes of guest memory")]
    Map { bytes: u64, source: MmapRegionError },
    #[error("cannot lay out guest memory")]
    Layout(#[source] GuestRegionCollectionError),
    #[error("cannot lay out guest memory")]
    Ranges(#[source] FromRangesError),
    #[error("cannot give guest memory at {start:#x} to KVM")]
    Register { start: u64, source: kvm_ioctls::Error },
    #[error("cannot set an advice on guest memory at {start:#x}")]
    Advise { start: u64, source: std::io::Error },
}

/// Ranges of RAM (start, length in bytes) for a guest of `bytes`.
pub fn ranges(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= layout::HOLE_START {
        vec![(0, bytes)]
    } else {
        vec![(0, layout::HOLE_START), (layout::HOLE_END, bytes - layout::HOLE_START)]
    }
}

/// Maps the memory of a guest of `bytes`, a multiple of the page size.
pub fn allocate(bytes: u64) -> Result<GuestMemory, MemoryError> {
    let mut regions = Vec::new();
    for (start, length) in ranges(bytes) {
        let mapping = MmapRegionBuilder::new(length as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|source| MemoryError::Map { bytes: length, source })?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .expect("no range reaches the end of the address space");
        regions.push(region);
    }
    let memory = GuestMemory::from_regions(regions).map_err(MemoryError::Layout)?;
    for region in memory.iter() {
        advise(region, libc::MADV_DONTDUMP)?;
        // A kernel without transparent huge pages refuses this one; the guest then runs on small pages.
        let _ = advise(region, libc::MADV_HUGEPAGE);
    }
    Ok(memory)
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
}
