//! Frames for the guest: read by the host's kernel straight into the guest's buffers.
//!
//! ```text
//!   queue --pop--> ready: chains with room for the longest frame --readv--> filled --gate--> used ring
//!     ^                                        |                              |
//!     +--- put back, when the device rests ----+               waits here while its rate is used up
//! ```

use super::device::{Net, RECEIVE};
use super::events::{Turn, interrupt};
use super::header::{self, F_MRG_RXBUF, HEADER_BYTES, NUM_BUFFERS_AT, receive_bytes};
use super::metrics::NetMetrics;
use crate::devices::rate_limit::Gate;
use crate::devices::virtio::chain::{self, Chain};
use crate::devices::virtio::queue::{BrokenQueue, VirtQueue};
use crate::devices::virtio::{DeviceIo, Progress};
use crate::memory::GuestMemory;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Vectors that one readv takes (IOV_MAX). Chains that have more of them in front are the guest's own fault: it gets the
/// frame cut off, and so none.
const VECTORS_MAX: usize = 1024;

/// A chain with its pieces as the kernel takes them.
#[derive(Debug)]
struct Ready {
    chain: Chain,
    bytes: u64,
    vectors: usize,
}

#[derive(Debug)]
pub(super) struct Receiver {
    pub gate: Gate,
    ready: VecDeque<Ready>,
    ready_bytes: u64,
    /// the pieces of `ready`, in order
    vectors: VecDeque<libc::iovec>,
    /// a frame of so many bytes, header included, is in the first chains and waits for its rate
    held: Option<u64>,
    /// one byte behind the buffers: what fills it was too long for them
    beyond: Box<u8>,
}

// SAFETY: the vectors point into guest memory, which stays mapped and may be used from any thread.
unsafe impl Send for Receiver {}

impl Receiver {
    pub fn new(gate: Gate) -> Self {
        Self {
            gate,
            ready: VecDeque::new(),
            ready_bytes: 0,
            vectors: VecDeque::new(),
            held: None,
            beyond: Box::new(0),
        }
    }

    pub fn reset(&mut self) {
        self.ready.clear();
        self.ready_bytes = 0;
        self.vectors.clear();
        self.held = None;
    }

    /// Gives all chains back to the queue, unused. A frame that waited is lost.
    pub fn put_back(&mut self, queue: &mut VirtQueue, metrics: &NetMetrics) {
        metrics.dropped.add(u64::from(self.held.is_some()));
        // no more than the queue is long
        queue.undo_pops(self.ready.len() as u16);
        self.reset();
    }

    fn add(&mut self, memory: &GuestMemory, chain: Chain) -> Result<(), BrokenQueue> {
        let bytes = chain.writable_bytes();
        if !chain.readable.is_empty() || bytes < HEADER_BYTES as u64 {
            return Err(BrokenQueue::Request("a receive buffer has a readable part or no room for a header"));
        }
        let before = self.vectors.len();
        for buffer in &chain.writable {
            for slice in memory.get_slices(buffer.address, buffer.bytes as usize) {
                let slice = slice.map_err(|_| BrokenQueue::Request("a receive buffer has left memory"))?;
                let guard = slice.ptr_guard_mut();
                self.vectors.push_back(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() });
            }
        }
        self.ready_bytes += bytes;
        self.ready.push_back(Ready { chain, bytes, vectors: self.vectors.len() - before });
        Ok(())
    }

    /// Takes the first chain off.
    fn take(&mut self) -> Option<Ready> {
        let ready = self.ready.pop_front()?;
        self.ready_bytes -= ready.bytes;
        self.vectors.drain(..ready.vectors);
        Some(ready)
    }
}

/// Whether a frame may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Enough,
    Short,
}

impl Net {
    pub(super) fn receive(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        let memory = io.memory;
        io.queues[RECEIVE].disable_kicks(memory)?;
        let mut turn = Turn::new(io.queues[RECEIVE].size());
        let progress = loop {
            if turn.is_over() {
                break Progress::More;
            }
            if self.receiver.held.is_none() {
                if self.make_room(io)? == Room::Short {
                    if !io.queues[RECEIVE].enable_kicks(memory)? {
                        break Progress::Done;
                    }
                    io.queues[RECEIVE].disable_kicks(memory)?;
                    continue;
                }
                match self.read_frame(memory, &mut turn) {
                    Some(bytes) => self.receiver.held = Some(bytes),
                    // the tap tells an arrival once: what it still has must be asked for
                    None if turn.is_over() => break Progress::More,
                    None => break Progress::Done,
                }
            }
            let Some(bytes) = self.receiver.held else { continue };
            if !self.receiver.gate.pass(bytes.saturating_sub(HEADER_BYTES as u64)) {
                self.metrics.net.throttled.increment();
                break Progress::Done;
            }
            self.receiver.held = None;
            self.give(io, bytes)?;
            turn.spend(bytes);
        };
        interrupt(io, RECEIVE)?;
        Ok(progress)
    }

