//! ACPI tables: RSDP -> XSDT -> FADT (-> DSDT), MADT. What the DSDT describes is in [`dsdt`].
//!
//! The platform has the fixed hardware of ACPI as far as a guest needs it: a PM1 control register to power off by and a
//! reset register. It does not say that it is hardware-reduced, because Linux then resets by EFI, which is not here.

mod dsdt;
#[cfg(test)]
mod tests;

use crate::layout;
use crate::memory::GuestMemory;
use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress};

const OEM: [u8; 6] = *b"PINFLD";
const OEM_TABLE: [u8; 8] = *b"PFMICROV";
const OEM_REVISION: u32 = 1;

/// `_S5_`: the sleep type that means power-off.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// What a guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;

/// `IAPC_BOOT_ARCH`: neither VGA nor CMOS clock; the absent 8042 flag keeps the kernel from probing for a keyboard.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// The FACS is aligned to 64 bytes (ACPI 6.5, 5.2.10).
const FACS_ALIGNMENT: u64 = 64;

/// A virtio-mmio window and its interrupt line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioWindow {
    pub address: u64,
    pub line: u32,
}

/// Writes all tables to [`layout::ACPI_TABLES`] and returns the address of the RSDP.
pub fn write(
    memory: &GuestMemory,
    vcpus: u32,
    windows: &[MmioWindow],
) -> Result<u64, vm_memory::GuestMemoryError> {
    let rsdp = layout::ACPI_TABLES;
    let facs = rsdp + FACS_ALIGNMENT;
    memory.write_slice(&bytes_of(&FACS::new()), GuestAddress(facs))?;
    let mut next = facs + FACS_ALIGNMENT;
    let mut place = |bytes: &[u8]| {
        let at = next;
        assert!(at + bytes.len() as u64 <= layout::VM_GENERATION_ID, "tables of 10 devices and 32 vCPUs fit");
        next = (at + bytes.len() as u64).next_multiple_of(16);
        memory.write_slice(bytes, GuestAddress(at)).map(|()| at)
    };
    let dsdt = place(&dsdt::table(windows))?;
    let fadt = place(&fadt(dsdt, facs))?;
    let madt = place(&madt(vcpus))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&bytes_of(&xsdt))?;
    memory.write_slice(&bytes_of(&Rsdp::new(OEM, xsdt)), GuestAddress(rsdp))?;
    Ok(rsdp)
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64, facs: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_32(facs as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::Headless);
    // no SMI command port: the platform is in ACPI mode from the start
    fadt.sci_int = (layout::SCI_LINE as u16).into();
    fadt.pm1a_evt_blk = u32::from(layout::PM1_EVENT_PORT).into();
    fadt.pm1_evt_len = layout::PM1_EVENT_PORTS as u8;
    fadt.pm1a_cnt_blk = u32::from(layout::PM1_CONTROL_PORT).into();
    fadt.pm1_cnt_len = layout::PM1_CONTROL_PORTS as u8;
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg =
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(layout::RESET_PORT));
    fadt.reset_value = RESET_VALUE;
    bytes_of(&fadt.finalize())
}

fn madt(vcpus: u32) -> Vec<u8> {
    let mut madt =
        MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(layout::LOCAL_APIC));
    for id in 0..vcpus {
        let id = id as u8;
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    bytes_of(&madt)
}
