//! The other side of a queue, for tests and fuzzing: a driver that does as it is told, right or wrong.

use super::mmio::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, Transport};
use super::queue::VirtQueue;
use super::{FEATURE_INDIRECT, FEATURE_VERSION_1, VirtioDevice};
use crate::memory::GuestMemory;
use crate::metrics::Metrics;
use std::sync::Arc;
use virtio_bindings::virtio_mmio as register;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// First address of the memory that tests use for data.
pub const DATA: u64 = 0x40_0000;
pub const MEMORY_BYTES: u64 = 96 << 20;

/// Two regions with a hole between them, like a large guest, but small.
pub fn memory_with_hole() -> GuestMemory {
    GuestMemory::from_ranges(&[
        (GuestAddress(0), 0x10_0000),
        (GuestAddress(0x10_0000), 0x70_0000),
        (GuestAddress(0x1000_0000), 0x10_0000),
    ])
    .expect("memory")
}

/// One ring and the memory it lies in.
pub struct Ring {
    pub memory: GuestMemory,
    pub size: u16,
    pub base: u64,
    next_descriptor: u16,
    available: u16,
    used_seen: u16,
}

impl Ring {
    /// The ring takes less than 64 KiB from `base` on.
    pub fn new(memory: &GuestMemory, base: u64, size: u16) -> Self {
        Self { memory: memory.clone(), size, base, next_descriptor: 0, available: 0, used_seen: 0 }
    }

    pub fn descriptors(&self) -> u64 {
        self.base
    }

    pub fn avail(&self) -> u64 {
        self.base + 0x8000
    }

    pub fn used(&self) -> u64 {
        self.base + 0xa000
    }

    /// The device's side of it.
    pub fn queue(&self) -> VirtQueue {
        let mut queue = VirtQueue::new(self.size);
        let ring = queue.ring_mut();
        ring.set_desc_table_address(Some(self.descriptors() as u32), Some(0));
        ring.set_avail_ring_address(Some(self.avail() as u32), Some(0));
        ring.set_used_ring_address(Some(self.used() as u32), Some(0));
        ring.set_ready(true);
        queue.set_features(false, true);
        queue
    }

    pub fn write_at(&self, table: u64, index: u16, address: u64, bytes: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.memory.write_obj(address, GuestAddress(at)).expect("in memory");
        self.memory.write_obj(bytes, GuestAddress(at + 8)).expect("in memory");
        self.memory.write_obj(flags, GuestAddress(at + 12)).expect("in memory");
        self.memory.write_obj(next, GuestAddress(at + 14)).expect("in memory");
    }

    /// Like [`Self::write_at`], where the table may lie anywhere.
    pub fn try_write_at(
        &self,
        table: u64,
        index: u16,
        address: u64,
        bytes: u32,
        flags: u16,
        next: u16,
    ) -> Option<()> {
        let at = GuestAddress(table.checked_add(16 * u64::from(index))?);
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&bytes.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        descriptor[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&descriptor, at).ok()
    }

    pub fn write(&self, index: u16, address: u64, bytes: u32, flags: u16, next: u16) {
        self.write_at(self.descriptors(), index, address, bytes, flags, next);
    }

    /// Makes `head` available.
    pub fn publish(&mut self, head: u16) {
        let slot = self.avail() + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).expect("in memory");
        self.set_available(self.available.wrapping_add(1));
    }

    pub fn set_available(&mut self, index: u16) {
        self.available = index;
        self.memory.write_obj(index, GuestAddress(self.avail() + 2)).expect("in memory");
    }

    /// With VIRTIO_F_EVENT_IDX: interrupt when the used index passes this one (virtio 1.2, 2.7.7).
    pub fn set_used_event(&self, index: u16) {
        let at = self.avail() + 4 + 2 * u64::from(self.size);
        self.memory.write_obj(index, GuestAddress(at)).expect("in memory");
    }

    /// With VIRTIO_F_EVENT_IDX: the device wants a kick when the available index passes this one.
    pub fn avail_event(&self) -> u16 {
        let at = self.used() + 4 + 8 * u64::from(self.size);
        self.memory.read_obj(GuestAddress(at)).expect("in memory")
    }

    /// Without it: the driver wants no interrupts.
    pub fn set_no_interrupt(&self, flag: u16) {
        self.memory.write_obj(flag, GuestAddress(self.avail())).expect("in memory");
    }

    /// Without it: what the device says about kicks.
    pub fn used_flags(&self) -> u16 {
        self.memory.read_obj(GuestAddress(self.used())).expect("in memory")
    }

    /// A chain of (address, bytes, device writes) in the next free descriptors.
    pub fn send(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_descriptor;
        for (position, (address, bytes, writable)) in buffers.iter().enumerate() {
            let index = (head + position as u16) % self.size;
            let last = position + 1 == buffers.len();
            let next = (index + 1) % self.size;
            let flags = if last { 0 } else { NEXT } | if *writable { WRITE } else { 0 };
            self.write(index, *address, *bytes, flags, next);
        }
        self.next_descriptor = (head + buffers.len() as u16) % self.size;
        self.publish(head);
        head
    }

    /// What came back since the last call: heads and lengths.
    pub fn take_used(&mut self) -> Vec<(u32, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(self.used() + 2)).expect("in memory");
        let mut all = Vec::new();
        while self.used_seen != index {
            let slot = self.used() + 4 + 8 * u64::from(self.used_seen % self.size);
            let head = self.memory.read_obj(GuestAddress(slot)).expect("in memory");
            let bytes = self.memory.read_obj(GuestAddress(slot + 4)).expect("in memory");
            all.push((head, bytes));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        all
    }
}

