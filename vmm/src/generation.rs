//! The generation of a machine: 16 bytes that a guest's kernel finds by ACPI (Virtual Machine Generation ID, 1.0).
//!
//! A machine that boots has a random one. One that is restored gets another before its first instruction, and is told by
//! [`crate::devices::platform::PlatformEvents::generation_changed`] once its interrupts are wired: Linux then reseeds its
//! random numbers.

use crate::layout;
use crate::memory::GuestMemory;
use std::io;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

pub type Generation = [u8; 16];

/// A new one, from the host's random numbers.
pub fn fresh() -> io::Result<Generation> {
    let mut generation = [0; 16];
    // SAFETY: `generation` is valid for writes of its length.
    let got = unsafe { libc::getrandom(generation.as_mut_ptr().cast(), generation.len(), 0) };
    if usize::try_from(got) == Ok(generation.len()) {
        Ok(generation)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Puts it where the tables say.
pub fn write(memory: &GuestMemory, generation: Generation) -> Result<(), GuestMemoryError> {
    memory.write_obj(generation, GuestAddress(layout::VM_GENERATION_ID))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_the_same() {
        let memory = crate::memory::allocate(96 << 20).expect("memory");
        let (first, second) = (fresh().expect("random"), fresh().expect("random"));
        assert_ne!(first, second);
        write(&memory, first).expect("in memory");
        write(&memory, second).expect("in memory");
        let read: Generation = memory.read_obj(GuestAddress(layout::VM_GENERATION_ID)).expect("in memory");
        assert_eq!(read, second);
    }
}
