//! Packets of the socket device (virtio 1.2, 5.10.6), right and wrong ones.

use crate::memory::{DATA, read16, read32, write16, write32, write64};
use crate::virtio::{self, Ring, VSOCK, WRITE, Window};

pub const HEADER_BYTES: u64 = 44;
pub const HOST: u64 = 2;
pub const GUEST: u64 = 3;
pub const STREAM: u16 = 1;

pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RESET: u16 = 3;
pub const SHUTDOWN: u16 = 4;
pub const PAYLOAD: u16 = 5;
pub const CREDIT_UPDATE: u16 = 6;
pub const CREDIT_REQUEST: u16 = 7;

/// Space of one packet to be sent.
const SLOT_BYTES: u64 = 4096;
const RECEIVE_BUFFERS: u64 = DATA + (8 << 20);

/// The fields of a header.
#[derive(Clone, Copy)]
pub struct Header {
    pub source: u64,
    pub destination: u64,
    pub source_port: u32,
    pub destination_port: u32,
    pub length: u32,
    pub kind: u16,
    pub operation: u16,
    pub flags: u32,
    pub room: u32,
    pub forwarded: u32,
}

impl Header {
    pub fn new(operation: u16, source_port: u32, destination_port: u32) -> Self {
        Self {
            source: GUEST,
            destination: HOST,
            source_port,
            destination_port,
            length: 0,
            kind: STREAM,
            operation,
            flags: 0,
            room: 0x1_0000,
            forwarded: 0,
        }
    }

    pub fn write(self, at: u64) {
        write64(at, self.source);
        write64(at + 8, self.destination);
        write32(at + 16, self.source_port);
        write32(at + 20, self.destination_port);
        write32(at + 24, self.length);
        write16(at + 28, self.kind);
        write16(at + 30, self.operation);
        write32(at + 32, self.flags);
        write32(at + 36, self.room);
        write32(at + 40, self.forwarded);
    }
}

/// The socket device with its receive and transmit queues.
#[derive(Clone, Copy)]
pub struct Socket {
    pub window: Window,
    pub receive: Ring,
    pub transmit: Ring,
}

impl Socket {
    /// The device, started, with `buffers` buffers for what comes.
    pub fn start(buffers: u16) -> Option<Self> {
        let window = virtio::find(VSOCK, 0)?;
        if !window.start() {
            return None;
        }
        let (receive, transmit) = (window.ring(0), window.ring(1));
        for buffer in 0..buffers.min(receive.size) {
            let at = RECEIVE_BUFFERS + u64::from(buffer) * SLOT_BYTES;
            receive.write(buffer, at, SLOT_BYTES as u32, WRITE, 0);
            receive.publish(buffer);
        }
        receive.kick();
        Some(Self { window, receive, transmit })
    }

    /// Where the n-th packet to be sent lies.
    pub fn slot(self, number: u16) -> u64 {
        DATA + u64::from(number % self.transmit.size) * SLOT_BYTES
    }

    /// Puts a packet, its payload already behind the header, into the queue; the caller kicks.
    pub fn queue(self, header: Header, payload: u32) {
        let number = self.transmit.available_index();
        let at = self.slot(number);
        header.write(at);
        let index = number % self.transmit.size;
        self.transmit.write(index, at, HEADER_BYTES as u32 + payload, 0, 0);
        self.transmit.publish(index);
    }

    /// Sends one packet and waits until the device has taken it; false when it wants a reset instead.
    pub fn send(self, header: Header, payload: u32) -> bool {
        self.queue(header, payload);
        self.transmit.kick();
        self.transmit.settle()
    }

    /// Waits for the packet after the `seen`-th; where it lies.
    pub fn next(self, seen: u16) -> Option<Packet> {
        let ring = self.receive;
        let came = crate::cpu::wait_until(1 << 34, || ring.used_index() != seen);
        came.then(|| self.packet(seen))
    }

    /// The `seen`-th packet that came.
    pub fn packet(self, seen: u16) -> Packet {
        let entry = self.receive.used() + 4 + 8 * u64::from(seen % self.receive.size);
        let buffer = read32(entry) as u16;
        Packet { at: RECEIVE_BUFFERS + u64::from(buffer) * SLOT_BYTES, buffer }
    }

    /// Gives the buffer of a packet back to the device.
    pub fn give_back(self, packet: Packet) {
        self.receive.send(packet.buffer);
    }
}

/// A packet of the host in a buffer of ours.
#[derive(Clone, Copy)]
pub struct Packet {
    at: u64,
    buffer: u16,
}

impl Packet {
    pub fn operation(self) -> u16 {
        read16(self.at + 30)
    }

    /// The guest's port that it is for.
    pub fn port(self) -> u32 {
        read32(self.at + 20)
    }

    pub fn length(self) -> u32 {
        read32(self.at + 24)
    }

    pub fn payload(self) -> u64 {
        self.at + HEADER_BYTES
    }
}
