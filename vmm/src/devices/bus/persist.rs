//! The platform's own registers in a snapshot: serial port and power.

use super::Bus;
use crate::devices::power::PowerState;
use crate::devices::serial::SerialPortState;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::PoisonError;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusState {
    serial: SerialPortState,
    power: PowerState,
}

impl Bus {
    /// While no vCPU runs.
    pub fn save(&self) -> BusState {
        BusState {
            serial: self.serial.lock().unwrap_or_else(PoisonError::into_inner).save(),
            power: self.power.lock().unwrap_or_else(PoisonError::into_inner).save(),
        }
    }

    pub fn restore(&self, saved: &BusState) -> io::Result<()> {
        self.power.lock().unwrap_or_else(PoisonError::into_inner).restore(&saved.power);
        self.serial.lock().unwrap_or_else(PoisonError::into_inner).restore(&saved.serial)
    }
}
