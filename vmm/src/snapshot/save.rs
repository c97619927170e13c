//! Saving a paused machine: its state into one file, its memory into another.

use super::format::{self, FormatError, Key};
use super::manifest::{Contents, DigestPolicy, Manifest, MemoryManifest, Saved};
use super::memory::{self, Origin, SaveMemoryError};
use super::vm::{self, VmStateError};
use crate::devices::bus::Bus;
use crate::devices::virtio::mmio::Transport;
use crate::memory::GuestMemory;
use crate::vcpu::cpuid::{CpuidError, Template};
use crate::vcpu::crew::{Crew, CrewError};
use kvm_ioctls::VmFd;
use pinfold_vmm_api::CpuTemplate;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// What a machine keeps from its beginning so that it can be saved.
#[derive(Debug)]
pub struct Keepsake {
    pub cpuid: Template,
    pub cpu_template: CpuTemplate,
    pub mmio_on_cmdline: bool,
    pub has_pit: bool,
    /// model specific registers that are saved, in the order in which they are restored
    pub msrs: Arc<[u32]>,
    pub origin: Origin,
    /// the process's own
    pub pagemap: Option<File>,
}

/// The machine, at rest: no vCPU runs, no request is in flight.
pub struct Subject<'a> {
    pub vm: &'a VmFd,
    pub memory: &'a GuestMemory,
    pub crew: &'a Crew,
    pub bus: &'a Bus,
    pub transports: &'a [Arc<Transport>],
    pub keepsake: &'a Keepsake,
    /// ranges of host addresses within guest memory that show a file
    pub over: &'a [Range<u64>],
}

/// Lengths in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub state_bytes: u64,
    pub memory_data_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error("{0}")]
    Vcpus(#[from] CrewError),
    #[error("{0}")]
    Vm(#[from] VmStateError),
    #[error("{0}")]
    Cpuid(#[from] CpuidError),
    #[error("{0}")]
    Memory(#[from] SaveMemoryError),
    #[error("{0}")]
    Format(#[from] FormatError),
    #[error("the state cannot be encoded: {0}")]
    Encode(String),
}

/// Writes a full snapshot.
pub fn full(subject: &Subject<'_>, key: &Key, state: &File, memory: &File) -> Result<Written, SaveError> {
    let saved = describe(subject, Contents::Full)?;
    let keepsake = subject.keepsake;
    let memory_data_bytes = memory::write_full(
        subject.memory,
        &keepsake.origin,
        keepsake.pagemap.as_ref(),
        subject.over,
        memory,
    )?;
    let state_bytes = format::seal(state, key, &encode(&saved)?)?;
    Ok(Written { state_bytes, memory_data_bytes })
}

fn describe(subject: &Subject<'_>, contents: Contents) -> Result<Saved, SaveError> {
    let keepsake = subject.keepsake;
    // the interrupt controllers after the vCPUs: asking a vCPU may let it take an interrupt
    let vcpus = subject.crew.save(&keepsake.msrs)?;
    let vm = vm::save(subject.vm, keepsake.has_pit)?;
    let devices: Vec<_> = subject.transports.iter().map(|transport| transport.save()).collect();
    let ranges: Vec<_> = subject.memory.iter().map(|region| (region.start_addr().0, region.len())).collect();
    Ok(Saved {
        manifest: Manifest {
            vmm_version: env!("CARGO_PKG_VERSION").into(),
            cpu_template: keepsake.cpu_template,
            cpuid_digest: keepsake.cpuid.digest()?,
            vcpus: vcpus.len() as u32,
            memory: MemoryManifest {
                file_bytes: ranges.iter().map(|range| range.1).sum(),
                ranges,
                contents,
                digest: DigestPolicy::KeptByOwner,
            },
            devices: devices.iter().map(|device| device.kind).collect(),
            mmio_on_cmdline: keepsake.mmio_on_cmdline,
        },
        cpuid: keepsake.cpuid.save(),
        vcpus,
        vm,
        bus: subject.bus.save(),
        devices,
    })
}

pub(super) fn encode(saved: &Saved) -> Result<Vec<u8>, SaveError> {
    let mut body = Vec::new();
    ciborium::into_writer(saved, &mut body).map_err(|error| SaveError::Encode(error.to_string()))?;
    Ok(body)
}
