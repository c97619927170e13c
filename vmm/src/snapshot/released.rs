//! Which pages of guest memory went back to the host since the last snapshot.
//!
//! Invariant: a page whose contents changed because it was released, and not because anybody wrote it, is listed here until
//! the next snapshot holds what it has now. The host's kernel does not tell of such pages: what is absent has no soft-dirty
//! bit, and no copy of its own over a snapshot's file.
//!
//! One bit for each page of the guest, made when the machine is; one that was never set costs no memory.

use super::pages::{self, Runs};
use crate::memory::{GuestMemory, PAGE_BYTES};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Pages of one word of the bits.
const WORD: u64 = 64;

/// Shared by the balloon, which releases, and the snapshots, which clear it.
#[derive(Debug)]
pub struct Released {
    /// for each region, in their order, a bit for each page
    regions: Mutex<Vec<Vec<u64>>>,
}

impl Released {
    pub fn new(memory: &GuestMemory) -> Self {
        let words = |bytes: u64| bytes.div_ceil(PAGE_BYTES * WORD) as usize;
        let regions = memory.iter().map(|region| vec![0; words(region.len())]).collect();
        Self { regions: Mutex::new(regions) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u64>>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every page that `bytes`, offsets in the region of this number, touches. Before it is released: an attempt that fails
    /// half way has released something too.
    pub fn add(&self, region: usize, bytes: Range<u64>) {
        let mut regions = self.lock();
        let Some(words) = regions.get_mut(region) else { return };
        let (mut page, end) = (bytes.start / PAGE_BYTES, bytes.end.div_ceil(PAGE_BYTES));
        while page < end {
            let Some(word) = words.get_mut((page / WORD) as usize) else { return };
            let first = page % WORD;
            let count = (WORD - first).min(end - page);
            *word |= (u64::MAX >> (WORD - count)) << first;
            page += count;
        }
    }

    /// What is listed of a region, as offsets in it.
    pub fn of(&self, region: usize) -> Runs {
        let mut runs = Runs::new();
        let regions = self.lock();
        let words = regions.get(region).map_or(&[][..], Vec::as_slice);
        for (index, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
            for bit in (0..WORD).filter(|bit| word >> bit & 1 == 1) {
                let start = (index as u64 * WORD + bit) * PAGE_BYTES;
                pages::push(&mut runs, start..start + PAGE_BYTES);
            }
        }
        runs
    }

    /// A snapshot holds what every page has now.
    pub fn clear(&self) {
        // words that are zero are only read, so that they stay without memory
        self.lock().iter_mut().flatten().filter(|word| **word != 0).for_each(|word| *word = 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_added_is_listed_as_whole_pages_until_it_is_cleared() {
        // two regions: one below the hole of the address space, one above it
        let memory = crate::memory::allocate(5 << 30).expect("address space");
        let released = Released::new(&memory);
        released.add(0, 0x1000..0x2000);
        released.add(0, 3 * MIB - 0x3000..4 * MIB + 0x5000);
        released.add(0, 0x1800..0x2001);
        released.add(1, (2 << 30) - 0x1000..2 << 30);
        // no region of this number, no page of the region
        released.add(2, 0..MIB);
        released.add(1, 2 << 30..3 << 30);
        assert_eq!(released.of(0), [0x1000..0x3000, 3 * MIB - 0x3000..4 * MIB + 0x5000]);
        assert_eq!(released.of(1), vec![(2 << 30) - 0x1000..2 << 30]);
        assert_eq!(released.of(2), []);
        released.clear();
        assert_eq!((released.of(0), released.of(1)), (Runs::new(), Runs::new()));
    }

    #[test]
    fn every_run_of_pages_is_listed_as_it_was_added() {
        let memory = crate::memory::allocate(16 * MIB).expect("memory");
        for first in 0..130 {
            for count in 1..140 {
                let released = Released::new(&memory);
                let run = first * PAGE_BYTES..(first + count) * PAGE_BYTES;
                released.add(0, run.clone());
                assert_eq!(released.of(0), vec![run]);
            }
        }
    }
}
