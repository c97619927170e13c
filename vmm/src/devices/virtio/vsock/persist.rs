//! The socket device across a restore: no connection survives it, and the guest is told so.
//!
//! ```text
//!   restored --> Due --event buffer of the guest--> Sent --the guest gave the buffer back--> None
//! ```
//!
//! Between Sent and None nothing goes to the guest: its driver ends every connection that it knows when it handles the
//! event (virtio 1.2, 5.10.6.7), and would end a new one of the host with them. A driver without event buffers is
//! not waited for.

use super::device::VsockDevice;
use crate::devices::virtio::DeviceIo;
use crate::devices::virtio::interrupt::USED_BUFFER;
use crate::devices::virtio::persist::{DeviceState, DeviceStateError};
use crate::devices::virtio::queue::BrokenQueue;
use serde::{Deserialize, Serialize};

const EVENT: usize = 2;
/// `struct virtio_vsock_event` with VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (virtio 1.2, 5.10.6.7)
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// ports go on where they were, so that a late packet of an old connection meets no new one
    next_host_port: u32,
}

/// How far the guest knows that its connections are gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum ResetNotice {
    #[default]
    None,
    Due,
    /// the index of the event queue's available ring when the event was put into it
    Sent {
        available: u16,
    },
}

impl VsockDevice {
    pub(super) fn state(&self) -> DeviceState {
        DeviceState::Vsock(VsockState { next_host_port: self.next_host_port })
    }

    pub(super) fn take_state(&mut self, saved: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Vsock(saved) = saved else { return Err(DeviceStateError::Variant) };
        self.next_host_port = saved.next_host_port.max(self.next_host_port);
        self.reset_notice = ResetNotice::Due;
        Ok(())
    }

    /// Tells the guest what it has to be told, and notes that it has seen it. True while nothing may go to it.
    pub(super) fn awaits_reset(&mut self, io: &mut DeviceIo<'_>) -> Result<bool, BrokenQueue> {
        let queue = &mut io.queues[EVENT];
        match self.reset_notice {
            ResetNotice::None => {}
            ResetNotice::Sent { available } => {
                if queue.available(io.memory)? != available {
                    self.reset_notice = ResetNotice::None;
                }
            }
            ResetNotice::Due => {
                let Some(chain) = queue.pop(io.memory)? else { return Ok(false) };
                if !chain.write_all(io.memory, 0, &TRANSPORT_RESET) {
                    self.metrics.vsock.guest_errors.increment();
                    return Err(BrokenQueue::Request("an event buffer has no room for an event"));
                }
                // before the guest sees the event: its answer is a change of this index, and a kick
                let available = queue.await_kick(io.memory)?;
                queue.push_used(io.memory, chain.head, TRANSPORT_RESET.len() as u32)?;
                if queue.needs_interrupt(io.memory)? {
                    io.interrupt.raise(USED_BUFFER);
                }
                self.reset_notice = ResetNotice::Sent { available };
            }
        }
        Ok(matches!(self.reset_notice, ResetNotice::Sent { .. }))
    }
}
