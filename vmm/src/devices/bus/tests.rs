//! Ports and addresses, those of devices and all others.

use super::*;
use crate::devices::console::ConsoleBuffer;
use crate::devices::virtio::rng::device::Rng;
use crate::memory;
use pinfold_vmm_api::console::{Reader, Writer};

struct Rig {
    bus: Bus,
    console: ConsoleBuffer,
    ending: Arc<Ending>,
    metrics: Arc<Metrics>,
}

fn rig() -> Rig {
    let metrics = Arc::new(Metrics::default());
    let ending = Arc::new(Ending::new().expect("an eventfd"));
    let console = ConsoleBuffer::new(Arc::clone(&metrics)).expect("an eventfd");
    let (serial, _line) = SerialPort::new(console.clone()).expect("a port");
    let rng = Box::new(Rng::new(Arc::clone(&metrics)));
    let memory = memory::allocate(96 << 20).expect("memory");
    let transport = Arc::new(Transport::new(rng, memory, Arc::clone(&metrics)).expect("a transport"));
    let bus = Bus::new(serial, vec![transport], Arc::clone(&ending), Arc::clone(&metrics));
    Rig { bus, console, ending, metrics }
}

fn reason(rig: &Rig) -> Option<ExitReason> {
    rig.ending.stated().map(|stated| stated.0)
}

#[test]
fn serial_output_reaches_the_console_one_byte_or_many() {
    let rig = rig();
    rig.bus.port_write(layout::SERIAL_PORT, b"H");
    rig.bus.port_write(layout::SERIAL_PORT, b"ELLO\n");
    let file = tempfile::tempfile().expect("a temporary file");
    let reader = Reader::new(file.try_clone().expect("a second descriptor"));
    rig.console.flush_into(&mut Writer::create(file).expect("a ring")).expect("flushed");
    assert_eq!(reader.read(0, 100).expect("read").data, b"HELLO\n");
    let mut status = [0];
    rig.bus.port_read(layout::SERIAL_PORT + 5, &mut status);
    assert_eq!(status[0] & 0x60, 0x60, "ready to take more");
}

#[test]
fn each_way_to_end_has_its_reason() {
    let ends: [(u16, &[u8], ExitReason); 4] = [
        (layout::PANIC_PORT, &[1], ExitReason::GuestPanic),
        (layout::I8042_COMMAND_PORT, &[0xfe], ExitReason::GuestReset),
        (layout::RESET_PORT, &[acpi::RESET_VALUE], ExitReason::GuestReset),
        (layout::PM1_CONTROL_PORT, &[0, 5 << 2 | 1 << 5], ExitReason::GuestPowerOff),
    ];
    for (port, data, expected) in ends {
        let rig = rig();
        rig.bus.port_write(port, data);
        assert_eq!(reason(&rig), Some(expected), "port {port:#x}");
    }
}

#[test]
fn no_other_port_ends_the_machine_and_all_read_as_ones() {
    let rig = rig();
    for port in 0..=u16::MAX {
        let device = serial_offset(port).is_some()
            || PowerRegisters::covers(port)
            || [layout::RESET_PORT, layout::I8042_COMMAND_PORT, layout::I8042_DATA_PORT].contains(&port)
            || [layout::PANIC_PORT, layout::PCI_ADDRESS_PORT].contains(&port);
        for width in [1, 2, 4, 4096] {
            if !device {
                rig.bus.port_write(port, &vec![0xfe; width]);
                let mut data = vec![0; width];
                rig.bus.port_read(port, &mut data);
                assert!(data.iter().all(|byte| *byte == 0xff), "port {port:#x}");
            }
        }
    }
    rig.bus.port_write(layout::RESET_PORT, &[0]);
    rig.bus.port_write(layout::I8042_COMMAND_PORT, &[0xd1]);
    rig.bus.port_write(layout::I8042_DATA_PORT, &[0xfe]);
    rig.bus.port_write(layout::I8042_COMMAND_PORT, &[]);
    assert_eq!(reason(&rig), None);
}

#[test]
fn addresses_outside_of_windows_read_as_ones_and_count() {
    let rig = rig();
    let window = layout::VIRTIO_MMIO_BASE;
    let mut magic = [0; 4];
    rig.bus.memory_read(window, &mut magic);
    assert_eq!(&magic, b"virt");
    let outside = [0, window - 1, window + layout::VIRTIO_MMIO_SIZE, u64::from(layout::IO_APIC), u64::MAX];
    for address in outside {
        let mut data = [0; 8];
        rig.bus.memory_read(address, &mut data);
        assert_eq!(data, [0xff; 8], "{address:#x}");
        rig.bus.memory_write(address, &data);
    }
    assert_eq!(rig.metrics.guest_errors.get(), 2 * outside.len() as u64);
}

#[test]
fn the_panic_port_says_what_it_takes_and_takes_nothing_else() {
    let rig = rig();
    let mut events = [0];
    rig.bus.port_read(layout::PANIC_PORT, &mut events);
    assert_eq!(events, [1]);
    for value in [0, 2, 0xfe] {
        rig.bus.port_write(layout::PANIC_PORT, &[value]);
        assert_eq!(reason(&rig), None, "{value:#x}");
    }
}

/// What Linux does to tell the first configuration mechanism (`pci_check_type1`), then a look at the bus.
#[test]
fn pci_has_a_mechanism_and_no_bus() {
    let rig = rig();
    let address = || {
        let mut four = [0; 4];
        rig.bus.port_read(layout::PCI_ADDRESS_PORT, &mut four);
        u32::from_le_bytes(four)
    };
    assert_eq!(address(), 0);
    rig.bus.port_write(layout::PCI_ADDRESS_PORT + 3, &[1]);
    rig.bus.port_write(layout::PCI_ADDRESS_PORT, &0x8000_0000_u32.to_le_bytes());
    assert_eq!(address(), 0x8000_0000);
    rig.bus.port_write(layout::PCI_ADDRESS_PORT, &[1, 2]);
    assert_eq!(address(), 0x8000_0000, "only whole addresses");
    let mut vendor = [0; 4];
    rig.bus.port_read(layout::PCI_ADDRESS_PORT + 4, &mut vendor);
    assert_eq!(vendor, [0xff; 4]);
}
