//! Every input in the corpora, through the body of its target.

use super::TARGETS;
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
