//! virtio 1.2 devices over the memory-mapped transport.
//!
//! Each device is a state machine over guest memory: `device` holds its state and configuration space, `events`
//! what it does when the driver kicks a queue or the host has something for it, `metrics` what it counts.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod command;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod persist;
pub mod queue;
pub mod rng;
pub mod vsock;

#[cfg(any(test, feature = "fuzzing"))]
pub mod driver;

use crate::memory::GuestMemory;
use command::{Command, Outcome};
use interrupt::Interrupt;
use persist::{DeviceState, DeviceStateError};
use queue::{BrokenQueue, VirtQueue};
use std::os::fd::RawFd;
use vmm_sys_util::epoll::EventSet;

/// Device types (virtio 1.2, 5).
pub const TYPE_NET: u32 = 1;
pub const TYPE_BLOCK: u32 = 2;
pub const TYPE_RNG: u32 = 4;
pub const TYPE_BALLOON: u32 = 5;
pub const TYPE_VSOCK: u32 = 19;

/// What people call a device, and whether there may be several, which then have numbers.
pub fn kind_name(kind: u32) -> (&'static str, bool) {
    match kind {
        TYPE_NET => ("net", true),
        TYPE_BLOCK => ("disk", true),
        TYPE_RNG => ("rng", false),
        TYPE_BALLOON => ("balloon", false),
        TYPE_VSOCK => ("vsock", false),
        _ => ("device", true),
    }
}

/// Feature bits of every device: virtio 1.x, indirect descriptors, event index (virtio 1.2, 6).
pub const FEATURE_VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
pub const FEATURE_INDIRECT: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
pub const FEATURE_EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

/// What a device may touch while it handles an event.
pub struct DeviceIo<'a> {
    pub memory: &'a GuestMemory,
    pub queues: &'a mut [VirtQueue],
    pub interrupt: &'a Interrupt,
}

/// Whether a queue still holds work that was put off so that other devices get their turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Done,
    More,
}

/// A descriptor of a device to watch, beside its queues. Its number for [`VirtioDevice::host_event`] is its place in
/// [`VirtioDevice::host_sources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSource {
    pub fd: RawFd,
    pub events: EventSet,
}

impl HostSource {
    /// Readable as long as there is something to do.
    pub fn level(fd: RawFd) -> Self {
        Self { fd, events: EventSet::IN }
    }

    /// Told once when there is something to read, and once when there is room to write again: a device that has no use
    /// for it is not woken again and again.
    pub fn edge(fd: RawFd) -> Self {
        Self { fd, events: EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED }
    }
}

/// One kind of device behind the transport. Features, the configuration space and `is_busy` are asked for by vCPU threads
/// too; all else is called on the device thread.
pub trait VirtioDevice: Send {
    fn kind(&self) -> u32;

    /// Largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Device features beside those of every device.
    fn features(&self) -> u64;

    /// Whether the driver's choice, a part of what was offered, keeps the rules of which feature needs which.
    fn accepts(&self, features: u64) -> bool {
        let _ = features;
        true
    }

    /// The configuration space; bytes past its end read as zero.
    fn config(&self) -> &[u8];

    /// The driver writes to the configuration space. False when it may not.
    fn write_config(&mut self, offset: usize, data: &[u8]) -> bool {
        let _ = (offset, data);
        false
    }

    /// The driver is there and chose `features`. Comes before the first event of a queue.
    fn activate(&mut self, features: u64) {
        let _ = features;
    }

    /// The driver is gone: forget all that came from it. When it returns, nothing touches guest memory.
    fn reset(&mut self) {}

    /// Whether the host works on requests of the driver, and so may touch guest memory at any time.
    fn is_busy(&self) -> bool {
        false
    }

    /// Waits until the device is not busy and has given back what it took from the queues, done or not: neither guest
    /// memory nor a file of the host changes after this until the next event. Without a driver `io` is none. Where
    /// the host cannot wait, the device stays busy.
    fn quiesce(&mut self, io: Option<&mut DeviceIo<'_>>) -> Result<(), BrokenQueue> {
        let _ = io;
        Ok(())
    }

    /// The driver kicked `queue`.
    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue>;

    fn host_sources(&self) -> Vec<HostSource> {
        Vec::new()
    }

    /// Something came from the source of this number. Without a driver `io` is none.
    fn host_event(&mut self, source: usize, io: Option<&mut DeviceIo<'_>>) -> Result<Progress, BrokenQueue> {
        let _ = (source, io);
        Ok(Progress::Done)
    }

    /// What a snapshot keeps of a device at rest.
    fn save(&self) -> DeviceState;

    /// Takes over what [`Self::save`] of another process told. [`Self::activate`] follows if there is a driver.
    fn restore(&mut self, saved: &DeviceState) -> Result<(), DeviceStateError>;

    /// The host wants the device to change.
    fn command(&mut self, command: Command) -> Outcome {
        let _ = command;
        Outcome::Unsupported
    }
}
