//! Dispatch of port I/O and memory-mapped I/O exits.
//!
//! Called on vCPU threads. Reads outside of every device give all ones, as on a real bus; writes there are ignored;
//! both count as guest errors only for MMIO, because every x86 kernel probes ports.

pub mod persist;

use super::power::PowerRegisters;
use super::serial::SerialPort;
use super::virtio::mmio::Transport;
use crate::acpi;
use crate::ending::Ending;
use crate::events::Source;
use crate::layout;
use crate::metrics::Metrics;
use pinfold_vmm_api::control::{EventKind, ExitReason};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// i8042 command: pulse output line 0, which is wired to the reset of the processor.
const I8042_PULSE_RESET: u8 = 0xfe;
/// The only bit of the panic port: what it can take, and what the guest writes.
const PANICKED: u8 = 1;

pub use persist::BusState;

pub struct Bus {
    serial: Mutex<SerialPort>,
    power: Mutex<PowerRegisters>,
    /// The address register of PCI's configuration mechanism. No bus is behind it, but a kernel that finds a mechanism
    /// says nothing, and one that finds none prints a line of 70 exits. Nobody reads it after the probe: it is not saved.
    pci_address: AtomicU32,
    virtio: Vec<Arc<Transport>>,
    ending: Arc<Ending>,
    metrics: Arc<Metrics>,
    source: Arc<Source>,
    machine: Arc<Source>,
}

impl Bus {
    pub fn new(
        serial: SerialPort,
        virtio: Vec<Arc<Transport>>,
        ending: Arc<Ending>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (source, machine) = (metrics.events.source("bus"), metrics.events.source("machine"));
        Self {
            serial: Mutex::new(serial),
            power: Mutex::default(),
            pci_address: AtomicU32::new(0),
            virtio,
            ending,
            metrics,
            source,
            machine,
        }
    }

    /// `data` is one access or the repetitions of a string instruction, all to the same port.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        let Some(first) = data.first().copied() else { return };
        match port {
            layout::I8042_COMMAND_PORT if first == I8042_PULSE_RESET => {
                self.ending.state(ExitReason::GuestReset, "the guest reset itself by the i8042");
            }
            layout::RESET_PORT if first == acpi::RESET_VALUE => {
                self.ending
                    .state(ExitReason::GuestReset, "the guest reset itself by the ACPI reset register");
            }
            layout::PANIC_PORT if first & PANICKED != 0 => {
                let message = "the guest's kernel panicked";
                self.machine.report(EventKind::GuestPanic, || message.into());
                self.ending.state(ExitReason::GuestPanic, message);
            }
            layout::PCI_ADDRESS_PORT => {
                if let Ok(address) = data.try_into().map(u32::from_le_bytes) {
                    self.pci_address.store(address, Ordering::Relaxed);
                }
            }
            _ if PowerRegisters::covers(port) => {
                if self.power.lock().unwrap_or_else(PoisonError::into_inner).write(port, data) {
                    self.ending.state(ExitReason::GuestPowerOff, "the guest powered itself off by ACPI S5");
                }
            }
            _ => {
                let Some(offset) = serial_offset(port) else { return };
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                for byte in data {
                    serial.write(offset, *byte);
                }
            }
        }
    }

    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        match port {
            // no keyboard, nothing in its buffers
            layout::I8042_DATA_PORT | layout::I8042_COMMAND_PORT => data.fill(0),
            layout::RESET_PORT => data.fill(0),
            layout::PANIC_PORT => data.fill(PANICKED),
            layout::PCI_ADDRESS_PORT => {
                let address = self.pci_address.load(Ordering::Relaxed).to_le_bytes();
                data.fill(0xff);
                data.iter_mut().zip(address).for_each(|(slot, byte)| *slot = byte);
            }
            _ if PowerRegisters::covers(port) => {
                self.power.lock().unwrap_or_else(PoisonError::into_inner).read(port, data);
            }
            _ => match serial_offset(port) {
                Some(offset) => {
                    let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                    data.fill_with(|| serial.read(offset));
                }
                None => data.fill(0xff),
            },
        }
    }

    pub fn memory_read(&self, address: u64, data: &mut [u8]) {
        match self.virtio_at(address) {
            Some((transport, offset)) => transport.read(offset, data),
            None => {
                self.nothing_at("read", address);
                data.fill(0xff);
            }
        }
    }

    pub fn memory_write(&self, address: u64, data: &[u8]) {
        match self.virtio_at(address) {
            Some((transport, offset)) => transport.write(offset, data),
            None => self.nothing_at("write", address),
        }
    }

    fn nothing_at(&self, access: &str, address: u64) {
        self.metrics.guest_errors.increment();
        self.source
            .report(EventKind::GuestFault, || format!("a {access} at {address:#x}, where no device is"));
    }

    fn virtio_at(&self, address: u64) -> Option<(&Transport, u64)> {
        let offset = address.checked_sub(layout::VIRTIO_MMIO_BASE)?;
        let transport = self.virtio.get(usize::try_from(offset / layout::VIRTIO_MMIO_SIZE).ok()?)?;
        Some((transport, offset % layout::VIRTIO_MMIO_SIZE))
    }
}

fn serial_offset(port: u16) -> Option<u8> {
    let offset = port.checked_sub(layout::SERIAL_PORT)?;
    (offset < layout::SERIAL_PORTS).then_some(offset as u8)
}

#[cfg(test)]
mod tests;
