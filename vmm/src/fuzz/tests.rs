//! Every input in the corpora, through the body of its target.

use super::TARGETS;
use crate::snapshot::restore;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

#[test]
fn the_corpora_replay() {
    for (name, body) in TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(folder("corpus").join(name)).expect("each target has a corpus") {
            let path = entry.expect("an entry").path();
            body(&fs::read(&path).expect("readable"));
            inputs += 1;
        }
        assert!(inputs > 0, "the corpus of {name} is empty");
    }
}

/// A target that leaves a mapping behind ends at the kernel's limit of them (vm.max_map_count), some ten thousand inputs
/// later, at an input that did nothing wrong.
#[test]
fn no_target_leaves_mappings_behind() {
    let mappings = || fs::read_to_string("/proc/self/maps").expect("procfs").lines().count();
    for (name, body) in TARGETS {
        let mut paths: Vec<PathBuf> = fs::read_dir(folder("corpus").join(name))
            .expect("each target has a corpus")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        paths.sort();
        // those with speaking names come last
        for path in paths.iter().rev().take(3) {
            let input = fs::read(path).expect("readable");
            body(&input);
            let before = mappings();
            (0..40).for_each(|_| body(&input));
            let more = mappings().saturating_sub(before);
            assert!(more < 20, "{name}: {more} mappings more after 40 times {path:?}");
        }
    }
}

/// From these the fuzzer gets past the parser: a change of the format must change them too.
#[test]
fn the_corpus_of_snapshots_has_some_of_this_format() {
    for name in ["machine-of-one-vcpu", "diff"] {
        let input = fs::read(folder("corpus").join("snapshot").join(name)).expect("readable");
        restore::decode(&input[1..]).expect(name);
    }
}

#[test]
fn short_and_extreme_inputs_do_no_harm() {
    for (_, body) in TARGETS {
        for length in [0, 1, 2, 3, 7, 64, 1000] {
            body(&vec![0; length]);
            body(&vec![0xff; length]);
        }
    }
}

#[test]
fn every_target_has_its_binary_and_the_reverse() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let binaries: BTreeSet<String> = fs::read_dir(folder("fuzz_targets"))
        .expect("the folder of binaries")
        .map(|entry| {
            entry.expect("an entry").path().file_stem().expect("a name").to_string_lossy().into_owned()
        })
        .collect();
    assert_eq!(targets, binaries);
}
