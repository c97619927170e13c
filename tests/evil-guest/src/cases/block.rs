//! G24 and G28: requests of a disk, right in form and wrong in what they ask for.

use crate::console::say;
use crate::memory::{self, DATA, read8, write8, write32, write64};
use crate::virtio::{BLOCK, NEXT, WRITE, Window, find};
use crate::{Failed, Outcome};

const READ: u32 = 0;
const WRITE_OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x1000;
const BUFFER: u64 = DATA + 0x2000;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const NO_ANSWER: u8 = 0xee;
/// Offset of the capacity in sectors in the configuration space.
const CAPACITY: u64 = crate::virtio::register::CONFIG;

/// One request; its status.
fn request(window: Window, kind: u32, sector: u64, length: u32, device_writes: bool) -> Result<u8, Failed> {
    let ring = window.ring(0);
    write32(HEADER, kind);
    write32(HEADER + 4, 0);
    write64(HEADER + 8, sector);
    write8(STATUS, NO_ANSWER);
    ring.write(0, HEADER, 16, NEXT, 1);
    ring.write(1, BUFFER, length, NEXT | if device_writes { WRITE } else { 0 }, 2);
    ring.write(2, STATUS, 1, WRITE, 0);
    ring.send(0);
    if ring.settle() {
        return Ok(read8(STATUS));
    }
    say!("request ", u64::from(kind), " broke the queue");
    window.start();
    Ok(NO_ANSWER)
}

fn refused(window: Window, kind: u32, sector: u64, length: u32, device_writes: bool) -> Outcome {
    if request(window, kind, sector, length, device_writes)? == OK {
        say!("accepted: kind ", u64::from(kind), " sector ", sector, " length ", u64::from(length));
        return Err(Failed("a request was accepted that cannot be served"));
    }
    Ok(())
}

/// A range of a discard or write-zeroes request (virtio 1.2, 5.2.6).
fn write_range(sector: u64, sectors: u32, flags: u32) {
    write64(BUFFER, sector);
    write32(BUFFER + 8, sectors);
    write32(BUFFER + 12, flags);
}

pub fn requests() -> Outcome {
    let window = find(BLOCK, 0).ok_or(Failed("there is no disk"))?;
    window.start();
    let sectors = memory::read64(window.base + CAPACITY);
    say!("sectors ", sectors);
    for (kind, device_writes) in [(READ, true), (WRITE_OUT, false)] {
        for sector in [sectors, sectors - 1, u64::MAX, u64::MAX / 512, 1 << 55, 1 << 63] {
            refused(window, kind, sector, 1024, device_writes)?;
        }
        for length in [1, 511, 513, 60 << 20] {
            refused(window, kind, 0, length, device_writes)?;
        }
    }
    for kind in [DISCARD, WRITE_ZEROES] {
        for (sector, count) in
            [(sectors, 1), (sectors - 1, 2), (u64::MAX, 1), (0, u32::MAX), (u64::MAX, u32::MAX)]
        {
            write_range(sector, count, 0);
            refused(window, kind, 0, 16, false)?;
        }
        write_range(0, 1, u32::MAX);
        refused(window, kind, 0, 16, false)?;
        refused(window, kind, 0, 15, false)?;
        refused(window, kind, 0, 1 << 20, false)?;
    }
    for kind in [2, 3, 5, 7, 9, 100, u32::MAX] {
        refused(window, kind, 0, 512, true)?;
    }
    for length in [1, 19, 20, 21, 4096] {
        request(window, GET_ID, 0, length, true)?;
    }
    for _ in 0..200 {
        request(window, FLUSH, 0, 512, true)?;
    }
    if request(window, READ, 0, 512, true)? != OK {
        return Err(Failed("the disk does not serve a right request any more"));
    }
    Ok(())
}

pub fn shared_base_image() -> Outcome {
    let window = find(BLOCK, 1).ok_or(Failed("there is no read-only disk"))?;
    window.start();
    memory::fill(BUFFER, 0x66, 4096);
    for sector in 0..16 {
        refused(window, WRITE_OUT, sector, 512, false)?;
    }
    for kind in [DISCARD, WRITE_ZEROES] {
        write_range(0, 8, 0);
        refused(window, kind, 0, 16, false)?;
    }
    memory::fill(BUFFER, 0, 512);
    if request(window, READ, 0, 512, true)? != OK || read8(BUFFER) == 0x66 {
        return Err(Failed("the shared image has changed"));
    }
    let _ = IO_ERROR;
    Ok(())
}