/// A device behind its transport, with a driver that went through the whole initialisation.
pub struct Driven {
    pub transport: Transport,
    pub rings: Vec<Ring>,
    sizes: &'static [u16],
    pub memory: GuestMemory,
    pub metrics: Arc<Metrics>,
}

impl Driven {
    pub fn new(device: Box<dyn VirtioDevice>, metrics: Arc<Metrics>) -> Self {
        Self::with_features(device, metrics, FEATURE_VERSION_1 | FEATURE_INDIRECT)
    }

    pub fn with_features(device: Box<dyn VirtioDevice>, metrics: Arc<Metrics>, features: u64) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).expect("memory");
        let driven = Self::fresh(memory, device, metrics);
        driven.initialise(features);
        driven
    }

    /// Over memory of the test's own, through the whole initialisation, which must succeed.
    pub fn over_with(
        memory: GuestMemory,
        device: Box<dyn VirtioDevice>,
        metrics: Arc<Metrics>,
        features: u64,
    ) -> Self {
        let driven = Self::fresh(memory, device, metrics);
        driven.initialise(features);
        driven
    }

    /// The same over `memory`, which reaches from 0 past the rings at 1 MiB.
    pub fn over(memory: GuestMemory, device: Box<dyn VirtioDevice>, metrics: Arc<Metrics>) -> Self {
        let driven = Self::fresh(memory, device, metrics);
        driven.begin(FEATURE_VERSION_1 | FEATURE_INDIRECT);
        driven
    }

    fn fresh(memory: GuestMemory, device: Box<dyn VirtioDevice>, metrics: Arc<Metrics>) -> Self {
        let sizes = device.queue_sizes();
        let transport = Transport::new(device, memory.clone(), Arc::clone(&metrics)).expect("a transport");
        let mut driven = Self { rings: Vec::new(), sizes, transport, memory, metrics };
        driven.new_rings();
        driven
    }

    /// Kicks `queue` and waits until the device has done what it was asked for.
    pub fn serve(&self, queue: usize) {
        self.transport.queue_event(queue);
        self.transport.quiesce().expect("at rest");
    }

    /// Empty rings, as a driver has them that begins anew.
    pub fn new_rings(&mut self) {
        let memory = &self.memory;
        let ring = |(index, size): (usize, &u16)| {
            let base = 0x10_0000 + 0x1_0000 * index as u64;
            memory.write_slice(&[0; 0x1_0000], GuestAddress(base)).expect("in memory");
            Ring::new(memory, base, *size)
        };
        self.rings = self.sizes.iter().enumerate().map(ring).collect();
    }

    /// Through the whole initialisation, which must succeed.
    pub fn initialise(&self, features: u64) {
        self.begin(features);
        assert_eq!(self.status() & DRIVER_OK, DRIVER_OK);
    }

    /// Through the whole initialisation, whatever the device says to it.
    pub fn begin(&self, features: u64) {
        self.put(register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        self.put(register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        for page in 0..2u32 {
            self.put(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
            self.put(register::VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * page)) as u32);
        }
        self.put(register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        for (index, ring) in self.rings.iter().enumerate() {
            self.put(register::VIRTIO_MMIO_QUEUE_SEL, index as u32);
            self.put(register::VIRTIO_MMIO_QUEUE_NUM, u32::from(ring.size));
            self.put(register::VIRTIO_MMIO_QUEUE_DESC_LOW, ring.descriptors() as u32);
            self.put(register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring.avail() as u32);
            self.put(register::VIRTIO_MMIO_QUEUE_USED_LOW, ring.used() as u32);
            self.put(register::VIRTIO_MMIO_QUEUE_READY, 1);
        }
        self.put(register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    pub fn put(&self, offset: u32, value: u32) {
        self.transport.write(u64::from(offset), &value.to_le_bytes());
    }

    pub fn get(&self, offset: u32) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(u64::from(offset), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn status(&self) -> u32 {
        self.get(register::VIRTIO_MMIO_STATUS)
    }

    pub fn guest_errors(&self) -> u64 {
        self.metrics.snapshot().guest_errors
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("in memory");
    }

    /// Writes where that is memory.
    pub fn try_write(&self, address: u64, bytes: &[u8]) {
        let _ = self.memory.write_slice(bytes, GuestAddress(address));
    }

    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.memory.read_slice(&mut data, GuestAddress(address)).expect("in memory");
        data
    }
}
