//! How long files and functions may be.

use crate::ratchet::{LONG_FILES, LONG_FUNCTIONS};
use crate::{Findings, rust, tree};

/// Lines without tests. Above it a file stands in the ratchet.
pub const SOFT_FILE_LINES: usize = 400;
/// Lines without tests that no file passes.
const HARD_FILE_LINES: usize = 600;
/// Lines of a file that is all tests.
const TEST_FILE_LINES: usize = 800;
/// Lines of a function, from `fn` to its brace.
pub const FUNCTION_LINES: usize = 70;

struct Measured {
    path: &'static str,
    masked: String,
    /// per line
    test: Vec<bool>,
}

impl Measured {
    fn lines(&self) -> usize {
        self.test.iter().filter(|&&test| !test).count()
    }
}

fn product_files() -> Vec<Measured> {
    let rust = tree::FILES.iter().filter(|file| file.is_rust() && !file.is_test());
    rust.map(|file| {
        let masked = rust::mask(&file.text);
        let test = rust::test_lines(&masked);
        Measured { path: &file.path, masked, test }
    })
    .collect()
}

#[test]
fn files_are_short() {
    let mut findings = Findings::default();
    let files = product_files();
    for file in &files {
        let lines = file.lines();
        let listed = LONG_FILES.iter().find(|(path, _)| *path == file.path);
        match listed {
            _ if lines > HARD_FILE_LINES => {
                findings.add(
                    file.path,
                    format!("{lines} lines without tests, the hard limit is {HARD_FILE_LINES}"),
                );
            }
            None if lines > SOFT_FILE_LINES => {
                findings
                    .add(file.path, format!("{lines} lines without tests, the limit is {SOFT_FILE_LINES}"));
            }
            Some(_) if lines <= SOFT_FILE_LINES => {
                findings.add(file.path, format!("{lines} lines: remove it from LONG_FILES"));
            }
            Some((_, measure)) if *measure != lines => {
                findings.add(
                    file.path,
                    format!("{lines} lines, LONG_FILES says {measure}: shorten it or lower the entry"),
                );
            }
            _ => {}
        }
    }
    for (path, _) in LONG_FILES.iter().filter(|(path, _)| !files.iter().any(|file| file.path == *path)) {
        findings.add(path, "is in LONG_FILES and does not exist");
    }
    findings.check(
        "A file is too long.",
        "Split it by idea, each part with its own `//!` opening; do not cut in the middle.",
    );
}

#[test]
fn test_files_are_readable() {
    let mut findings = Findings::default();
    for file in tree::FILES.iter().filter(|file| file.is_rust() && file.is_test()) {
        let lines = file.text.lines().count();
        if lines > TEST_FILE_LINES {
            findings.add(&file.path, format!("{lines} lines, the limit is {TEST_FILE_LINES}"));
        }
    }
    findings.check("A test file is too long.", "Split it by what it tests.");
}

#[test]
fn functions_are_short() {
    let mut findings = Findings::default();
    let mut seen = Vec::new();
    for file in product_files() {
        for function in rust::functions(&file.masked) {
            if file.test.get(function.line - 1).copied().unwrap_or(false) {
                continue;
            }
            let place = format!("{}:{} {}", file.path, function.line, function.name);
            let listed =
                LONG_FUNCTIONS.iter().find(|(path, name, _)| *path == file.path && *name == function.name);
            if let Some(entry) = listed {
                seen.push(entry);
            }
            match listed {
                None if function.lines > FUNCTION_LINES => {
                    findings.add(place, format!("{} lines, the limit is {FUNCTION_LINES}", function.lines));
                }
                Some((_, _, measure)) if *measure != function.lines => {
                    let lines = function.lines;
                    findings.add(place, format!("{lines} lines, LONG_FUNCTIONS says {measure}: shorten it, lower or remove the entry"));
                }
                Some(_) if function.lines <= FUNCTION_LINES => {
                    findings.add(place, "remove it from LONG_FUNCTIONS")
                }
                _ => {}
            }
        }
    }
    for entry in LONG_FUNCTIONS.iter().filter(|entry| !seen.contains(entry)) {
        findings.add(entry.0, format!("{} is in LONG_FUNCTIONS and does not exist", entry.1));
    }
    findings.check(
        "A function is too long.",
        "Name its steps and make each a function; a list of steps that only calls others stays short by itself.",
    );
}

#[test]
fn every_source_file_opens_with_what_it_is() {
    let mut findings = Findings::default();
    for file in tree::FILES.iter().filter(|file| file.is_rust() && !file.path.ends_with("/tests.rs")) {
        if file.is_test() && file.path.contains("/src/") && !file.path.starts_with("tests/") {
            continue;
        }
        let opening = file.text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        if !opening.starts_with("//! ") || opening.len() < 12 {
            findings.add(&file.path, "does not open with `//!`");
        }
    }
    findings.check(
        "A source file does not say what it is.",
        "Open it with `//!`: what it is, its invariant, and a drawing if it is a state machine.",
    );
}
