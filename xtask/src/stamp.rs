//! Is a product up to date?
//!
//! A [`Key`] is a readable list of everything that a product is made from: recipe parameters and the SHA-256 of input
//! files. It is written beside the other stamps once the product is complete. A product is fresh when its stored key
//! is the same and its files are there. Names of inputs stay out of the sum where they would differ between machines.

use crate::command;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Key {
    lines: String,
}

impl Key {
    /// `version` changes when the recipe, that is our own code, makes something else from the same inputs.
    pub fn new(version: u32) -> Self {
        Self::default().with("recipe", version)
    }

    /// Adds a parameter.
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.lines.push_str(&format!("{name}={value}\n"));
        self
    }

    /// Adds the content of files. A file that is missing counts as such, it is no error.
    pub fn with_files<'a>(mut self, files: impl IntoIterator<Item = &'a Path>) -> Result<Self> {
        let files: Vec<&Path> = files.into_iter().collect();
        let present: Vec<&Path> = files.iter().copied().filter(|file| file.is_file()).collect();
        let sums = if present.is_empty() {
            String::new()
        } else {
            command::output(Command::new("sha256sum").arg("-z").arg("--").args(&present))?
        };
        let mut sums = sums.split('\0');
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let sum = if file.is_file() { sums.next().and_then(|line| line.get(..64)) } else { None };
            self = self.with(&name, sum.unwrap_or("missing"));
        }
        Ok(self)
    }

    /// 16 hexadecimal digits that stand for the whole key.
    pub fn digest(&self) -> Result<String> {
        let mut child = Command::new("sha256sum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting sha256sum")?;
        child.stdin.take().context("sha256sum has no input")?.write_all(self.lines.as_bytes())?;
        let output = child.wait_with_output().context("waiting for sha256sum")?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.get(..16).map(str::to_owned).context("sha256sum gave no sum")
    }
}

fn stamp_path(workspace: &Workspace, name: &str) -> PathBuf {
    workspace.build.join("stamps").join(name)
}

/// Whether `outputs` are there and were made from `key`.
pub fn is_fresh(workspace: &Workspace, name: &str, key: &Key, outputs: &[&Path]) -> bool {
    let stored = fs::read_to_string(stamp_path(workspace, name)).unwrap_or_default();
    stored == key.lines && outputs.iter().all(|output| output.exists())
}

/// Records that the product is complete.
pub fn store(workspace: &Workspace, name: &str, key: &Key) -> Result<()> {
    let path = stamp_path(workspace, name);
    fs::create_dir_all(workspace.build.join("stamps"))?;
    fs::write(&path, &key.lines).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(root: &Path) -> Workspace {
        Workspace { root: root.to_path_buf(), build: root.join("build") }
    }

    #[test]
    fn fresh_only_with_the_same_inputs_and_all_outputs() {
        let directory = tempfile::tempdir().expect("a directory");
        let workspace = workspace(directory.path());
        let (input, output) = (directory.path().join("in"), directory.path().join("out"));
        fs::write(&input, "1").expect("write");
        let key = || Key::new(1).with_files([input.as_path()]).expect("sum");
        assert!(!is_fresh(&workspace, "p", &key(), &[&output]), "nothing was made yet");
        store(&workspace, "p", &key()).expect("store");
        assert!(!is_fresh(&workspace, "p", &key(), &[&output]), "the output is missing");
        fs::write(&output, "x").expect("write");
        assert!(is_fresh(&workspace, "p", &key(), &[&output]));
        fs::write(&input, "2").expect("write");
        assert!(!is_fresh(&workspace, "p", &key(), &[&output]), "the input has changed");
    }

    #[test]
    fn a_missing_input_is_part_of_the_key() {
        let directory = tempfile::tempdir().expect("a directory");
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&b, "").expect("write");
        let key = Key::new(1).with_files([a.as_path(), b.as_path()]).expect("sum");
        assert!(key.lines.starts_with("recipe=1\na=missing\nb=e3b0c442"), "{}", key.lines);
        assert_eq!(key.digest().expect("digest").len(), 16);
    }
}
