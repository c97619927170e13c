//! The registers of one device: what the driver has told, and what it may still change. See the drawing in the parent.

use super::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
use crate::devices::virtio::interrupt::{CONFIG_CHANGE, Interrupt};
use crate::devices::virtio::persist::DeviceStateError;
use crate::devices::virtio::queue::VirtQueue;
use crate::devices::virtio::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1, VirtioDevice};
use crate::memory::GuestMemory;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_mmio as register;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestAddress;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"PFLD");

pub(super) struct State {
    pub device: Box<dyn VirtioDevice>,
    pub memory: GuestMemory,
    pub queues: Vec<VirtQueue>,
    pub status: u32,
    device_features_page: u32,
    driver_features_page: u32,
    pub driver_features: u64,
    selected_queue: u32,
    /// counts changes of the configuration space that the device made
    config_generation: u32,
    /// what the driver did and the device does not know yet: first the one, then the other
    reset_due: bool,
    /// and with it the registers, which are reset at once otherwise
    registers_due: bool,
    activation_due: bool,
}

/// What the driver has told the transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterState {
    status: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    selected_queue: u32,
    queues: Vec<SavedQueue>,
}

/// A split virtqueue: addresses are of guest memory, indices as in virtio 1.2, 2.7.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedQueue {
    max_size: u16,
    size: u16,
    ready: bool,
    event_idx: bool,
    next_available: u16,
    next_used: u16,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl From<QueueState> for SavedQueue {
    fn from(state: QueueState) -> Self {
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            event_idx: state.event_idx_enabled,
            next_available: state.next_avail,
            next_used: state.next_used,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
        }
    }
}

impl From<&SavedQueue> for QueueState {
    fn from(saved: &SavedQueue) -> Self {
        Self {
            max_size: saved.max_size,
            next_avail: saved.next_available,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.descriptors,
            avail_ring: saved.available,
            used_ring: saved.used,
        }
    }
}

/// A register access that breaks the rules of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

impl State {
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> Self {
        Self {
            queues: device.queue_sizes().iter().map(|size| VirtQueue::new(*size)).collect(),
            device,
            memory,
            status: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            selected_queue: 0,
            config_generation: 0,
            reset_due: false,
            registers_due: false,
            activation_due: false,
        }
    }

    pub fn save(&self) -> RegisterState {
        RegisterState {
            status: self.status,
            device_features_page: self.device_features_page,
            driver_features_page: self.driver_features_page,
            driver_features: self.driver_features,
            selected_queue: self.selected_queue,
            queues: self.queues.iter().map(|queue| queue.ring().state().into()).collect(),
        }
    }

    /// Takes over `saved` if this device could have come to it.
    pub fn restore(&mut self, saved: &RegisterState) -> Result<(), DeviceStateError> {
        let offered = self.offered_features();
        if saved.status & FEATURES_OK != 0 && saved.driver_features & !offered != 0 {
            return Err(DeviceStateError::Features { saved: saved.driver_features, offered });
        }
        if saved.queues.len() != self.queues.len() {
            let (saved, configured) = (saved.queues.len(), self.queues.len());
            return Err(DeviceStateError::Queues { saved, configured });
        }
        for (index, (queue, saved)) in self.queues.iter_mut().zip(&saved.queues).enumerate() {
            let wrong = |why| DeviceStateError::Queue { queue: index, why };
            if saved.max_size != queue.ring().max_size() {
                return Err(wrong("it has another size"));
            }
            let ring = Queue::try_from(QueueState::from(saved))
                .map_err(|_| wrong("its size or an address is none"))?;
            if ring.ready() && !ring.is_valid(&self.memory) {
                return Err(wrong("it is not in guest memory"));
            }
            queue.restore(ring);
        }
        self.status = saved.status;
        self.device_features_page = saved.device_features_page;
        self.driver_features_page = saved.driver_features_page;
        self.driver_features = saved.driver_features;
        self.selected_queue = saved.selected_queue;
        let event_idx = self.driver_features & FEATURE_EVENT_IDX != 0;
        let indirect = self.driver_features & FEATURE_INDIRECT != 0;
        for queue in &mut self.queues {
            queue.set_features(event_idx, indirect);
        }
        self.activation_due = self.status & DRIVER_OK != 0;
        Ok(())
    }

