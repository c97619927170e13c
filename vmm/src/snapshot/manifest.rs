//! What a snapshot is of, checked against the machine that is to go on with it before anything is touched.
//!
//! Fields are named in the file; one that a reader does not know is refused, because it may be one that it must not pass
//! over. A change that older readers could not follow raises [`super::format::VERSION`].

use super::vm::VmState;
use crate::devices::bus::BusState;
use crate::devices::virtio::mmio::persist::TransportState;
use crate::snapshot::blob::Blob;
use crate::vcpu::state::VcpuState;
use pinfold_vmm_api::CpuTemplate;
use serde::{Deserialize, Serialize};

/// The body of a state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    pub manifest: Manifest,
    /// CPUID entries that all vCPUs share
    pub cpuid: Blob,
    pub vcpus: Vec<VcpuState>,
    pub vm: VmState,
    pub bus: BusState,
    pub devices: Vec<TransportState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// random; a diff names the one before it
    #[serde(with = "serde_bytes")]
    pub id: [u8; 16],
    /// of the VMM that saved it; told when a restore is refused
    pub vmm_version: String,
    pub cpu_template: CpuTemplate,
    pub memory: MemoryManifest,
    /// devices are on the kernel's command line, and there is an interval timer
    pub mmio_on_cmdline: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryManifest {
    /// guest addresses (start, length in bytes) in the order in which they follow each other in the file
    pub ranges: Vec<(u64, u64)>,
    pub contents: Contents,
    pub digest: DigestPolicy,
}

/// What the memory file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contents {
    /// all of memory; a hole is zero
    Full,
    /// The pages of these extents of the file (offset, length in bytes), a hole among them zero; for the rest the
    /// snapshot with the id `parent` holds.
    Diff {
        #[serde(with = "serde_bytes")]
        parent: [u8; 16],
        extents: Vec<(u64, u64)>,
    },
}

/// Whether and how the memory file itself is authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DigestPolicy {
    /// Not at all: a digest would have to read what a restore only maps. Whoever keeps the file keeps it from others.
    KeptByOwner,
}

/// What this process is to make of it.
#[derive(Debug)]
pub struct Wanted {
    pub vcpus: u32,
    pub memory_bytes: u64,
    pub cpu_template: CpuTemplate,
    pub mmio_on_cmdline: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("the snapshot (of VMM {version}) has {what} {saved}, the config {wanted}")]
    Differs { version: String, what: &'static str, saved: String, wanted: String },
    #[error("a diff cannot be restored: merge it with the snapshot before it")]
    Diff,
}

impl MemoryManifest {
    /// Of the memory file, which holds all ranges; [`u64::MAX`] where no file can be as long as they say.
    pub fn file_bytes(&self) -> u64 {
        self.ranges.iter().fold(0, |all, range| all.saturating_add(range.1))
    }
}

impl Saved {
    /// May a machine like `wanted` go on from here?
    pub fn fits(&self, wanted: &Wanted) -> Result<(), Mismatch> {
        let manifest = &self.manifest;
        let same = |what, saved: String, wanted: String| {
            let version = manifest.vmm_version.clone();
            if saved == wanted { Ok(()) } else { Err(Mismatch::Differs { version, what, saved, wanted }) }
        };
        same("vcpus", self.vcpus.len().to_string(), wanted.vcpus.to_string())?;
        same(
            "memory ranges",
            format!("{:x?}", manifest.memory.ranges),
            format!("{:x?}", crate::memory::ranges(wanted.memory_bytes)),
        )?;
        let template = |template: CpuTemplate| format!("{template:?}");
        same("cpu_template", template(manifest.cpu_template), template(wanted.cpu_template))?;
        let cmdline = |there: bool| there.to_string();
        same("mmio_on_cmdline", cmdline(manifest.mmio_on_cmdline), cmdline(wanted.mmio_on_cmdline))?;
        if manifest.memory.contents != Contents::Full {
            return Err(Mismatch::Diff);
        }
        Ok(())
    }

    /// The devices of the config, by their types (virtio 1.2, 5) and in their order.
    pub fn has_devices(&self, configured: &[u32]) -> Result<(), Mismatch> {
        let saved: Vec<_> = self.devices.iter().map(|device| device.kind).collect();
        if saved == configured {
            return Ok(());
        }
        Err(Mismatch::Differs {
            version: self.manifest.vmm_version.clone(),
            what: "devices of types",
            saved: format!("{saved:?}"),
            wanted: format!("{configured:?}"),
        })
    }
}

/// A machine of one vCPU without devices, for tests.
#[cfg(test)]
pub(crate) fn sample() -> Saved {
    Saved {
        manifest: Manifest {
            id: [1; 16],
            vmm_version: "0.0.0".into(),
            cpu_template: CpuTemplate::Host,
            memory: MemoryManifest {
                ranges: crate::memory::ranges(96 << 20),
                contents: Contents::Full,
                digest: DigestPolicy::KeptByOwner,
            },
            mmio_on_cmdline: false,
        },
        cpuid: Blob::default(),
        vcpus: vec![VcpuState::default()],
        vm: VmState::default(),
        bus: BusState::default(),
        devices: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{restore, save};

    fn wanted() -> Wanted {
        Wanted { vcpus: 1, memory_bytes: 96 << 20, cpu_template: CpuTemplate::Host, mmio_on_cmdline: false }
    }

    #[test]
    fn what_is_encoded_is_decoded_and_nothing_may_follow() {
        let saved = sample();
        let mut body = save::encode(&saved).expect("encoded");
        assert_eq!(restore::decode(&body).expect("decoded"), saved);
        for length in 0..body.len() {
            assert!(restore::decode(&body[..length]).is_err(), "{length} bytes");
        }
        body.push(0);
        assert!(restore::decode(&body).is_err());
    }

    #[test]
    fn another_config_is_refused_by_the_field_that_differs() {
        let saved = sample();
        assert_eq!(saved.fits(&wanted()), Ok(()));
        let cases = [
            (Wanted { vcpus: 2, ..wanted() }, "vcpus"),
            (Wanted { memory_bytes: 97 << 20, ..wanted() }, "memory"),
            (Wanted { cpu_template: CpuTemplate::X8664V2, ..wanted() }, "cpu_template"),
            (Wanted { mmio_on_cmdline: true, ..wanted() }, "mmio_on_cmdline"),
        ];
        for (other, field) in cases {
            let message = saved.fits(&other).expect_err(field).to_string();
            assert!(message.contains(field) && message.contains("0.0.0"), "{message}");
        }
        let message = saved.has_devices(&[2]).expect_err("devices").to_string();
        assert!(message.contains("devices of types [], the config [2]"), "{message}");
    }

    #[test]
    fn a_diff_is_refused() {
        let mut diff = sample();
        diff.manifest.memory.contents = Contents::Diff { parent: [0; 16], extents: Vec::new() };
        assert_eq!(diff.fits(&wanted()), Err(Mismatch::Diff));
    }
}
