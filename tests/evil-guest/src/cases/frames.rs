//! G35 to G37: frames and buffers of the network device. The loops and directions of G1 to G8 are for every device; these
//! know what a frame is.

use crate::console::say;
use crate::memory::{self, DATA, write8, write16};
use crate::net::{CSUM, Card, FRAME, HEADER_BYTES, HOST_TSO4, Header, PROBE_BYTES};
use crate::virtio::{NEXT, Ring, WRITE};
use crate::{Failed, Outcome, cpu};
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

const NEEDS_CSUM: u8 = 1;
const TCPV4: u8 = 1;
/// Longest frame behind its header, and one more byte (virtio 1.2, 5.1.6.3.1).
const TOO_LONG: u32 = 65_551;
const PROBE: u32 = HEADER_BYTES + PROBE_BYTES;
/// Where the second buffer of a chain lies.
const OTHER: u64 = DATA + 0x4000;
/// How long the second processor interferes: about a second.
const INTERFERENCE_TICKS: u64 = 1 << 31;
/// Questions whose answers nobody takes: more than the host's queue of the tap has room for.
const UNREAD: u32 = 2000;
/// Type of IP version 4 frames, as a little-endian word.
const TYPE_IPV4: u16 = 0x0008;

static STOP: AtomicBool = AtomicBool::new(false);

fn start(features: u64) -> Result<Card, Failed> {
    Card::start(features).ok_or(Failed("the network device does not start"))
}

fn still_serves() -> Outcome {
    if start(0)?.serves() { Ok(()) } else { Err(Failed("the network device does not serve a right frame")) }
}

/// Sends a frame that must be given back, whether or not it goes out: the host counts the bytes that did.
fn taken(card: Card, bytes: u32) -> Outcome {
    if card.send(bytes) { Ok(()) } else { Err(Failed("a wrong frame broke the queue")) }
}

/// Headers that ask for what cannot be, for a frame of 42 bytes, whatever was agreed on.
fn wrong_headers() -> [Header; 12] {
    let sum = Header { flags: NEEDS_CSUM, csum_start: 14, csum_offset: 16, ..Header::PLAIN };
    let segments = Header { gso: TCPV4, gso_bytes: 1448, header_bytes: 42, ..sum };
    [
        Header { gso: 2, ..segments },
        Header { gso: 3, ..segments },
        Header { gso: 5, ..segments },
        Header { gso: 0x80, ..segments },
        Header { gso: 0x81, ..segments },
        Header { gso: u8::MAX, ..segments },
        Header { flags: 0, ..segments },
        Header { gso_bytes: 0, ..segments },
        Header { header_bytes: u16::MAX, ..segments },
        Header { csum_start: 41, csum_offset: 0, ..sum },
        Header { csum_start: u16::MAX, csum_offset: u16::MAX, ..sum },
        Header { csum_start: 0, csum_offset: 41, ..sum },
    ]
}

pub fn headers() -> Outcome {
    for features in [0, CSUM, CSUM | HOST_TSO4] {
        let card = start(features)?;
        for header in wrong_headers() {
            card.prepare(header);
            taken(card, PROBE)?;
        }
        // half an Ethernet header, and more than a frame may have
        card.prepare(Header::PLAIN);
        for bytes in [0, 1, 13, TOO_LONG, 1 << 20, 32 << 20] {
            taken(card, HEADER_BYTES + bytes)?;
        }
        // somebody else's address, the host's, everybody's, none
        for byte in [0x55, 0xff, 0] {
            memory::fill(FRAME + u64::from(HEADER_BYTES) + 6, byte, 6);
            taken(card, PROBE)?;
        }
        say!("features ", features);
    }
    // not agreed on
    let card = start(0)?;
    card.prepare(Header { flags: NEEDS_CSUM, csum_start: 14, csum_offset: 16, ..Header::PLAIN });
    taken(card, PROBE)?;
    still_serves()
}

