//! The memory-mapped transport, register set version 2 (virtio 1.2, 4.2.2).
//!
//! ```text
//!            ACKNOWLEDGE      DRIVER       FEATURES_OK       DRIVER_OK
//!   reset ----------------> ---------> -----------------> ------------> live
//!     ^                                 (features refused:               |
//!     |                                  bit stays clear)                | broken queue
//!     +---------- write 0 -------------------------------------- NEEDS_RESET
//! ```
//!
//! The driver may only add status bits, in this order, or write 0. Features are fixed at FEATURES_OK, the set-up of
//! queues at DRIVER_OK and, for each, while it is ready. What breaks these rules is ignored and counted.

mod state;

use super::interrupt::Interrupt;
use super::queue::BrokenQueue;
use super::{DeviceIo, Progress, VirtioDevice};
use crate::memory::GuestMemory;
use crate::metrics::Metrics;
use state::{Refused, State};
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_bindings::virtio_config as bit;
use virtio_bindings::virtio_mmio as register;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Where a driver kicks a queue; KVM turns these writes into eventfds.
pub const NOTIFY_OFFSET: u64 = register::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Log lines about one device in its life: a guest must not fill the host's log.
const MAX_COMPLAINTS: u32 = 5;
const CONFIG_OFFSET: u64 = register::VIRTIO_MMIO_CONFIG as u64;

pub const ACKNOWLEDGE: u32 = bit::VIRTIO_CONFIG_S_ACKNOWLEDGE;
pub const DRIVER: u32 = bit::VIRTIO_CONFIG_S_DRIVER;
pub const DRIVER_OK: u32 = bit::VIRTIO_CONFIG_S_DRIVER_OK;
pub const FEATURES_OK: u32 = bit::VIRTIO_CONFIG_S_FEATURES_OK;
pub const NEEDS_RESET: u32 = bit::VIRTIO_CONFIG_S_NEEDS_RESET;
pub const FAILED: u32 = bit::VIRTIO_CONFIG_S_FAILED;

/// One device in its window. vCPU threads access registers, the device works on the device thread; one lock guards
/// both, but interrupt status and acknowledgement, which come with every interrupt, do not take it.
pub struct Transport {
    interrupt: Interrupt,
    kicks: Vec<EventFd>,
    host_fd: Option<RawFd>,
    metrics: Arc<Metrics>,
    complaints: AtomicU32,
    state: Mutex<State>,
}

impl Transport {
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let kicks: io::Result<Vec<_>> =
            sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)).collect();
        let host_fd = device.host_fd();
        let state = State::new(device, memory);
        Ok(Self {
            interrupt: Interrupt::new()?,
            kicks: kicks?,
            host_fd,
            metrics,
            complaints: AtomicU32::new(0),
            state: Mutex::new(state),
        })
    }

    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// One eventfd for each queue, to be bound to [`NOTIFY_OFFSET`] with the queue's number as data.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// A descriptor of the device to watch; when readable, [`Self::host_event`].
    pub fn host_fd(&self) -> Option<RawFd> {
        self.host_fd
    }

    /// A read of the guest. Registers are read whole and aligned, the configuration space as the driver likes.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= CONFIG_OFFSET {
            let state = self.lock();
            let from = usize::try_from(offset - CONFIG_OFFSET).unwrap_or(usize::MAX);
            let config = state.device.config().get(from..).unwrap_or_default();
            for (to, byte) in data.iter_mut().zip(config) {
                *to = *byte;
            }
            return;
        }
        let value = match (offset % 4, data.len()) {
            (0, 4) => self.read_register(offset as u32),
            _ => Err(Refused),
        };
        match value {
            Ok(value) => data.copy_from_slice(&value.to_le_bytes()),
            Err(Refused) => self.metrics.guest_errors.increment(),
        }
    }

    /// A write of the guest. No device has a writable configuration space.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let result = match <[u8; 4]>::try_from(data) {
            Ok(bytes) if offset.is_multiple_of(4) && offset < CONFIG_OFFSET => {
                self.write_register(offset as u32, u32::from_le_bytes(bytes))
            }
            _ => Err(Refused),
        };
        if result == Err(Refused) {
            self.metrics.guest_errors.increment();
        }
    }

    fn read_register(&self, offset: u32) -> Result<u32, Refused> {
        if offset == register::VIRTIO_MMIO_INTERRUPT_STATUS {
            return Ok(self.interrupt.status());
        }
        self.lock().read_register(offset)
    }

    fn write_register(&self, offset: u32, value: u32) -> Result<(), Refused> {
        match offset {
            register::VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupt.acknowledge(value);
                Ok(())
            }
            register::VIRTIO_MMIO_STATUS => {
                let mut state = self.lock();
                let result = state.write_status(value, &self.interrupt);
                if state.reset_is_due() {
                    // the device has sockets and timers, which are none of a vCPU thread's business
                    let _ = self.kicks[0].write(1);
                }
                result
            }
            _ => self.lock().write_register(offset, value),
        }
    }

    /// The driver kicked `queue`.
    pub fn queue_event(&self, queue: usize) {
        let _ = self.kicks[queue].read();
        let mut state = self.lock();
        state.finish_reset();
        if !state.is_live() {
            return;
        }
        let State { device, memory, queues, .. } = &mut *state;
        let result = device.queue_event(queue, &mut DeviceIo { memory, queues, interrupt: &self.interrupt });
        match result {
            Ok(Progress::Done) => {}
            // comes back after the other devices had their turn
            Ok(Progress::More) => {
                let _ = self.kicks[queue].write(1);
            }
            Err(broken) => self.broken(&mut state, &broken),
        }
    }

    /// [`Self::host_fd`] is readable.
    pub fn host_event(&self) {
        let mut state = self.lock();
        state.finish_reset();
        let live = state.is_live();
        let State { device, memory, queues, .. } = &mut *state;
        let mut io = DeviceIo { memory, queues, interrupt: &self.interrupt };
        match device.host_event(live.then_some(&mut io)) {
            Ok(Progress::Done) => {}
            Ok(Progress::More) => {
                let _ = self.kicks[0].write(1);
            }
            Err(broken) => self.broken(&mut state, &broken),
        }
    }

    fn broken(&self, state: &mut State, why: &BrokenQueue) {
        self.metrics.guest_errors.increment();
        if self.complaints.fetch_add(1, Ordering::Relaxed) < MAX_COMPLAINTS {
            eprintln!("pinfold-vmm: device of type {}: broken queue: {why}", state.device.kind());
        }
        state.needs_reset(&self.interrupt);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
