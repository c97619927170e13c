//! The guest's physical address map and the numbers of its interrupt lines and I/O ports.
//!
//! ```text
//!   0x0000_0000  RAM: boot structures below 640 KiB
//!   0x000a_0000  reserved: ACPI tables at 0xe0000
//!   0x0010_0000  RAM: kernel, initramfs at the end of low memory
//!   0xc000_0000  hole: virtio-mmio windows, I/O APIC, local APIC, pages that KVM needs on Intel
//! 0x1_0000_0000  RAM: what does not fit below the hole
//! ```

/// End of the conventional memory that the kernel may use.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// Start of high memory in the sense of the PC: 1 MiB.
pub const HIGH_RAM_START: u64 = 0x10_0000;
/// First address of the hole below 4 GiB that holds no RAM.
pub const HOLE_START: u64 = 0xc000_0000;
/// First address past the hole.
pub const HOLE_END: u64 = 0x1_0000_0000;

pub const GDT: u64 = 0x500;
/// eight bytes of zeros: no interrupt gate before the kernel has its own
pub const IDT: u64 = 0x540;
pub const PVH_START_INFO: u64 = 0x6000;
pub const PVH_MODULES: u64 = 0x6040;
pub const PVH_MEMORY_MAP: u64 = 0x6100;
pub const ZERO_PAGE: u64 = 0x7000;
pub const BOOT_STACK_TOP: u64 = 0x8ff0;
pub const PML4: u64 = 0x9000;
pub const PDPT: u64 = 0xa000;
/// four page directories of 2 MiB pages: 4 GiB mapped one to one
pub const PAGE_DIRECTORIES: u64 = 0xb000;
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The kernel also looks for the RSDP by itself, from 0xe0000 to 0xfffff (ACPI 6.5, 5.2.5.1).
pub const ACPI_TABLES: u64 = 0xe_0000;
/// 16 bytes in a page that the guest's kernel reads and never writes.
pub const VM_GENERATION_ID: u64 = 0xf_f000;
/// Where a processor begins after a reset: F000:FFF0. In the page of the generation id, far behind it.
pub const RESET_VECTOR: u64 = 0xf_fff0;

/// One page for each virtio-mmio device, the first at this address.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;

pub const IO_APIC: u32 = 0xfec0_0000;
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page that KVM on Intel uses for real-mode page tables (KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM on Intel uses (KVM_SET_TSS_ADDR).
pub const KVM_TSS: u64 = 0xfffb_d000;

/// Lines of virtio devices, in order. The first ten are below 16, so that a kernel that found no I/O APIC can use the PIC.
pub const VIRTIO_LINES: [u32; 15] = [5, 6, 7, 10, 11, 12, 13, 14, 15, 3, 18, 19, 20, 21, 22];
pub const SERIAL_LINE: u32 = 4;
/// Lines of the event device, past those of the PIC: only kernels with ACPI have it, and they have an I/O APIC.
pub const GENERATION_LINE: u32 = 16;
pub const POWER_BUTTON_LINE: u32 = 17;

/// First of the eight ports of the first serial line.
pub const SERIAL_PORT: u16 = 0x3f8;
pub const SERIAL_PORTS: u16 = 8;
pub const I8042_DATA_PORT: u16 = 0x60;
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// Address register of PCI's first configuration mechanism, four ports (PCI Local Bus 3.0, 3.2.2.3.2).
pub const PCI_ADDRESS_PORT: u16 = 0xcf8;
/// Where a kernel says that it panicked (QEMU, docs/specs/pvpanic).
pub const PANIC_PORT: u16 = 0x505;
/// Registers of a hardware-reduced platform (ACPI 6.5, 4.8.3.7): each is the high byte of a PM1 register below.
pub const SLEEP_CONTROL_PORT: u16 = PM1_CONTROL_PORT + 1;
pub const SLEEP_STATUS_PORT: u16 = PM1_EVENT_PORT + 1;
/// ACPI fixed hardware (ACPI 6.5, 4.8.3): PM1a event block, PM1a control block; and the reset register.
pub const PM1_EVENT_PORT: u16 = 0x600;
pub const PM1_EVENT_PORTS: u16 = 4;
pub const PM1_CONTROL_PORT: u16 = 0x604;
pub const PM1_CONTROL_PORTS: u16 = 2;
pub const RESET_PORT: u16 = 0x608;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_used_once() {
        let mut all = VIRTIO_LINES.to_vec();
        all.extend([SERIAL_LINE, GENERATION_LINE, POWER_BUTTON_LINE]);
        all.sort_unstable();
        // the I/O APIC of KVM has 24
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]) && all.iter().all(|line| *line < 24), "{all:?}");
    }
}
