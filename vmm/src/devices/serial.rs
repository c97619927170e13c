//! The first serial line: a 16550 whose output goes to the console buffer. It has no input.

use super::console::ConsoleBuffer;
use std::io;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An interrupt line by eventfd.
#[derive(Debug)]
pub struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

pub struct SerialPort {
    uart: Serial<Line, NoEvents, ConsoleBuffer>,
}

impl SerialPort {
    /// The port, and the eventfd that raises its line.
    pub fn new(console: ConsoleBuffer) -> io::Result<(Self, EventFd)> {
        let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let twin = line.try_clone()?;
        Ok((Self { uart: Serial::new(Line(line), console) }, twin))
    }

    /// Neither the buffer nor the line can refuse, so there is nothing to tell the guest.
    pub fn write(&mut self, offset: u8, value: u8) {
        let _ = self.uart.write(offset, value);
    }

    pub fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }
}
