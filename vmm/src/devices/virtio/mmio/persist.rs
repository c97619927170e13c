//! A transport while nothing runs: at rest, as state, and set going again.

use super::Transport;
use super::state::RegisterState;
use crate::devices::virtio::Progress;
use crate::devices::virtio::interrupt::{CONFIG_CHANGE, USED_BUFFER};
use crate::devices::virtio::persist::{DeviceState, DeviceStateError};
use serde::{Deserialize, Serialize};

/// One device in its window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// device type (virtio 1.2, 5)
    pub kind: u32,
    registers: RegisterState,
    interrupt_status: u32,
    device: DeviceState,
}

/// A device that could not be brought to rest: guest memory or a file may change at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host still works on requests of a device of type {kind}, and cannot wait for them")]
pub struct NotAtRest {
    /// device type (virtio 1.2, 5)
    pub kind: u32,
}

impl Transport {
    /// Brings the device to rest: waits until the host has done what the device was asked for, and nothing touches guest
    /// memory any more. Requests that the device has not begun stay in its queues. On the device thread, while no vCPU runs;
    /// before the guest goes on, [`Self::kick_all`]. Errors: the host still works on requests.
    pub fn quiesce(&self) -> Result<(), NotAtRest> {
        self.event(|device, io| device.quiesce(io).map(|()| Progress::Done));
        let state = self.lock();
        if state.device.is_busy() { Err(NotAtRest { kind: state.device.kind() }) } else { Ok(()) }
    }

    /// Lets the device look at every queue, and so at the host's side, again.
    pub fn kick_all(&self) {
        for kick in &self.kicks {
            // it fails only when it is full of kicks
            let _ = kick.write(1);
        }
    }

    /// Of a device at rest.
    pub fn save(&self) -> TransportState {
        let state = self.lock();
        TransportState {
            kind: state.device.kind(),
            registers: state.save(),
            interrupt_status: self.interrupt.status(),
            device: state.device.save(),
        }
    }

    /// Puts the state into a new device of the same kind. Nothing moves before [`Self::wake`].
    pub fn restore(&self, saved: &TransportState) -> Result<(), DeviceStateError> {
        let mut state = self.lock();
        let kind = state.device.kind();
        if kind != saved.kind {
            return Err(DeviceStateError::Kind { saved: saved.kind, configured: kind });
        }
        state.restore(&saved.registers)?;
        state.device.restore(&saved.device)?;
        self.interrupt.restore(saved.interrupt_status);
        Ok(())
    }

    /// After a restore: what was kicked and not yet seen, and what was raised and not yet delivered, is lost with the
    /// old process. So every queue is looked at, and the driver is asked to look at everything.
    pub fn wake(&self) {
        let live = self.lock().is_live();
        if !live {
            return;
        }
        self.kick_all();
        let pending = self.interrupt.status() & CONFIG_CHANGE;
        self.interrupt.raise(USED_BUFFER | pending);
    }
}
