//! G1 to G4 and G7: rings and descriptors that are wrong, for each device and each queue.
//!
//! After each the device has either refused its queue (NEEDS_RESET) or answered; both are right, and which it was is
//! said. A queue that a device has no reason to look at (the socket device's events) does neither.

use crate::console::say;
use crate::memory::{self, DATA};
use crate::virtio::{FEATURE_INDIRECT, INDIRECT, NEEDS_RESET, NEXT, Ring, WINDOWS, WRITE, Window, windows};
use crate::{Outcome, cpu};

/// Where indirect tables lie.
const TABLE: u64 = DATA + (4 << 20);
/// Descriptors of one page each, and of the table that is filled with them.
const ALIASES: u16 = 2048;
const LONG_TABLE: u16 = 32 * 1024;
/// A request's worth of ticks for a device that may have nothing to say.
const GLANCE_TICKS: u64 = 1 << 26;

/// Runs `attack` on each queue of each device, each on a device fresh from its handshake.
fn on_every_queue(what: &'static str, attack: impl Fn(Ring)) -> Outcome {
    for window in windows() {
        let queues = window.queues();
        for queue in 0..queues {
            if !window.start_with(FEATURE_INDIRECT) {
                return Err(crate::Failed("a device does not take its driver back"));
            }
            let ring = window.ring(queue);
            attack(ring);
            ring.kick();
            // a packet from the guest makes the socket device look at its receive queue
            if window.kind == crate::virtio::VSOCK && queue == 0 {
                provoke_an_answer(window);
            }
            let settled = cpu::wait_until(GLANCE_TICKS, || {
                window.status() & NEEDS_RESET != 0 || ring.used_index() == ring.available_index()
            });
            let refused = window.status() & NEEDS_RESET != 0;
            let outcome = if refused {
                " refused"
            } else if settled {
                " answered"
            } else {
                " not looked at"
            };
            say!(what, " kind ", u64::from(window.kind), " queue ", queue, outcome);
        }
        window.reset();
    }
    Ok(())
}

fn provoke_an_answer(window: Window) {
    let transmit = window.ring(1);
    crate::vsock::Header::new(crate::vsock::PAYLOAD, 1, 1).write(DATA + (6 << 20));
    transmit.write(0, DATA + (6 << 20), crate::vsock::HEADER_BYTES as u32, 0, 0);
    transmit.send(0);
}

/// A chain that a block device would take: header, data, status.
fn write_request(ring: Ring, data: u64, length: u32) {
    memory::fill(DATA, 0, 16);
    ring.write(0, DATA, 16, NEXT, 1);
    ring.write(1, data, length, NEXT | WRITE, 2);
    ring.write(2, DATA + 0x1000, 1, WRITE, 0);
}

pub fn loops() -> Outcome {
    on_every_queue("loop of one", |ring| {
        ring.write(0, DATA, 16, NEXT, 0);
        ring.publish(0);
    })?;
    on_every_queue("loop of two", |ring| {
        ring.write(0, DATA, 16, NEXT, 1);
        ring.write(1, DATA, 16, NEXT, 0);
        ring.publish(0);
    })?;
    on_every_queue("loop of the whole table", |ring| {
        for index in 0..ring.size {
            ring.write(index, DATA, 16, NEXT, (index + 1) % ring.size);
        }
        ring.publish(0);
    })?;
    on_every_queue("loop in an indirect table", |ring| {
        ring.write(0, TABLE, 32, INDIRECT, 0);
        ring.write_at(TABLE, 0, DATA, 16, NEXT, 1);
        ring.write_at(TABLE, 1, DATA, 16, NEXT, 0);
        ring.publish(0);
    })
}

