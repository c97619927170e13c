//! The project's own text files. What a build makes (`target`, `build`) is not among them.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Largest file that is looked at; sources are far below, and a stray core dump is not read.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// One text file.
pub struct File {
    /// relative to the project's root, with `/`
    pub path: String,
    pub text: String,
}

impl File {
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Units beside the code, and the tests crate.
    pub fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// The style test itself: it must not find its own patterns.
    pub fn is_style_test(&self) -> bool {
        self.path.starts_with("tests/style/")
    }
}

/// The project's root: the parent of this crate.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the project").to_owned()
}

/// All files in order of their path.
pub static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    let root = root();
    let mut files = Vec::new();
    walk(&root, &root, &mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.iter().any(|file| file.path == "Cargo.toml"), "{} is not the project", root.display());
    files
});

/// The text of a file that must be there.
pub fn text(path: &str) -> &'static str {
    match FILES.iter().find(|file| file.path == path) {
        Some(file) => &file.text,
        None => panic!("{path} is missing: a rule of the style test reads it"),
    }
}

fn walk(root: &Path, folder: &Path, files: &mut Vec<File>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let entry = entry.expect("an entry of a folder that was just opened");
        let path = entry.path();
        let relative = path.strip_prefix(root).expect("it is below the root").to_string_lossy().into_owned();
        // a file may vanish while other tests run: it is then not looked at
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            let made = matches!(relative.as_str(), "build" | ".git");
            // a corpus holds inputs that a fuzzer made
            let skipped = ["target", "node_modules", "__pycache__", "corpus"];
            if !made && !entry.file_name().to_str().is_some_and(|name| skipped.contains(&name)) {
                walk(root, &path, files);
            }
        } else if relative != ".git" && metadata.is_file() && metadata.len() <= MAX_FILE_BYTES {
            let Ok(bytes) = std::fs::read(&path) else { continue };
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(File { path: relative, text });
            }
        }
    }
}
