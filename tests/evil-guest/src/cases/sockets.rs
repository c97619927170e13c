//! G10, G19, G20 and G21: the socket device. Ports that the host listens on are in `PORT_*`, as in `tests/evil`.

use crate::console::say;
use crate::memory::DATA;
use crate::virtio::NEEDS_RESET;
use crate::vsock::{
    CREDIT_REQUEST, CREDIT_UPDATE, GUEST, HOST, Header, PAYLOAD, REQUEST, RESET, RESPONSE, SHUTDOWN, Socket,
};
use crate::{Failed, Outcome, cpu};

/// The host takes every connection and says nothing.
const PORT_SILENT: u32 = 79;
/// The host sends as much as it may.
const PORT_FLOOD: u32 = 78;
const CONNECTIONS: u32 = 10_000;
/// Connections of the guest that the VMM lets live at once.
const CONNECTIONS_MAX: u64 = 128;

fn start() -> Result<Socket, Failed> {
    Socket::start(u16::MAX).ok_or(Failed("the socket device does not start"))
}

/// Counts answers by operation while they come, and gives their buffers back.
fn take_answers(socket: Socket, seen: &mut u16, accepted: &mut u64, reset: &mut u64) {
    while socket.receive.used_index() != *seen {
        let packet = socket.packet(*seen);
        match packet.operation() {
            RESPONSE => *accepted += 1,
            RESET => *reset += 1,
            _ => {}
        }
        *seen = seen.wrapping_add(1);
        socket.receive.publish(packet_buffer(socket, *seen));
    }
    socket.receive.kick();
}

/// Buffers come back in the order in which they were given.
fn packet_buffer(socket: Socket, seen: u16) -> u16 {
    seen.wrapping_sub(1) % socket.receive.size
}

pub fn used_ring_never_read() -> Outcome {
    // few buffers, never given back, while the host sends all it can
    let socket = Socket::start(4).ok_or(Failed("the socket device does not start"))?;
    let mut header = Header::new(REQUEST, 1000, PORT_FLOOD);
    header.room = u32::MAX;
    socket.send(header, 0);
    cpu::wait_until(1 << 33, || socket.receive.used_index() == 4);
    say!("received ", u64::from(socket.receive.used_index()));
    // and the used ring of a disk filled twice over, its entries never looked at
    let disk = crate::virtio::find(crate::virtio::BLOCK, 0).ok_or(Failed("there is no disk"))?;
    disk.start();
    let ring = disk.ring(0);
    ring.write(0, DATA, 16, crate::virtio::NEXT, 1);
    ring.write(1, DATA + 0x1000, 1, crate::virtio::WRITE, 0);
    for _ in 0..2 * u32::from(ring.size) {
        ring.send(0);
        if !ring.settle() {
            return Err(Failed("the disk did not go on"));
        }
    }
    Ok(())
}

pub fn connection_storm() -> Outcome {
    let socket = start()?;
    let (mut seen, mut accepted, mut reset) = (0, 0, 0);
    let mut port = 0x1234_5678u32;
    for number in 0..CONNECTIONS {
        port = port.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        socket.queue(Header::new(REQUEST, port, PORT_SILENT), 0);
        if number % 32 == 31 {
            socket.transmit.kick();
            if !socket.transmit.settle() {
                return Err(Failed("the storm broke the queue"));
            }
            take_answers(socket, &mut seen, &mut accepted, &mut reset);
        }
    }
    say!("accepted ", accepted, " reset ", reset);
    if accepted > CONNECTIONS_MAX || reset == 0 {
        return Err(Failed("more connections than the bound"));
    }
    // the same ports opened, reset and opened again, resets of what never was, and halves of connections
    for round in 0..400u32 {
        let port = round % 8;
        socket.queue(Header::new(REQUEST, port, PORT_SILENT), 0);
        socket.queue(Header::new(RESET, port, PORT_SILENT), 0);
        socket.queue(Header::new(RESET, round, round), 0);
        let mut half = Header::new(SHUTDOWN, port, PORT_SILENT);
        half.flags = round % 4;
        socket.queue(half, 0);
        if round % 16 == 15 {
            socket.transmit.kick();
            socket.transmit.settle();
            take_answers(socket, &mut seen, &mut accepted, &mut reset);
        }
    }
    if socket.window.status() & NEEDS_RESET != 0 {
        return Err(Failed("the storm broke the queue"));
    }
    Ok(())
}

