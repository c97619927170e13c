//! What changed in guest memory since a moment, by the host kernel's soft-dirty bits (Linux,
//! Documentation/admin-guide/mm/soft-dirty.rst).
//!
//! They see every writer: vCPUs, whose entries KVM takes from the same page tables, and the VMM's own threads and
//! io_uring, which KVM's dirty log does not. A kernel without them leaves the bits clear, which would mean that nothing
//! ever changes; so each beginning proves with a page of its own that they work.

use super::pages::{self, Runs};
use crate::memory::PAGE_BYTES;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What is written to `/proc/self/clear_refs`: clear the soft-dirty bits of this process.
const CLEAR_SOFT_DIRTY: &[u8] = b"4";

#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    #[error("this process cannot follow what changes: it has no procfs")]
    Blind,
    #[error("the host's kernel does not tell what changes (no CONFIG_MEM_SOFT_DIRTY)")]
    Unsupported,
    #[error("it cannot be told which pages changed: {0}")]
    Io(#[from] io::Error),
}

/// The process's own files under `/proc`.
#[derive(Debug, Clone, Copy)]
pub struct Tracker<'a> {
    pub pagemap: Option<&'a File>,
    pub clear_refs: Option<&'a File>,
}

impl Tracker<'_> {
    /// From here on pages count as changed when they are written. Nobody writes guest memory meanwhile.
    pub fn begin(&self) -> Result<(), DirtyError> {
        let (Some(pagemap), Some(clear_refs)) = (self.pagemap, self.clear_refs) else {
            return Err(DirtyError::Blind);
        };
        let bytes = 2 * PAGE_BYTES as usize;
        let mut probe = vec![1u8; bytes];
        // a whole page of it, wherever it begins
        let within = probe.as_ptr().align_offset(PAGE_BYTES as usize);
        let address = probe.as_ptr() as u64 + within as u64;
        clear_refs.write_all_at(CLEAR_SOFT_DIRTY, 0)?;
        probe[within] = 2;
        std::hint::black_box(&mut probe);
        // That it was clear before is not asked: a mapping that grows counts as changed whole, and the heap does. Too much
        // is harmless.
        let changed = !pages::changed(pagemap, address, PAGE_BYTES)?.is_empty();
        if changed { Ok(()) } else { Err(DirtyError::Unsupported) }
    }

    /// Pages of the mapping at `address` that were written since [`Self::begin`].
    pub fn changed(&self, address: u64, bytes: u64) -> Result<Runs, DirtyError> {
        Ok(pages::changed(self.pagemap.ok_or(DirtyError::Blind)?, address, bytes)?)
    }
}

/// Joins runs that are less than 64 KiB apart, and further ones while there are more than `most`: what lies between has not
/// changed, so it may be written as well.
pub fn coalesce(mut runs: Runs, most: usize) -> Runs {
    let mut gap = 64 << 10;
    loop {
        let mut joined = Runs::new();
        for run in runs {
            match joined.last_mut() {
                Some(last) if run.start - last.end < gap => last.end = run.end,
                _ => joined.push(run),
            }
        }
        if joined.len() <= most {
            return joined;
        }
        (runs, gap) = (joined, gap * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn what_is_written_after_the_beginning_has_changed_where_the_kernel_tells() {
        let pagemap = File::open("/proc/self/pagemap").expect("procfs");
        let clear_refs = OpenOptions::new().write(true).open("/proc/self/clear_refs").expect("procfs");
        let tracker = Tracker { pagemap: Some(&pagemap), clear_refs: Some(&clear_refs) };
        let memory = crate::memory::allocate_backed(96 << 20, Default::default()).expect("memory");
        memory.write_obj(1u8, GuestAddress(10 << 20)).expect("in memory");
        // a page of a new mapping counts as changed wherever the kernel tells changes at all
        let region = memory.iter().next().expect("one region");
        if tracker.changed(region.as_ptr() as u64, region.len()).expect("told").is_empty() {
            println!("SKIPPED: the kernel has no soft-dirty bits");
            assert!(matches!(tracker.begin(), Err(DirtyError::Unsupported)), "and nothing is claimed");
            return;
        }
        tracker.begin().expect("begun");
        memory.write_obj(1u8, GuestAddress(50 << 20)).expect("in memory");
        let runs = tracker.changed(region.as_ptr() as u64, region.len()).expect("told");
        let has = |at: u64| runs.iter().any(|run| run.contains(&at));
        assert!(has(50 << 20) && !has(10 << 20), "{runs:x?}");
    }

    #[test]
    fn without_procfs_nothing_is_claimed() {
        let tracker = Tracker { pagemap: None, clear_refs: None };
        assert!(matches!(tracker.begin(), Err(DirtyError::Blind)));
        assert!(matches!(tracker.changed(0, 4096), Err(DirtyError::Blind)));
    }

    #[test]
    fn runs_are_joined_across_small_gaps_and_to_keep_a_limit() {
        let mib = 1 << 20;
        let runs: Runs = vec![0..4096, 8192..12288, mib..mib + 4096, 5 * mib..5 * mib + 4096];
        assert_eq!(coalesce(runs.clone(), 10), [0..12288, mib..mib + 4096, 5 * mib..5 * mib + 4096]);
        assert_eq!(coalesce(runs, 2), [0..mib + 4096, 5 * mib..5 * mib + 4096]);
    }
}
