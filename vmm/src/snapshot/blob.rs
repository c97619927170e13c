//! Plain data of the KVM API as bytes: its layout is fixed by the kernel's ABI and does not change with its version.

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The bytes of one C structure, or of several of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Blob(#[serde(with = "serde_bytes")] Vec<u8>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes are not {wanted}, the size of one entry, or a multiple of it")]
pub struct WrongSize {
    bytes: usize,
    wanted: usize,
}

impl Blob {
    pub fn of<T: IntoBytes + Immutable + ?Sized>(value: &T) -> Self {
        Self(value.as_bytes().to_vec())
    }

    /// The structure that [`Self::of`] was given.
    pub fn read<T: FromBytes>(&self) -> Result<T, WrongSize> {
        T::read_from_bytes(&self.0).map_err(|_| WrongSize { bytes: self.0.len(), wanted: size_of::<T>() })
    }

    /// The slice that [`Self::of`] was given.
    pub fn read_all<T: FromBytes>(&self) -> Result<Vec<T>, WrongSize> {
        let wanted = size_of::<T>();
        let whole = self.0.len().is_multiple_of(wanted.max(1));
        let entry = |bytes| T::read_from_bytes(bytes).ok();
        let all = whole.then(|| self.0.chunks_exact(wanted).map(entry).collect()).flatten();
        all.ok_or(WrongSize { bytes: self.0.len(), wanted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_size_reads_back() {
        let blob = Blob::of(&[1u32, 2, 3][..]);
        assert_eq!(blob.read_all::<u32>(), Ok(vec![1, 2, 3]));
        assert_eq!(blob.read::<[u32; 3]>(), Ok([1, 2, 3]));
        assert_eq!(blob.read::<u32>(), Err(WrongSize { bytes: 12, wanted: 4 }));
        assert_eq!(blob.read_all::<u64>(), Err(WrongSize { bytes: 12, wanted: 8 }));
        assert_eq!(Blob::default().read_all::<u64>(), Ok(vec![]));
    }
}
