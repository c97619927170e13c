//! virtio 1.2 devices over the memory-mapped transport.
//!
//! Each device is a state machine over guest memory: `device` holds its state and configuration space, `events`
//! what it does when the driver kicks a queue or the host has something for it, `metrics` what it counts.

pub mod block;
pub mod chain;
pub mod interrupt;
pub mod mmio;
pub mod persist;
pub mod queue;
pub mod rng;
pub mod vsock;

#[cfg(any(test, feature = "fuzzing"))]
pub mod driver;

use crate::memory::GuestMemory;
use interrupt::Interrupt;
use persist::{DeviceState, DeviceStateError};
use queue::{BrokenQueue, VirtQueue};
use std::os::fd::RawFd;

/// Device types (virtio 1.2, 5).
pub const TYPE_BLOCK: u32 = 2;
pub const TYPE_RNG: u32 = 4;
pub const TYPE_VSOCK: u32 = 19;

/// What people call a device, and whether there may be several, which then have numbers.
pub fn kind_name(kind: u32) -> (&'static str, bool) {
    match kind {
        1 => ("net", true),
        TYPE_BLOCK => ("disk", true),
        TYPE_RNG => ("rng", false),
        5 => ("balloon", false),
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

/// One kind of device behind the transport. The transport calls it only between DRIVER_OK and reset, but for
/// [`Self::read_config`].
pub trait VirtioDevice: Send {
    fn kind(&self) -> u32;

    /// Largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Device features beside those of every device.
    fn features(&self) -> u64;

    /// The configuration space; bytes past its end read as zero.
    fn config(&self) -> &[u8];

    /// The driver is there.
    fn activate(&mut self) {}

    /// The driver is gone: forget all that came from it.
    fn reset(&mut self) {}

    /// The driver kicked `queue`.
    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue>;

    /// A descriptor to watch for reading, beside the queues.
    fn host_fd(&self) -> Option<RawFd> {
        None
    }

    /// [`Self::host_fd`] is readable. Without a driver `io` is none.
    fn host_event(&mut self, io: Option<&mut DeviceIo<'_>>) -> Result<Progress, BrokenQueue> {
        let _ = io;
        Ok(Progress::Done)
    }

    /// Finishes what is in flight, however much it is: neither guest memory nor a file of the host changes after this
    /// until the next event.
    fn quiesce(&mut self, io: &mut DeviceIo<'_>) -> Result<(), BrokenQueue> {
        let _ = io;
        Ok(())
    }

    /// What a snapshot keeps of a device at rest.
    fn save(&self) -> DeviceState;

    /// Takes over what [`Self::save`] of another process told.
    fn restore(&mut self, saved: &DeviceState) -> Result<(), DeviceStateError>;
}
