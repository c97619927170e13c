//! From a config to a machine that is ready to run: a straight list of steps.

mod devices;
mod start;

use crate::acpi::MmioWindow;
use crate::boot::BootError;
use crate::confinement::ConfinementError;
use crate::control::ControlServer;
use crate::descriptors::{DescriptorError, Descriptors};
use crate::devices::bus::Bus;
use crate::devices::console::ConsoleBuffer;
use crate::devices::virtio::block::device::BlockError;
use crate::devices::virtio::net::device::NetError;
use crate::ending::Ending;
use crate::events::Teller;
use crate::machine::{Machine, Parts, Shared};
use crate::memory::{self, MemoryError};
use crate::memory_use::{MemoryMeter, OwnFiles};
use crate::metrics::Metrics;
use crate::snapshot::memory::Origin;
use crate::snapshot::released::Released;
use crate::snapshot::restore::RestoreError;
use crate::snapshot::save::Keepsake;
use crate::vcpu::Vcpu;
use crate::vcpu::cpuid::{CpuidError, Template};
use crate::vcpu::registers::RegisterError;
use crate::vcpu::state;
use crate::{layout, seccomp, signals};
use devices::{Files, attach_devices, attach_platform, attach_serial, make_devices, windows};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};
use pinfold_vmm_api::config::limits;
use pinfold_vmm_api::console::Writer;
use pinfold_vmm_api::control::{Confinement, ExitReason, StartTiming};
use pinfold_vmm_api::{MachineConfig, MachineConfigError};
use start::{Kernel, Prepared};
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// The only version of the KVM API there has been since Linux 2.6.22.
pub const KVM_API_VERSION: i32 = 12;
/// KVM_CAP_PMU_CAPABILITY, and its value that takes performance counters away.
const CAP_PMU: u32 = 212;
const PMU_DISABLE: u64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("the config is refused: {0}")]
    Config(#[from] MachineConfigError),
    #[error("the config is refused: {0}")]
    Descriptor(#[from] DescriptorError),
    #[error("{0}")]
    Boot(#[from] BootError),
    #[error("disk {index}: {source}")]
    Disk { index: usize, source: BlockError },
    #[error("network {index}: {source}")]
    Net { index: usize, source: NetError },
    #[error("KVM has API version {0}, not 12")]
    KvmVersion(i32),
    #[error("KVM refused to {act}: {source}")]
    Kvm { act: &'static str, source: kvm_ioctls::Error },
    #[error("{0}")]
    Memory(#[from] MemoryError),
    #[error("{0}")]
    Cpuid(#[from] CpuidError),
    #[error("{0}")]
    Register(#[from] RegisterError),
    #[error("the snapshot is refused: {0}")]
    Restore(#[from] RestoreError),
    #[error("ACPI tables cannot be written: {0}")]
    Acpi(vm_memory::GuestMemoryError),
    #[error("{0}")]
    Confinement(#[from] ConfinementError),
    #[error("{0}")]
    Seccomp(#[from] seccomp::SeccompError),
    #[error("cannot {act}: {source}")]
    Host { act: &'static str, source: io::Error },
}

impl BuildError {
    /// The reason that goes into the exit record.
    pub fn reason(&self) -> ExitReason {
        match self {
            Self::Config(_) | Self::Descriptor(_) => ExitReason::BadConfig,
            Self::Boot(error) if error.is_initrd() => ExitReason::BadInitrd,
            Self::Boot(BootError::CommandLineTooLong { .. }) => ExitReason::BadConfig,
            Self::Boot(_) => ExitReason::BadKernel,
            Self::Disk { .. } => ExitReason::BadDisk,
            Self::Cpuid(CpuidError::Absent { .. }) => ExitReason::BadConfig,
            Self::Restore(RestoreError::PageSource(_)) => ExitReason::PageFaultHandler,
            Self::Restore(_) | Self::Cpuid(CpuidError::Saved(_)) => ExitReason::BadSnapshot,
            Self::Net { .. } => ExitReason::BadNet,
            Self::KvmVersion(_) | Self::Kvm { .. } | Self::Cpuid(_) | Self::Register(_) => ExitReason::Kvm,
            Self::Memory(MemoryError::Register { .. }) => ExitReason::Kvm,
            Self::Memory(MemoryError::NotHuge { .. } | MemoryError::NoHugePages { .. }) => {
                ExitReason::BadConfig
            }
            Self::Memory(_) | Self::Acpi(_) | Self::Confinement(_) | Self::Seccomp(_) | Self::Host { .. } => {
                ExitReason::Internal
            }
        }
    }
}

fn host(act: &'static str) -> impl Fn(io::Error) -> BuildError {
    move |source| BuildError::Host { act, source }
}

fn kvm(act: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm { act, source }
}

/// What a machine has to know of its process.
pub struct Process<'a> {
    /// what it may read of itself
    pub own: OwnFiles,
    /// what is in force, to be told
    pub confinement: Confinement,
    /// when it began
    pub began: Instant,
    /// where its exit record goes
    pub exit: &'a File,
}

/// Builds the machine of a config that has been validated.
pub fn build(
    config: &MachineConfig,
    descriptors: Descriptors,
    process: Process<'_>,
) -> Result<Machine, BuildError> {
    let Process { own, confinement, began, exit } = process;
    let mut timing = StartTiming::default();
    let signals = signals::Signals::block().map_err(host("block signals"))?;
    let (kvm, vm) = open_kvm(descriptors.kvm)?;
    let ending = Arc::new(Ending::new().map_err(host("make an eventfd"))?);
    let Prepared { start, memory, origin, pages } = start::prepare(config, descriptors.restore)?;
    if let Some(pages) = pages {
        let exit = exit.try_clone().map_err(host("duplicate the exit descriptor"))?;
        let binding = seccomp::pages(!config.without_seccomp)?;
        pages.watch(binding, Arc::clone(&ending), exit).map_err(host("watch the page-fault handler"))?;
    }
    memory::register(&memory, &vm)?;
    let cpuid = start.cpuid(Template::new(&kvm, config.vcpus, config.cpu_template)?)?;
    let has_pit = config.mmio_on_cmdline || !cpuid.has_deadline_timer();
    create_interrupt_controllers(&vm, has_pit)?;

    let metrics = Arc::new(Metrics::default());
    let console = ConsoleBuffer::new(Arc::clone(&metrics)).map_err(host("make an eventfd"))?;
    let serial = attach_serial(&vm, console.clone())?;
    let files = Files { disks: descriptors.disks, nets: descriptors.nets, vsock: descriptors.vsock };
    let released = Arc::new(Released::new(&memory));
    let devices = make_devices(config, files, &memory, &released, &metrics)?;
    let transports = attach_devices(&vm, devices, &memory, &metrics)?;
    let windows = windows(transports.len());

    let platform = attach_platform(&vm)?;
    let (kernel, initrd) = (descriptors.kernel.as_ref(), descriptors.initrd.as_ref());
    let entry = start.load(config, &memory, &Kernel { kernel, initrd, windows: &windows })?;
    timing.kernel_loaded_us = micros_since(began);

    let bus = Arc::new(Bus::new(serial, transports.clone(), Arc::clone(&ending), Arc::clone(&metrics)));
    let new_vcpu = |id| {
        let fd = start.vcpu(&vm, id, &cpuid, &memory, entry)?;
        let (bus, ending, metrics) = (Arc::clone(&bus), Arc::clone(&ending), Arc::clone(&metrics));
        Ok(Vcpu { id, fd, bus, ending, metrics })
    };
    let vcpus = (0..config.vcpus).map(new_vcpu).collect::<Result<Vec<_>, BuildError>>()?;
    start.finish(&vm, &bus, &transports, &platform)?;
    let bindings = seccomp::bindings(!config.without_seccomp)?;
    timing.devices_ready_us = micros_since(began);
    let shared = Shared {
        meter: MemoryMeter::new(own.smaps, &memory),
        ring: Writer::create(descriptors.console).map_err(host("set up the console ring"))?,
        console,
        platform,
        ending,
        teller: Teller::new(&metrics.events).map_err(host("make descriptors for events"))?,
        metrics,
        signals,
        timing,
        confinement,
        began,
    };
    let control = ControlServer::new(descriptors.control).map_err(host("listen on the control socket"))?;
    let (begin, restored_from) = (start::begin(config), start.snapshot());
    let OwnFiles { pagemap, clear_refs, .. } = own;
    let keepsake = keepsake(config, &kvm, cpuid, has_pit, (origin, released))?;
    let keepsake = Keepsake { pagemap, clear_refs, restored_from, ..keepsake };
    let parts = Parts { vm, memory, vcpus, bus, keepsake, transports, control, bindings, shared, begin };
    Machine::new(parts).map_err(host("make an event loop"))
}

pub(crate) fn micros_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// What it takes to save the machine later, when `/dev/kvm` is closed.
fn keepsake(
    config: &MachineConfig,
    kvm: &Kvm,
    cpuid: Template,
    has_pit: bool,
    (origin, released): (Origin, Arc<Released>),
) -> Result<Keepsake, BuildError> {
    let msrs = kvm.get_msr_index_list().map_err(self::kvm("list model specific registers"))?;
    Ok(Keepsake {
        cpuid,
        cpu_template: config.cpu_template,
        mmio_on_cmdline: config.mmio_on_cmdline,
        has_pit,
        msrs: state::saved_msrs(msrs.as_slice()).into(),
        origin,
        released,
        pagemap: None,
        clear_refs: None,
        restored_from: None,
    })
}

fn open_kvm(fd: OwnedFd) -> Result<(Kvm, VmFd), BuildError> {
    // SAFETY: the descriptor is open and owned; that it is /dev/kvm is what the version tells.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION {
        return Err(BuildError::KvmVersion(version));
    }
    let vm = kvm.create_vm().map_err(self::kvm("create a virtual machine"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(self::kvm("place the identity map"))?;
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(self::kvm("place the TSS"))?;
    let no_counters = kvm_enable_cap { cap: CAP_PMU, args: [PMU_DISABLE, 0, 0, 0], ..Default::default() };
    // older kernels do not know it; CPUID hides the counters in any case
    let _ = vm.enable_cap(&no_counters);
    Ok((kvm, vm))
}

/// The PIT is there only for kernels that need it: each one costs a thread of the host's kernel.
fn create_interrupt_controllers(vm: &VmFd, with_pit: bool) -> Result<(), BuildError> {
    vm.create_irq_chip().map_err(kvm("create interrupt controllers"))?;
    if with_pit {
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(config).map_err(kvm("create an interval timer"))?;
    }
    Ok(())
}

fn command_line(config: &MachineConfig, windows: &[MmioWindow]) -> Result<String, BuildError> {
    let mut text = config.cmdline.clone();
    if config.mmio_on_cmdline {
        for window in windows {
            text += &format!(
                " virtio_mmio.device={}K@{:#x}:{}",
                layout::VIRTIO_MMIO_SIZE >> 10,
                window.address,
                window.line
            );
        }
    }
    let max = limits::MAX_CMDLINE_BYTES;
    if text.len() > max {
        return Err(MachineConfigError::TooLong {
            field: "cmdline with its devices",
            bytes: text.len(),
            max,
        }
        .into());
    }
    Ok(text)
}
