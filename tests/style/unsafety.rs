//! How much unsafe code there is, and that each piece says why it is sound.
//!
//! Clippy wants one operation a block and a `// SAFETY:` sentence, where it looks: not into programs that a test compiles, nor
//! at how many blocks there are. The count of a folder is in the ratchet, so that more of it is seen in a review.

use crate::ratchet::UNSAFE_PLACES;
use crate::{Findings, rust, tree};
use std::collections::BTreeMap;

/// How far above the keyword its sentence may begin: it may have several lines, and the statement too.
const SENTENCE_LINES: usize = 8;

/// One `unsafe` block, function, implementation or extern block.
struct Place {
    path: &'static str,
    /// from 1
    line: usize,
    test: bool,
    explained: bool,
}

fn places() -> Vec<Place> {
    let mut places = Vec::new();
    for file in tree::FILES.iter().filter(|file| file.is_rust() && !file.is_style_test()) {
        let masked = rust::mask(&file.text);
        let test = rust::test_lines(&masked);
        let lines: Vec<&str> = file.text.lines().collect();
        for (index, line) in masked.lines().enumerate() {
            for _ in 0..keywords(line) {
                let above = &lines[index.saturating_sub(SENTENCE_LINES)..=index];
                // an unsafe function says in its documentation what its caller promises
                let explained =
                    above.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"));
                let test = file.is_test() || file.path.contains("/examples/") || test[index];
                places.push(Place { path: &file.path, line: index + 1, test, explained });
            }
        }
    }
    places
}

/// Uses of the keyword in a line without comments and strings; `unsafe_code` and the like are other words.
fn keywords(line: &str) -> usize {
    // an attribute, as `no_mangle` is one, promises something about a name and holds no code
    let line = line.replace("#[unsafe(", "#[(");
    let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| *word == "unsafe").count()
}

#[test]
fn every_unsafe_place_says_why_it_is_sound() {
    let mut findings = Findings::default();
    for place in places().iter().filter(|place| !place.explained) {
        findings.add(format!("{}:{}", place.path, place.line), "no `// SAFETY:` above it");
    }
    findings.check(
        "Unsafe code does not say why it is sound.",
        "Name the invariant and who keeps it, in a `// SAFETY:` sentence right above.",
    );
}

#[test]
fn unsafe_places_are_counted() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for place in places().iter().filter(|place| !place.test) {
        let folder = UNSAFE_PLACES.iter().map(|(folder, _)| *folder).filter(|f| place.path.starts_with(f));
        // the longest: a crate within a crate's folder is its own
        let folder = folder.max_by_key(|folder| folder.len()).unwrap_or(place.path);
        *counts.entry(folder).or_default() += 1;
    }
    let mut findings = Findings::default();
    for (folder, allowed) in UNSAFE_PLACES {
        let counted = counts.remove(folder).unwrap_or(0);
        if counted != *allowed {
            findings.add(folder, format!("{counted} places, UNSAFE_PLACES says {allowed}"));
        }
    }
    for (path, counted) in counts {
        findings.add(path, format!("{counted} places, and its folder is not in UNSAFE_PLACES"));
    }
    findings.check(
        "The count of unsafe places is not the one that was agreed to.",
        "Fewer: lower it in tests/style/ratchet.rs. More: is there no library or safe way? Then raise it, and say so in the commit.",
    );
}

#[test]
fn the_keyword_is_a_whole_word() {
    assert_eq!(keywords("let x = unsafe { f() };"), 1);
    assert_eq!(keywords("unsafe impl Send for X {} unsafe fn f()"), 2);
    assert_eq!(keywords("#[unsafe(no_mangle)]"), 0);
    assert_eq!(keywords("#![forbid(unsafe_code)] #[deny(unsafe_op_in_unsafe_fn)]"), 0);
}
