//! Saving a paused machine: its state into one file, its memory into another.

use super::changes::{self, Known};
use super::dirty::{self, DirtyError, Tracker};
use super::format::{self, FormatError, Key};
use super::manifest::{Contents, DigestPolicy, Manifest, MemoryManifest, Saved};
use super::memory::{self, Origin, SaveMemoryError};
use super::released::Released;
use super::vm::{self, VmStateError};
use crate::devices::bus::Bus;
use crate::devices::virtio::mmio::Transport;
use crate::generation;
use crate::memory::GuestMemory;
use crate::vcpu::cpuid::Template;
use crate::vcpu::crew::{Crew, CrewError};
use kvm_ioctls::VmFd;
use pinfold_vmm_api::CpuTemplate;
use pinfold_vmm_api::control::SnapshotKind;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Extents of a diff at most: half of what a state file may hold.
const EXTENTS_MAX: usize = 64 * 1024;

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
    /// what went back to the host
    pub released: Arc<Released>,
    /// the process's own
    pub pagemap: Option<File>,
    pub clear_refs: Option<File>,
    /// id of the snapshot that this machine was restored from
    pub restored_from: Option<Id>,
}

pub type Id = [u8; 16];

/// What a diff can be taken against.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History {
    /// the snapshot that was taken last, or that the machine came from
    pub last: Option<Id>,
    /// since then every change is followed
    pub tracked: bool,
}

impl History {
    /// After a snapshot that could not be written. One that follows changes may have cleared their marks: the next diff would
    /// lack what was written before.
    pub fn after_failure(self, kind: SnapshotKind) -> Self {
        match kind {
            SnapshotKind::Full => self,
            SnapshotKind::FullTracked | SnapshotKind::Diff => Self { tracked: false, ..self },
        }
    }
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
    Memory(#[from] SaveMemoryError),
    #[error("{0}")]
    Format(#[from] FormatError),
    #[error("{0}")]
    Dirty(#[from] DirtyError),
    #[error("there are no random numbers for the snapshot's id: {0}")]
    Id(std::io::Error),
    #[error("there is no snapshot before this diff")]
    NoParent,
    #[error("since the last snapshot nobody followed what changes: take one of kind full_tracked")]
    Untracked,
    #[error("changes can be followed in private memory of small pages only, not in a memfd or in huge pages")]
    Backing,
    #[error("the state cannot be encoded: {0}")]
    Encode(String),
}

/// Writes a full snapshot. `track`: follow what changes from here on, so that a diff can be taken.
pub fn full(
    subject: &Subject<'_>,
    key: &Key,
    state: &File,
    memory: &File,
    track: bool,
) -> Result<(Written, History), SaveError> {
    if track && !can_be_followed(subject.memory) {
        return Err(SaveError::Backing);
    }
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
    if track {
        keepsake.tracker().begin()?;
    }
    keepsake.released.clear();
    let history = History { last: Some(saved.manifest.id), tracked: track };
    Ok((Written { state_bytes, memory_data_bytes }, history))
}

/// Writes what changed since the last snapshot, and goes on following.
pub fn diff(
    subject: &Subject<'_>,
    key: &Key,
    state: &File,
    memory: &File,
    history: History,
) -> Result<(Written, History), SaveError> {
    let (keepsake, parent) = (subject.keepsake, history.last.ok_or(SaveError::NoParent)?);
    let all = changes::since_last(subject.memory, keepsake.known(), history.tracked)?;
    let extents = dirty::coalesce(all, EXTENTS_MAX);
    let list = extents.iter().map(|run| (run.start, run.end - run.start)).collect();
    let saved = describe(subject, Contents::Diff { parent, extents: list })?;
    let memory_data_bytes = memory::write_runs(subject.memory, &extents, memory)?;
    let state_bytes = format::seal(state, key, &encode(&saved)?)?;
    // what a machine wrote over a file it came from is known without help
    let tracked = match (keepsake.tracker().begin(), &keepsake.origin) {
        (Ok(()), _) => true,
        (Err(_), Origin::File(_)) => false,
        (Err(error), _) => return Err(error.into()),
    };
    keepsake.released.clear();
    let history = History { last: Some(saved.manifest.id), tracked };
    Ok((Written { state_bytes, memory_data_bytes }, history))
}

/// Linux has no soft-dirty bits for hugetlbfs, and those of shared memory go with a page that is swapped out.
fn can_be_followed(memory: &GuestMemory) -> bool {
    memory.iter().all(|region| region.flags() & (libc::MAP_SHARED | libc::MAP_HUGETLB) == 0)
}

impl Keepsake {
    fn tracker(&self) -> Tracker<'_> {
        Tracker { pagemap: self.pagemap.as_ref(), clear_refs: self.clear_refs.as_ref() }
    }

    fn known(&self) -> Known<'_> {
        Known { origin: &self.origin, tracker: self.tracker(), released: &self.released }
    }
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
            id: generation::fresh().map_err(SaveError::Id)?,
            vmm_version: env!("CARGO_PKG_VERSION").into(),
            cpu_template: keepsake.cpu_template,
            memory: MemoryManifest { ranges, contents, digest: DigestPolicy::KeptByOwner },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_nobody_takes_a_diff_for_whole() {
        let before = History { last: Some([7; 16]), tracked: true };
        assert_eq!(before.after_failure(SnapshotKind::Full), before);
        for kind in [SnapshotKind::FullTracked, SnapshotKind::Diff] {
            assert_eq!(before.after_failure(kind), History { tracked: false, ..before }, "{kind:?}");
        }
    }
}