pub fn links() -> Outcome {
    on_every_queue("next outside the table", |ring| {
        ring.write(0, DATA, 16, NEXT, ring.size);
        ring.publish(0);
    })?;
    on_every_queue("head outside the table", |ring| ring.publish(0xffff))?;
    on_every_queue("unknown flags", |ring| {
        ring.write(0, DATA, 16, 0xfff8, 0);
        ring.publish(0);
    })?;
    on_every_queue("indirect with next", |ring| {
        ring.write(0, TABLE, 32, INDIRECT | NEXT, 1);
        ring.write_at(TABLE, 0, DATA, 16, 0, 0);
        ring.publish(0);
    })?;
    on_every_queue("indirect in indirect", |ring| {
        ring.write(0, TABLE, 16, INDIRECT, 0);
        ring.write_at(TABLE, 0, TABLE, 16, INDIRECT, 0);
        ring.publish(0);
    })?;
    for length in [0, 8, 24, 16 * 65_537, u32::MAX] {
        on_every_queue("indirect table of a wrong length", |ring| {
            ring.write(0, TABLE, length, INDIRECT, 0);
            ring.write_at(TABLE, 0, DATA, 16, 0, 0);
            ring.publish(0);
        })?;
    }
    Ok(())
}

pub fn addresses() -> Outcome {
    let bad = [
        (memory::HOLE, 512),
        (memory::HOLE - 16, 32),
        (WINDOWS, 512),
        (1 << 40, 512),
        (u64::MAX - 15, 32),
        (u64::MAX, 1),
        (0, 512),
    ];
    for (address, length) in bad {
        on_every_queue("buffer at a bad address", |ring| {
            write_request(ring, address, length);
            ring.publish(0);
        })?;
    }
    on_every_queue("buffer over the descriptors", |ring| {
        write_request(ring, ring.descriptors(), 512);
        ring.publish(0);
    })?;
    on_every_queue("buffer over the used ring", |ring| {
        write_request(ring, ring.used(), 512);
        ring.publish(0);
    })?;
    on_every_queue("readable and writable buffers are one", |ring| {
        ring.write(0, DATA, 512, NEXT, 1);
        ring.write(1, DATA, 512, WRITE, 0);
        ring.publish(0);
    })?;
    let any = windows().next().ok_or(crate::Failed("there is no device"))?.ring(0);
    for index in 0..ALIASES {
        any.write_at(TABLE, index, DATA, 4096, NEXT | WRITE, index + 1);
    }
    // the rest of the table is copies of its beginning, whose links lead back
    for copy in 1..u64::from(LONG_TABLE / ALIASES) {
        memory::copy(TABLE + copy * 16 * u64::from(ALIASES), TABLE, 16 * u64::from(ALIASES));
    }
    on_every_queue("every descriptor of a long table is one page", |ring| {
        ring.write(0, TABLE, 16 * u32::from(LONG_TABLE), INDIRECT, 0);
        ring.publish(0);
    })
}

pub fn lengths() -> Outcome {
    for length in [0, 1, 15, 1 << 31, u32::MAX] {
        on_every_queue("first buffer of a wrong length", |ring| {
            ring.write(0, DATA, length, NEXT, 1);
            ring.write(1, DATA + 0x1000, 1, WRITE, 0);
            ring.publish(0);
        })?;
        on_every_queue("data of a wrong length", |ring| {
            write_request(ring, DATA + 0x2000, length);
            ring.publish(0);
        })?;
    }
    on_every_queue("together more than 4 GiB", |ring| {
        for index in 0..ring.size {
            let flags = if index + 1 == ring.size { WRITE } else { NEXT | WRITE };
            ring.write(index, DATA, 48 << 20, flags, index + 1);
        }
        ring.publish(0);
    })
}

pub fn directions() -> Outcome {
    on_every_queue("all writable", |ring| {
        write_request(ring, DATA + 0x2000, 512);
        ring.write(0, DATA, 16, NEXT | WRITE, 1);
        ring.publish(0);
    })?;
    on_every_queue("all readable", |ring| {
        write_request(ring, DATA + 0x2000, 512);
        ring.write(1, DATA + 0x2000, 512, NEXT, 2);
        ring.write(2, DATA + 0x1000, 1, 0, 0);
        ring.publish(0);
    })?;
    on_every_queue("readable after writable", |ring| {
        write_request(ring, DATA + 0x2000, 512);
        ring.write(2, DATA + 0x1000, 1, 0, 0);
        ring.publish(0);
    })
}
