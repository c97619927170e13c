//! Of a balloon its configuration space is kept: the driver has written a part of it and goes by the rest.

use super::device::Balloon;
use crate::devices::virtio::persist::{DeviceState, DeviceStateError};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    target_pages: u32,
    actual_pages: u32,
    poison: u32,
}

impl Balloon {
    pub(super) fn state(&self) -> DeviceState {
        let [target_pages, actual_pages, poison] = self.numbers();
        DeviceState::Balloon(BalloonState { target_pages, actual_pages, poison })
    }

    pub(super) fn take_over(&mut self, saved: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Balloon(saved) = saved else { return Err(DeviceStateError::Variant) };
        self.set_numbers([saved.target_pages, saved.actual_pages, saved.poison]);
        Ok(())
    }
}
