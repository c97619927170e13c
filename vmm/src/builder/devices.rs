//! The devices of a machine: made from the config, given windows and lines.

use super::{BuildError, host, kvm};
use crate::acpi::MmioWindow;
use crate::devices::console::ConsoleBuffer;
use crate::devices::platform::PlatformEvents;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::device::Balloon;
use crate::devices::virtio::block::device::Block;
use crate::devices::virtio::mmio::{NOTIFY_OFFSET, Transport};
use crate::devices::virtio::net::device::Net;
use crate::devices::virtio::rng::device::Rng;
use crate::devices::virtio::vsock::device::VsockDevice;
use crate::layout;
use crate::memory::GuestMemory;
use crate::metrics::Metrics;
use crate::snapshot::released::Released;
use kvm_ioctls::{IoEventAddress, VmFd};
use pinfold_vmm_api::MachineConfig;
use pinfold_vmm_api::config::limits;
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

pub(super) fn attach_serial(vm: &VmFd, console: ConsoleBuffer) -> Result<SerialPort, BuildError> {
    let (serial, line) = SerialPort::new(console).map_err(host("make an eventfd"))?;
    vm.register_irqfd(&line, layout::SERIAL_LINE).map_err(kvm("wire the line of the serial port"))?;
    Ok(serial)
}

pub(super) fn attach_platform(vm: &VmFd) -> Result<PlatformEvents, BuildError> {
    let platform = PlatformEvents::new().map_err(host("make eventfds"))?;
    for (line, number) in platform.lines() {
        vm.register_irqfd(line, number).map_err(kvm("wire the lines of the event device"))?;
    }
    Ok(platform)
}

/// What devices work on.
pub(super) struct Files {
    pub disks: Vec<File>,
    pub nets: Vec<File>,
    pub vsock: Option<UnixListener>,
}

/// In the order in which the guest finds them: disks, networks, sockets, balloon, entropy.
pub(super) fn make_devices(
    config: &MachineConfig,
    files: Files,
    memory: &GuestMemory,
    released: &Arc<Released>,
    metrics: &Arc<Metrics>,
) -> Result<Vec<Box<dyn VirtioDevice>>, BuildError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    let with_filter = !config.without_seccomp;
    for (index, (disk, file)) in config.disks.iter().zip(files.disks).enumerate() {
        let block =
            Block::new(file, &disk.serial, disk.read_only, disk.rate, with_filter, Arc::clone(metrics));
        devices.push(Box::new(block.map_err(|source| BuildError::Disk { index, source })?));
    }
    for (index, (net, tap)) in config.nets.iter().zip(files.nets).enumerate() {
        let device = Net::new(tap, net.mac, net.receive_rate, net.transmit_rate, Arc::clone(metrics));
        devices.push(Box::new(device.map_err(|source| BuildError::Net { index, source })?));
    }
    if let (Some(vsock), Some(listener)) = (&config.vsock, files.vsock) {
        let prefix = vsock.guest_connect_prefix.clone();
        let device = VsockDevice::new(vsock.cid, listener, prefix, Arc::clone(metrics));
        devices.push(Box::new(device.map_err(host("set up vsock"))?));
    }
    if config.balloon {
        devices.push(Box::new(Balloon::new(memory, Arc::clone(released), Arc::clone(metrics))));
    }
    devices.push(Box::new(Rng::new(Arc::clone(metrics))));
    Ok(devices)
}

pub(super) fn attach_devices(
    vm: &VmFd,
    devices: Vec<Box<dyn VirtioDevice>>,
    memory: &GuestMemory,
    metrics: &Arc<Metrics>,
) -> Result<Vec<Arc<Transport>>, BuildError> {
    let mut transports = Vec::new();
    for (device, window) in devices.into_iter().zip(windows(layout::VIRTIO_LINES.len())) {
        let transport =
            Transport::new(device, memory.clone(), Arc::clone(metrics)).map_err(host("make eventfds"))?;
        let line = transport.interrupt().line();
        vm.register_irqfd(line, window.line).map_err(kvm("wire the line of a device"))?;
        let notify = IoEventAddress::Mmio(window.address + NOTIFY_OFFSET);
        for (queue, kick) in transport.kicks().iter().enumerate() {
            vm.register_ioevent(kick, &notify, queue as u32).map_err(kvm("wire the kicks of a queue"))?;
        }
        transports.push(Arc::new(transport));
    }
    Ok(transports)
}

// every device that a config may ask for has a window and a line
const _: () = assert!(limits::MAX_DISKS + limits::MAX_NETS + 3 <= layout::VIRTIO_LINES.len());

pub(super) fn windows(count: usize) -> Vec<MmioWindow> {
    let window = |(index, line): (usize, &u32)| MmioWindow {
        address: layout::VIRTIO_MMIO_BASE + index as u64 * layout::VIRTIO_MMIO_SIZE,
        line: *line,
    };
    layout::VIRTIO_LINES.iter().take(count).enumerate().map(window).collect()
}
