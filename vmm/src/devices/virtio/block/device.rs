//! State and configuration of a block device.

use super::engine::Engine;
use super::request::{DISCARD_SECTORS_MAX, Geometry, SECTOR_BYTES, WRITE_ZEROES_SECTORS_MAX};
use super::slots::Slots;
use crate::devices::rate_limit::Gate;
use crate::devices::virtio::command::{Command, Outcome};
use crate::devices::virtio::persist::{DeviceState, DeviceStateError};
use crate::devices::virtio::queue::BrokenQueue;
use crate::devices::virtio::{DeviceIo, HostSource, Progress, TYPE_BLOCK, VirtioDevice};
use crate::metrics::Metrics;
use pinfold_vmm_api::RateLimit;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use virtio_bindings::virtio_blk;

/// The engine is source 0.
const SOURCE_TIMER: usize = 1;
pub const QUEUE_SIZE: u16 = 256;
const QUEUE_SIZES: [u16; 1] = [QUEUE_SIZE];
/// Data buffers of one request: the queue's size without header and status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Length of `struct virtio_blk_config` up to `unused1` (virtio 1.2, 5.2.4).
const CONFIG_BYTES: usize = 60;
/// Holes smaller than a block of the host's file system free nothing: 4 KiB.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;
const ID_BYTES: usize = virtio_blk::VIRTIO_BLK_ID_BYTES as usize;

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
    #[error("neither io_uring nor a thread can serve the disk: {0}")]
    Engine(#[source] io::Error),
}

pub struct Block {
    pub(super) slots: Slots,
    pub(super) geometry: Geometry,
    pub(super) gate: Gate,
    /// something was written that no flush has covered
    pub(super) unflushed: bool,
    pub(super) id: [u8; ID_BYTES],
    pub(super) metrics: Arc<Metrics>,
    config: [u8; CONFIG_BYTES],
    /// the engine works on it by its descriptor
    _file: File,
}

impl Block {
    /// `serial`: up to 20 bytes, read by the driver as the disk's id. `with_filter`: for the worker thread, if one is
    /// needed.
    pub fn new(
        file: File,
        serial: &str,
        read_only: bool,
        rate: RateLimit,
        with_filter: bool,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BlockError> {
        let engine = |file: &File| Engine::new(file, with_filter);
        let mut block = Self::with_engine(file, serial, read_only, metrics, engine)?;
        block.gate.set(rate);
        Ok(block)
    }

    pub(super) fn with_engine(
        file: File,
        serial: &str,
        read_only: bool,
        metrics: Arc<Metrics>,
        engine: impl FnOnce(&File) -> io::Result<Engine>,
    ) -> Result<Self, BlockError> {
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
        let mut id = [0; ID_BYTES];
        for (slot, byte) in id.iter_mut().zip(serial.bytes()) {
            *slot = byte;
        }
        let geometry = Geometry { sectors: bytes / SECTOR_BYTES, read_only };
        let slots = Slots::new(engine(&file).map_err(BlockError::Engine)?);
        // before us somebody may have written what is not on the disk yet
        Ok(Self {
            slots,
            geometry,
            gate: Gate::new(RateLimit::default())?,
            unflushed: true,
            id,
            metrics,
            config: config(geometry),
            _file: file,
        })
    }
}

/// `struct virtio_blk_config` (virtio 1.2, 5.2.4); fields of features that are not offered stay zero.
fn config(geometry: Geometry) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    config[..8].copy_from_slice(&geometry.sectors.to_le_bytes());
    let mut put = |at: usize, value: u32| config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(12, MAX_SEGMENTS);
    if !geometry.read_only {
        put(36, DISCARD_SECTORS_MAX);
        put(40, 1);
        put(44, DISCARD_ALIGNMENT_SECTORS);
        put(48, WRITE_ZEROES_SECTORS_MAX);
        put(52, 1);
        // one byte: write_zeroes_may_unmap
        put(56, 1);
    }
    config
}

fn is_writable(file: &File) -> io::Result<bool> {
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
        if self.geometry.read_only {
            return common | 1 << virtio_blk::VIRTIO_BLK_F_RO;
        }
        common | 1 << virtio_blk::VIRTIO_BLK_F_DISCARD | 1 << virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn is_busy(&self) -> bool {
        self.slots.on_the_way() > 0
    }

    fn reset(&mut self) {
        self.unflushed = !self.geometry.read_only;
    }

    fn quiesce(&mut self, io: Option<&mut DeviceIo<'_>>) -> Result<(), BrokenQueue> {
        match io {
            Some(io) => self.wait_for_all(io),
            None => {
                self.abandon_all();
                Ok(())
            }
        }
    }

    fn queue_event(&mut self, _queue: usize, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        self.serve(io)
    }

    fn host_sources(&self) -> Vec<HostSource> {
        vec![HostSource::level(self.slots.engine().fd()), HostSource::level(self.gate.as_raw_fd())]
    }

    fn host_event(&mut self, source: usize, io: Option<&mut DeviceIo<'_>>) -> Result<Progress, BrokenQueue> {
        if source == SOURCE_TIMER {
            self.gate.timer_fired();
        }
        match io {
            Some(io) => self.serve(io),
            None => {
                self.abandon();
                Ok(Progress::Done)
            }
        }
    }

    fn command(&mut self, command: Command) -> Outcome {
        let Command::SetRate { limit, .. } = command else { return Outcome::Unsupported };
        self.gate.set(limit);
        Outcome::Done
    }

    fn save(&self) -> DeviceState {
        self.state()
    }

    fn restore(&mut self, saved: &DeviceState) -> Result<(), DeviceStateError> {
        self.check(saved)
    }
}
