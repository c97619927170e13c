//! Which machines are saved on this node, as its disk says.

use super::super::capacity::occupied_bytes;
use super::super::paths::{StateDirectory, make_directory, remove_tree};
use super::super::{Act, HostError};
use super::draft::{Draft, sync_directory};
use super::{Saved, SnapshotKey};
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A directory of saved machines with their disks, by id: the snapshots, or the templates.
#[derive(Debug, Clone)]
pub struct SnapshotStore {
    directory: PathBuf,
    key: SnapshotKey,
}

/// One entry of the listing at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Whole(Box<Saved>),
    /// it stays on the disk under another name, for a person
    Damaged {
        why: String,
        bytes: u64,
    },
}

const DAMAGED: &str = "damaged";

impl SnapshotStore {
    /// `name`: `snapshots` or `templates`.
    pub fn open(state: &StateDirectory, name: &str, key: &SnapshotKey) -> Result<Self, HostError> {
        let directory = state.below(name);
        make_directory(&directory, 0o700)?;
        Ok(Self { directory, key: key.clone() })
    }

    pub fn key(&self) -> &SnapshotKey {
        &self.key
    }

    fn path(&self, id: impl Display) -> PathBuf {
        self.directory.join(id.to_string())
    }

    /// What was found damaged under this name makes room for it.
    pub fn draft(&self, id: impl Display) -> Result<Draft, HostError> {
        let path = self.path(id);
        remove_tree(&path.with_extension(DAMAGED))?;
        Draft::begin(path, true)
    }

    /// All that is there. What was half made when an earlier agent ended is removed.
    pub fn list<Id: FromStr + Display>(&self) -> Result<Vec<(Id, Found)>, HostError> {
        let act = || format!("list {}", self.directory.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).act(act)? {
            let path = entry.act(act)?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<Id>().ok());
            let suffix = path.extension().and_then(|suffix| suffix.to_str());
            match (id, suffix) {
                (Some(id), None) => {
                    let opened = Saved::open(&path, true).map_err(|error| error.to_string());
                    let opened = opened
                        .map_or_else(|why| self.set_aside(&id, why), |saved| Found::Whole(Box::new(saved)));
                    found.push((id, opened));
                }
                (Some(id), Some(DAMAGED)) => {
                    let (why, bytes) = ("it was found damaged earlier".to_owned(), occupied_bytes(&path)?);
                    found.push((id, Found::Damaged { why, bytes }));
                }
                _ => {
                    tracing::warn!(path = %path.display(), "half of a saved machine is removed");
                    remove_tree(&path)?;
                }
            }
        }
        Ok(found)
    }

    /// It is never used again.
    pub fn set_aside(&self, id: impl Display, why: String) -> Found {
        let path = self.path(&id);
        let moved = remove_tree(&path.with_extension(DAMAGED))
            .and_then(|()| fs::rename(&path, path.with_extension(DAMAGED)).act(|| "set it aside".to_owned()));
        let error = moved.err().map(|error| error.sentence());
        tracing::error!(%id, why, error, "a saved machine is damaged");
        let bytes = occupied_bytes(&path.with_extension(DAMAGED)).unwrap_or(0);
        Found::Damaged { why, bytes }
    }

    /// Whether or not it is there, whole or damaged.
    pub fn remove(&self, id: impl Display) -> Result<(), HostError> {
        let path = self.path(id);
        for suffix in ["new", DAMAGED] {
            remove_tree(&path.with_extension(suffix))?;
        }
        if !Path::new(&path).exists() {
            return Ok(());
        }
        // first the name, which is one act: a half that is left by a crash is known as one
        let going = path.with_extension("new");
        fs::rename(&path, &going).act(|| format!("remove {}", path.display()))?;
        sync_directory(&path)?;
        remove_tree(&going)
    }
}