/// Runs `attack` on a queue of a device fresh from its handshake: it must be refused.
fn broken(what: &'static str, queue: u64, attack: impl Fn(Ring)) -> Outcome {
    let card = start(0)?;
    let ring = card.window.ring(queue);
    card.prepare(Header::PLAIN);
    attack(ring);
    ring.send(0);
    let refused = card.window.wants_reset();
    say!(what, " queue ", queue);
    if refused { Ok(()) } else { Err(Failed("a wrong chain was taken")) }
}

pub fn chains() -> Outcome {
    const RECEIVE: u64 = 0;
    const TRANSMIT: u64 = 1;
    for (queue, flags) in [(RECEIVE, WRITE), (TRANSMIT, 0)] {
        for bytes in [0, 1, HEADER_BYTES - 1] {
            broken("shorter than a header", queue, |ring| ring.write(0, FRAME, bytes, flags, 0))?;
        }
        broken("header in pieces that do not make one", queue, |ring| {
            ring.write(0, FRAME, 6, flags | NEXT, 1);
            ring.write(1, OTHER, 5, flags, 0);
        })?;
        broken("other direction", queue, |ring| ring.write(0, FRAME, PROBE, flags ^ WRITE, 0))?;
        broken("both directions", queue, |ring| {
            ring.write(0, FRAME, PROBE, NEXT, 1);
            ring.write(1, OTHER, 2048, WRITE, 0);
        })?;
        broken("loop of one", queue, |ring| ring.write(0, FRAME, PROBE, flags | NEXT, 0))?;
        broken("loop of two behind a frame", queue, |ring| {
            ring.write(0, FRAME, PROBE, flags | NEXT, 1);
            ring.write(1, OTHER, 2048, flags | NEXT, 0);
        })?;
        for address in [memory::HOLE, memory::HOLE - 16, 1 << 40, u64::MAX - 1000] {
            broken("all outside memory", queue, |ring| ring.write(0, address, 2048, flags, 0))?;
            broken("payload outside memory", queue, |ring| {
                ring.write(0, FRAME, PROBE, flags | NEXT, 1);
                ring.write(1, address, 2048, flags, 0);
            })?;
        }
    }
    still_serves()
}

pub fn races() -> Outcome {
    let card = start(CSUM | HOST_TSO4)?;
    card.prepare(Header::PLAIN);
    STOP.store(false, SeqCst);
    if !cpu::start_other(change_frame) {
        return Err(Failed("the second processor does not start"));
    }
    let began = cpu::ticks();
    let mut sent = 0u64;
    while cpu::ticks().wrapping_sub(began) < INTERFERENCE_TICKS {
        taken(card, PROBE)?;
        sent += 1;
    }
    STOP.store(true, SeqCst);
    cpu::join_other(1 << 34);
    say!("sent ", sent);
    // buffers that take a header and no frame, while answers come
    let card = start(0)?;
    card.offer(8, HEADER_BYTES + 8);
    card.prepare(Header::PLAIN);
    for _ in 0..64 {
        taken(card, PROBE)?;
    }
    // and none at all, while more come than the tap holds
    let card = start(0)?;
    card.prepare(Header::PLAIN);
    for _ in 0..UNREAD {
        taken(card, PROBE)?;
    }
    still_serves()
}

/// Between a right frame and ones that must not go out: another's address, checksums and segments of nothing.
fn change_frame() {
    let (source, kind) = (FRAME + u64::from(HEADER_BYTES) + 6, FRAME + u64::from(HEADER_BYTES) + 12);
    while !STOP.load(SeqCst) {
        write8(source, 0x55);
        write8(FRAME, NEEDS_CSUM);
        write16(FRAME + 6, u16::MAX);
        write8(FRAME + 1, 0xff);
        write8(source, 2);
        write8(FRAME + 1, TCPV4);
        write16(FRAME + 4, 1);
        write16(FRAME + 6, 14);
        write16(kind, TYPE_IPV4);
        write8(FRAME, 0);
        write8(FRAME + 1, 0);
        write16(kind, 0x0608);
    }
}
