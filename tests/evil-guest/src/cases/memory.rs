//! G26 and G27: memory, all of it, and the balloon.

use crate::console::say;
use crate::memory::{self, DATA, END, write32};
use crate::virtio::{BALLOON, NEEDS_RESET, NEXT, Ring, WRITE, Window, find};
use crate::{Outcome, cpu};

const PAGE_BYTES: u64 = 4096;
/// Page frame numbers of one request.
const FRAMES: u64 = 1024;
const GLANCE_TICKS: u64 = 1 << 26;
const LIST: u64 = DATA + (2 << 20);

pub fn touch_everything() -> Outcome {
    for _ in 0..4 {
        let mut at = DATA;
        while at < END {
            memory::touch(at);
            at += PAGE_BYTES;
        }
    }
    say!("touched ", END - DATA);
    Ok(())
}

fn send_frames(window: Window, ring: Ring, frames: u64, device_writes: bool) {
    ring.write(0, LIST, (4 * frames) as u32, if device_writes { WRITE } else { 0 }, 0);
    send(window, ring);
}

/// A balloon keeps a buffer for statistics until it wants some: what does not come back soon is left there.
fn send(window: Window, ring: Ring) {
    ring.send(0);
    let wanted = ring.available_index();
    let taken =
        cpu::wait_until(GLANCE_TICKS, || ring.used_index() == wanted || window.status() & NEEDS_RESET != 0);
    if !taken || window.status() & NEEDS_RESET != 0 {
        window.start();
    }
}

/// A machine without a balloon passes: the case is about what a balloon lets through.
pub fn balloon() -> Outcome {
    let Some(window) = find(BALLOON, 0) else {
        say!("no balloon");
        return Ok(());
    };
    window.start();
    let queues = window.queues();
    for queue in 0..queues {
        let ring = window.ring(queue);
        // all of memory that this guest does not stand on, then again, then what is no memory
        for first in [(48 << 20) / PAGE_BYTES, (48 << 20) / PAGE_BYTES, 0xc_0000, 0xd_0000, 0xffff_f000] {
            for frame in 0..FRAMES {
                write32(LIST + 4 * frame, (first + frame) as u32);
            }
            send_frames(window, ring, FRAMES, false);
        }
        // the list itself, a list of one frame many times, half a number, nothing at all
        for frame in 0..FRAMES {
            write32(LIST + 4 * frame, (LIST / PAGE_BYTES) as u32);
        }
        send_frames(window, ring, FRAMES, false);
        for bytes in [0, 1, 3, 1 << 20] {
            ring.write(0, LIST, bytes, 0, 0);
            send(window, ring);
        }
        // reported as free: what is in use, what is no memory, huge, and in one chain
        for (address, bytes) in
            [(LIST, 4096), (memory::HOLE, 4096), (0, 1 << 30), (u64::MAX - 4095, 4096), (LIST + 1, 1)]
        {
            ring.write(0, address, bytes, NEXT | WRITE, 1);
            ring.write(1, LIST, 4096, WRITE, 0);
            send(window, ring);
        }
    }
    // statistics that are lies
    for tag in 0..FRAMES {
        memory::write16(LIST + 10 * tag, tag as u16);
        memory::write64(LIST + 10 * tag + 2, u64::MAX);
    }
    let statistics = window.ring(2.min(queues.saturating_sub(1)));
    for _ in 0..20 {
        statistics.write(0, LIST, 10_240, 0, 0);
        statistics.send(0);
        cpu::wait_until(1 << 24, || window.status() & NEEDS_RESET != 0);
        window.start();
    }
    say!("queues ", queues);
    Ok(())
}
