//! The highest term that this node has obeyed, on disk before it is obeyed: a deposed leader is refused even after the
//! node was restarted.

use crate::host::paths::write_atomically;
use crate::host::{Act, HostError};
use pinfold_domain::Term;
use std::path::PathBuf;

#[derive(Debug)]
pub struct TermKeeper {
    file: PathBuf,
    highest: Term,
}

impl TermKeeper {
    /// Reads `file`; 0 when there is none. A file that holds no number is an error: guessing 0 would let a deposed
    /// leader back in.
    pub fn open(file: PathBuf) -> Result<Self, HostError> {
        let act = || format!("read the term from {}", file.display());
        let highest = match std::fs::read_to_string(&file) {
            Ok(text) => Term(text.trim().parse().map_err(std::io::Error::other).act(act)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Term(0),
            Err(error) => return Err(error).act(act),
        };
        Ok(Self { file, highest })
    }

    pub fn highest(&self) -> Term {
        self.highest
    }

    /// Keeps `term` if it is higher.
    pub fn raise(&mut self, term: Term) -> Result<(), HostError> {
        if term > self.highest {
            write_atomically(&self.file, format!("{term}\n").as_bytes(), true)?;
            self.highest = term;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_a_restart_and_never_falls() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("term");
        let mut keeper = TermKeeper::open(file.clone()).unwrap();
        assert_eq!(keeper.highest(), Term(0));
        keeper.raise(Term(7)).unwrap();
        keeper.raise(Term(3)).unwrap();
        assert_eq!(TermKeeper::open(file.clone()).unwrap().highest(), Term(7));
        std::fs::write(&file, "x").unwrap();
        assert!(TermKeeper::open(file).unwrap_err().sentence().contains("term"));
    }
}
