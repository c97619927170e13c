//! G5, G6, G8 and G9: what changes while a device looks at it.

use crate::console::say;
use crate::cpu;
use crate::memory::{self, DATA, write16, write32, write64};
use crate::virtio::{
    BLOCK, FEATURE_EVENT_INDEX, FEATURE_INDIRECT, NEEDS_RESET, NEXT, Ring, WRITE, Window, find, windows,
};
use crate::{Failed, Outcome};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// How long the second processor interferes: about a second.
const INTERFERENCE_TICKS: u64 = 1 << 31;
const ROUNDS: u32 = 60;

static STOP: AtomicBool = AtomicBool::new(false);
/// Where the second processor writes.
static TARGET: AtomicU64 = AtomicU64::new(0);

fn disk() -> Result<Window, Failed> {
    find(BLOCK, 0).ok_or(Failed("there is no disk"))
}

/// A read of one sector in descriptors `first` to `first + 2`.
fn write_read(ring: Ring, first: u16, sector: u64) {
    let header = DATA + 0x2000 + 16 * u64::from(first);
    write32(header, 0);
    write32(header + 4, 0);
    write64(header + 8, sector);
    ring.write(first, header, 16, NEXT, first + 1);
    ring.write(first + 1, DATA + 0x4000 + 512 * u64::from(first), 512, NEXT | WRITE, first + 2);
    ring.write(first + 2, DATA + 0x1000 + u64::from(first), 1, WRITE, 0);
}

fn still_serves(window: Window) -> Outcome {
    if !window.start() {
        return Err(Failed("the disk does not start any more"));
    }
    let ring = window.ring(0);
    write_read(ring, 0, 0);
    ring.send(0);
    if ring.settle() { Ok(()) } else { Err(Failed("the disk does not serve a right request any more")) }
}

pub fn available_index() -> Outcome {
    for window in windows() {
        for queue in 0..window.queues() {
            for index in [1, 0x8000, u16::MAX, 257, 300] {
                window.start();
                let ring = window.ring(queue);
                ring.set_available_index(index);
                ring.kick();
                cpu::wait_until(1 << 24, || window.status() & NEEDS_RESET != 0);
                // and back again
                ring.set_available_index(index.wrapping_sub(2));
                ring.kick();
            }
        }
        window.reset();
    }
    let window = disk()?;
    window.start_with(FEATURE_INDIRECT);
    let ring = window.ring(0);
    write_read(ring, 0, 0);
    TARGET.store(ring.available() + 2, SeqCst);
    STOP.store(false, SeqCst);
    if !cpu::start_other(move_available_index) {
        return Err(Failed("the second processor does not start"));
    }
    let began = cpu::ticks();
    while cpu::ticks().wrapping_sub(began) < INTERFERENCE_TICKS {
        ring.kick();
        if window.status() & NEEDS_RESET != 0 {
            window.start();
            write_read(ring, 0, 0);
        }
    }
    STOP.store(true, SeqCst);
    cpu::join_other(1 << 34);
    still_serves(window)
}

/// More requests than the device can ever have served.
fn move_available_index() {
    let target = TARGET.load(SeqCst);
    let mut index = 0u16;
    while !STOP.load(SeqCst) {
        index = index.wrapping_add(3);
        write16(target, index);
    }
}

pub fn requests_in_flight() -> Outcome {
    let window = disk()?;
    for round in 0..ROUNDS {
        if !window.start() {
            return Err(Failed("the disk does not come back from a reset"));
        }
        let ring = window.ring(0);
        for request in 0..ring.size / 3 {
            write_read(ring, 3 * request, u64::from(request));
            // the same head again: twice in flight
            ring.publish(3 * request);
            ring.publish(3 * request);
        }
        ring.kick();
        match round % 3 {
            0 => window.reset(),
            1 => {
                window.put(crate::virtio::register::QUEUE, 0);
                window.put(crate::virtio::register::QUEUE_READY, 0);
            }
            _ => {
                ring.settle();
            }
        }
    }
    say!("rounds ", u64::from(ROUNDS));
    still_serves(window)
}

pub fn double_fetch() -> Outcome {
    let window = disk()?;
    window.start();
    let ring = window.ring(0);
    TARGET.store(ring.descriptors() + 16, SeqCst);
    STOP.store(false, SeqCst);
    if !cpu::start_other(change_descriptor) {
        return Err(Failed("the second processor does not start"));
    }
    let guard = DATA + 0x10_0000;
    memory::fill(guard, 0x77, 4096);
    let began = cpu::ticks();
    let (mut served, mut refused) = (0u64, 0u64);
    while cpu::ticks().wrapping_sub(began) < 2 * INTERFERENCE_TICKS {
        write_read(ring, 0, 0);
        ring.send(0);
        if ring.settle() {
            served += 1;
        } else {
            refused += 1;
            window.start();
        }
    }
    STOP.store(true, SeqCst);
    cpu::join_other(1 << 34);
    say!("served ", served, " refused ", refused);
    still_serves(window)
}

/// Between a buffer in memory and one that is not: the device must use what it has checked.
fn change_descriptor() {
    let target = TARGET.load(SeqCst);
    while !STOP.load(SeqCst) {
        write64(target, memory::HOLE - 256);
        write32(target + 8, u32::MAX);
        write64(target, DATA + 0x4000);
        write32(target + 8, 512);
    }
}

pub fn kick_storm() -> Outcome {
    let mut kicks = 0u64;
    for window in windows() {
        window.start_with(FEATURE_INDIRECT | FEATURE_EVENT_INDEX);
        let queues = window.queues();
        let began = cpu::ticks();
        let mut noise = began;
        while cpu::ticks().wrapping_sub(began) < INTERFERENCE_TICKS {
            for queue in 0..queues {
                let ring = window.ring(queue);
                // where the driver says it wants its next interrupt: nowhere, anywhere
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                write16(ring.available() + 4 + 2 * u64::from(ring.size), (noise >> 33) as u16);
                for _ in 0..64 {
                    ring.kick();
                    kicks += 1;
                }
            }
        }
        window.reset();
    }
    say!("kicks ", kicks);
    still_serves(disk()?)
}
