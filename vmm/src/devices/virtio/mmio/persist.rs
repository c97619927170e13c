//! A transport while nothing runs: at rest, as state, and set going again.

use super::state::RegisterState;
use super::{State, Transport};
use crate::devices::virtio::DeviceIo;
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

impl Transport {
    /// Brings the device to rest: no request is in flight when this returns. On the device thread, while no vCPU runs.
    pub fn quiesce(&self) {
        let mut state = self.lock();
        state.finish_reset();
        if !state.is_live() {
            return;
        }
        let State { device, memory, queues, .. } = &mut *state;
        let mut io = DeviceIo { memory, queues, interrupt: &self.interrupt };
        if let Err(broken) = device.quiesce(&mut io) {
            self.broken(&mut state, &broken);
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
        for kick in &self.kicks {
            // a fresh eventfd cannot be full
            let _ = kick.write(1);
        }
        let pending = self.interrupt.status() & CONFIG_CHANGE;
        self.interrupt.raise(USED_BUFFER | pending);
    }
}
