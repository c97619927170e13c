//! The tables as a guest reads them: from the RSDP on, each by its pointer, length and sum.

use super::*;
use crate::devices::power::PowerRegisters;
use crate::memory;
use pinfold_vmm_api::config::limits;

struct Tables {
    memory: GuestMemory,
    rsdp: u64,
}

fn tables(vcpus: u32, devices: usize) -> Tables {
    let memory = memory::allocate(96 << 20).expect("memory");
    let window = |index: usize| MmioWindow {
        address: layout::VIRTIO_MMIO_BASE + index as u64 * layout::VIRTIO_MMIO_SIZE,
        line: layout::VIRTIO_LINES[index],
    };
    let windows: Vec<_> = (0..devices).map(window).collect();
    let rsdp = write(&memory, vcpus, &windows).expect("tables fit");
    Tables { memory, rsdp }
}

impl Tables {
    fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).expect("in memory");
        bytes
    }

    /// The table at `at`, whole, if its sum is right.
    fn table(&self, at: u64, signature: &[u8; 4]) -> Vec<u8> {
        let length = u32::from_le_bytes(self.bytes(at + 4, 4).try_into().expect("four bytes"));
        let table = self.bytes(at, length as usize);
        assert_eq!(&table[..4], signature);
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{signature:?}");
        assert!(at + u64::from(length) <= layout::VM_GENERATION_ID);
        table
    }

    fn address(table: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(table[offset..offset + 8].try_into().expect("eight bytes"))
    }

    fn fadt(&self) -> Vec<u8> {
        let xsdt = Self::address(&self.bytes(self.rsdp, 36), 24);
        self.table(Self::address(&self.table(xsdt, b"XSDT"), 36), b"FACP")
    }

    fn madt(&self) -> Vec<u8> {
        let xsdt = Self::address(&self.bytes(self.rsdp, 36), 24);
        self.table(Self::address(&self.table(xsdt, b"XSDT"), 44), b"APIC")
    }

    fn dsdt(&self) -> Vec<u8> {
        self.table(Self::address(&self.fadt(), 140), b"DSDT")
    }
}

fn holds(table: &[u8], part: &[u8]) -> bool {
    table.windows(part.len()).any(|window| window == part)
}

