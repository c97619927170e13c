//! A guest driver made of arbitrary bytes: what it may do to a device, and how far its addresses reach.

use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::driver::{DATA, Driven, memory_with_hole};
use crate::metrics::Metrics;
use arbitrary::Arbitrary;
use std::sync::Arc;

/// Operations of one run: more only make a run slow.
const OPERATIONS_MAX: usize = 256;
const FEATURES: [u64; 4] = [1 << 32, 1 << 32 | 1 << 28, 1 << 32 | 1 << 29, 1 << 32 | 1 << 28 | 1 << 29];

/// An address, more often than not one that means something.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Address {
    Data(u16),
    Ring {
        queue: u8,
        offset: u16,
    },
    /// before the end of the first piece of memory
    BeforeHole(u8),
    /// around the second piece
    AfterHole(u16),
    Top(u16),
    Any(u64),
}

impl Address {
    pub fn value(self) -> u64 {
        match self {
            Self::Data(offset) => DATA + u64::from(offset),
            Self::Ring { queue, offset } => 0x10_0000 + 0x1_0000 * u64::from(queue % 4) + u64::from(offset),
            Self::BeforeHole(back) => 0x80_0000 - u64::from(back),
            Self::AfterHole(offset) => 0x1000_0000 - 0x100 + u64::from(offset),
            Self::Top(back) => u64::MAX - u64::from(back),
            Self::Any(address) => address,
        }
    }
}

#[derive(Debug, Clone, Arbitrary)]
pub enum Op {
    Write {
        offset: u16,
        value: u32,
    },
    WriteBytes {
        offset: u16,
        data: [u8; 8],
        length: u8,
    },
    Read {
        offset: u16,
        length: u8,
    },
    Memory {
        at: Address,
        data: Vec<u8>,
    },
    Descriptor {
        queue: u8,
        index: u16,
        at: Address,
        bytes: u32,
        flags: u8,
        next: u16,
    },
    Indirect {
        queue: u8,
        at: Address,
        index: u8,
        to: Address,
        bytes: u32,
        flags: u8,
        next: u16,
    },
    Publish {
        queue: u8,
        head: u16,
    },
    Available {
        queue: u8,
        index: u16,
    },
    /// a request as a good driver makes it
    Request {
        queue: u8,
        head: [u8; 16],
        buffers: [(Address, u32, bool); 2],
    },
    Kick(u8),
    Host,
    Reset {
        features: u8,
    },
}

/// A device with a driver that has set it up by the rules, before it stops to keep them.
pub fn driven(device: Box<dyn VirtioDevice>, metrics: Arc<Metrics>) -> Driven {
    Driven::over(memory_with_hole(), device, metrics)
}

pub fn play(driven: &mut Driven, ops: &[Op]) {
    for op in ops.iter().take(OPERATIONS_MAX) {
        one(driven, op);
    }
}

fn one(driven: &mut Driven, op: &Op) {
    let queues = driven.rings.len();
    let ring = |queue: u8| usize::from(queue) % queues;
    match op {
        Op::Write { offset, value } => driven.put(u32::from(offset % 0x200), *value),
        Op::WriteBytes { offset, data, length } => {
            driven.transport.write(u64::from(*offset), &data[..usize::from(length % 9)]);
        }
        Op::Read { offset, length } => {
            driven.transport.read(u64::from(*offset), &mut [0; 8][..usize::from(length % 9)]);
        }
        Op::Memory { at, data } => driven.try_write(at.value(), data),
        Op::Descriptor { queue, index, at, bytes, flags, next } => {
            let ring = &driven.rings[ring(*queue)];
            ring.write(index % ring.size, at.value(), *bytes, u16::from(*flags), *next);
        }
        Op::Indirect { queue, at, index, to, bytes, flags, next } => {
            let _ = driven.rings[ring(*queue)].try_write_at(
                at.value(),
                u16::from(*index),
                to.value(),
                *bytes,
                u16::from(*flags),
                *next,
            );
        }
        Op::Publish { queue, head } => driven.rings[ring(*queue)].publish(*head),
        Op::Available { queue, index } => driven.rings[ring(*queue)].set_available(*index),
        Op::Request { queue, head, buffers } => request(driven, ring(*queue), head, buffers),
        Op::Kick(queue) => driven.serve(ring(*queue)),
        Op::Host => driven.transport.host_event(0),
        Op::Reset { features } => {
            driven.put(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
            driven.transport.host_event(0);
            driven.begin(FEATURES[usize::from(features % 4)]);
        }
    }
}

/// A readable header, two buffers, a writable byte at the end; then a kick.
fn request(driven: &mut Driven, queue: usize, head: &[u8; 16], buffers: &[(Address, u32, bool); 2]) {
    let header = DATA + 0x1_0000;
    driven.try_write(header, head);
    let mut chain = vec![(header, head.len() as u32, false)];
    // readable ones first: the other order is tried by single descriptors
    let mut sorted = *buffers;
    sorted.sort_by_key(|(_, _, writable)| *writable);
    chain.extend(sorted.map(|(at, bytes, writable)| (at.value(), bytes % 0x2_0000, writable)));
    chain.push((header + 16, 1, true));
    driven.rings[queue].send(&chain);
    driven.serve(queue);
}
