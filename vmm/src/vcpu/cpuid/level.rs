//! CPU templates: what a guest may use of its processor is cut to a micro-architecture level (System V ABI, AMD64
//! supplement, 3.1.1), so that a snapshot goes on wherever the level is offered.
//!
//! Instructions that user programs look for are exactly those of the level. What only a kernel looks for (page sizes,
//! protection keys aside, mitigations of speculation) stays as the host has it: [`super::Template::taken_from`] compares it
//! before a snapshot goes on.

use super::Register;
use kvm_bindings::kvm_cpuid_entry2;
use pinfold_vmm_api::CpuTemplate;

/// A feature that a level asks for, by its bit in CPUID.
#[derive(Debug, Clone, Copy)]
pub(super) struct Feature {
    pub function: u32,
    pub register: Register,
    pub bit: u32,
    pub name: &'static str,
}

const fn feature(function: u32, register: Register, bit: u32, name: &'static str) -> Feature {
    Feature { function, register, bit, name }
}

const LEAF_1: u32 = 1;
const LEAF_7: u32 = 7;
const EXTENDED: u32 = 0x8000_0001;

const V2: &[Feature] = &[
    feature(LEAF_1, Register::Edx, 26, "SSE2"),
    feature(EXTENDED, Register::Edx, 29, "long mode"),
    feature(LEAF_1, Register::Ecx, 0, "SSE3"),
    feature(LEAF_1, Register::Ecx, 9, "SSSE3"),
    feature(LEAF_1, Register::Ecx, 13, "CMPXCHG16B"),
    feature(LEAF_1, Register::Ecx, 19, "SSE4.1"),
    feature(LEAF_1, Register::Ecx, 20, "SSE4.2"),
    feature(LEAF_1, Register::Ecx, 23, "POPCNT"),
    feature(EXTENDED, Register::Ecx, 0, "LAHF"),
];

/// On top of [`V2`].
const V3: &[Feature] = &[
    feature(LEAF_1, Register::Ecx, 12, "FMA"),
    feature(LEAF_1, Register::Ecx, 22, "MOVBE"),
    feature(LEAF_1, Register::Ecx, 26, "XSAVE"),
    feature(LEAF_1, Register::Ecx, 28, "AVX"),
    feature(LEAF_1, Register::Ecx, 29, "F16C"),
    feature(LEAF_7, Register::Ebx, 3, "BMI1"),
    feature(LEAF_7, Register::Ebx, 5, "AVX2"),
    feature(LEAF_7, Register::Ebx, 8, "BMI2"),
    feature(EXTENDED, Register::Ecx, 5, "LZCNT"),
];

/// Leaf 1 ECX: PCID, x2APIC, deadline timer, XSAVE and its being on, hypervisor. For kernels.
const PLATFORM_1_ECX: u32 = 1 << 17 | 1 << 21 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 31;
/// Leaf 7 EBX: FSGSBASE, TSC_ADJUST, SMEP, ERMS, INVPCID, SMAP, CLFLUSHOPT.
const PLATFORM_7_EBX: u32 = 1 | 1 << 1 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 20 | 1 << 23;
/// Leaf 7 ECX: UMIP, RDPID.
const PLATFORM_7_ECX: u32 = 1 << 2 | 1 << 22;
/// Leaf 7 EDX: MD_CLEAR, IBRS, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD: mitigations.
const PLATFORM_7_EDX: u32 = 1 << 10 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31;
/// Leaf 0x8000_0001 ECX: legacy core numbering, CR8 in 32-bit mode, topology leaves.
const PLATFORM_EXTENDED_ECX: u32 = 1 << 1 | 1 << 4 | 1 << 22;

/// Leaf 0xd: which state XSAVE keeps (XCR0), and the bytes of the whole area.
const X87_SSE: (u32, u32) = (0b11, 576);
const X87_SSE_AVX: (u32, u32) = (0b111, 832);

pub(super) fn features(template: CpuTemplate) -> Vec<Feature> {
    match template {
        CpuTemplate::Host => Vec::new(),
        CpuTemplate::X8664V2 => V2.to_vec(),
        CpuTemplate::X8664V3 => [V2, V3].concat(),
    }
}

/// The first feature of the template that `entries` do not have.
pub(super) fn absent(template: CpuTemplate, entries: &[kvm_cpuid_entry2]) -> Option<&'static str> {
    let has = |feature: &Feature| {
        let leaf = entries.iter().find(|entry| entry.function == feature.function && entry.index == 0);
        leaf.is_some_and(|leaf| feature.register.of(leaf) >> feature.bit & 1 == 1)
    };
    features(template).iter().find(|feature| !has(feature)).map(|feature| feature.name)
}

/// Takes from a leaf what is past the template.
pub(super) fn cut(template: CpuTemplate, entry: &mut kvm_cpuid_entry2) {
    if template == CpuTemplate::Host {
        return;
    }
    let features = features(template);
    let mask = |function, register| {
        features
            .iter()
            .filter(|feature| feature.function == function && feature.register == register)
            .fold(0, |mask, feature| mask | 1 << feature.bit)
    };
    let (state, area_bytes) = if template == CpuTemplate::X8664V2 { X87_SSE } else { X87_SSE_AVX };
    match (entry.function, entry.index) {
        // EDX is the same on every 64-bit processor
        (LEAF_1, _) => entry.ecx &= mask(LEAF_1, Register::Ecx) | PLATFORM_1_ECX,
        (LEAF_7, 0) => {
            entry.eax = 0;
            entry.ebx &= mask(LEAF_7, Register::Ebx) | PLATFORM_7_EBX;
            entry.ecx &= PLATFORM_7_ECX;
            entry.edx &= PLATFORM_7_EDX;
        }
        (0xd, 0) => {
            (entry.eax, entry.edx) = (entry.eax & state, 0);
            (entry.ebx, entry.ecx) = (area_bytes, area_bytes);
        }
        // XSAVEOPT, XSAVEC, XSAVES differ between generations
        (0xd, 1) => clear(entry),
        (0xd, index) if index >= 32 || state >> index & 1 == 0 => clear(entry),
        // more of leaf 7, AVX10, key locker, AMX and what may come
        (LEAF_7, _) | (0x15..=0x1e | 0x20..=0x24, _) => clear(entry),
        (EXTENDED, _) => entry.ecx &= mask(EXTENDED, Register::Ecx) | PLATFORM_EXTENDED_ECX,
        _ => {}
    }
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}
