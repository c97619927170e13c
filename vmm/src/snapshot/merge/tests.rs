//! Diffs over bases, in files.

use super::*;
use crate::snapshot::manifest::sample;

const MIB: u64 = 1 << 20;

fn key() -> Key {
    Key::from_hex(&"5".repeat(64)).expect("a key")
}

fn empty() -> Files {
    let file = || tempfile::tempfile().expect("a temporary file");
    Files { state: file(), memory: file() }
}

/// A snapshot of `bytes` of memory with these pages: place, contents.
fn snapshot(id: u8, bytes: u64, contents: Contents, pages: &[(u64, u8)]) -> Files {
    let files = empty();
    let mut saved = sample();
    saved.manifest.id = [id; 16];
    saved.manifest.memory.ranges = crate::memory::ranges(bytes);
    saved.manifest.memory.contents = contents;
    format::seal(&files.state, &key(), &save::encode(&saved).expect("encoded")).expect("sealed");
    files.memory.set_len(bytes).expect("a sparse file");
    for (place, contents) in pages {
        files.memory.write_all_at(&[*contents; 4096], *place).expect("written");
    }
    files
}

fn diff(parent: u8, bytes: u64, extents: &[(u64, u64)], pages: &[(u64, u8)]) -> Files {
    snapshot(9, bytes, Contents::Diff { parent: [parent; 16], extents: extents.to_vec() }, pages)
}

fn read(file: &File, at: u64) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    byte[0]
}

#[test]
fn extents_replace_what_was_there_also_by_zeros() {
    // both sides of the hole, and past 4 GiB
    let bytes = 5 << 30;
    let (low, high) = (8 * MIB, bytes - MIB);
    let base = snapshot(1, bytes, Contents::Full, &[(0, 1), (low, 2), (low + 4096, 3), (high, 4)]);
    let changed = [(low, 8192), (high, 4096)];
    let diff = diff(1, bytes, &changed, &[(low + 4096, 7), (high, 8), (20 * MIB, 99)]);
    let into = empty();
    merge(&base, &diff, &into, &key()).expect("merged");
    let places = [0, low, low + 4096, high, 20 * MIB];
    assert_eq!(places.map(|at| read(&into.memory, at)), [1, 0, 7, 8, 0], "outside of extents nothing counts");
    assert_eq!(places.map(|at| read(&base.memory, at)), [1, 2, 3, 4, 0], "the base is as it was");
    let body = format::open(&into.state, &key()).expect("opened");
    let saved = restore::decode(&body).expect("decoded");
    assert_eq!((saved.manifest.id, saved.manifest.memory.contents), ([9; 16], Contents::Full));
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let full = |id| snapshot(id, 96 * MIB, Contents::Full, &[]);
    let attempt = |base: &Files, diff: &Files| merge(base, diff, &empty(), &key());
    let good = diff(1, 96 * MIB, &[(0, 4096)], &[]);
    attempt(&full(1), &good).expect("merged");
    assert!(matches!(attempt(&full(2), &good), Err(MergeError::Strangers)));
    assert!(matches!(attempt(&good, &good), Err(MergeError::BaseIsDiff)));
    assert!(matches!(attempt(&full(1), &full(1)), Err(MergeError::NoDiff)));
    let larger = diff(1, 97 * MIB, &[], &[]);
    assert!(matches!(attempt(&full(1), &larger), Err(MergeError::Strangers)));
    for extent in [(96 * MIB, 4096), (1, 4096), (0, 1), (4096, u64::MAX)] {
        let wrong = diff(1, 96 * MIB, &[extent], &[]);
        assert!(matches!(attempt(&full(1), &wrong), Err(MergeError::Extent { .. })), "{extent:?}");
    }
    let cut = full(1);
    cut.memory.set_len(95 * MIB).expect("cut");
    assert!(matches!(attempt(&cut, &good), Err(MergeError::Length { which: "the first", .. })));
    let other = Key::from_hex(&"6".repeat(64)).expect("a key");
    let error = merge(&full(1), &good, &empty(), &other);
    assert!(matches!(error, Err(MergeError::Open { which: "the first", .. })));
}
