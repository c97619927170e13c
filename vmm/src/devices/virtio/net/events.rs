//! What comes from the host's side, and what both directions share.

use super::device::{Net, SOURCE_RECEIVE_TIMER, SOURCE_TAP, SOURCE_TRANSMIT_TIMER};
use crate::devices::virtio::interrupt::USED_BUFFER;
use crate::devices::virtio::queue::{BrokenQueue, TURN_BYTES};
use crate::devices::virtio::{DeviceIo, Progress};

/// Bytes that a frame counts for at least in a turn: it costs a system call, however short it is.
const FRAME_BYTES_MIN: u64 = 4 << 10;

/// What may still be moved before other devices have their turn.
pub(super) struct Turn {
    frames: u16,
    bytes: u64,
}

impl Turn {
    pub fn new(queue_size: u16) -> Self {
        Self { frames: queue_size, bytes: TURN_BYTES }
    }

    pub fn is_over(&self) -> bool {
        self.frames == 0 || self.bytes == 0
    }

    pub fn spend(&mut self, bytes: u64) {
        self.frames = self.frames.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes.max(FRAME_BYTES_MIN));
    }
}

impl Net {
    pub(super) fn host_side(
        &mut self,
        source: usize,
        io: Option<&mut DeviceIo<'_>>,
    ) -> Result<Progress, BrokenQueue> {
        match source {
            SOURCE_RECEIVE_TIMER => self.receiver.gate.timer_fired(),
            SOURCE_TRANSMIT_TIMER => self.transmitter.gate.timer_fired(),
            _ => {}
        }
        let Some(io) = io else { return Ok(Progress::Done) };
        let received = match source {
            SOURCE_TAP | SOURCE_RECEIVE_TIMER => self.receive(io)?,
            _ => Progress::Done,
        };
        // the tap tells both: a frame is there, or one can be written again
        let sends = source == SOURCE_TRANSMIT_TIMER || source == SOURCE_TAP && self.transmitter.stalled;
        let sent = if sends { self.transmit(io)? } else { Progress::Done };
        Ok(if received == Progress::More || sent == Progress::More { Progress::More } else { Progress::Done })
    }
}

pub(super) fn interrupt(io: &mut DeviceIo<'_>, queue: usize) -> Result<(), BrokenQueue> {
    if io.queues[queue].needs_interrupt(io.memory)? {
        io.interrupt.raise(USED_BUFFER);
    }
    Ok(())
}
