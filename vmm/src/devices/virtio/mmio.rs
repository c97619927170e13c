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

use super::interrupt::{CONFIG_CHANGE, Interrupt};
use super::queue::{BrokenQueue, VirtQueue};
use super::{DeviceIo, FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1, Progress, VirtioDevice};
use crate::memory::GuestMemory;
use crate::metrics::Metrics;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_bindings::virtio_config as bit;
use virtio_bindings::virtio_mmio as register;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"PFLD");
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

struct State {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    queues: Vec<VirtQueue>,
    status: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    selected_queue: u32,
    /// the driver reset the device, and the device does not know it yet
    reset_due: bool,
}

/// A register access that breaks the rules of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refused;

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
        let state = State {
            queues: sizes.iter().map(|size| VirtQueue::new(*size)).collect(),
            device,
            memory,
            status: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            selected_queue: 0,
            reset_due: false,
        };
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
                if state.reset_due {
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

impl State {
    fn is_live(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | FEATURE_VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_IDX
    }

    fn needs_reset(&mut self, interrupt: &Interrupt) {
        self.status |= NEEDS_RESET;
        interrupt.raise(CONFIG_CHANGE);
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(self.selected_queue as usize).map(VirtQueue::ring)
    }

    fn read_register(&self, offset: u32) -> Result<u32, Refused> {
        Ok(match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.device.kind(),
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => match self.device_features_page {
                0 => self.offered_features() as u32,
                1 => (self.offered_features() >> 32) as u32,
                _ => 0,
            },
            // a queue that does not exist has size 0
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.selected().map_or(0, |ring| u32::from(ring.max_size()))
            }
            register::VIRTIO_MMIO_QUEUE_READY => self.selected().map_or(0, |ring| u32::from(ring.ready())),
            register::VIRTIO_MMIO_STATUS => self.status,
            // the configuration never changes
            register::VIRTIO_MMIO_CONFIG_GENERATION => 0,
            // no shared memory regions: length and base all ones (virtio 1.2, 4.2.2)
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => return Err(Refused),
        })
    }

    fn write_register(&mut self, offset: u32, value: u32) -> Result<(), Refused> {
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_page = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_page = value,
            register::VIRTIO_MMIO_QUEUE_SEL => self.selected_queue = value,
            register::VIRTIO_MMIO_SHM_SEL => {}
            register::VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value)?,
            register::VIRTIO_MMIO_QUEUE_READY => self.set_queue_ready(value)?,
            // a kick that KVM did not take: no such queue
            register::VIRTIO_MMIO_QUEUE_NOTIFY => return Err(Refused),
            _ => self.set_up_queue(offset, value)?,
        }
        Ok(())
    }

    fn accept_features(&mut self, value: u32) -> Result<(), Refused> {
        if self.status & (DRIVER | FEATURES_OK) != DRIVER {
            return Err(Refused);
        }
        let value = u64::from(value);
        match self.driver_features_page {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            _ if value == 0 => {}
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// True in the stage in which queues are set up.
    fn may_set_up(&self) -> bool {
        self.status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET | FAILED) == FEATURES_OK
    }

    fn set_queue_ready(&mut self, value: u32) -> Result<(), Refused> {
        let may = self.may_set_up();
        let queue = self.queues.get_mut(self.selected_queue as usize).ok_or(Refused)?;
        let ring = queue.ring_mut();
        match value {
            0 => ring.set_ready(false),
            1 if may => {
                ring.set_ready(true);
                if !ring.is_valid(&self.memory) {
                    ring.set_ready(false);
                    return Err(Refused);
                }
            }
            _ => return Err(Refused),
        }
        Ok(())
    }

    fn set_up_queue(&mut self, offset: u32, value: u32) -> Result<(), Refused> {
        let may = self.may_set_up();
        let queue = self.queues.get_mut(self.selected_queue as usize).ok_or(Refused)?;
        let ring = queue.ring_mut();
        if !may || ring.ready() {
            return Err(Refused);
        }
        let low = |old: u64| GuestAddress(old & !0xffff_ffff | u64::from(value));
        let high = |old: u64| GuestAddress(old & 0xffff_ffff | u64::from(value) << 32);
        let result = match offset {
            register::VIRTIO_MMIO_QUEUE_NUM => ring.try_set_size(u16::try_from(value).map_err(|_| Refused)?),
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => ring.try_set_desc_table_address(low(ring.desc_table())),
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => ring.try_set_desc_table_address(high(ring.desc_table())),
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => ring.try_set_avail_ring_address(low(ring.avail_ring())),
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                ring.try_set_avail_ring_address(high(ring.avail_ring()))
            }
            register::VIRTIO_MMIO_QUEUE_USED_LOW => ring.try_set_used_ring_address(low(ring.used_ring())),
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => ring.try_set_used_ring_address(high(ring.used_ring())),
            _ => return Err(Refused),
        };
        result.map_err(|_| Refused)
    }

    fn write_status(&mut self, value: u32, interrupt: &Interrupt) -> Result<(), Refused> {
        if value == 0 {
            self.reset(interrupt);
            return Ok(());
        }
        // NEEDS_RESET is the device's own bit; a driver that writes back what it read includes it
        let added = value & !self.status;
        let cleared = self.status & !value & !NEEDS_RESET;
        if cleared != 0 || added & NEEDS_RESET != 0 {
            return Err(Refused);
        }
        let stage = |needed: u32| self.status & needed == needed;
        match added {
            0 => {}
            ACKNOWLEDGE => self.status |= ACKNOWLEDGE,
            DRIVER if stage(ACKNOWLEDGE) => self.status |= DRIVER,
            FEATURES_OK if stage(ACKNOWLEDGE | DRIVER) => self.fix_features()?,
            DRIVER_OK
                if stage(ACKNOWLEDGE | DRIVER | FEATURES_OK) && self.status & (NEEDS_RESET | FAILED) == 0 =>
            {
                self.status |= DRIVER_OK;
                self.device.activate();
            }
            FAILED => self.status |= FAILED,
            // Linux may set the first two in one write; the order within it is not told
            both if both == ACKNOWLEDGE | DRIVER => self.status |= both,
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// FEATURES_OK stays clear when the driver's choice cannot be served (virtio 1.2, 2.2.2).
    fn fix_features(&mut self) -> Result<(), Refused> {
        let unknown = self.driver_features & !self.offered_features();
        if unknown != 0 || self.driver_features & FEATURE_VERSION_1 == 0 {
            return Err(Refused);
        }
        self.status |= FEATURES_OK;
        let event_idx = self.driver_features & FEATURE_EVENT_IDX != 0;
        for queue in &mut self.queues {
            queue.ring_mut().set_event_idx(event_idx);
        }
        Ok(())
    }

    fn finish_reset(&mut self) {
        if std::mem::take(&mut self.reset_due) {
            self.device.reset();
        }
    }

    fn reset(&mut self, interrupt: &Interrupt) {
        // queues and registers at once; the device itself before it does anything else, on the device thread
        self.reset_due |= self.status & DRIVER_OK != 0;
        self.status = 0;
        self.driver_features = 0;
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.selected_queue = 0;
        for queue in &mut self.queues {
            queue.ring_mut().reset();
        }
        interrupt.acknowledge(u32::MAX);
    }
}

#[cfg(test)]
mod tests;
