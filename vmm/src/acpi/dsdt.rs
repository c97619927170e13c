//! The DSDT: devices as ACPI's namespace describes them.
//!
//! - each virtio-mmio window, `_HID` LNRO0005, which stock distribution kernels know
//! - the generation id of the machine, a power button, and the event device (ACPI 6.5, 5.6.9) whose interrupts announce
//!   both: a line for each, so that there is no register to read and no state to keep
//! - the port by which a kernel says that it panicked, as QEMU's pvpanic, which Linux has a driver for
//!
//! Linux finds the serial port at its standard address in any case, but its line only here: without the PC's interrupt
//! controllers no line has a standard number.

use super::{MmioWindow, OEM, OEM_REVISION, OEM_TABLE, SLEEP_TYPE_OFF, bytes_of};
use crate::layout;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, aml};

/// Value of `Notify` for "its state changed": a new generation (Virtual Machine Generation ID, 1.0), a pressed button
/// (ACPI 6.5, 4.8.2.2.1.2).
const CHANGED: u8 = 0x80;

pub(super) fn table(windows: &[MmioWindow]) -> Vec<u8> {
    let mut body = Vec::new();
    let sleep_off = aml::Package::new(vec![&SLEEP_TYPE_OFF, &0u8]);
    aml::Name::new("_S5_".into(), &sleep_off).to_aml_bytes(&mut body);
    let mut devices: Vec<u8> =
        windows.iter().enumerate().flat_map(|(index, window)| virtio(index, *window)).collect();
    for device in [serial_port(), generation(), power_button(), panic_port(), events()] {
        devices.extend(device);
    }
    body.extend(aml::Scope::raw("_SB_".into(), devices));
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&body);
    table.as_slice().to_vec()
}

fn virtio(index: usize, window: MmioWindow) -> Vec<u8> {
    let registers = aml::Memory32Fixed::new(true, window.address as u32, layout::VIRTIO_MMIO_SIZE as u32);
    bytes_of(&aml::Device::new(
        format!("VR{index:02}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &(index as u32)),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&registers, &line(window.line)])),
        ],
    ))
}

/// An edge-triggered line of one device.
fn line(number: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, number)
}

fn serial_port() -> Vec<u8> {
    let (first, count) = (layout::SERIAL_PORT, layout::SERIAL_PORTS as u8);
    let ports = aml::IO::new(first, first, 1, count);
    bytes_of(&aml::Device::new(
        "COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&ports, &line(layout::SERIAL_LINE)]),
            ),
        ],
    ))
}

/// Where the 16 bytes are. Linux knows the device by `_HID`, Windows by `_CID`.
fn generation() -> Vec<u8> {
    let (low, high) = (layout::VM_GENERATION_ID as u32, (layout::VM_GENERATION_ID >> 32) as u32);
    bytes_of(&aml::Device::new(
        "VGEN".into(),
        vec![
            &aml::Name::new("_HID".into(), &"VMGENCTR"),
            &aml::Name::new("_CID".into(), &"VM_Gen_Counter"),
            &aml::Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &aml::Name::new("ADDR".into(), &aml::Package::new(vec![&low, &high])),
        ],
    ))
}

fn power_button() -> Vec<u8> {
    bytes_of(&aml::Device::new(
        "PWRB".into(),
        vec![&aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C0C"))],
    ))
}

fn panic_port() -> Vec<u8> {
    let port = aml::IO::new(layout::PANIC_PORT, layout::PANIC_PORT, 1, 1);
    bytes_of(&aml::Device::new(
        "PEVT".into(),
        vec![
            &aml::Name::new("_HID".into(), &"QEMU0001"),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&port])),
        ],
    ))
}

/// The event device calls `_EVT` with the number of the line that was raised.
fn events() -> Vec<u8> {
    let (generation, button) = (line(layout::GENERATION_LINE), line(layout::POWER_BUTTON_LINE));
    let (generation_path, button_path) = (aml::Path::new("\\_SB_.VGEN"), aml::Path::new("\\_SB_.PWRB"));
    let raised = aml::Arg(0);
    bytes_of(&aml::Device::new(
        "GED_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&generation, &button])),
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &aml::If::new(
                        &aml::Equal::new(&raised, &layout::GENERATION_LINE),
                        vec![&aml::Notify::new(&generation_path, &CHANGED)],
                    ),
                    &aml::If::new(
                        &aml::Equal::new(&raised, &layout::POWER_BUTTON_LINE),
                        vec![&aml::Notify::new(&button_path, &CHANGED)],
                    ),
                ],
            ),
        ],
    ))
}