/// Headers with one field wrong, on a connection that is open and on one that is not.
fn wrong_headers(port: u32) -> [Header; 18] {
    let right = Header::new(PAYLOAD, port, PORT_SILENT);
    [
        Header { source: HOST, ..right },
        Header { source: 99, ..right },
        Header { source: u64::MAX, ..right },
        Header { destination: GUEST, ..right },
        Header { destination: 0, ..right },
        Header { kind: 0, ..right },
        Header { kind: 2, ..right },
        Header { operation: 0, ..right },
        Header { operation: 8, ..right },
        Header { operation: u16::MAX, ..right },
        Header { length: 1, ..right },
        Header { length: 0x1_0001, ..right },
        Header { length: u32::MAX, ..right },
        Header { operation: RESPONSE, ..right },
        Header { operation: SHUTDOWN, flags: u32::MAX, ..right },
        Header { operation: CREDIT_UPDATE, room: 0, forwarded: u32::MAX, ..right },
        Header { operation: CREDIT_UPDATE, room: u32::MAX, forwarded: 0x8000_0000, ..right },
        Header { operation: REQUEST, destination_port: u32::MAX, ..right },
    ]
}

pub fn headers() -> Outcome {
    let socket = start()?;
    let (mut seen, mut accepted, mut reset) = (0, 0, 0);
    for (port, open) in [(500, true), (501, false)] {
        for header in wrong_headers(port) {
            if open {
                socket.send(Header::new(REQUEST, port, PORT_SILENT), 0);
            }
            if !socket.send(header, 0) {
                return Err(Failed("a wrong header broke the queue"));
            }
            take_answers(socket, &mut seen, &mut accepted, &mut reset);
        }
    }
    // data beyond the credit, data after the end, and credit asked for without end
    socket.send(Header::new(REQUEST, 600, PORT_SILENT), 0);
    for _ in 0..64 {
        socket.queue(Header { length: 4000, ..Header::new(PAYLOAD, 600, PORT_SILENT) }, 4000);
    }
    socket.send(Header { flags: 3, ..Header::new(SHUTDOWN, 600, PORT_SILENT) }, 0);
    socket.send(Header { length: 4, ..Header::new(PAYLOAD, 600, PORT_SILENT) }, 4);
    take_answers(socket, &mut seen, &mut accepted, &mut reset);
    socket.send(Header::new(REQUEST, 601, PORT_SILENT), 0);
    for round in 0..2000u32 {
        socket.queue(Header::new(CREDIT_REQUEST, 601, PORT_SILENT), 0);
        if round % 32 == 31 {
            socket.transmit.kick();
            socket.transmit.settle();
            take_answers(socket, &mut seen, &mut accepted, &mut reset);
        }
    }
    say!("accepted ", accepted, " reset ", reset);
    // shorter than a header: the queue cannot be trusted any more
    let ring = socket.transmit;
    ring.write(0, DATA, 43, 0, 0);
    ring.send(0);
    if socket.window.wants_reset() { Ok(()) } else { Err(Failed("half a header was taken")) }
}

pub fn ports_nobody_published() -> Outcome {
    let socket = start()?;
    let (mut seen, mut accepted, mut reset) = (0, 0, 0);
    let mut asked = 0;
    let high = [1 << 30, (1 << 30) + 1, u32::MAX - 1, u32::MAX];
    for port in (1..70).chain(1000..1100).chain(high) {
        socket.send(Header::new(REQUEST, 700, port), 0);
        take_answers(socket, &mut seen, &mut accepted, &mut reset);
        asked += 1;
    }
    cpu::wait_until(1 << 32, || {
        take_answers(socket, &mut seen, &mut accepted, &mut reset);
        reset >= asked
    });
    say!("asked ", asked, " reset ", reset);
    if accepted == 0 && reset == asked { Ok(()) } else { Err(Failed("a port nobody published answered")) }
}
