//! Guest memory goes back to the host.
//!
//! What is read from released memory afterwards depends on what it is made of, and a guest may rely on zeroes: a kernel
//! that clears pages when it frees them takes a reported page for clear when it comes back.
//!
//! | memory | how | then reads |
//! |---|---|---|
//! | shared (memfd) | a hole is punched into the file | zero |
//! | huge pages (hugetlbfs) | they stay, and reporting is not offered | as before |
//! | private, a block that was released whole before | MADV_DONTNEED | zero |
//! | private, a whole block for the first time | anonymous memory is mapped over it | zero |
//! | private, part of such a block | MADV_DONTNEED if zero is not asked for, else it stays | as in the file it was mapped from |
//!
//! Huge pages are set aside for the machine when it begins. Dropped, one either stays set aside, so that nobody gains, or
//! (Linux before 6.9) is anyone's, and the guest ends when it touches it again and the pool is empty.
//!
//! The fourth row is there because a private block may be that of a file, a kernel's or a snapshot's, or may be filled by a
//! page-fault handler: dropped, it would have its *old* contents again. Mapped over, it gets the same advices as its
//! neighbours, so that mappings join again, and there are no more of them than blocks.
//!
//! Nobody writes a page that is released, and still it changes. So each is listed for the next snapshot, before it goes
//! ([`Released`]).

use crate::memory::{GuestMemory, PAGE_BYTES};
use crate::snapshot::released::Released;
use std::io;
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

/// A huge page: guests report free memory in units of this.
pub const BLOCK_BYTES: u64 = crate::memory::HUGE_PAGE_BYTES;
/// Blocks that may get a mapping of their own: well below the limit of the kernel (vm.max_map_count, 65,530), two for each
/// at worst.
const MAPPED_OVER_MAX: usize = 16_384;
/// What a mapping over guest memory is; the seccomp filter allows no other.
pub const OVER_PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
pub const OVER_FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;

/// Releases memory and remembers which blocks are anonymous for sure.
#[derive(Debug)]
pub struct Releaser {
    memory: GuestMemory,
    /// for each region a bit for each block, set when anonymous memory was mapped over it
    anonymous: Vec<Vec<u64>>,
    mapped_over: usize,
    record: Arc<Released>,
}

/// What a region is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backing {
    Shared,
    HugePages,
    Private,
}

fn backing(region: &GuestRegionMmap<()>) -> Backing {
    let flags = region.flags();
    if flags & libc::MAP_HUGETLB != 0 {
        Backing::HugePages
    } else if flags & libc::MAP_SHARED != 0 {
        Backing::Shared
    } else {
        Backing::Private
    }
}

impl Releaser {
    /// `record`: of the same memory.
    pub fn new(memory: &GuestMemory, record: Arc<Released>) -> Self {
        let words = |region: &GuestRegionMmap<()>| region.len().div_ceil(BLOCK_BYTES * 64) as usize;
        let anonymous = memory.iter().map(|region| vec![0; words(region)]).collect();
        Self { memory: memory.clone(), anonymous, mapped_over: 0, record }
    }

    /// Whether any of the memory can go back.
    pub fn can_release(&self) -> bool {
        self.memory.iter().any(|region| backing(region) != Backing::HugePages)
    }

    pub fn memory_bytes(&self) -> u64 {
        self.memory.iter().map(GuestMemoryRegion::len).sum()
    }

    /// Gives the whole pages of a range back, as far as it is guest memory. `zero`: what stays in place must, where the
    /// host cannot make it zero. Bytes that went back.
    pub fn release(&mut self, start: GuestAddress, bytes: u64, zero: bool) -> u64 {
        let Some(end) = start.0.checked_add(bytes) else { return 0 };
        let mut released = 0;
        for index in 0..self.anonymous.len() {
            let Some(region) = self.memory.iter().nth(index) else { break };
            let (first, length) = (region.start_addr().0, region.len());
            let from = start.0.max(first).next_multiple_of(PAGE_BYTES);
            let to = end.min(first + length) / PAGE_BYTES * PAGE_BYTES;
            if from < to {
                released += self.release_in(index, from - first, to - first, zero);
            }
        }
        released
    }

    /// A range of one region, by offsets in it.
    fn release_in(&mut self, index: usize, from: u64, to: u64, zero: bool) -> u64 {
        let Some(region) = self.memory.iter().nth(index) else { return 0 };
        match backing(region) {
            Backing::Shared => {
                self.record.add(index, from..to);
                advise(region, from, to, libc::MADV_REMOVE)
            }
            Backing::HugePages => 0,
            Backing::Private => self.release_private(index, from, to, zero),
        }
    }

