//! State and configuration of a block device.

use crate::devices::virtio::persist::{DeviceState, DeviceStateError};
use crate::devices::virtio::queue::BrokenQueue;
use crate::devices::virtio::{DeviceIo, Progress, TYPE_BLOCK, VirtioDevice};
use crate::metrics::Metrics;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use virtio_bindings::virtio_blk;

pub const QUEUE_SIZE: u16 = 256;
const QUEUE_SIZES: [u16; 1] = [QUEUE_SIZE];
pub const SECTOR_BYTES: u64 = 512;
/// Data buffers of one request: the queue's size without header and status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Length of `struct virtio_blk_config` up to `seg_max`.
const CONFIG_BYTES: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error("the disk file cannot be looked at: {0}")]
    Open(#[from] io::Error),
    #[error("the disk is neither a regular file nor a block device")]
    Kind,
    #[error("the disk has {bytes} bytes, not a multiple of 512 above zero")]
    Size { bytes: u64 },
    #[error("the disk is to be writable but its descriptor is read-only")]
    NotWritable,
}

pub struct Block {
    pub(super) file: File,
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    pub(super) id: [u8; virtio_blk::VIRTIO_BLK_ID_BYTES as usize],
    pub(super) metrics: Arc<Metrics>,
    config: [u8; CONFIG_BYTES],
}

impl Block {
    /// `serial`: up to 20 bytes, read by the driver as the disk's id.
    pub fn new(file: File, serial: &str, read_only: bool, metrics: Arc<Metrics>) -> Result<Self, BlockError> {
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(BlockError::Kind);
        }
        if !read_only && !is_writable(&file)? {
            return Err(BlockError::NotWritable);
        }
        // the length of a block device is where its end is; the offset is not used after this
        let bytes = (&file).seek(SeekFrom::End(0))?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(BlockError::Size { bytes });
        }
        let mut id = [0; virtio_blk::VIRTIO_BLK_ID_BYTES as usize];
        for (slot, byte) in id.iter_mut().zip(serial.bytes()) {
            *slot = byte;
        }
        let sectors = bytes / SECTOR_BYTES;
        // capacity, size_max (not offered), seg_max
        let mut config = [0; CONFIG_BYTES];
        config[..8].copy_from_slice(&sectors.to_le_bytes());
        config[12..].copy_from_slice(&MAX_SEGMENTS.to_le_bytes());
        Ok(Self { file, sectors, read_only, id, metrics, config })
    }
}

fn is_writable(file: &File) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    // SAFETY: F_GETFL reads the flags of an open descriptor.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(flags & libc::O_ACCMODE == libc::O_RDWR)
}

impl VirtioDevice for Block {
    fn kind(&self) -> u32 {
        TYPE_BLOCK
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let common = 1 << virtio_blk::VIRTIO_BLK_F_FLUSH | 1 << virtio_blk::VIRTIO_BLK_F_SEG_MAX;
        if self.read_only { common | 1 << virtio_blk::VIRTIO_BLK_F_RO } else { common }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        self.requests(queue, io)
    }

    fn save(&self) -> DeviceState {
        self.state()
    }

    fn restore(&mut self, saved: &DeviceState) -> Result<(), DeviceStateError> {
        self.check(saved)
    }
}
