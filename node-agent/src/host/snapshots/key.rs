//! What authenticates the machines that this node saves: made once, by the node, and never told to anybody but its VMMs.

use super::super::{Act, HostError};
use super::draft::{new_file, sync_directory};
use pinfold_vmm_api::config::limits::SNAPSHOT_KEY_DIGITS;
use rustix::rand::{GetRandomFlags, getrandom};
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// 256 bits as hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct SnapshotKey(String);

impl fmt::Debug for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SnapshotKey(..)")
    }
}

impl SnapshotKey {
    /// The key in `file`, which is made when there is none. A file that holds no key is an error: a new key would make
    /// everything that was saved useless.
    pub fn open(file: &Path) -> Result<Self, HostError> {
        let act = || format!("read the snapshot key from {}", file.display());
        match fs::read_to_string(file) {
            Ok(text) => Self::parse(text.trim()).act(act),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = Self::generate()?;
                key.store(file)?;
                Ok(key)
            }
            Err(error) => Err(error).act(act),
        }
    }

    pub fn generate() -> Result<Self, HostError> {
        Ok(Self(hexadecimal(&random::<{ SNAPSHOT_KEY_DIGITS / 2 }>()?)))
    }

    pub fn digits(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> io::Result<Self> {
        if text.len() == SNAPSHOT_KEY_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Self(text.to_owned()));
        }
        Err(io::Error::other(format!("it does not hold {SNAPSHOT_KEY_DIGITS} hexadecimal digits")))
    }

    fn store(&self, file: &Path) -> Result<(), HostError> {
        let act = || format!("write the snapshot key to {}", file.display());
        let new = file.with_extension("new");
        let mut written = new_file(&new)?;
        writeln!(written, "{}", self.0).and_then(|()| written.sync_all()).act(act)?;
        fs::rename(&new, file).act(act)?;
        sync_directory(file)
    }
}

/// From the kernel's generator.
pub fn random<const BYTES: usize>() -> Result<[u8; BYTES], HostError> {
    let mut bytes = [0; BYTES];
    let mut have = 0;
    while have < BYTES {
        have +=
            getrandom(&mut bytes[have..], GetRandomFlags::empty()).act(|| "get random bytes".to_owned())?;
    }
    Ok(bytes)
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_made_once_and_for_root_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("snapshot-key");
        let key = SnapshotKey::open(&file).unwrap();
        assert_eq!(key.digits().len(), 64);
        assert_eq!(SnapshotKey::open(&file).unwrap(), key);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_ne!(SnapshotKey::generate().unwrap(), key);
        assert!(!format!("{key:?}").contains(key.digits()), "it is never printed");
        fs::write(&file, "short").unwrap();
        assert!(SnapshotKey::open(&file).unwrap_err().sentence().contains("64 hexadecimal digits"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "short");
    }
}
