//! A descriptor chain, copied out of guest memory once and checked as a copy.
//!
//! The guest can change its descriptors at any time. What the device works with is the copy, so what was checked is
//! what is used. Buffers are still guest memory: they are read and written once, by volatile access.

use crate::memory::GuestMemory;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

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
    #[error("it loops, leaves its table, is longer than 4 GiB, or its table is not in memory")]
    Links,
    #[error("it has more descriptors than the queue")]
    TooLong,
    #[error("a readable buffer follows a writable one")]
    Order,
    #[error("a buffer is not in memory")]
    OutsideMemory,
}

impl Chain {
    /// Copies and checks the chain. `max_descriptors` is the size of the queue (virtio 1.2, 2.7.5.3.1).
    pub fn collect(
        memory: &GuestMemory,
        mut descriptors: DescriptorChain<&GuestMemory>,
        max_descriptors: usize,
    ) -> Result<Self, BrokenChain> {
        let mut chain = Self { head: descriptors.head_index(), readable: Vec::new(), writable: Vec::new() };
        // the iterator ends early, without a word, where a chain is broken: then the last one still has a next
        let mut goes_on = true;
        for descriptor in descriptors.by_ref() {
            goes_on = descriptor.has_next();
            if chain.readable.len() + chain.writable.len() == max_descriptors {
                return Err(BrokenChain::TooLong);
            }
            let buffer = Buffer { address: descriptor.addr(), bytes: descriptor.len() };
            if !memory.check_range(buffer.address, buffer.bytes as usize) {
                return Err(BrokenChain::OutsideMemory);
            }
            if descriptor.is_write_only() {
                chain.writable.push(buffer);
            } else if chain.writable.is_empty() {
                chain.readable.push(buffer);
            } else {
                return Err(BrokenChain::Order);
            }
        }
        if goes_on { Err(BrokenChain::Links) } else { Ok(chain) }
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