    /// Takes chains until the longest frame fits. All that the queue has is enough if it is full of them: then no more can
    /// come.
    fn make_room(&mut self, io: &mut DeviceIo<'_>) -> Result<Room, BrokenQueue> {
        let queue = &mut io.queues[RECEIVE];
        let mergeable = self.features & F_MRG_RXBUF != 0;
        let receiver = &mut self.receiver;
        loop {
            let has = if mergeable {
                receiver.ready_bytes
            } else {
                receiver.ready.front().map_or(0, |ready| ready.bytes)
            };
            let is_all = !receiver.ready.is_empty()
                && (!mergeable || receiver.ready.len() == usize::from(queue.size()));
            if has >= receive_bytes(self.features) || is_all {
                return Ok(Room::Enough);
            }
            let Some(chain) = queue.pop(io.memory)? else { return Ok(Room::Short) };
            if let Err(broken) = receiver.add(io.memory, chain) {
                self.metrics.net.guest_errors.increment();
                return Err(broken);
            }
        }
    }

    /// Reads frames until one is for the guest; its length with the header. None: the tap is empty, or the turn is over.
    fn read_frame(&mut self, memory: &GuestMemory, turn: &mut Turn) -> Option<u64> {
        while !turn.is_over() {
            let room = self.room()?;
            match self.read_once() {
                Ok(bytes) if (HEADER_BYTES as u64..=room).contains(&bytes) && self.is_agreed(memory) => {
                    return Some(bytes);
                }
                // longer than the buffers, not for this driver, or no frame at all
                Ok(bytes) => {
                    self.metrics.net.dropped.increment();
                    turn.spend(bytes);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => turn.spend(0),
                Err(error) => {
                    let is_empty = error.kind() == ErrorKind::WouldBlock;
                    self.metrics.net.host_errors.add(u64::from(!is_empty));
                    return None;
                }
            }
        }
        None
    }

    /// Bytes that a frame may have.
    fn room(&self) -> Option<u64> {
        let first = self.receiver.ready.front()?;
        let mergeable = self.features & F_MRG_RXBUF != 0;
        Some(if mergeable { self.receiver.ready_bytes } else { first.bytes })
    }

    /// One read of the tap into the buffers and a byte beyond them.
    fn read_once(&mut self) -> io::Result<u64> {
        let mergeable = self.features & F_MRG_RXBUF != 0;
        let receiver = &mut self.receiver;
        let first = receiver.ready.front().map_or(0, |ready| ready.vectors);
        let count = if mergeable { receiver.vectors.len() } else { first }.min(VECTORS_MAX - 1);
        // the byte beyond takes the place of the vector behind, for this one call
        let beyond =
            libc::iovec { iov_base: std::ptr::from_mut(receiver.beyond.as_mut()).cast(), iov_len: 1 };
        receiver.vectors.push_back(beyond);
        let last = receiver.vectors.len() - 1;
        receiver.vectors.swap(count, last);
        let vectors = &receiver.vectors.make_contiguous()[..=count];
        // SAFETY: guest memory, which stays mapped, and the one byte of this receiver.
        let read = unsafe { self.tap.read(vectors) };
        receiver.vectors.swap(count, last);
        receiver.vectors.pop_back();
        read.map(|bytes| bytes as u64)
    }

    /// A frame may have been in the tap since a driver that agreed to more (virtio 1.2, 5.1.6.4.1). The guest can change
    /// what is read here, to its own harm.
    fn is_agreed(&self, memory: &GuestMemory) -> bool {
        let mut start = [0; 2];
        let first = self.receiver.ready.front();
        let pieces = first.and_then(|ready| chain::slice(&ready.chain.writable, 0, 2)).unwrap_or_default();
        let mut bytes = start.iter_mut();
        for piece in pieces {
            for offset in 0..u64::from(piece.bytes) {
                let (Some(to), Ok(byte)) =
                    (bytes.next(), memory.read_obj(GuestAddress(piece.address.0 + offset)))
                else {
                    return false;
                };
                *to = byte;
            }
        }
        header::may_receive(start, self.features)
    }

    /// Gives the frame in the first chains to the driver, all of them at once.
    fn give(&mut self, io: &mut DeviceIo<'_>, bytes: u64) -> Result<(), BrokenQueue> {
        let mut left = bytes;
        let mut used = Vec::new();
        let mut first = None;
        while left > 0 {
            let Some(ready) = self.receiver.take() else { break };
            let filled = left.min(ready.bytes);
            left -= filled;
            used.push((ready.chain.head, u32::try_from(filled).unwrap_or(u32::MAX)));
            first.get_or_insert(ready.chain);
        }
        let count = u16::try_from(used.len()).unwrap_or(u16::MAX);
        if let Some(chain) = first {
            chain.write_all(io.memory, NUM_BUFFERS_AT, &count.to_le_bytes());
        }
        io.queues[RECEIVE].push_used_together(io.memory, &used)?;
        self.metrics.net.received_frames.increment();
        self.metrics.net.received_bytes.add(bytes - HEADER_BYTES as u64);
        Ok(())
    }
}
