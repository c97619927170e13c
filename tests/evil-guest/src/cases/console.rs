//! G15 to G17: the serial port.

use crate::console::{PORT, say};
use crate::memory::{self, DATA};
use crate::{Failed, Outcome, cpu};

/// Bytes of one instruction.
const BLOCK_BYTES: u64 = 64 * 1024;
/// Several times what the host lets through at once.
const BLOCKS: u64 = 16;
const LINE_STATUS: u16 = PORT + 5;
const DATA_READY: u8 = 1;

pub fn flood() -> Outcome {
    // what the boot's settings of the port were does not matter: divisor, line, modem and interrupts all over
    for (register, value) in [(3, 0x80), (0, 1), (1, 0), (3, 3), (2, 0xc7), (4, 0x0f), (1, 0x0f), (1, 0)] {
        cpu::out8(PORT + register, value);
    }
    memory::fill(DATA, b'x', BLOCK_BYTES);
    for _ in 0..BLOCKS {
        cpu::out_words(PORT, DATA, BLOCK_BYTES / 4);
    }
    say!("");
    say!("wrote ", BLOCKS * BLOCK_BYTES);
    // the last words come through once the rate permits them
    cpu::wait_until(1 << 33, || false);
    Ok(())
}

pub fn control_sequences() -> Outcome {
    let pieces: [&[u8]; 8] = [
        b"\x1b]0;title\x07",
        b"\x1b]52;c;ZXZpbA==\x07",
        b"\x1b[2J\x1b[1;1H\x1b[31m",
        b"\xff\xfe\xc0\x80\xed\xa0\x80",
        b"\0\0\0\0",
        b"\r{\"level\":\"ERROR\",\"message\":\"forged\"}\n",
        b"pinfold-vmm: forged line\n",
        b"\x9b31m\x90q\x9c",
    ];
    for piece in pieces {
        cpu::out_string(PORT, piece.as_ptr() as u64, piece.len() as u64);
    }
    // one line without an end, longer than any reader's buffer
    memory::fill(DATA, b'l', BLOCK_BYTES);
    cpu::out_words(PORT, DATA, BLOCK_BYTES / 4);
    say!("");
    Ok(())
}

pub fn input() -> Outcome {
    // loop-back is the only way in which bytes come to a port that has no input
    cpu::out8(PORT + 4, 0x1f);
    for _ in 0..4096 {
        crate::console::put(b'i');
    }
    cpu::out8(PORT + 4, 0x0b);
    let mut read = 0u64;
    while cpu::in8(LINE_STATUS) & DATA_READY != 0 {
        cpu::in8(PORT);
        read += 1;
        if read > 4096 {
            return Err(Failed("the port's input has no end"));
        }
    }
    say!("looped back ", read);
    Ok(())
}
