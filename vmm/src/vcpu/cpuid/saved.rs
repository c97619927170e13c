//! The table of a snapshot: kept whole, so that a restored guest sees the processor that it has always seen, and taken only
//! by a host that has all of it.

use super::{CpuidError, Register, Template};
use crate::snapshot::blob::{Blob, WrongSize};
use kvm_bindings::kvm_cpuid_entry2;

/// Registers that list features, one bit each: leaf, sub-leaf, register (Intel SDM 2A, CPUID; AMD APM 3, appendix E).
const FEATURES: [(u32, u32, Register); 14] = [
    (0x1, 0, Register::Ecx),
    (0x1, 0, Register::Edx),
    (0x7, 0, Register::Ebx),
    (0x7, 0, Register::Ecx),
    (0x7, 0, Register::Edx),
    (0x7, 1, Register::Eax),
    (0x7, 1, Register::Edx),
    // extended states that XCR0 may have, and instructions of theirs
    (0xd, 0, Register::Eax),
    (0xd, 1, Register::Eax),
    (0x4000_0001, 0, Register::Eax),
    (0x8000_0001, 0, Register::Ecx),
    (0x8000_0001, 0, Register::Edx),
    (0x8000_0008, 0, Register::Ebx),
    (0x8000_0021, 0, Register::Eax),
];
/// OSXSAVE and OSPKE: the guest's own settings, mirrored.
const MIRRORED: [(u32, Register, u32); 2] = [(0x1, Register::Ecx, 1 << 27), (0x7, Register::Ecx, 1 << 4)];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    #[error("the saved CPUID table: {0}")]
    Size(#[from] WrongSize),
    #[error(
        "the processor of this host lacks features of the snapshot's: bits {bits:#x} of {register:?} in CPUID leaf {leaf:#x}.{index}"
    )]
    Lacks { leaf: u32, index: u32, register: Register, bits: u32 },
}

impl Template {
    pub fn save(&self) -> Blob {
        Blob::of(self.entries.as_slice())
    }

    /// The saved table, if this one, of the host, offers every feature in it.
    pub fn taken_from(&self, saved: &Blob) -> Result<Self, CpuidError> {
        let saved = Self { entries: saved.read_all().map_err(SavedError::from)?, vcpus: self.vcpus };
        for (leaf, index, register) in FEATURES {
            let bits = saved.features(leaf, index, register) & !self.features(leaf, index, register);
            if bits != 0 {
                return Err(SavedError::Lacks { leaf, index, register, bits }.into());
            }
        }
        Ok(saved)
    }

    fn features(&self, leaf: u32, index: u32, register: Register) -> u32 {
        let is_it = |entry: &&kvm_cpuid_entry2| entry.function == leaf && entry.index == index;
        let all = self.entries.iter().find(is_it).map_or(0, |entry| register.of(entry));
        let mirrored = MIRRORED.iter().find(|(of, which, _)| *of == leaf && *which == register);
        all & !mirrored.map_or(0, |(_, _, bit)| *bit)
    }
}

impl From<SavedError> for CpuidError {
    fn from(error: SavedError) -> Self {
        Self::Saved(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(features: u32, vendor: u32) -> Template {
        let leaf = |function, ecx| kvm_cpuid_entry2 { function, ecx, ..Default::default() };
        Template { entries: vec![leaf(0, vendor), leaf(1, features)], vcpus: 1 }
    }

    #[test]
    fn a_host_that_has_all_takes_the_table_as_it_was() {
        let (host, saved) = (table(0b1110, 1), table(0b0110, 2));
        assert_eq!(host.taken_from(&saved.save()).expect("taken").entries, saved.entries);
        assert_eq!(host.taken_from(&host.save()).expect("taken").entries, host.entries);
    }

    #[test]
    fn a_feature_that_is_lacking_is_named() {
        let (host, saved) = (table(0b0100, 1), table(0b0110 | 1 << 27, 1));
        let lacks = SavedError::Lacks { leaf: 1, index: 0, register: Register::Ecx, bits: 0b0010 };
        match host.taken_from(&saved.save()) {
            Err(CpuidError::Saved(error)) => assert_eq!(error, lacks),
            other => panic!("{other:?}"),
        }
    }
}
