//! What must not be in any of the project's files. Patterns are put together from halves, so that no list of them can be
//! found by itself.

use crate::{Findings, rust, tree};

/// Files whose content is given by a tool or by others.
fn is_given(path: &str) -> bool {
    path.ends_with("Cargo.lock") || path == "LICENSE" || path.ends_with("-lock.json")
}

/// First half, second half, why.
const NOWHERE: &[(&str, &str, &str)] = &[
    ("/wo", "rk/", "a path of somebody's machine"),
    ("../sha", "red", "a path outside the project"),
    ("/tm", "p/w/", "a path of somebody's machine"),
    (".lib", "rary/", "a path of somebody's machine"),
    ("/root/.car", "go", "a path of somebody's machine"),
    ("issues sh", "ow", "the project speaks of itself, not of how it is made"),
    ("cra", "tes.io", "a package registry: cargo knows where it is"),
    ("pypi.", "org", "a package registry: name the package"),
    ("npm", "js.", "a package registry: name the package"),
    ("deb.deb", "ian.org", "a package registry: apt knows where it is"),
    ("proxy.gol", "ang.org", "a package registry: name the module"),
    ("Cla", "ude", "the project speaks of itself, not of how it is made"),
    ("Anth", "ropic", "the project speaks of itself, not of how it is made"),
    ("Chat", "GPT", "the project speaks of itself, not of how it is made"),
    ("Copi", "lot", "the project speaks of itself, not of how it is made"),
    ("language mo", "del", "the project speaks of itself, not of how it is made"),
    ("TO", "DO", "unfinished work: finish it or write the limit down in docs/SPECIFICATION.md"),
    ("FIX", "ME", "unfinished work: finish it or write the limit down in docs/SPECIFICATION.md"),
    ("XX", "X:", "unfinished work: finish it or write the limit down in docs/SPECIFICATION.md"),
];

/// Only where the code is Rust: first half, second half, why.
const NOT_IN_RUST: &[(&str, &str, &str)] = &[
    ("todo", "!(", "unfinished work"),
    ("unimplemented", "!(", "unfinished work"),
    ("#[ign", "ore", "a test that never runs is no test"),
    ("unbounded_", "channel", "every queue has a bound"),
    ("mpsc::unb", "ounded", "every queue has a bound"),
    ("env::set", "_var(", "it races with every reader of the environment: pass the value"),
    ("#![allow(unsafe", "_code", "the lints for unsafe blocks are the same for all"),
];

#[test]
fn nothing_is_unfinished_or_speaks_of_its_making() {
    let mut findings = Findings::default();
    for file in tree::FILES.iter().filter(|file| !is_given(&file.path) && !file.is_style_test()) {
        for (first, second, why) in NOWHERE {
            find(&file.path, &file.text, &format!("{first}{second}"), why, &mut findings);
        }
        if file.is_rust() {
            let masked = rust::mask(&file.text);
            for (first, second, why) in NOT_IN_RUST {
                find(&file.path, &masked, &format!("{first}{second}"), why, &mut findings);
            }
        }
    }
    findings
        .check("A file holds words that it must not hold.", "Say it in another way, or do what it puts off.");
}

fn find(path: &str, text: &str, pattern: &str, why: &str, findings: &mut Findings) {
    for (at, _) in text.match_indices(pattern) {
        findings.add(format!("{path}:{}", rust::line_of(text, at) + 1), format!("`{pattern}`: {why}"));
    }
}

#[test]
fn nothing_points_into_a_tracker() {
    // "issue 12", "Issue #3": numbers mean nothing to a reader of the source alone
    let mut findings = Findings::default();
    for file in tree::FILES.iter().filter(|file| !is_given(&file.path) && !file.is_style_test()) {
        for (number, line) in (1..).zip(file.text.lines()) {
            let lower = line.to_lowercase();
            for (at, word) in lower.match_indices("issue") {
                let rest = lower[at + word.len()..].trim_start_matches(['s', ' ']);
                let digits = rest.trim_start_matches('#');
                if digits.starts_with(|c: char| c.is_ascii_digit())
                    && lower[at + word.len()..].starts_with([' ', 's'])
                {
                    findings.add(format!("{}:{number}", file.path), line.trim());
                }
            }
        }
    }
    findings.check(
        "A file points to a number in a tracker.",
        "Say what the matter is; a source that is a specification is named with its section.",
    );
}

#[test]
fn lines_end_cleanly() {
    let mut findings = Findings::default();
    for file in tree::FILES.iter().filter(|file| !is_given(&file.path)) {
        for (number, line) in (1..).zip(file.text.split('\n')) {
            if line.ends_with([' ', '\t', '\r']) {
                findings.add(format!("{}:{number}", file.path), "white space at the end");
            }
            if file.is_rust() && line.contains('\t') {
                findings.add(format!("{}:{number}", file.path), "a tab");
            }
        }
        if !file.text.is_empty() && !file.text.ends_with('\n') {
            findings.add(&file.path, "no line feed at the end");
        }
    }
    findings.check("White space.", "`cargo fmt`, or an editor that reads .editorconfig, does it.");
}