    fn release_private(&mut self, index: usize, from: u64, to: u64, zero: bool) -> u64 {
        let mut released = 0;
        let mut at = from;
        while at < to {
            // offsets in a region begin on a block: so do the regions
            let block = at / BLOCK_BYTES;
            let end = to.min((block + 1) * BLOCK_BYTES);
            let known = self.is_anonymous(index, block);
            let whole = end - at == BLOCK_BYTES;
            // runs of blocks that are treated alike are one system call
            let run_end = if whole { self.run_end(index, block, known, to) } else { end };
            let Some(region) = self.memory.iter().nth(index) else { break };
            let drops = known || !whole && !zero;
            if drops || whole {
                self.record.add(index, at..run_end);
            }
            let gone = if drops {
                advise(region, at, run_end, libc::MADV_DONTNEED)
            } else if whole && self.mapped_over < MAPPED_OVER_MAX && map_over(region, at, run_end).is_ok() {
                run_end - at
            } else {
                0
            };
            if gone > 0 && whole && !known {
                self.set_anonymous(index, block, run_end / BLOCK_BYTES);
            }
            released += gone;
            at = run_end;
        }
        released
    }

    /// Where the run of whole blocks ends that are anonymous for sure, or not, as the first one.
    fn run_end(&self, index: usize, first: u64, known: bool, to: u64) -> u64 {
        let blocks = to / BLOCK_BYTES;
        let same = (first + 1..blocks).take_while(|block| self.is_anonymous(index, *block) == known).count();
        (first + 1 + same as u64) * BLOCK_BYTES
    }

    fn is_anonymous(&self, index: usize, block: u64) -> bool {
        let word = self.anonymous[index].get((block / 64) as usize).copied().unwrap_or(0);
        word >> (block % 64) & 1 == 1
    }

    fn set_anonymous(&mut self, index: usize, first: u64, end: u64) {
        for block in first..end {
            if let Some(word) = self.anonymous[index].get_mut((block / 64) as usize) {
                *word |= 1 << (block % 64);
                self.mapped_over += 1;
            }
        }
    }
}

fn host_address(region: &GuestRegionMmap<()>, offset: u64) -> Option<*mut libc::c_void> {
    Some(region.get_host_address(MemoryRegionAddress(offset)).ok()?.cast())
}

fn advise(region: &GuestRegionMmap<()>, from: u64, to: u64, advice: i32) -> u64 {
    let Some(address) = host_address(region, from) else { return 0 };
    let bytes = to - from;
    // SAFETY: the range is in the region, which stays mapped; no reference of ours points into guest memory.
    let result = unsafe { libc::madvise(address, bytes as usize, advice) };
    if result == 0 { bytes } else { 0 }
}

