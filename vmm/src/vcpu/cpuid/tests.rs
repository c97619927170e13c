//! Tables from a host that has every bit of every leaf, and from those that lack one.

use super::*;

fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
    let ones = u32::MAX;
    kvm_cpuid_entry2 { function, index, eax: ones, ebx: ones, ecx: ones, edx: ones, ..Default::default() }
}

fn find(table: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
    *table.as_slice().iter().find(|e| e.function == function && e.index == index).expect("the leaf is there")
}

fn template(vcpus: u32) -> Template {
    let leaves = [
        0,
        1,
        4,
        5,
        6,
        7,
        0xa,
        0x12,
        0x14,
        0x4000_0000,
        0x4000_0001,
        0x8000_0001,
        0x8000_0008,
        0x8000_000a,
        0x8000_001e,
    ];
    let entries: Vec<_> = leaves.iter().map(|function| leaf(*function, 0)).collect();
    Template::from_entries(&entries, vcpus, true, CpuTemplate::Host)
}

#[test]
fn nested_virtualisation_is_hidden_and_kvm_is_not() {
    let table = template(2).for_vcpu(1).expect("a table");
    assert_eq!(find(&table, 1, 0).ecx & (VMX | SMX | MONITOR), 0);
    assert_ne!(find(&table, 1, 0).ecx & HYPERVISOR, 0);
    assert_eq!(find(&table, 0x8000_0001, 0).ecx & (1 << 2), 0, "SVM");
    for empty in [0x5, 0xa, 0x12, 0x14, 0x8000_000a] {
        let entry = find(&table, empty, 0);
        assert_eq!((entry.eax, entry.ebx, entry.ecx, entry.edx), (0, 0, 0, 0), "leaf {empty:#x}");
    }
    assert_eq!(find(&table, 0x4000_0001, 0).eax, u32::MAX);
}

#[test]
fn each_vcpu_sees_its_own_apic_id() {
    let template = template(6);
    for id in 0..6 {
        let table = template.for_vcpu(id).expect("a table");
        assert_eq!(find(&table, 1, 0).ebx >> 24, id);
        assert_eq!(find(&table, 1, 0).ebx >> 16 & 0xff, 6);
        assert_eq!(find(&table, 0xb, 0).edx, id);
        assert_eq!(find(&table, 0xb, 1).ebx, 6);
        assert_eq!(find(&table, 0xb, 1).eax, 3, "6 cores take 3 bits");
        assert_eq!(find(&table, 0x8000_001e, 0).eax, id);
        assert_eq!(find(&table, 0x8000_0008, 0).ecx, 5 | 3 << 12);
    }
}

#[test]
fn one_vcpu_has_no_hyper_threading_flag() {
    let table = template(1).for_vcpu(0).expect("a table");
    assert_eq!(find(&table, 1, 0).edx & HYPER_THREADING, 0);
    assert_eq!(find(&table, 0xb, 1).eax, 0);
}

/// A host with every feature, cut to a template.
fn cut(template: CpuTemplate) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<_> = [1, 7, 0x19, 0x8000_0001].map(|function| leaf(function, 0)).to_vec();
    entries.extend([0, 1, 2, 5, 9].map(|index| leaf(0xd, index)));
    entries.push(leaf(7, 1));
    Template::from_entries(&entries, 1, true, template).entries
}

fn entry(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
    *entries.iter().find(|e| e.function == function && e.index == index).expect("the leaf is there")
}

#[test]
fn a_template_has_the_instructions_of_its_level_and_no_more() {
    let (avx, avx2, avx512, aes, mitigations) = (1 << 28, 1 << 5, 1 << 16, 1 << 25, 1 << 26);
    for (template, has_avx) in [(CpuTemplate::X8664V2, false), (CpuTemplate::X8664V3, true)] {
        let entries = cut(template);
        assert_eq!(level::absent(template, &entries), None, "{template:?} holds itself");
        assert_eq!(entry(&entries, 1, 0).ecx & avx != 0, has_avx);
        assert_eq!(entry(&entries, 7, 0).ebx & avx2 != 0, has_avx);
        assert_eq!(entry(&entries, 0xd, 0).eax, if has_avx { 0b111 } else { 0b11 });
        assert_eq!(entry(&entries, 0xd, 2).eax != 0, has_avx);
        assert_eq!(entry(&entries, 0xd, 0).ecx, if has_avx { 832 } else { 576 });
        assert_eq!(entry(&entries, 7, 0).ebx & avx512, 0);
        assert_eq!(entry(&entries, 1, 0).ecx & aes, 0);
        assert_ne!(entry(&entries, 7, 0).edx & mitigations, 0);
        for (function, index) in [(7, 1), (0xd, 1), (0xd, 5), (0xd, 9), (0x19, 0)] {
            assert_eq!(entry(&entries, function, index).ebx, 0, "{function:#x}.{index}");
        }
    }
    let host = cut(CpuTemplate::Host);
    assert_ne!(entry(&host, 7, 0).ebx & avx512, 0);
    assert_eq!(level::absent(CpuTemplate::X8664V3, &cut(CpuTemplate::X8664V2)), Some("FMA"));
}

#[test]
fn a_host_without_a_feature_of_the_template_is_told_which() {
    let host = cut(CpuTemplate::Host);
    for feature in level::features(CpuTemplate::X8664V3) {
        let mut lacking = host.clone();
        for entry in lacking.iter_mut().filter(|e| e.function == feature.function && e.index == 0) {
            let bit = !(1 << feature.bit);
            (entry.ebx, entry.ecx, entry.edx) = (entry.ebx & bit, entry.ecx & bit, entry.edx & bit);
        }
        assert!(level::absent(CpuTemplate::X8664V3, &lacking).is_some(), "{}", feature.name);
        assert_eq!(level::absent(CpuTemplate::Host, &lacking), None);
    }
    let error = CpuidError::Absent { template: CpuTemplate::X8664V3, feature: "AVX2" };
    assert_eq!(error.to_string(), "cpu_template is X8664V3, which asks for AVX2: this host does not have it");
}
