//! Not hostile: the machine beside the hostile one. It connects to the host and sends back what it is sent, so that the
//! host sees how long an answer takes. It sleeps until the socket device interrupts.

use crate::console::say;
use crate::memory;
use crate::virtio::register;
use crate::vsock::{CREDIT_REQUEST, CREDIT_UPDATE, Header, PAYLOAD, REQUEST, RESET, SHUTDOWN, Socket};
use crate::{Failed, Outcome, cpu};

const PORT_ECHO: u32 = 77;
const OWN_PORT: u32 = 1;
/// Line of the second device, which the socket device is in the neighbour's machine (one disk before it).
const LINE: u32 = 6;

pub fn echo() -> Outcome {
    cpu::route_line(LINE);
    let socket = Socket::start(u16::MAX).ok_or(Failed("the socket device does not start"))?;
    socket.send(Header::new(REQUEST, OWN_PORT, PORT_ECHO), 0);
    let (mut seen, mut taken) = (0u16, 0u32);
    loop {
        while socket.receive.used_index() != seen {
            let packet = socket.packet(seen);
            seen = seen.wrapping_add(1);
            let length = packet.length();
            match packet.operation() {
                PAYLOAD => {
                    taken = taken.wrapping_add(length);
                    let at = socket.slot(socket.transmit.available_index());
                    memory::copy(at + crate::vsock::HEADER_BYTES, packet.payload(), u64::from(length));
                    socket.queue(
                        Header { length, forwarded: taken, ..Header::new(PAYLOAD, OWN_PORT, PORT_ECHO) },
                        length,
                    );
                    socket.transmit.kick();
                }
                CREDIT_REQUEST => {
                    let update =
                        Header { forwarded: taken, ..Header::new(CREDIT_UPDATE, OWN_PORT, PORT_ECHO) };
                    socket.queue(update, 0);
                    socket.transmit.kick();
                }
                RESET | SHUTDOWN => return Err(Failed("the host ended the connection")),
                _ => say!("connected"),
            }
            socket.give_back(packet);
        }
        socket.window.put(register::INTERRUPT_ACKNOWLEDGE, 3);
        if socket.receive.used_index() == seen {
            cpu::wait_for_interrupt();
        }
    }
}