#[test]
fn the_rsdp_is_where_kernels_look_and_its_sums_are_right() {
    let tables = tables(1, 4);
    let rsdp = tables.bytes(tables.rsdp, 36);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    for length in [20, 36] {
        assert_eq!(rsdp[..length].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    }
    assert!((0xe_0000..0x10_0000).contains(&tables.rsdp) && tables.rsdp.is_multiple_of(16));
}

#[test]
fn every_vcpu_has_an_enabled_local_apic_and_one_io_apic_is_there() {
    for vcpus in [1, 2, 8, limits::MAX_VCPUS] {
        let madt = tables(vcpus, 4).madt();
        let mut found = Vec::new();
        let mut io_apics = 0;
        let mut at = 44;
        while at < madt.len() {
            match madt[at] {
                0 => {
                    assert_eq!(madt[at + 4] & 1, 1, "enabled");
                    found.push(u32::from(madt[at + 3]));
                }
                1 => {
                    assert_eq!(madt[at + 4..at + 8], layout::IO_APIC.to_le_bytes());
                    io_apics += 1;
                }
                other => panic!("a structure of type {other}"),
            }
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(found, (0..vcpus).collect::<Vec<_>>());
        assert_eq!(io_apics, 1);
    }
}

#[test]
fn the_platform_is_reduced_and_its_registers_are_the_ports_that_are_emulated() {
    let fadt = tables(1, 4).fadt();
    let word = |at: usize| u32::from_le_bytes(fadt[at..at + 4].try_into().expect("four bytes"));
    let flags = word(112);
    assert_ne!(flags & 1 << 20, 0, "hardware-reduced");
    for (what, at) in [("SMI port", 48), ("PM1a events", 56), ("PM1a control", 64), ("timer", 76)] {
        assert_eq!(word(at), 0, "no {what}");
    }
    assert_eq!(fadt[109] & 0b10, 0, "no keyboard controller");
    assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 1 << 2 | 1 << 5, "no VGA, no CMOS clock");
    assert_ne!(flags & 1 << 10, 0, "a reset register");
    assert_ne!(flags & 1 << 4, 0, "no fixed power button: it is a device");
    // generic addresses: port space, 8 bits, from bit 0, by bytes
    for (at, port) in
        [(116, layout::RESET_PORT), (244, layout::SLEEP_CONTROL_PORT), (256, layout::SLEEP_STATUS_PORT)]
    {
        assert_eq!(fadt[at..at + 4], [1, 8, 0, 1]);
        assert_eq!(Tables::address(&fadt, at + 4), u64::from(port));
    }
    assert!(PowerRegisters::covers(layout::SLEEP_CONTROL_PORT));
    assert!(PowerRegisters::covers(layout::SLEEP_STATUS_PORT));
}

#[test]
fn what_a_kernel_writes_to_the_sleep_register_powers_off() {
    let dsdt = tables(1, 0).dsdt();
    // Name (_S5_, Package (2) { 5, 0 })
    assert!(holds(&dsdt, b"\x08_S5_\x12\x05\x02\x0a\x05\x00"), "{dsdt:02x?}");
    // SLP_TYP in bits 4:2, SLP_EN in bit 5 (ACPI 6.5, 4.8.3.7)
    let off = SLEEP_TYPE_OFF << 2 | 1 << 5;
    assert!(PowerRegisters::default().write(layout::SLEEP_CONTROL_PORT, &[off]));
    assert!(!PowerRegisters::default().write(layout::SLEEP_CONTROL_PORT, &[off & !(1 << 5)]));
    let mut status = [0xff];
    PowerRegisters::default().read(layout::SLEEP_STATUS_PORT, &mut status);
    assert_eq!(status, [0], "nothing woke it");
}

const _: () = assert!(layout::RESET_VECTOR == 0xf000 * 16 + 0xfff0);
const _: () = assert!(layout::VM_GENERATION_ID + 16 <= layout::RESET_VECTOR);

/// Followed by hand as a processor in real mode would.
#[test]
fn the_reset_vector_writes_to_the_reset_port() {
    let tables = tables(1, 4);
    let code = tables.bytes(layout::RESET_VECTOR, 9);
    assert_eq!(code[..2], [0xb0, RESET_VALUE], "mov al, imm8");
    assert_eq!(
        (code[2], u16::from_le_bytes([code[3], code[4]])),
        (0xba, layout::RESET_PORT),
        "mov dx, imm16"
    );
    assert_eq!(code[5..], [0xee, 0xf4, 0xeb, 0xfd], "out dx, al; hlt; jmp -3");
}

#[test]
fn every_device_is_described_with_its_registers_and_line() {
    for count in [0, 1, layout::VIRTIO_LINES.len()] {
        let dsdt = tables(1, count).dsdt();
        let described = dsdt.windows(8).filter(|window| window == b"LNRO0005").count();
        assert_eq!(described, count);
        for (index, line) in layout::VIRTIO_LINES.iter().take(count).enumerate() {
            let address = layout::VIRTIO_MMIO_BASE + index as u64 * layout::VIRTIO_MMIO_SIZE;
            // Memory32Fixed, read-write; then an extended interrupt: consumer, edge, high, exclusive
            let mut resources = vec![0x86, 9, 0, 1];
            resources.extend((address as u32).to_le_bytes());
            resources.extend((layout::VIRTIO_MMIO_SIZE as u32).to_le_bytes());
            resources.extend([0x89, 6, 0, 0b0011, 1]);
            resources.extend(line.to_le_bytes());
            assert!(holds(&dsdt, &resources), "device {index}");
        }
    }
}

#[test]
fn the_namespace_has_the_generation_the_button_and_the_panic_port() {
    let dsdt = tables(1, 4).dsdt();
    for name in [b"VMGENCTR".as_slice(), b"VM_Gen_Counter\0", b"QEMU0001\0", b"ACPI0013\0"] {
        assert!(holds(&dsdt, name), "{}", String::from_utf8_lossy(name));
    }
    // ADDR: a package of the low and the high half (DWord, Zero)
    let mut address = b"ADDR\x12\x08\x02\x0c".to_vec();
    address.extend((layout::VM_GENERATION_ID as u32).to_le_bytes());
    address.push(0);
    assert!(holds(&dsdt, &address), "{dsdt:02x?}");
    // the serial port with its line
    assert!(holds(&dsdt, &[0x47, 1, 0xf8, 0x03, 0xf8, 0x03, 1, 8, 0x89, 6, 0, 0b0011, 1, 4, 0, 0, 0]));
    // I/O port descriptor: 16-bit decode, minimum, maximum, alignment, length
    assert!(holds(&dsdt, &[0x47, 1, 0x05, 0x05, 0x05, 0x05, 1, 1]));
    // \_EVT: if the line is the first, notify the generation; the second, the button; 0x80 in both
    assert!(holds(&dsdt, b"_EVT\x09"));
    for (line, device) in [(16, b"VGEN"), (17, b"PWRB")] {
        let mut branch = vec![0x93, 0x68, 0x0a, line, 0x86, b'\\', 0x2e];
        branch.extend(b"_SB_");
        branch.extend(device);
        branch.extend([0x0a, 0x80]);
        assert!(holds(&dsdt, &branch), "line {line}: {dsdt:02x?}");
    }
}
