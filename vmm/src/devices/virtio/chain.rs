//! A descriptor chain, copied out of guest memory once and checked as a copy.
//!
//! The guest can change its descriptors at any time. What the device works with is the copy, so what was checked is
//! what is used. Buffers are still guest memory: they are read and written once, by volatile access.
//!
//! ```text
//!   head -> descriptor -> descriptor -> ... -> last                      the queue's own table
//!                              \-- INDIRECT, the last here --> table --> descriptor -> ... -> last
//! ```
//!
//! The walk takes as many steps as the queue has entries at most, so a loop ends (virtio 1.2, 2.7.5.3.1 and 2.7.5.3.2).

use crate::memory::GuestMemory;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const DESCRIPTOR_BYTES: u64 = 16;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
/// Entries of an indirect table, most: `next` has 16 bits.
const INDIRECT_ENTRIES_MAX: u64 = 1 << 16;

/// A piece of guest memory that lies in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    pub address: GuestAddress,
    pub bytes: u32,
}

/// A request of the driver: first what the device reads, then what it writes (virtio 1.2, 2.7.4.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub head: u16,
    pub readable: Vec<Buffer>,
    pub writable: Vec<Buffer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    #[error("a link leaves its table")]
    Links,
    #[error("it has more descriptors than the queue, or loops")]
    TooLong,
    #[error("all its buffers together are longer than 4 GiB")]
    TooManyBytes,
    #[error("its descriptor table is not in memory")]
    TableOutsideMemory,
    #[error("an indirect table is nested, empty, too long, not whole, goes on, or was not agreed on")]
    Indirect,
    #[error("a readable buffer follows a writable one")]
    Order,
    #[error("a buffer is not in memory")]
    OutsideMemory,
}

/// Where the descriptors of a queue are, and what the driver may do with them.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    pub address: GuestAddress,
    /// entries, and so the length of a chain at most
    pub size: u16,
    /// VIRTIO_F_INDIRECT_DESC was agreed on
    pub indirect: bool,
}

#[derive(Debug, Clone, Copy)]
struct Descriptor {
    buffer: Buffer,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// Entry `index` of a table. One read of 16 bytes: the copy does not change any more.
    fn read(memory: &GuestMemory, table: GuestAddress, index: u16) -> Option<Self> {
        let address = table.0.checked_add(u64::from(index) * DESCRIPTOR_BYTES)?;
        let raw: [u8; DESCRIPTOR_BYTES as usize] = memory.read_obj(GuestAddress(address)).ok()?;
        let (address, rest) = raw.split_first_chunk::<8>()?;
        let (bytes, rest) = rest.split_first_chunk::<4>()?;
        let (flags, next) = rest.split_first_chunk::<2>()?;
        Some(Self {
            buffer: Buffer {
                address: GuestAddress(u64::from_le_bytes(*address)),
                bytes: u32::from_le_bytes(*bytes),
            },
            flags: u16::from_le_bytes(*flags),
            next: u16::from_le_bytes([next[0], next[1]]),
        })
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

impl Chain {
    /// Copies and checks the chain that begins at descriptor `head`.
    pub fn collect(memory: &GuestMemory, table: Table, head: u16) -> Result<Self, BrokenChain> {
        let mut chain = Self { head, readable: Vec::new(), writable: Vec::new() };
        let (mut address, mut entries, mut in_indirect) = (table.address, u64::from(table.size), false);
        let (mut index, mut bytes) = (head, 0u32);
        // one more step than descriptors: that into an indirect table
        for _ in 0..=table.size {
            if u64::from(index) >= entries {
                return Err(BrokenChain::Links);
            }
            let descriptor =
                Descriptor::read(memory, address, index).ok_or(BrokenChain::TableOutsideMemory)?;
            if descriptor.has(INDIRECT) {
                if in_indirect || !table.indirect {
                    return Err(BrokenChain::Indirect);
                }
                entries = descriptor.indirect_entries()?;
                (address, index, in_indirect) = (descriptor.buffer.address, 0, true);
                continue;
            }
            if chain.readable.len() + chain.writable.len() == usize::from(table.size) {
                return Err(BrokenChain::TooLong);
            }
            bytes = bytes.checked_add(descriptor.buffer.bytes).ok_or(BrokenChain::TooManyBytes)?;
            chain.add(memory, &descriptor)?;
            if !descriptor.has(NEXT) {
                return Ok(chain);
            }
            index = descriptor.next;
        }
        Err(BrokenChain::TooLong)
    }

    fn add(&mut self, memory: &GuestMemory, descriptor: &Descriptor) -> Result<(), BrokenChain> {
        let buffer = descriptor.buffer;
        if !memory.check_range(buffer.address, buffer.bytes as usize) {
            return Err(BrokenChain::OutsideMemory);
        }
        if descriptor.has(WRITE) {
            self.writable.push(buffer);
        } else if self.writable.is_empty() {
            self.readable.push(buffer);
        } else {
            return Err(BrokenChain::Order);
        }
        Ok(())
    }

    pub fn readable_bytes(&self) -> u64 {
        total(&self.readable)
    }

    pub fn writable_bytes(&self) -> u64 {
        total(&self.writable)
    }

    /// Copies from the readable part, from byte `skip` on; false when it is too short.
    pub fn read_exact(&self, memory: &GuestMemory, skip: u64, into: &mut [u8]) -> bool {
        let Some(pieces) = slice(&self.readable, skip, into.len() as u64) else { return false };
        let mut done = 0;
        for piece in pieces {
            let end = done + piece.bytes as usize;
            if memory.read_slice(&mut into[done..end], piece.address).is_err() {
                return false;
            }
            done = end;
        }
        true
    }

    /// Copies into the writable part, from byte `skip` on; false when it is too short.
    pub fn write_all(&self, memory: &GuestMemory, skip: u64, from: &[u8]) -> bool {
        let Some(pieces) = slice(&self.writable, skip, from.len() as u64) else { return false };
        let mut done = 0;
        for piece in pieces {
            let end = done + piece.bytes as usize;
            if memory.write_slice(&from[done..end], piece.address).is_err() {
                return false;
            }
            done = end;
        }
        true
    }
}

impl Descriptor {
    /// Entries of the table that this descriptor refers to. It must be the last of its chain.
    fn indirect_entries(&self) -> Result<u64, BrokenChain> {
        let bytes = u64::from(self.buffer.bytes);
        let entries = bytes / DESCRIPTOR_BYTES;
        let whole = bytes.is_multiple_of(DESCRIPTOR_BYTES);
        if self.has(NEXT) || !whole || entries == 0 || entries > INDIRECT_ENTRIES_MAX {
            return Err(BrokenChain::Indirect);
        }
        Ok(entries)
    }
}

fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.bytes)).sum()
}

/// Bytes `skip` to `skip + bytes` of `buffers` as pieces of them; none when they are not that long.
pub fn slice(buffers: &[Buffer], skip: u64, bytes: u64) -> Option<Vec<Buffer>> {
    if skip.checked_add(bytes)? > total(buffers) {
        return None;
    }
    let (mut skip, mut left) = (skip, bytes);
    let mut pieces = Vec::new();
    for buffer in buffers {
        let length = u64::from(buffer.bytes);
        if skip >= length {
            skip -= length;
            continue;
        }
        if left == 0 {
            break;
        }
        let taken = left.min(length - skip);
        pieces.push(Buffer { address: GuestAddress(buffer.address.0 + skip), bytes: taken as u32 });
        left -= taken;
        skip = 0;
    }
    Some(pieces)
}

#[cfg(test)]
mod tests;
