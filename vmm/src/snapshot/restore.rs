//! Going on from a snapshot: the state file is checked, parsed and compared with the config before anything is made of
//! it; memory is mapped and not read.

use super::format::{self, FormatError, Key};
use super::manifest::{Mismatch, Saved, Wanted};
use super::memory::Origin;
use super::vm::{self, VmStateError};
use super::working_set::{self, WorkingSetError};
use crate::descriptors::{MemorySource, RestoreDescriptors};
use crate::devices::bus::Bus;
use crate::devices::virtio::mmio::Transport;
use crate::devices::virtio::persist::DeviceStateError;
use crate::memory::{self, GuestMemory, MemoryError};
use crate::userfault::source::{self, PageSource, PageSourceError};
use crate::vcpu::state::StateError;
use kvm_ioctls::VmFd;
use pinfold_vmm_api::Restore;
use std::io;
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{0}")]
    Format(#[from] FormatError),
    #[error("the state file's body is none of this version: {0}")]
    Decode(String),
    #[error("{0}")]
    Mismatch(#[from] Mismatch),
    #[error("{0}")]
    Memory(#[from] MemoryError),
    #[error("{0}")]
    Vcpu(#[from] StateError),
    #[error("{0}")]
    Vm(#[from] VmStateError),
    #[error("device {index}: {source}")]
    Device { index: usize, source: DeviceStateError },
    #[error("{0}")]
    PageSource(#[from] PageSourceError),
    #[error("{0}")]
    WorkingSet(#[from] WorkingSetError),
    #[error("{0}")]
    Bus(#[from] io::Error),
}

/// A snapshot that this machine can go on from, with its memory in place.
pub struct Opened {
    pub saved: Saved,
    pub memory: GuestMemory,
    pub origin: Origin,
    /// where memory comes from, if that is another process
    pub pages: Option<PageSource>,
}

/// Opens the files of `restore` for the machine `id`, which is to be like `wanted`.
pub fn open(
    id: &str,
    restore: &Restore,
    files: RestoreDescriptors,
    wanted: &Wanted,
) -> Result<Opened, RestoreError> {
    let body = format::open(&files.state, &Key::from_hex(&restore.key)?)?;
    let saved = decode(&body)?;
    saved.fits(wanted)?;
    let (memory, origin, pages) = match files.memory {
        MemorySource::File(file) => {
            (memory::map_private(wanted.memory_bytes, &file)?, Origin::File(file), None)
        }
        MemorySource::Handler { socket, userfaultfd } => {
            let (memory, pages) = source::attach(id, wanted.memory_bytes, socket, &userfaultfd)?;
            (memory, Origin::Handler, Some(pages))
        }
    };
    if let Some(file) = &files.working_set {
        // it is advice: the guest goes on without, and slower
        if let Some(left) = working_set::fetch(&memory, file)? {
            eprintln!("pinfold-vmm: {id}: {left}");
        }
    }
    Ok(Opened { saved, memory, origin, pages })
}

/// The body of a state file.
pub fn decode(body: &[u8]) -> Result<Saved, RestoreError> {
    let mut rest = body;
    let saved = ciborium::from_reader(&mut rest).map_err(|error| RestoreError::Decode(error.to_string()))?;
    if rest.is_empty() {
        return Ok(saved);
    }
    Err(RestoreError::Decode(format!("{} bytes follow its end", rest.len())))
}

/// Puts what is saved into the machine whose vCPUs have theirs, and sets its devices going.
pub fn apply(saved: &Saved, vm: &VmFd, bus: &Bus, transports: &[Arc<Transport>]) -> Result<(), RestoreError> {
    let kinds: Vec<_> = transports.iter().map(|transport| transport.kind()).collect();
    saved.has_devices(&kinds)?;
    vm::restore(vm, &saved.vm)?;
    bus.restore(&saved.bus)?;
    for (index, (transport, state)) in transports.iter().zip(&saved.devices).enumerate() {
        transport.restore(state).map_err(|source| RestoreError::Device { index, source })?;
    }
    for transport in transports {
        transport.wake();
    }
    Ok(())
}
