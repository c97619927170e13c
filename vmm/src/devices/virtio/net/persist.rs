//! Of a network device the driver knows its address. Frames on the way are lost, as frames may be.

use super::device::Net;
use crate::devices::virtio::persist::{DeviceState, DeviceStateError};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    mac: [u8; 6],
}

impl Net {
    pub(super) fn state(&self) -> DeviceState {
        DeviceState::Net(NetState { mac: self.mac })
    }

    /// A driver goes on with the address that it has read: with another, all that it sends would be dropped.
    pub(super) fn check(&self, saved: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Net(saved) = saved else { return Err(DeviceStateError::Variant) };
        if saved.mac == self.mac {
            return Ok(());
        }
        let number = |mac: [u8; 6]| mac.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let (saved, configured) = (number(saved.mac), number(self.mac));
        Err(DeviceStateError::Differs { what: "mac", saved, configured })
    }
}
