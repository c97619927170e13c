//! Frames of the guest: checked, limited, handed to the host's kernel.

use super::device::{Net, TRANSMIT};
use super::events::{Turn, interrupt};
use super::header::{self, BadFrame, ETHERNET_BYTES, HEADER_BYTES};
use crate::devices::rate_limit::Gate;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::queue::BrokenQueue;
use crate::devices::virtio::{DeviceIo, Progress};
use crate::memory::GuestMemory;
use std::io::ErrorKind;
use vm_memory::GuestMemoryBackend;

/// What is copied of a frame, because it is checked.
const START_BYTES: usize = HEADER_BYTES + ETHERNET_BYTES;

#[derive(Debug)]
pub(super) struct Transmitter {
    pub gate: Gate,
    /// the host's kernel took no more; the frame at the head of the queue has had its tokens
    pub stalled: bool,
    /// kept from frame to frame
    vectors: Vec<libc::iovec>,
}

// SAFETY: the vectors are used within one call of `write` only, and emptied before it returns.
unsafe impl Send for Transmitter {}

impl Transmitter {
    pub fn new(gate: Gate) -> Self {
        Self { gate, stalled: false, vectors: Vec::new() }
    }

    pub fn reset(&mut self) {
        self.stalled = false;
    }
}

/// What became of a frame.
enum Sent {
    Yes,
    Dropped,
    /// the host takes it later
    Stalled,
    /// its rate is used up
    Waits,
}

impl Net {
    pub(super) fn transmit(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        let memory = io.memory;
        io.queues[TRANSMIT].disable_kicks(memory)?;
        let mut turn = Turn::new(io.queues[TRANSMIT].size());
        let progress = loop {
            if turn.is_over() {
                break Progress::More;
            }
            let queue = &mut io.queues[TRANSMIT];
            let Some(chain) = queue.pop(memory)? else {
                if !queue.enable_kicks(memory)? {
                    break Progress::Done;
                }
                queue.disable_kicks(memory)?;
                continue;
            };
            match self.send(memory, &chain)? {
                Sent::Yes | Sent::Dropped => io.queues[TRANSMIT].push_used(memory, chain.head, 0)?,
                Sent::Stalled | Sent::Waits => {
                    io.queues[TRANSMIT].undo_pop();
                    break Progress::Done;
                }
            }
            turn.spend(chain.readable_bytes());
        };
        interrupt(io, TRANSMIT)?;
        Ok(progress)
    }

    fn send(&mut self, memory: &GuestMemory, chain: &Chain) -> Result<Sent, BrokenQueue> {
        let bytes = usize::try_from(chain.readable_bytes()).unwrap_or(usize::MAX);
        if !chain.writable.is_empty() || bytes < HEADER_BYTES {
            self.metrics.net.guest_errors.increment();
            return Err(BrokenQueue::Request("a frame to be sent has a writable part or no header"));
        }
        let bytes = bytes - HEADER_BYTES;
        let mut start = [0; START_BYTES];
        if bytes < ETHERNET_BYTES || !chain.read_exact(memory, 0, &mut start) {
            return Ok(self.drop_frame(BadFrame::Length(bytes)));
        }
        if let Err(bad) = header::check(&mut start, bytes, self.features, self.mac) {
            return Ok(self.drop_frame(bad));
        }
        if !std::mem::take(&mut self.transmitter.stalled) && !self.transmitter.gate.pass(bytes as u64) {
            self.metrics.net.throttled.increment();
            return Ok(Sent::Waits);
        }
        Ok(self.write(memory, chain, &start, bytes))
    }

    fn drop_frame(&self, bad: BadFrame) -> Sent {
        if bad == BadFrame::Source {
            self.metrics.net.spoofed.increment();
        }
        self.metrics.net.guest_errors.increment();
        Sent::Dropped
    }

    fn write(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        start: &[u8; START_BYTES],
        bytes: usize,
    ) -> Sent {
        let vectors = &mut self.transmitter.vectors;
        vectors.clear();
        // the kernel only reads from it
        vectors.push(libc::iovec { iov_base: start.as_ptr().cast_mut().cast(), iov_len: START_BYTES });
        let in_memory = gather(memory, chain, vectors);
        let result = if in_memory {
            // SAFETY: the first vector is `start`, the others are guest memory, which stays mapped.
            unsafe { self.tap.write(vectors) }
        } else {
            Err(ErrorKind::InvalidInput.into())
        };
        vectors.clear();
        match result {
            Ok(()) => {
                self.metrics.net.transmitted_frames.increment();
                self.metrics.net.transmitted_bytes.add(bytes as u64);
                Sent::Yes
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.transmitter.stalled = true;
                Sent::Stalled
            }
            // a tap that is down, or a frame that its kernel does not like: lost, as frames may be
            Err(_) => {
                self.metrics.net.host_errors.increment();
                Sent::Dropped
            }
        }
    }
}

/// What follows the start of a frame; false when a buffer is not in memory.
fn gather(memory: &GuestMemory, chain: &Chain, vectors: &mut Vec<libc::iovec>) -> bool {
    let mut skip = START_BYTES;
    for buffer in &chain.readable {
        for slice in memory.get_slices(buffer.address, buffer.bytes as usize) {
            let Ok(slice) = slice else { return false };
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let Ok(rest) = slice.offset(skipped) else { return false };
            if !rest.is_empty() {
                let guard = rest.ptr_guard_mut();
                vectors.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() });
            }
        }
    }
    true
}
