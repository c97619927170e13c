//! What a request asks for: its header and form, checked, before anything is done (virtio 1.2, 5.2.6).
//!
//! A request is a readable header of 16 bytes, data, and a writable status byte at the very end. What has that form
//! gets a status, whatever it asks for; what has not breaks the queue.

use crate::devices::virtio::chain::{self, Buffer, Chain};
use crate::devices::virtio::queue::BrokenQueue;
use crate::memory::GuestMemory;
use virtio_bindings::virtio_blk;

pub const SECTOR_BYTES: u64 = 512;
pub const HEADER_BYTES: u64 = 16;
/// `struct virtio_blk_discard_write_zeroes`
const SEGMENT_BYTES: u64 = 16;
const FLAG_UNMAP: u32 = 1;
/// Longest transfer of one request: twice what Linux asks for (254 segments of 64 KiB). A queue permits 4 GiB.
pub const TRANSFER_BYTES_MAX: u64 = 32 << 20;
/// Longest range of one discard: 1 GiB. A file system gives it back without touching its blocks.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 21;
/// Longest range of one write-zeroes: 32 MiB, which a host that cannot zero a range must write.
pub const WRITE_ZEROES_SECTORS_MAX: u32 = (TRANSFER_BYTES_MAX / SECTOR_BYTES) as u32;

/// The status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok = virtio_blk::VIRTIO_BLK_S_OK as isize,
    IoError = virtio_blk::VIRTIO_BLK_S_IOERR as isize,
    Unsupported = virtio_blk::VIRTIO_BLK_S_UNSUPP as isize,
}

/// What a disk is to the guest.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    pub sectors: u64,
    pub read_only: bool,
}

/// A request of right form. Offsets and lengths are bytes and lie on the disk.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    Read { offset: u64, buffers: Vec<Buffer> },
    Write { offset: u64, buffers: Vec<Buffer> },
    Flush,
    Discard { offset: u64, bytes: u64 },
    WriteZeroes { offset: u64, bytes: u64, unmap: bool },
    GetId { bytes: u64 },
    Refused(Status),
}

impl Request {
    /// Reads the request of a chain. Also where the status byte is: its offset in the writable part.
    ///
    /// Errors: the chain has not the form of a request.
    pub fn parse(
        memory: &GuestMemory,
        chain: &Chain,
        geometry: Geometry,
    ) -> Result<(Self, u64), BrokenQueue> {
        let mut header = [0; HEADER_BYTES as usize];
        if !chain.read_exact(memory, 0, &mut header) {
            return Err(BrokenQueue::Request("a block request has no header"));
        }
        let room = chain
            .writable_bytes()
            .checked_sub(1)
            .ok_or(BrokenQueue::Request("a block request has no status byte"))?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        let changes_disk = matches!(
            kind,
            virtio_blk::VIRTIO_BLK_T_OUT
                | virtio_blk::VIRTIO_BLK_T_DISCARD
                | virtio_blk::VIRTIO_BLK_T_WRITE_ZEROES
        );
        let request = match kind {
            _ if changes_disk && geometry.read_only => Err(Status::IoError),
            virtio_blk::VIRTIO_BLK_T_IN => read(chain, geometry, sector, room),
            virtio_blk::VIRTIO_BLK_T_OUT => write(chain, geometry, sector),
            virtio_blk::VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            virtio_blk::VIRTIO_BLK_T_GET_ID => Ok(Self::GetId { bytes: room }),
            virtio_blk::VIRTIO_BLK_T_DISCARD => discard(memory, chain, geometry),
            virtio_blk::VIRTIO_BLK_T_WRITE_ZEROES => write_zeroes(memory, chain, geometry),
            _ => Err(Status::Unsupported),
        };
        Ok((request.unwrap_or_else(Self::Refused), room))
    }

    /// Bytes that move between guest and disk, for the rate limit.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Read { buffers, .. } | Self::Write { buffers, .. } => {
                buffers.iter().map(|buffer| u64::from(buffer.bytes)).sum()
            }
            // a host may have to write the zeroes
            Self::WriteZeroes { bytes, .. } => *bytes,
            Self::Flush | Self::Discard { .. } | Self::GetId { .. } | Self::Refused(_) => 0,
        }
    }
}

impl Geometry {
    /// Byte offset of a range, if it lies on the disk.
    fn on_disk(self, sector: u64, sectors: u64) -> Result<u64, Status> {
        let end = sector.checked_add(sectors).filter(|end| *end <= self.sectors);
        // the disk's length in bytes fits
        end.map(|_| sector * SECTOR_BYTES).ok_or(Status::IoError)
    }

    fn transfer(self, sector: u64, bytes: u64) -> Result<u64, Status> {
        if !bytes.is_multiple_of(SECTOR_BYTES) || bytes > TRANSFER_BYTES_MAX {
            return Err(Status::IoError);
        }
        self.on_disk(sector, bytes / SECTOR_BYTES)
    }
}

fn read(chain: &Chain, geometry: Geometry, sector: u64, room: u64) -> Result<Request, Status> {
    let offset = geometry.transfer(sector, room)?;
    let buffers = chain::slice(&chain.writable, 0, room).ok_or(Status::IoError)?;
    Ok(Request::Read { offset, buffers })
}

fn write(chain: &Chain, geometry: Geometry, sector: u64) -> Result<Request, Status> {
    let bytes = chain.readable_bytes().saturating_sub(HEADER_BYTES);
    let offset = geometry.transfer(sector, bytes)?;
    let buffers = chain::slice(&chain.readable, HEADER_BYTES, bytes).ok_or(Status::IoError)?;
    Ok(Request::Write { offset, buffers })
}

/// Offset and length in bytes, and flags, of the one segment that a request may have.
fn segment(
    memory: &GuestMemory,
    chain: &Chain,
    geometry: Geometry,
    sectors_max: u32,
) -> Result<(u64, u64, u32), Status> {
    let mut segment = [0; SEGMENT_BYTES as usize];
    let whole = chain.readable_bytes() == HEADER_BYTES + SEGMENT_BYTES;
    if !whole || !chain.read_exact(memory, HEADER_BYTES, &mut segment) {
        return Err(Status::IoError);
    }
    let sector = u64::from_le_bytes(segment[..8].try_into().expect("eight bytes"));
    let sectors = u32::from_le_bytes(segment[8..12].try_into().expect("four bytes"));
    let flags = u32::from_le_bytes(segment[12..].try_into().expect("four bytes"));
    if sectors > sectors_max {
        return Err(Status::IoError);
    }
    Ok((geometry.on_disk(sector, u64::from(sectors))?, u64::from(sectors) * SECTOR_BYTES, flags))
}

fn discard(memory: &GuestMemory, chain: &Chain, geometry: Geometry) -> Result<Request, Status> {
    let (offset, bytes, flags) = segment(memory, chain, geometry, DISCARD_SECTORS_MAX)?;
    // no flag has a meaning for a discard (virtio 1.2, 5.2.6.2)
    if flags != 0 { Err(Status::Unsupported) } else { Ok(Request::Discard { offset, bytes }) }
}

fn write_zeroes(memory: &GuestMemory, chain: &Chain, geometry: Geometry) -> Result<Request, Status> {
    let (offset, bytes, flags) = segment(memory, chain, geometry, WRITE_ZEROES_SECTORS_MAX)?;
    if flags & !FLAG_UNMAP != 0 {
        return Err(Status::Unsupported);
    }
    Ok(Request::WriteZeroes { offset, bytes, unmap: flags & FLAG_UNMAP != 0 })
}
