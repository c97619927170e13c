//! Lines on the first serial port.

use crate::cpu;

pub const PORT: u16 = 0x3f8;

pub fn put(byte: u8) {
    cpu::out8(PORT, byte);
}

/// What can stand in a line.
pub trait Say {
    fn say(&self);
}

impl Say for &str {
    fn say(&self) {
        self.bytes().for_each(put);
    }
}

impl Say for u64 {
    /// hexadecimal: an emulator divides slowly
    fn say(&self) {
        "0x".say();
        let digits = (64 - self.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            let value = (self >> (4 * digit) & 15) as u8;
            put(if value < 10 { b'0' + value } else { b'a' + value - 10 });
        }
    }
}

/// One line of texts and numbers.
macro_rules! say {
    ($($part:expr),+) => {{
        $($crate::console::Say::say(&$part);)+
        $crate::console::put(b'\n');
    }};
}

pub(crate) use say;