/// Puts fresh anonymous memory in place of whole blocks, with the advices that guest memory has.
fn map_over(region: &GuestRegionMmap<()>, from: u64, to: u64) -> io::Result<()> {
    let address = host_address(region, from).ok_or(io::ErrorKind::InvalidInput)?;
    let bytes = (to - from) as usize;
    // SAFETY: the range is in the region and stays mapped; no reference of ours points into guest memory.
    let mapped = unsafe { libc::mmap(address, bytes, OVER_PROTECTION, OVER_FLAGS, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    advise(region, from, to, libc::MADV_DONTDUMP);
    if region.flags() & libc::MAP_ANONYMOUS != 0 {
        advise(region, from, to, libc::MADV_HUGEPAGE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_vmm_api::MemoryBacking;
    use std::io::Write;
    use vm_memory::Bytes;

    const BYTES: u64 = 32 << 20;

    fn fill(memory: &GuestMemory) {
        for at in (0..BYTES).step_by(PAGE_BYTES as usize) {
            memory.write_obj(0x5a5a_u16, GuestAddress(at)).expect("in memory");
        }
    }

    fn word(memory: &GuestMemory, at: u64) -> u16 {
        memory.read_obj(GuestAddress(at)).expect("in memory")
    }

    /// Anonymous memory, and the same from a file whose pages are not zero.
    fn memories() -> Vec<(&'static str, GuestMemory)> {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&vec![0x77; BYTES as usize]).expect("written");
        let allocate = |backing| crate::memory::allocate_backed(BYTES, backing).expect("memory");
        vec![
            ("anonymous", allocate(MemoryBacking::Anonymous)),
            ("memfd", allocate(MemoryBacking::Memfd)),
            ("a snapshot", crate::memory::map_private(BYTES, &file).expect("mapped")),
        ]
    }

    #[test]
    fn whole_blocks_read_zero_afterwards_whatever_they_were_made_of() {
        for (name, memory) in memories() {
            fill(&memory);
            let mut releaser = Releaser::new(&memory, Arc::new(Released::new(&memory)));
            for round in 0..3 {
                let released = releaser.release(GuestAddress(BLOCK_BYTES), 3 * BLOCK_BYTES, true);
                assert_eq!(released, 3 * BLOCK_BYTES, "{name}, round {round}");
                for at in (BLOCK_BYTES..4 * BLOCK_BYTES).step_by(PAGE_BYTES as usize) {
                    assert_eq!(word(&memory, at), 0, "{name}, round {round}, {at:#x}");
                }
                assert_eq!(word(&memory, BLOCK_BYTES - PAGE_BYTES), 0x5a5a, "{name}: nothing before");
                assert_eq!(word(&memory, 4 * BLOCK_BYTES), 0x5a5a, "{name}: nothing behind");
                fill(&memory);
            }
        }
    }

    #[test]
    fn part_of_a_block_is_zero_or_stays_where_zero_is_asked_for() {
        for (name, memory) in memories() {
            fill(&memory);
            let mut releaser = Releaser::new(&memory, Arc::new(Released::new(&memory)));
            releaser.release(GuestAddress(BLOCK_BYTES + PAGE_BYTES), 2 * PAGE_BYTES, true);
            let value = word(&memory, BLOCK_BYTES + PAGE_BYTES);
            assert!(value == 0 || value == 0x5a5a, "{name}: {value:#x} are old contents");
            // without that it goes back in any case
            let released = releaser.release(GuestAddress(BLOCK_BYTES + PAGE_BYTES), 2 * PAGE_BYTES, false);
            assert_eq!(released, 2 * PAGE_BYTES, "{name}");
            assert_ne!(word(&memory, BLOCK_BYTES + PAGE_BYTES), 0x5a5a, "{name}");
            assert_eq!(word(&memory, BLOCK_BYTES), 0x5a5a, "{name}");
            assert_eq!(word(&memory, BLOCK_BYTES + 3 * PAGE_BYTES), 0x5a5a, "{name}");
        }
    }

    #[test]
    fn a_part_of_a_block_that_was_released_whole_is_zero() {
        for (name, memory) in memories() {
            fill(&memory);
            let mut releaser = Releaser::new(&memory, Arc::new(Released::new(&memory)));
            releaser.release(GuestAddress(0), 2 * BLOCK_BYTES, true);
            fill(&memory);
            assert_eq!(releaser.release(GuestAddress(PAGE_BYTES), PAGE_BYTES, true), PAGE_BYTES, "{name}");
            assert_eq!(word(&memory, PAGE_BYTES), 0, "{name}");
        }
    }

    #[test]
    fn what_is_no_memory_or_no_whole_page_stays() {
        for (name, memory) in memories() {
            fill(&memory);
            let mut releaser = Releaser::new(&memory, Arc::new(Released::new(&memory)));
            for (start, bytes) in [(BYTES, 4096), (u64::MAX - 4095, 4096), (1, 4095), (u64::MAX, u64::MAX)] {
                assert_eq!(
                    releaser.release(GuestAddress(start), bytes, false),
                    0,
                    "{name}: {bytes} at {start:#x}"
                );
            }
            // a range that hangs over the end is cut
            let last = BYTES - PAGE_BYTES;
            assert_eq!(releaser.release(GuestAddress(last), 1 << 40, false), PAGE_BYTES, "{name}");
            assert_eq!(word(&memory, last - PAGE_BYTES), 0x5a5a, "{name}");
        }
    }

    #[test]
    fn released_memory_is_not_resident_and_mappings_join_again() {
        let memory = crate::memory::allocate(BYTES).expect("memory");
        fill(&memory);
        let mappings = || std::fs::read_to_string("/proc/self/maps").expect("procfs").lines().count();
        let mut releaser = Releaser::new(&memory, Arc::new(Released::new(&memory)));
        releaser.release(GuestAddress(0), BYTES, true);
        let before = mappings();
        for block in (1..BYTES / BLOCK_BYTES).step_by(2) {
            releaser.release(GuestAddress(block * BLOCK_BYTES), BLOCK_BYTES, true);
        }
        assert!(mappings() <= before + 2, "{} mappings, {before} before", mappings());
        let meter = crate::memory_use::MemoryMeter::new(None, &memory);
        assert_eq!(meter.measure().guest_resident_bytes, 0);
    }
}
