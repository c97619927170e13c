//! A disk's contents are in its file; what the driver knows of it must still be true.

use super::device::Block;
use crate::devices::virtio::persist::{DeviceState, DeviceStateError};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    sectors: u64,
    read_only: bool,
}

impl Block {
    pub(super) fn state(&self) -> DeviceState {
        DeviceState::Block(BlockState { sectors: self.geometry.sectors, read_only: self.geometry.read_only })
    }

    pub(super) fn check(&self, saved: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Block(saved) = saved else { return Err(DeviceStateError::Variant) };
        let differs = |what, saved, configured| Err(DeviceStateError::Differs { what, saved, configured });
        if saved.sectors != self.geometry.sectors {
            return differs("sectors", saved.sectors, self.geometry.sectors);
        }
        if saved.read_only != self.geometry.read_only {
            return differs("read_only", u64::from(saved.read_only), u64::from(self.geometry.read_only));
        }
        Ok(())
    }
}
