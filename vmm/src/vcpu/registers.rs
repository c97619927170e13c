//! Registers of a vCPU before its first instruction.

use crate::boot::Entry;
use crate::layout;
use crate::memory::GuestMemory;
use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;

const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_SIZE_2_MIB: u64 = 1 << 7;

const MSR_TSC: u32 = 0x10;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MSR_MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Offsets of the local vector table in the local APIC's page, and what is written there.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_EXTERNAL: u32 = 0x700;
const DELIVER_NMI: u32 = 0x400;

/// Selectors that the Linux boot protocol asks for: `__BOOT_CS` 0x10, `__BOOT_DS` 0x18.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error("KVM refused {what} of vCPU {vcpu}")]
    Kvm { what: &'static str, vcpu: u32, source: kvm_ioctls::Error },
    #[error("descriptor tables cannot be written to guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// What every vCPU gets; the others than the first then wait for the first to start them (INIT, SIPI).
pub fn set_common(vcpu: &VcpuFd, id: u32) -> Result<(), RegisterError> {
    let refused = |what| move |source| RegisterError::Kvm { what, vcpu: id, source };
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let wanted = [
        msr(MSR_TSC, 0),
        msr(MSR_MISC_ENABLE, MSR_MISC_ENABLE_FAST_STRING),
        msr(MSR_MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&wanted).expect("three entries are below the limit");
    let set = vcpu.set_msrs(&msrs).map_err(refused("the model specific registers"))?;
    if set != wanted.len() {
        return Err(refused("a model specific register")(kvm_ioctls::Error::new(libc::EINVAL)));
    }
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(refused("the floating point state"))?;
    let mut lapic = vcpu.get_lapic().map_err(refused("reading the local APIC"))?;
    for (offset, mode) in [(LVT_LINT0, DELIVER_EXTERNAL), (LVT_LINT1, DELIVER_NMI)] {
        let bytes = (mode as i32).to_le_bytes();
        for (slot, byte) in lapic.regs[offset..offset + 4].iter_mut().zip(bytes) {
            *slot = byte as _;
        }
    }
    vcpu.set_lapic(&lapic).map_err(refused("the local APIC"))
}

/// Sets up the first vCPU for `entry`, with the tables that it needs in guest memory.
pub fn set_boot(vcpu: &VcpuFd, memory: &GuestMemory, entry: Entry) -> Result<(), RegisterError> {
    let refused = |what| move |source| RegisterError::Kvm { what, vcpu: 0, source };
    let mut sregs = vcpu.get_sregs().map_err(refused("reading the system registers"))?;
    let regs = match entry {
        Entry::Linux64 { address } => {
            write_page_tables(memory)?;
            long_mode(&mut sregs);
            kvm_regs {
                rip: address,
                rsi: layout::ZERO_PAGE,
                rsp: layout::BOOT_STACK_TOP,
                rbp: layout::BOOT_STACK_TOP,
                rflags: 2,
                ..Default::default()
            }
        }
        Entry::Pvh { address } => {
            protected_mode(&mut sregs);
            kvm_regs { rip: address, rbx: layout::PVH_START_INFO, rflags: 2, ..Default::default() }
        }
    };
    write_descriptors(memory, &mut sregs)?;
    vcpu.set_sregs(&sregs).map_err(refused("the system registers"))?;
    vcpu.set_regs(&regs).map_err(refused("the registers"))
}

/// A flat segment. `kind`: type field of the descriptor; `s`: code or data, not a system segment.
fn segment(selector: u16, kind: u8, s: u8, long: bool) -> kvm_segment {
    let task = s == 0;
    kvm_segment {
        base: 0,
        limit: if task { 0x67 } else { 0xffff_ffff },
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long && !task),
        s,
        l: u8::from(long),
        g: u8::from(!task),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

fn long_mode(sregs: &mut kvm_sregs) {
    set_segments(sregs, segment(CODE, 0xb, 1, true));
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
    sregs.cr3 = layout::PML4;
    sregs.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
    sregs.efer = EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
}

fn protected_mode(sregs: &mut kvm_sregs) {
    set_segments(sregs, segment(CODE, 0xb, 1, false));
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
    sregs.cr3 = 0;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

fn set_segments(sregs: &mut kvm_sregs, code: kvm_segment) {
    let data = segment(DATA, 0x3, 1, false);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(TASK, 0xb, 0, false);
}

/// The 8-byte form of a segment (Intel SDM, volume 3, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_) | u64::from(segment.s) << 4 | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    limit & 0xffff | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
}

fn write_descriptors(memory: &GuestMemory, sregs: &mut kvm_sregs) -> Result<(), RegisterError> {
    // entry 1 stays empty, so that code and data have the selectors of the boot protocol
    let table = [0, 0, descriptor(&sregs.cs), descriptor(&sregs.ds), descriptor(&sregs.tr)];
    for (index, entry) in table.into_iter().enumerate() {
        memory.write_obj(entry, GuestAddress(layout::GDT + 8 * index as u64))?;
    }
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (table.len() * 8 - 1) as u16;
    memory.write_obj(0u64, GuestAddress(layout::IDT))?;
    sregs.idt.base = layout::IDT;
    sregs.idt.limit = 7;
    Ok(())
}

/// Maps the first 4 GiB one to one with 2 MiB pages.
fn write_page_tables(memory: &GuestMemory) -> Result<(), RegisterError> {
    memory.write_obj(layout::PDPT | PAGE_PRESENT_WRITABLE, GuestAddress(layout::PML4))?;
    for gib in 0..4 {
        let directory = layout::PAGE_DIRECTORIES + gib * 0x1000;
        memory.write_obj(directory | PAGE_PRESENT_WRITABLE, GuestAddress(layout::PDPT + gib * 8))?;
        for page in 0..512 {
            let target = (gib * 512 + page) << 21;
            let entry = target | PAGE_PRESENT_WRITABLE | PAGE_SIZE_2_MIB;
            memory.write_obj(entry, GuestAddress(directory + page * 8))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_known_flat_forms() {
        assert_eq!(descriptor(&segment(CODE, 0xb, 1, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(CODE, 0xb, 1, false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(DATA, 0x3, 1, false)), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&segment(TASK, 0xb, 0, false)), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn page_tables_map_four_gib_one_to_one() {
        let memory = crate::memory::allocate(96 << 20).expect("memory");
        write_page_tables(&memory).expect("written");
        let read = |address| memory.read_obj::<u64>(GuestAddress(address)).expect("in memory");
        for address in [0u64, 0x10_0000, 0x3fff_ffff, 0x4000_0000, 0xfee0_0000] {
            let directory = read(layout::PDPT + (address >> 30) * 8) & !0xfff;
            let entry = read(directory + (address >> 21 & 0x1ff) * 8);
            assert_eq!(entry & !0x1f_ffff, address & !0x1f_ffff);
            assert_ne!(entry & PAGE_SIZE_2_MIB, 0);
        }
    }
}
