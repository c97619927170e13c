//! The registers by which a guest powers itself off: the PM1a registers of ACPI's fixed hardware, of which only the sleep
//! enable bit does something. The tables name two bytes of them, as the sleep registers of a hardware-reduced platform; a
//! machine that was saved when they named all six finds them still.
//!
//! ```text
//!   +0  status   16 bits, nothing ever happens: reads 0
//!   +2  enable   16 bits, kept for the guest
//!   +4  control  16 bits: SCI_EN is 1, SLP_TYP is kept, writing SLP_EN sleeps
//! ```

use crate::acpi::SLEEP_TYPE_OFF;
use crate::layout;
use serde::{Deserialize, Serialize};

const SCI_ENABLED: u16 = 1;
const SLEEP_TYPE: u16 = 0b111 << 10;
const SLEEP_ENABLE: u16 = 1 << 13;

/// First port past the registers.
const END: u16 = layout::PM1_CONTROL_PORT + layout::PM1_CONTROL_PORTS;

#[derive(Debug, Default)]
pub struct PowerRegisters {
    enable: u16,
    control: u16,
}

/// What the guest has written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerState {
    enable: u16,
    control: u16,
}

impl PowerRegisters {
    pub fn save(&self) -> PowerState {
        PowerState { enable: self.enable, control: self.control }
    }

    pub fn restore(&mut self, saved: &PowerState) {
        (self.enable, self.control) = (saved.enable, saved.control);
    }

    /// True for the ports of these registers.
    pub fn covers(port: u16) -> bool {
        (layout::PM1_EVENT_PORT..END).contains(&port)
    }

    /// A write of one or two bytes; true when the guest powers itself off.
    pub fn write(&mut self, port: u16, data: &[u8]) -> bool {
        let mut all = self.all();
        let from = usize::from(port - layout::PM1_EVENT_PORT);
        for (slot, byte) in all.iter_mut().skip(from).zip(data) {
            *slot = *byte;
        }
        self.enable = u16::from_le_bytes([all[2], all[3]]);
        let control = u16::from_le_bytes([all[4], all[5]]);
        self.control = control & SLEEP_TYPE;
        control & SLEEP_ENABLE != 0 && control & SLEEP_TYPE == u16::from(SLEEP_TYPE_OFF) << 10
    }

    pub fn read(&self, port: u16, data: &mut [u8]) {
        let all = self.all();
        let from = usize::from(port - layout::PM1_EVENT_PORT);
        data.fill(0);
        for (slot, byte) in data.iter_mut().zip(all.iter().skip(from)) {
            *slot = *byte;
        }
    }

    fn all(&self) -> [u8; 6] {
        let [enable_low, enable_high] = self.enable.to_le_bytes();
        let [control_low, control_high] = (self.control | SCI_ENABLED).to_le_bytes();
        [0, 0, enable_low, enable_high, control_low, control_high]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_type_five_with_the_enable_bit_powers_off() {
        for kind in 0..8u16 {
            let mut power = PowerRegisters::default();
            assert!(!power.write(layout::PM1_CONTROL_PORT, &(kind << 10).to_le_bytes()));
            let sleeps = power.write(layout::PM1_CONTROL_PORT, &(kind << 10 | SLEEP_ENABLE).to_le_bytes());
            assert_eq!(sleeps, kind == 5);
        }
        let mut power = PowerRegisters::default();
        assert!(power.write(layout::PM1_CONTROL_PORT + 1, &[5 << 2 | 1 << 5]), "by its high byte");
    }

    #[test]
    fn the_platform_is_always_in_acpi_mode_and_nothing_has_happened() {
        let mut power = PowerRegisters::default();
        power.write(layout::PM1_CONTROL_PORT, &[0, 0]);
        power.write(layout::PM1_EVENT_PORT, &[0xff, 0xff]);
        power.write(layout::PM1_EVENT_PORT + 2, &[0x20, 0x01]);
        let mut two = [0; 2];
        power.read(layout::PM1_CONTROL_PORT, &mut two);
        assert_eq!(two, [1, 0]);
        power.read(layout::PM1_EVENT_PORT, &mut two);
        assert_eq!(two, [0, 0]);
        power.read(layout::PM1_EVENT_PORT + 2, &mut two);
        assert_eq!(two, [0x20, 0x01]);
        let mut eight = [0xaa; 8];
        power.read(END - 1, &mut eight);
        assert_eq!(eight, [0; 8], "past the end reads zero");
    }
}
