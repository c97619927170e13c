//! The rules of docs/STYLE.md that a machine can check, as tests. No network, no tool beyond cargo, a few seconds.
//!
//! A rule is one `#[test]` that collects every place where it is broken and ends with [`Findings::check`], which prints the
//! places and what to do about them. A limit that old code does not keep yet has a ratchet: a list in [`ratchet`] with the
//! exact measure, which may only shrink.
//!
//! ```text
//!   tree      the project's files, read once
//!   rust      Rust source with comments and strings blanked: functions, test regions, enums
//!   cargo     `cargo metadata`, read once
//!   the rest  one module for each family of rules
//! ```
#![forbid(unsafe_code)]

mod cargo;
mod crates;
mod documents;
mod licences;
mod ratchet;
mod rust;
mod sizes;
mod text;
mod tree;
mod unsafety;
mod wire;

/// Places where a rule is broken.
#[derive(Debug, Default)]
struct Findings(Vec<String>);

impl Findings {
    fn add(&mut self, place: impl std::fmt::Display, what: impl std::fmt::Display) {
        self.0.push(format!("  {place}: {what}"));
    }

    /// Fails with all places if there is any. `advice` says what to do.
    #[track_caller]
    fn check(self, rule: &str, advice: &str) {
        assert!(self.0.is_empty(), "\n{rule}\n{}\n{advice}\n", self.0.join("\n"));
    }
}
