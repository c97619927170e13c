//! Where the guest begins: at its kernel's entry, or where a snapshot was taken.

use super::{BuildError, command_line, host, kvm};
use crate::acpi::{self, MmioWindow};
use crate::boot::{self, Entry};
use crate::descriptors::RestoreDescriptors;
use crate::devices::bus::Bus;
use crate::devices::platform::PlatformEvents;
use crate::devices::virtio::mmio::Transport;
use crate::generation;
use crate::machine::Begin;
use crate::memory::{self, GuestMemory};
use crate::snapshot::manifest::{Saved, Wanted};
use crate::snapshot::memory::Origin;
use crate::snapshot::restore::{self, Opened, RestoreError};
use crate::snapshot::save::Id;
use crate::userfault::source::PageSource;
use crate::vcpu::cpuid::Template;
use crate::vcpu::{registers, state};
use kvm_ioctls::{VcpuFd, VmFd};
use pinfold_vmm_api::{MachineConfig, MachineConfigError, MemoryBacking};
use std::fs::File;
use std::sync::Arc;

pub(super) enum Start {
    Boot,
    Restored(Box<Saved>),
}

/// The memory of the guest, where it comes from, and how it begins.
pub(super) struct Prepared {
    pub start: Start,
    pub memory: GuestMemory,
    pub origin: Origin,
    pub pages: Option<PageSource>,
}

/// The memory of the guest, and how it begins: with it a snapshot has been checked, and nothing else been done.
pub(super) fn prepare(
    config: &MachineConfig,
    files: Option<RestoreDescriptors>,
) -> Result<Prepared, BuildError> {
    let memory_bytes = config.memory_mib << 20;
    let (Some(restore), Some(files)) = (&config.restore, files) else {
        let memory = memory::allocate_backed(memory_bytes, config.memory_backing)?;
        return Ok(Prepared { start: Start::Boot, memory, origin: Origin::Booted, pages: None });
    };
    let wanted = Wanted {
        vcpus: config.vcpus,
        memory_bytes,
        cpu_template: config.cpu_template,
        mmio_on_cmdline: config.mmio_on_cmdline,
    };
    let Opened { saved, memory, origin, pages } = restore::open(&config.id, restore, files, &wanted)?;
    Ok(Prepared { start: Start::Restored(Box::new(saved)), memory, origin, pages })
}

/// What the machine does first.
pub(super) fn begin(config: &MachineConfig) -> Begin {
    match &config.restore {
        None => Begin::Boot,
        Some(restore) if restore.paused => Begin::RestoredPaused,
        Some(_) => Begin::Restored,
    }
}

/// What a kernel is booted from.
pub(super) struct Kernel<'a> {
    pub kernel: Option<&'a File>,
    pub initrd: Option<&'a File>,
    pub windows: &'a [MmioWindow],
}

impl Start {
    /// The id of the snapshot.
    pub fn snapshot(&self) -> Option<Id> {
        match self {
            Self::Boot => None,
            Self::Restored(saved) => Some(saved.manifest.id),
        }
    }

    /// The table that the guest sees, of what the host can do.
    pub fn cpuid(&self, host: Template) -> Result<Template, BuildError> {
        match self {
            Self::Boot => Ok(host),
            Self::Restored(saved) => Ok(host.taken_from(&saved.cpuid)?),
        }
    }

    /// Puts a new generation into memory, and kernel and tables where there are none yet.
    pub fn load(
        &self,
        config: &MachineConfig,
        memory: &GuestMemory,
        files: &Kernel<'_>,
    ) -> Result<Option<Entry>, BuildError> {
        // of its own, also for a machine that goes on from another's memory
        let generation = generation::fresh().map_err(host("get random numbers"))?;
        generation::write(memory, generation).map_err(BuildError::Acpi)?;
        if matches!(self, Self::Restored(_)) {
            return Ok(None);
        }
        let rsdp = acpi::write(memory, config.vcpus, files.windows).map_err(BuildError::Acpi)?;
        let command_line = command_line(config, files.windows)?;
        let source = boot::Source {
            kernel: files.kernel.ok_or(MachineConfigError::KernelOrRestore)?,
            initrd: files.initrd,
            command_line: &command_line,
            map_kernel: config.memory_backing == MemoryBacking::Anonymous,
            rsdp,
        };
        Ok(Some(boot::load(memory, config.memory_mib << 20, &source)?))
    }

    /// A vCPU at its first instruction. `entry`: of a kernel.
    pub fn vcpu(
        &self,
        vm: &VmFd,
        id: u32,
        cpuid: &Template,
        memory: &GuestMemory,
        entry: Option<Entry>,
    ) -> Result<VcpuFd, BuildError> {
        let fd = vm.create_vcpu(u64::from(id)).map_err(kvm("create a vCPU"))?;
        fd.set_cpuid2(&cpuid.for_vcpu(id)?).map_err(kvm("set the CPUID of a vCPU"))?;
        match self {
            Self::Restored(saved) => {
                let saved = saved.vcpus.get(id as usize).expect("the snapshot fits the config");
                state::restore(&fd, saved).map_err(RestoreError::from)?;
            }
            Self::Boot => {
                registers::set_common(&fd, id)?;
                if let (0, Some(entry)) = (id, entry) {
                    registers::set_boot(&fd, memory, entry)?;
                }
            }
        }
        Ok(fd)
    }

    /// The rest of a restored machine, whose vCPUs have their state. Its guest learns that it is another one.
    pub fn finish(
        &self,
        vm: &VmFd,
        bus: &Bus,
        transports: &[Arc<Transport>],
        platform: &PlatformEvents,
    ) -> Result<(), BuildError> {
        if let Self::Restored(saved) = self {
            restore::apply(saved, vm, bus, transports)?;
            platform.generation_changed().map_err(host("tell the guest of its generation"))?;
        }
        Ok(())
    }
}
