//! Requests of the driver: read, write, flush, get id (virtio 1.2, 5.2.6).
//!
//! A request is a readable header of 16 bytes, data, and a writable status byte at the very end. What has that form
//! gets a status, whatever it asks for; what has not breaks the queue.

use super::device::{Block, SECTOR_BYTES};
use super::transfer::{Direction, transfer};
use crate::devices::virtio::chain::{self, Chain};
use crate::devices::virtio::queue::{BrokenQueue, drain};
use crate::devices::virtio::{DeviceIo, Progress};
use crate::memory::GuestMemory;
use virtio_bindings::virtio_blk;

const HEADER_BYTES: u64 = 16;
/// Longest transfer of one request: twice what Linux asks for (254 segments of 64 KiB). A queue permits 4 GiB, which on a
/// slow disk would keep the device thread from everything else for minutes.
pub const TRANSFER_BYTES_MAX: u64 = 32 << 20;

/// Status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok = virtio_blk::VIRTIO_BLK_S_OK as isize,
    IoError = virtio_blk::VIRTIO_BLK_S_IOERR as isize,
    Unsupported = virtio_blk::VIRTIO_BLK_S_UNSUPP as isize,
}

impl Block {
    pub(super) fn requests(&mut self, queue: usize, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        let (memory, interrupt) = (io.memory, io.interrupt);
        drain(&mut io.queues[queue], memory, interrupt, |chain| self.serve(memory, chain))
    }

    /// Returns the bytes written to the chain, the status byte included.
    fn serve(&self, memory: &GuestMemory, chain: &Chain) -> Result<u32, BrokenQueue> {
        let mut header = [0; HEADER_BYTES as usize];
        if !chain.read_exact(memory, 0, &mut header) {
            self.metrics.block.guest_errors.increment();
            return Err(BrokenQueue::Request("a block request has no header"));
        }
        let Some(room) = chain.writable_bytes().checked_sub(1) else {
            self.metrics.block.guest_errors.increment();
            return Err(BrokenQueue::Request("a block request has no status byte"));
        };
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        let status = match kind {
            virtio_blk::VIRTIO_BLK_T_IN => self.read(memory, chain, sector, room),
            virtio_blk::VIRTIO_BLK_T_OUT => self.write(memory, chain, sector),
            virtio_blk::VIRTIO_BLK_T_FLUSH => self.flush(),
            virtio_blk::VIRTIO_BLK_T_GET_ID => self.get_id(memory, chain, room),
            _ => Status::Unsupported,
        };
        if status == Status::Unsupported {
            self.metrics.block.guest_errors.increment();
        }
        chain.write_all(memory, room, &[status as u8]);
        // the status is the last byte, so the length covers all
        Ok(u32::try_from(room + 1).unwrap_or(u32::MAX))
    }

    /// Byte offset of a transfer, if it lies on the disk, is whole sectors and not too long.
    fn on_disk(&self, sector: u64, bytes: u64) -> Option<u64> {
        let end = sector.checked_add(bytes / SECTOR_BYTES).filter(|end| *end <= self.sectors);
        let whole = bytes.is_multiple_of(SECTOR_BYTES) && bytes <= TRANSFER_BYTES_MAX;
        let offset = end.filter(|_| whole).map(|_| sector * SECTOR_BYTES);
        if offset.is_none() {
            self.metrics.block.guest_errors.increment();
        }
        offset
    }

    fn read(&self, memory: &GuestMemory, chain: &Chain, sector: u64, bytes: u64) -> Status {
        let Some(offset) = self.on_disk(sector, bytes) else { return Status::IoError };
        let Some(buffers) = chain::slice(&chain.writable, 0, bytes) else { return Status::IoError };
        match transfer(&self.file, memory, &buffers, offset, Direction::Read) {
            Ok(()) => {
                self.metrics.block.read_bytes.add(bytes);
                Status::Ok
            }
            Err(_) => {
                self.metrics.block.host_errors.increment();
                Status::IoError
            }
        }
    }

    fn write(&self, memory: &GuestMemory, chain: &Chain, sector: u64) -> Status {
        if self.read_only {
            self.metrics.block.guest_errors.increment();
            return Status::IoError;
        }
        let bytes = chain.readable_bytes() - HEADER_BYTES;
        let Some(offset) = self.on_disk(sector, bytes) else { return Status::IoError };
        let Some(buffers) = chain::slice(&chain.readable, HEADER_BYTES, bytes) else {
            return Status::IoError;
        };
        match transfer(&self.file, memory, &buffers, offset, Direction::Write) {
            Ok(()) => {
                self.metrics.block.write_bytes.add(bytes);
                Status::Ok
            }
            Err(_) => {
                self.metrics.block.host_errors.increment();
                Status::IoError
            }
        }
    }

    fn flush(&self) -> Status {
        self.metrics.block.flushes.increment();
        if self.read_only || self.file.sync_data().is_ok() {
            return Status::Ok;
        }
        self.metrics.block.host_errors.increment();
        Status::IoError
    }

    /// The id is 20 bytes; a shorter buffer takes what fits.
    fn get_id(&self, memory: &GuestMemory, chain: &Chain, room: u64) -> Status {
        let bytes = room.min(self.id.len() as u64);
        if bytes < self.id.len() as u64 {
            self.metrics.block.guest_errors.increment();
        }
        if chain.write_all(memory, 0, &self.id[..bytes as usize]) { Status::Ok } else { Status::IoError }
    }
}
