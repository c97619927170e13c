//! A driver of virtio-mmio devices that does as it is told, right or wrong (virtio 1.2, 2.7 and 4.2.2).

use crate::cpu;
use crate::memory::{self, RING_BYTES, RINGS, read16, read32, write16, write32, write64};

pub const WINDOWS: u64 = 0xd000_0000;
pub const WINDOW_BYTES: u64 = 0x1000;
const MAX_WINDOWS: u64 = 20;
const MAGIC: u32 = u32::from_le_bytes(*b"virt");

pub const NET: u32 = 1;
pub const BLOCK: u32 = 2;
pub const RNG: u32 = 4;
pub const BALLOON: u32 = 5;
pub const VSOCK: u32 = 19;

/// Register offsets.
pub mod register {
    pub const MAGIC: u64 = 0x00;
    pub const KIND: u64 = 0x08;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_PAGE: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_PAGE: u64 = 0x24;
    pub const QUEUE: u64 = 0x30;
    pub const QUEUE_SIZE_MAX: u64 = 0x34;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const DESCRIPTORS_LOW: u64 = 0x80;
    pub const DESCRIPTORS_HIGH: u64 = 0x84;
    pub const AVAILABLE_LOW: u64 = 0x90;
    pub const USED_LOW: u64 = 0xa0;
    pub const CONFIG: u64 = 0x100;
}

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;

pub const FEATURE_INDIRECT: u64 = 1 << 28;
pub const FEATURE_EVENT_INDEX: u64 = 1 << 29;
pub const FEATURE_VERSION_1: u64 = 1 << 32;

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// How long a device may take for an answer: some seconds of any clock, under emulation too.
const PATIENCE_TICKS: u64 = 1 << 34;
pub const MAX_QUEUES: u64 = 4;

/// A device by its window.
#[derive(Clone, Copy)]
pub struct Window {
    pub base: u64,
    pub kind: u32,
}

impl Window {
    pub fn get(self, offset: u64) -> u32 {
        read32(self.base + offset)
    }

    pub fn put(self, offset: u64, value: u32) {
        write32(self.base + offset, value);
    }

    pub fn status(self) -> u32 {
        self.get(register::STATUS)
    }

    pub fn reset(self) {
        self.put(register::STATUS, 0);
    }

    /// Waits until the device says that it wants a reset.
    pub fn wants_reset(self) -> bool {
        cpu::wait_until(PATIENCE_TICKS, || self.status() & NEEDS_RESET != 0)
    }

    pub fn kick(self, queue: u64) {
        self.put(register::NOTIFY, queue as u32);
    }

    pub fn queues(self) -> u64 {
        (0..MAX_QUEUES)
            .find(|queue| {
                self.put(register::QUEUE, *queue as u32);
                self.get(register::QUEUE_SIZE_MAX) == 0
            })
            .unwrap_or(MAX_QUEUES)
    }

    /// From reset to features that are fixed.
    pub fn negotiate(self, features: u64) -> bool {
        self.reset();
        // requests that are under way end first (virtio 1.2, 2.4.1)
        if !cpu::wait_until(PATIENCE_TICKS, || self.status() == 0) {
            return false;
        }
        self.put(register::STATUS, ACKNOWLEDGE);
        self.put(register::STATUS, ACKNOWLEDGE | DRIVER);
        for page in 0..2 {
            self.put(register::DRIVER_FEATURES_PAGE, page);
            self.put(register::DRIVER_FEATURES, (features >> (32 * page)) as u32);
        }
        self.put(register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.status() & FEATURES_OK != 0
    }

    /// The whole handshake, with rings of the largest size; false when the device does not go along.
    pub fn start_with(self, features: u64) -> bool {
        if !self.negotiate(features | FEATURE_VERSION_1) {
            return false;
        }
        for queue in 0..self.queues() {
            self.put(register::QUEUE, queue as u32);
            let ring = self.ring(queue);
            ring.clear();
            self.put(register::QUEUE_SIZE, ring.size as u32);
            self.put(register::DESCRIPTORS_LOW, ring.descriptors() as u32);
            self.put(register::AVAILABLE_LOW, ring.available() as u32);
            self.put(register::USED_LOW, ring.used() as u32);
            self.put(register::QUEUE_READY, 1);
        }
        self.put(register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        self.status() & DRIVER_OK != 0
    }

    pub fn start(self) -> bool {
        self.start_with(FEATURE_INDIRECT)
    }

    /// The ring of a queue, at its place in memory.
    pub fn ring(self, queue: u64) -> Ring {
        self.put(register::QUEUE, queue as u32);
        let size = self.get(register::QUEUE_SIZE_MAX) as u16;
        let number = (self.base - WINDOWS) / WINDOW_BYTES * MAX_QUEUES + queue;
        Ring { window: self, queue, size, base: RINGS + number * RING_BYTES }
    }
}

/// Every window with a device, in order.
pub fn windows() -> impl Iterator<Item = Window> {
    (0..MAX_WINDOWS)
        .map(|index| WINDOWS + index * WINDOW_BYTES)
        .take_while(|base| read32(base + register::MAGIC) == MAGIC)
        .map(|base| Window { base, kind: read32(base + register::KIND) })
}

/// The `number`-th device of a kind.
pub fn find(kind: u32, number: usize) -> Option<Window> {
    windows().filter(|window| window.kind == kind).nth(number)
}

/// One queue of a device.
#[derive(Clone, Copy)]
pub struct Ring {
    pub window: Window,
    pub queue: u64,
    pub size: u16,
    base: u64,
}

impl Ring {
    pub fn descriptors(self) -> u64 {
        self.base
    }

    pub fn available(self) -> u64 {
        self.base + 0x8000
    }

    pub fn used(self) -> u64 {
        self.base + 0xa000
    }

    pub fn clear(self) {
        let size = u64::from(self.size);
        for (at, bytes) in
            [(self.descriptors(), 16 * size), (self.available(), 6 + 2 * size), (self.used(), 6 + 8 * size)]
        {
            memory::fill(at, 0, bytes);
        }
    }

    pub fn write_at(self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        write64(at, address);
        write32(at + 8, length);
        write16(at + 12, flags);
        write16(at + 14, next);
    }

    pub fn write(self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.write_at(self.descriptors(), index, address, length, flags, next);
    }

    pub fn available_index(self) -> u16 {
        read16(self.available() + 2)
    }

    pub fn set_available_index(self, index: u16) {
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        write16(self.available() + 2, index);
    }

    pub fn used_index(self) -> u16 {
        read16(self.used() + 2)
    }

    /// Makes `head` available, without a kick.
    pub fn publish(self, head: u16) {
        let index = self.available_index();
        write16(self.available() + 4 + 2 * u64::from(index % self.size), head);
        self.set_available_index(index.wrapping_add(1));
    }

    pub fn kick(self) {
        self.window.kick(self.queue);
    }

    pub fn send(self, head: u16) {
        self.publish(head);
        self.kick();
    }

    /// Waits until the device has given back what is available, or wants a reset. True for the first.
    pub fn settle(self) -> bool {
        let wanted = self.available_index();
        cpu::wait_until(PATIENCE_TICKS, || {
            self.used_index() == wanted || self.window.status() & NEEDS_RESET != 0
        });
        self.used_index() == wanted
    }
}
