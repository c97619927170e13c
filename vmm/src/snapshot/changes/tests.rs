//! Memory that went back to the host, saved as a diff and merged.

use super::*;
use crate::devices::virtio::balloon::release::{BLOCK_BYTES, Releaser};
use crate::memory::PAGE_BYTES;
use crate::snapshot::format::{self, Key};
use crate::snapshot::manifest::{Contents, sample};
use crate::snapshot::merge::{Files, merge};
use crate::snapshot::{memory, save};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

const BYTES: u64 = 32 << 20;
/// In the middle of a block.
const PAGE: u64 = BLOCK_BYTES + 5 * PAGE_BYTES;

fn pagemap() -> File {
    File::open("/proc/self/pagemap").expect("procfs")
}

fn empty() -> Files {
    let file = || tempfile::tempfile().expect("a temporary file");
    Files { state: file(), memory: file() }
}

fn key() -> Key {
    Key::from_hex(&"5".repeat(64)).expect("a key")
}

fn seal(files: &Files, id: u8, contents: Contents) {
    let mut saved = sample();
    saved.manifest.id = [id; 16];
    saved.manifest.memory.ranges = crate::memory::ranges(BYTES);
    saved.manifest.memory.contents = contents;
    format::seal(&files.state, &key(), &save::encode(&saved).expect("encoded")).expect("sealed");
}

fn byte(file: &File, at: u64) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    byte[0]
}

fn word(memory: &GuestMemory, at: u64) -> u8 {
    memory.read_obj(GuestAddress(at)).expect("in memory")
}

/// A machine's memory and what is known of it.
struct Machine {
    memory: GuestMemory,
    origin: Origin,
    released: Arc<Released>,
    releaser: Releaser,
    tracked: bool,
}

impl Machine {
    fn of(memory: GuestMemory, origin: Origin, tracked: bool) -> Self {
        let released = Arc::new(Released::new(&memory));
        let releaser = Releaser::new(&memory, Arc::clone(&released));
        Self { memory, origin, released, releaser, tracked }
    }

    /// Followed from its beginning, in memory of its own. Soft-dirty bits are not cleared, and where the kernel has none
    /// nothing but what was released has changed.
    fn booted() -> Self {
        let memory = crate::memory::allocate(BYTES).expect("memory");
        Self::of(memory, Origin::Booted, true)
    }

    /// From a file all of whose bytes are 7.
    fn restored() -> Self {
        let base = tempfile::tempfile().expect("a temporary file");
        base.write_all_at(&vec![7; BYTES as usize], 0).expect("written");
        let memory = crate::memory::map_private(BYTES, &base).expect("mapped");
        Self::of(memory, Origin::File(base), false)
    }

    fn full(&self, id: u8) -> Files {
        let files = empty();
        memory::write_full(&self.memory, &self.origin, Some(&pagemap()), &[], &files.memory).expect("saved");
        seal(&files, id, Contents::Full);
        self.released.clear();
        files
    }

    fn changes(&self) -> Runs {
        let pagemap = pagemap();
        let tracker = Tracker { pagemap: Some(&pagemap), clear_refs: None };
        let known = Known { origin: &self.origin, tracker, released: &self.released };
        since_last(&self.memory, known, self.tracked).expect("told")
    }

    fn diff(&self, id: u8, parent: u8) -> Files {
        let (files, runs) = (empty(), self.changes());
        memory::write_runs(&self.memory, &runs, &files.memory).expect("saved");
        let extents = runs.iter().map(|run| (run.start, run.end - run.start)).collect();
        seal(&files, id, Contents::Diff { parent: [parent; 16], extents });
        self.released.clear();
        files
    }

    fn release(&mut self, at: u64, bytes: u64, zero: bool) {
        assert_eq!(self.releaser.release(GuestAddress(at), bytes, zero), bytes);
    }

    fn write(&self, at: u64, contents: u8) {
        self.memory.write_slice(&[contents; PAGE_BYTES as usize], GuestAddress(at)).expect("in memory");
    }
}

fn merged(base: &Files, diff: &Files) -> Files {
    let into = empty();
    merge(base, diff, &into, &key()).expect("merged");
    into
}

/// Everything in `file` is as the guest sees it.
fn assert_same(machine: &Machine, file: &File, what: &str) {
    for at in (0..BYTES).step_by(PAGE_BYTES as usize) {
        assert_eq!(byte(file, at), word(&machine.memory, at), "{what}: page at {at:#x}");
    }
}

#[test]
fn a_block_that_was_released_after_a_snapshot_is_zero_in_the_merged_diff() {
    for mut machine in [Machine::booted(), Machine::restored()] {
        machine.write(PAGE, 9);
        let full = machine.full(1);
        assert_eq!(byte(&full.memory, PAGE), 9);
        machine.release(BLOCK_BYTES, 2 * BLOCK_BYTES, true);
        let what = format!("tracked: {}", machine.tracked);
        let both = merged(&full, &machine.diff(2, 1));
        assert_eq!(byte(&both.memory, PAGE), 0, "{what}");
        assert_same(&machine, &both.memory, &what);
    }
}

/// A part of a block that the balloon takes shows the snapshot's file again, and what it showed before is in the first
/// diff.
#[test]
fn a_page_that_went_back_to_the_file_is_the_files_in_the_merged_diff() {
    let mut machine = Machine::restored();
    machine.write(PAGE, 9);
    let full = machine.full(1);
    machine.write(PAGE, 8);
    let first = merged(&full, &machine.diff(2, 1));
    assert_eq!(byte(&first.memory, PAGE), 8);
    machine.release(PAGE, PAGE_BYTES, false);
    let second = merged(&first, &machine.diff(3, 2));
    assert_eq!(byte(&second.memory, PAGE), 7);
    assert_same(&machine, &second.memory, "the second");
}

/// The same pages, once for all: released, read as the host's page of zeroes, also a huge one, written again.
#[test]
fn pages_are_right_in_every_diff_of_a_chain_however_they_came_to_be_zero() {
    for mut machine in [Machine::booted(), Machine::restored()] {
        let what = format!("tracked: {}", machine.tracked);
        let region = machine.memory.iter().next().expect("one region");
        let block = region.as_ptr().wrapping_add(BLOCK_BYTES as usize);
        for at in (0..4 * BLOCK_BYTES).step_by(PAGE_BYTES as usize) {
            machine.write(at, 9);
        }
        let mut last = machine.full(1);
        machine.release(BLOCK_BYTES, BLOCK_BYTES, true);
        // SAFETY: the block is guest memory, of which nobody holds a reference; the advice changes no contents.
        unsafe { libc::madvise(block.cast(), BLOCK_BYTES as usize, libc::MADV_HUGEPAGE) };
        assert_eq!(word(&machine.memory, PAGE), 0);
        last = merged(&last, &machine.diff(2, 1));
        assert_same(&machine, &last.memory, &what);
        if machine.tracked {
            // without soft-dirty bits nobody knows what is written from here on
            continue;
        }
        machine.write(PAGE, 6);
        last = merged(&last, &machine.diff(3, 2));
        assert_same(&machine, &last.memory, &what);
        machine.release(PAGE, PAGE_BYTES, true);
        last = merged(&last, &machine.diff(4, 3));
        assert_eq!(byte(&last.memory, PAGE), 0);
        assert_same(&machine, &last.memory, &what);
        assert_same(&machine, &machine.full(5).memory, "a full one");
    }
}