    /// Something that the device does not know of yet: [`Self::catch_up`] on the device thread.
    pub fn is_behind(&self) -> bool {
        self.reset_due || self.activation_due
    }

    /// A reset waits for the host to be done with the driver's requests: until then status is not 0 (virtio 1.2, 2.4.2).
    pub fn reset_waits(&self) -> bool {
        self.registers_due
    }

    pub fn is_live(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK && !self.reset_due
    }

    /// Tells the device what the driver did. A reset waits until the host is done with the driver's requests, so that
    /// afterwards nothing touches guest memory for a driver that is gone. True when a reset was carried out.
    pub fn catch_up(&mut self, interrupt: &Interrupt) -> bool {
        let resets = self.reset_due && !self.device.is_busy();
        if resets {
            self.device.reset();
            if std::mem::take(&mut self.registers_due) {
                self.reset_registers(interrupt);
            }
            self.reset_due = false;
        }
        if !self.reset_due && std::mem::take(&mut self.activation_due) {
            self.device.activate(self.driver_features);
        }
        resets
    }

    pub fn offered_features(&self) -> u64 {
        self.device.features() | FEATURE_VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_IDX
    }

    /// The driver broke a queue: the device stops until it is reset (virtio 1.2, 2.1.2).
    pub fn needs_reset(&mut self, interrupt: &Interrupt) {
        self.status |= NEEDS_RESET;
        interrupt.raise(CONFIG_CHANGE);
    }

    /// The device changed its configuration space (virtio 1.2, 2.5.3 and 4.2.2).
    pub fn config_changed(&mut self, interrupt: &Interrupt) {
        self.config_generation = self.config_generation.wrapping_add(1);
        if self.is_live() {
            interrupt.raise(CONFIG_CHANGE);
        }
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(self.selected_queue as usize).map(VirtQueue::ring)
    }

    pub fn read_register(&self, offset: u32) -> Result<u32, Refused> {
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
            register::VIRTIO_MMIO_CONFIG_GENERATION => self.config_generation,
            // no shared memory regions: length and base all ones (virtio 1.2, 4.2.2)
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => return Err(Refused),
        })
    }

    pub fn write_register(&mut self, offset: u32, value: u32) -> Result<(), Refused> {
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

    pub fn write_status(&mut self, value: u32, interrupt: &Interrupt) -> Result<(), Refused> {
        if value == 0 {
            self.reset(interrupt);
            return Ok(());
        }
        if self.reset_waits() {
            return Err(Refused);
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
                self.activation_due = true;
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
        let can_be_served = self.device.accepts(self.driver_features);
        if unknown != 0 || self.driver_features & FEATURE_VERSION_1 == 0 || !can_be_served {
            return Err(Refused);
        }
        self.status |= FEATURES_OK;
        let event_idx = self.driver_features & FEATURE_EVENT_IDX != 0;
        let indirect = self.driver_features & FEATURE_INDIRECT != 0;
        for queue in &mut self.queues {
            queue.set_features(event_idx, indirect);
        }
        Ok(())
    }

    /// The device has sockets, timers and disks, which are none of a vCPU thread's business: it learns of the reset on
    /// the device thread, before it does anything else. Registers are reset at once, unless the host still works for
    /// this driver.
    fn reset(&mut self, interrupt: &Interrupt) {
        self.reset_due |= self.status & DRIVER_OK != 0;
        self.activation_due = false;
        self.registers_due = self.reset_due && self.device.is_busy();
        if !self.registers_due {
            self.reset_registers(interrupt);
        }
    }

    fn reset_registers(&mut self, interrupt: &Interrupt) {
        self.status = 0;
        self.driver_features = 0;
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.selected_queue = 0;
        for queue in &mut self.queues {
            queue.reset();
        }
        interrupt.acknowledge(u32::MAX);
    }
}
