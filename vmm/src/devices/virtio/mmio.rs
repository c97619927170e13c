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
//! A reset while the host works on requests of the driver takes until that work is done: status reads 0 only then.
//! The driver may only add status bits, in this order, or write 0. Features are fixed at FEATURES_OK, the set-up of
//! queues at DRIVER_OK and, for each, while it is ready. What breaks these rules is ignored and counted.

pub mod persist;
mod state;

use super::command::{Command, Outcome};
use super::interrupt::Interrupt;
use super::queue::BrokenQueue;
use super::{DeviceIo, HostSource, Progress, VirtioDevice, kind_name};
use crate::events::Source;
use crate::memory::GuestMemory;
use crate::metrics::Metrics;
use pinfold_vmm_api::control::EventKind;
use state::{Refused, State};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use virtio_bindings::virtio_config as bit;
use virtio_bindings::virtio_mmio as register;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Where a driver kicks a queue; KVM turns these writes into eventfds.
pub const NOTIFY_OFFSET: u64 = register::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// How long a vCPU stands still in the write that resets a device whose host is at work. A driver that does not wait for
/// status 0 is safe if it takes no longer; and the device thread, should it wait for this vCPU, does not do so for ever.
const RESET_WAIT: Duration = Duration::from_secs(1);
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
    kind: u32,
    host_sources: Vec<HostSource>,
    metrics: Arc<Metrics>,
    /// what the host hears of this device
    source: Arc<Source>,
    state: Mutex<State>,
    /// a reset was carried out
    was_reset: Condvar,
}

/// The counters of all devices before a turn of one.
struct Turn {
    guest_errors: u64,
    limited: u64,
}

impl Turn {
    fn of(metrics: &Metrics) -> Self {
        Self { guest_errors: metrics.device_guest_errors(), limited: metrics.device_limited() }
    }
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
        let (kind, host_sources) = (device.kind(), device.host_sources());
        let source = match kind_name(kind) {
            (name, true) => metrics.events.numbered(name),
            (name, false) => metrics.events.source(name),
        };
        let state = State::new(device, memory);
        Ok(Self {
            interrupt: Interrupt::new()?,
            kicks: kicks?,
            kind,
            host_sources,
            metrics,
            source,
            state: Mutex::new(state),
            was_reset: Condvar::new(),
        })
    }

    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// One eventfd for each queue, to be bound to [`NOTIFY_OFFSET`] with the queue's number as data.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Type number of the device (virtio 1.2, 5).
    pub fn kind(&self) -> u32 {
        self.kind
    }

    /// Descriptors of the device to watch; what comes is for [`Self::host_event`].
    pub fn host_sources(&self) -> &[HostSource] {
        &self.host_sources
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
            Err(Refused) => self.refused("read", offset, data.len()),
        }
    }

    /// A write of the guest, in the same widths.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let result = match <[u8; 4]>::try_from(data) {
            _ if offset >= CONFIG_OFFSET => self.write_config(offset - CONFIG_OFFSET, data),
            Ok(bytes) if offset.is_multiple_of(4) => {
                self.write_register(offset as u32, u32::from_le_bytes(bytes))
            }
            _ => Err(Refused),
        };
        if result == Err(Refused) {
            self.refused("write", offset, data.len());
        }
    }

    fn refused(&self, access: &str, offset: u64, bytes: usize) {
        self.metrics.guest_errors.increment();
        let why = || format!("a {access} of {bytes} bytes at {offset:#x} breaks the rules of the transport");
        self.source.report(EventKind::GuestFault, why);
    }

    fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), Refused> {
        let offset = usize::try_from(offset).map_err(|_| Refused)?;
        let mut state = self.lock();
        let end = offset.checked_add(data.len()).ok_or(Refused)?;
        let may = end <= state.device.config().len() && !state.reset_waits();
        if may && state.device.write_config(offset, data) { Ok(()) } else { Err(Refused) }
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
            register::VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.lock().write_register(offset, value),
        }
    }

    fn write_status(&self, value: u32) -> Result<(), Refused> {
        let mut state = self.lock();
        let result = state.write_status(value, &self.interrupt);
        if state.is_behind() {
            let _ = self.kicks[0].write(1);
        }
        if state.reset_waits() {
            let done = self.was_reset.wait_timeout_while(state, RESET_WAIT, |state| state.reset_waits());
            drop(done);
        }
        result
    }

    /// The driver kicked `queue`.
    pub fn queue_event(&self, queue: usize) {
        let _ = self.kicks[queue].read();
        let more = self.event(|device, io| match io {
            Some(io) => device.queue_event(queue, io),
            None => Ok(Progress::Done),
        });
        // comes back after the other devices had their turn
        if more == Progress::More {
            let _ = self.kicks[queue].write(1);
        }
    }

    /// Something came from the source of this number, see [`Self::host_sources`].
    pub fn host_event(&self, source: usize) {
        if self.event(|device, io| device.host_event(source, io)) == Progress::More {
            self.kick_all();
        }
    }

    /// Carries out what the host asks for.
    pub fn command(&self, command: Command) -> Outcome {
        let mut state = self.lock();
        let outcome = state.device.command(command);
        if outcome == Outcome::ConfigChanged {
            state.config_changed(&self.interrupt);
        }
        drop(state);
        // what waited for its old rate may go on
        self.kick_all();
        outcome
    }

    /// Runs `act` with the device's side of the queues, if there is a driver.
    fn event(
        &self,
        act: impl FnOnce(&mut dyn VirtioDevice, Option<&mut DeviceIo<'_>>) -> Result<Progress, BrokenQueue>,
    ) -> Progress {
        let mut state = self.lock();
        self.catch_up(&mut state);
        let live = state.is_live();
        let State { device, memory, queues, .. } = &mut *state;
        let mut io = DeviceIo { memory, queues, interrupt: &self.interrupt };
        let before = Turn::of(&self.metrics);
        let result = act(device.as_mut(), live.then_some(&mut io));
        self.tell_turn(&before);
        let progress = result.unwrap_or_else(|broken| {
            self.broken(&mut state, &broken);
            Progress::Done
        });
        // the last request of a driver that is gone may just have ended
        self.catch_up(&mut state);
        progress
    }

    fn catch_up(&self, state: &mut State) {
        if state.catch_up(&self.interrupt) {
            self.was_reset.notify_all();
        }
    }

    fn broken(&self, state: &mut State, why: &BrokenQueue) {
        self.metrics.guest_errors.increment();
        self.source.report(EventKind::DeviceNeedsReset, || format!("broken queue: {why}"));
        state.needs_reset(&self.interrupt);
    }

    /// What a turn of the device has added to its counters is told by the device's name: devices have their turns one
    /// after the other, on one thread.
    fn tell_turn(&self, before: &Turn) {
        let now = Turn::of(&self.metrics);
        let faults = now.guest_errors.saturating_sub(before.guest_errors);
        self.source.report_many(EventKind::GuestFault, faults, || {
            "requests that break the rules of the device".into()
        });
        let limited = now.limited.saturating_sub(before.limited);
        self.source
            .report_many(EventKind::Limited, limited, || "turned away at a bound of the device".into());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
