//! ACPI tables: RSDP -> XSDT -> FADT (-> DSDT), MADT. What the DSDT describes is in [`dsdt`].
//!
//! The platform is hardware-reduced: a register to power off by, one to reset by, and no timer, interrupt controller or
//! interrupt of the PC's past. Linux then neither looks for one behind each pin of the I/O APIC, with a few hundred exits,
//! nor asks the fixed hardware what happened. It resets by EFI, and where there is none by the BIOS: see [`reset_vector`].

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
    memory.write_slice(&reset_vector(), GuestAddress(layout::RESET_VECTOR))?;
    Ok(rsdp)
}

/// What a PC has at its reset vector is its firmware. Here it is all the firmware there is, in real mode: write
/// [`RESET_VALUE`] to the reset port. A kernel that knows no better way to reset goes there.
fn reset_vector() -> [u8; 9] {
    let [low, high] = layout::RESET_PORT.to_le_bytes();
    // mov al, value; mov dx, port; out dx, al; hlt; jmp back to hlt
    [0xb0, RESET_VALUE, 0xba, low, high, 0xee, 0xf4, 0xeb, 0xfd]
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
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
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
