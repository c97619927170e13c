//! A guest without a kernel: it owns its whole machine and breaks the rules of it, one case after the command line.
//!
//! The image is a PVH ELF that the VMM boots like a kernel. It turns on long mode, runs the case that the first word of
//! the command line names (`G7`), and says on the serial port what it does: `begin G7`, a line for each step, and at last
//! `done G7` or `failed G7: why`. What the VMM must have counted, told and survived is judged on the host's side, by
//! `tests/evil`. The library is built for the lints; the image is built by `tests/build.rs` with `--cfg freestanding`, for
//! a processor without vector registers, because an emulator of a paravirtual KVM has none.

#![no_std]
#![cfg_attr(freestanding, no_main)]

pub mod cases;
pub mod console;
pub mod cpu;
#[cfg(freestanding)]
mod entry;
pub mod memory;
pub mod net;
pub mod virtio;
pub mod vsock;

use console::say;

/// Where a case stops: what it saw and did not expect.
#[derive(Debug, Clone, Copy)]
pub struct Failed(pub &'static str);

pub type Outcome = Result<(), Failed>;

/// One line of the list G1 to G37.
pub struct Case {
    pub name: &'static str,
    pub run: fn() -> Outcome,
}

/// Runs the case that the command line names, then halts until the host ends the machine.
pub fn run(command_line: &'static [u8]) -> ! {
    let name = command_line.split(|byte| *byte == b' ').next().unwrap_or_default();
    match cases::ALL.iter().find(|case| case.name.as_bytes() == name) {
        Some(case) => {
            say!("begin ", case.name);
            match (case.run)() {
                Ok(()) => say!("done ", case.name),
                Err(Failed(why)) => say!("failed ", case.name, ": ", why),
            }
        }
        None => say!("failed: the command line names no case"),
    }
    cpu::halt()
}
