//! What a guest may know about its processor.
//!
//! Starts from what KVM supports, then: one package of N cores with one thread each, no nested virtualisation, none of
//! the leaves that describe power, performance counters, tracing or enclaves of the host. KVM's own leaves
//! (0x4000_0000 on) stay, for kvmclock and paravirtual interrupts.

mod level;
pub mod saved;
#[cfg(test)]
mod tests;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use pinfold_vmm_api::CpuTemplate;

/// Leaf 1 ECX
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const SMX: u32 = 1 << 6;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX
const HYPER_THREADING: u32 = 1 << 28;
/// Leaf 7 EBX: SGX, TSX (HLE, RTM), MPX, processor trace
const HIDDEN_7_EBX: u32 = 1 << 2 | 1 << 4 | 1 << 11 | 1 << 14 | 1 << 25;
/// Leaf 7 ECX: WAITPKG, SGX launch control
const HIDDEN_7_ECX: u32 = 1 << 5 | 1 << 30;
/// Leaf 0x8000_0001 ECX: SVM, instruction based sampling, SKINIT, performance counter extensions, MWAITX
const HIDDEN_80000001_ECX: u32 = 1 << 2 | 1 << 10 | 1 << 12 | 1 << 23 | 1 << 24 | 1 << 28 | 1 << 29;
/// Leaf 6 EAX: the APIC timer runs in every power state. All else of that leaf is about the host's power.
const ARAT: u32 = 1 << 2;

/// Leaves that read as zero: MONITOR/MWAIT, performance counters, SGX, processor trace, SVM, instruction based
/// sampling, memory encryption, AMD performance monitoring.
const EMPTY_LEAVES: [u32; 8] = [0x5, 0xa, 0x12, 0x14, 0x8000_000a, 0x8000_001b, 0x8000_001f, 0x8000_0022];

/// A register that CPUID answers in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    #[error("KVM does not tell the CPUID that it supports")]
    Supported(#[source] kvm_ioctls::Error),
    #[error("the CPUID table has more entries than KVM takes")]
    TooLong,
    #[error("cpu_template is {template:?}, which asks for {feature}: this host does not have it")]
    Absent { template: CpuTemplate, feature: &'static str },
    #[error("{0}")]
    Saved(saved::SavedError),
}

/// The table that all vCPUs share but for [`for_vcpu`].
#[derive(Debug, Clone)]
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    vcpus: u32,
}

impl Template {
    pub fn new(kvm: &Kvm, vcpus: u32, template: CpuTemplate) -> Result<Self, CpuidError> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(CpuidError::Supported)?;
        let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
        if let Some(feature) = level::absent(template, supported.as_slice()) {
            return Err(CpuidError::Absent { template, feature });
        }
        Ok(Self::from_entries(supported.as_slice(), vcpus, deadline_timer, template))
    }

    fn from_entries(
        supported: &[kvm_cpuid_entry2],
        vcpus: u32,
        deadline_timer: bool,
        template: CpuTemplate,
    ) -> Self {
        // topology leaves are rebuilt whole
        let mut entries: Vec<_> = supported
            .iter()
            .copied()
            .filter(|entry| entry.function != 0xb && entry.function != 0x1f)
            .collect();
        for entry in &mut entries {
            restrict(entry, vcpus, deadline_timer);
            level::cut(template, entry);
        }
        let highest = entries.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
        if highest >= 0xb {
            entries.extend(topology(0xb, vcpus));
        }
        if highest >= 0x1f {
            entries.extend(topology(0x1f, vcpus));
        }
        Self { entries, vcpus }
    }

    /// True when the guest's APIC timer can be programmed by time stamp.
    pub fn has_deadline_timer(&self) -> bool {
        self.entries.iter().any(|entry| entry.function == 1 && entry.ecx & TSC_DEADLINE != 0)
    }

    /// The table of vCPU `id`, which is also its APIC id.
    pub fn for_vcpu(&self, id: u32) -> Result<CpuId, CpuidError> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match entry.function {
                0x1 => entry.ebx = entry.ebx & 0x0000_ffff | id << 24 | self.vcpus << 16,
                0xb | 0x1f => entry.edx = id,
                0x8000_001e => {
                    entry.eax = id;
                    // one thread per core; core id
                    entry.ebx = id & 0xff;
                    entry.ecx = 0;
                }
                _ => {}
            }
        }
        CpuId::from_entries(&entries).map_err(|_| CpuidError::TooLong)
    }
}

fn restrict(entry: &mut kvm_cpuid_entry2, vcpus: u32, deadline_timer: bool) {
    if EMPTY_LEAVES.contains(&entry.function) {
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        return;
    }
    match (entry.function, entry.index) {
        (0x1, _) => {
            entry.ecx = entry.ecx & !(MONITOR | VMX | SMX) | HYPERVISOR | X2APIC;
            if deadline_timer {
                entry.ecx |= TSC_DEADLINE;
            }
            entry.edx &= !HYPER_THREADING;
            if vcpus > 1 {
                entry.edx |= HYPER_THREADING;
            }
        }
        // deterministic cache parameters: EAX 4:0 type, 7:5 level, 25:14 sharing threads - 1, 31:26 cores - 1
        (0x4, _) if entry.eax & 0x1f != 0 => {
            let sharing = if (entry.eax >> 5) & 7 >= 3 { vcpus - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (vcpus - 1).min(63) << 26;
        }
        (0x6, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & ARAT, 0, 0, 0),
        (0x7, 0) => {
            entry.ebx &= !HIDDEN_7_EBX;
            entry.ecx &= !HIDDEN_7_ECX;
        }
        (0x8000_0001, _) => entry.ecx &= !HIDDEN_80000001_ECX,
        // ECX 7:0 threads - 1, 15:12 bits of the APIC id that hold the core
        (0x8000_0008, _) => entry.ecx = (vcpus - 1) & 0xff | core_bits(vcpus) << 12,
        (0x8000_001d, _) if entry.eax & 0x1f != 0 => {
            let sharing = if (entry.eax >> 5) & 7 >= 3 { vcpus - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14;
        }
        _ => {}
    }
}

/// Bits that number `vcpus` cores.
fn core_bits(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

/// Extended topology: a level of threads, a level of cores, an end.
fn topology(function: u32, vcpus: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index, eax, ebx, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: index | kind << 8,
        ..Default::default()
    };
    [level(0, 0, 1, 1), level(1, core_bits(vcpus), vcpus, 2), level(2, 0, 0, 0)]
}
