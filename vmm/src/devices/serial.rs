//! The first serial line: a 16550 whose output goes to the console buffer. It has no input.

use super::console::ConsoleBuffer;
use serde::{Deserialize, Serialize};
use std::io;
use vm_superio::serial::NoEvents;
use vm_superio::serial::SerialState;
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

/// Registers of the 16550. It has no input, so none waits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialPortState {
    divisor: u16,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
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

    pub fn save(&self) -> SerialPortState {
        let state = self.uart.state();
        SerialPortState {
            divisor: u16::from(state.baud_divisor_high) << 8 | u16::from(state.baud_divisor_low),
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
        }
    }

    /// Raises the line again if an interrupt was pending.
    pub fn restore(&mut self, saved: &SerialPortState) -> io::Result<()> {
        let [baud_divisor_low, baud_divisor_high] = saved.divisor.to_le_bytes();
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: Vec::new(),
        };
        let line = Line(self.uart.interrupt_evt().0.try_clone()?);
        let console = self.uart.writer().clone();
        self.uart = Serial::from_state(&state, line, NoEvents, console)
            .map_err(|_| io::Error::other("the line of the serial port cannot be raised"))?;
        Ok(())
    }

    /// Neither the buffer nor the line can refuse, so there is nothing to tell the guest.
    pub fn write(&mut self, offset: u8, value: u8) {
        let _ = self.uart.write(offset, value);
    }

    pub fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }
}
