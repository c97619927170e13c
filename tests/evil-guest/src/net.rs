//! A driver of the network device (virtio 1.2, 5.1) and the frames that it sends, right and wrong ones.
//!
//! The right one is an ARP probe (RFC 5227, 2.1.1) for the address of the host's end: the host's kernel answers it, so that an
//! answer has been both ways.

use crate::cpu;
use crate::memory::{DATA, copy, fill, read16, read32, write8, write16, write32};
use crate::virtio::{self, FEATURE_INDIRECT, NET, Ring, WRITE, Window};

pub const CSUM: u64 = 1;
pub const HOST_TSO4: u64 = 1 << 11;

/// As in the machine's config and in `tests/evil`.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_ADDRESS: [u8; 4] = [192, 0, 2, 1];

pub const HEADER_BYTES: u32 = 12;
pub const PROBE_BYTES: u32 = 42;
/// The frame that is sent, header included; zeroes behind it.
pub const FRAME: u64 = DATA;
const TEMPLATE: u64 = DATA + 0x1000;
/// Receive buffers lie here, one after the other.
const BUFFERS: u64 = DATA + (8 << 20);
const BUFFER_BYTES: u64 = 2048;
const BUFFER_COUNT: u16 = 32;

/// Of an ARP frame behind the virtio header, as little-endian words.
const TYPE_AT: u64 = 12 + 12;
const TYPE_ARP: u16 = 0x0608;
const OPERATION_AT: u64 = 12 + 20;
const OPERATION_REPLY: u16 = 0x0200;

/// `struct virtio_net_hdr` without `num_buffers` (virtio 1.2, 5.1.6).
#[derive(Clone, Copy)]
pub struct Header {
    pub flags: u8,
    pub gso: u8,
    pub header_bytes: u16,
    pub gso_bytes: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
}

impl Header {
    pub const PLAIN: Self =
        Self { flags: 0, gso: 0, header_bytes: 0, gso_bytes: 0, csum_start: 0, csum_offset: 0 };

    pub fn write(self, at: u64) {
        write8(at, self.flags);
        write8(at + 1, self.gso);
        write16(at + 2, self.header_bytes);
        write16(at + 4, self.gso_bytes);
        write16(at + 6, self.csum_start);
        write16(at + 8, self.csum_offset);
        write16(at + 10, 0);
    }
}

/// Who asks the host for its hardware address, at `at`.
pub fn write_probe(at: u64) {
    let write = |offset: u64, bytes: &[u8]| {
        for (index, byte) in (0..).zip(bytes) {
            write8(at + offset + index, *byte);
        }
    };
    fill(at, 0, u64::from(PROBE_BYTES));
    write(0, &[0xff; 6]);
    write(6, &MAC);
    // ARP, Ethernet, IPv4, lengths of both addresses, request
    write(12, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    write(22, &MAC);
    write(38, &HOST_ADDRESS);
}

/// The network device with its queues.
#[derive(Clone, Copy)]
pub struct Card {
    pub window: Window,
    pub receive: Ring,
    pub transmit: Ring,
}

impl Card {
    /// The device, started without receive buffers.
    pub fn start(features: u64) -> Option<Self> {
        let window = virtio::find(NET, 0)?;
        let started = window.start_with(FEATURE_INDIRECT | features);
        started.then(|| Self { window, receive: window.ring(0), transmit: window.ring(1) })
    }

    /// Offers `count` receive buffers of so many bytes each.
    pub fn offer(self, count: u16, bytes: u32) {
        for buffer in 0..count.min(self.receive.size) {
            self.receive.write(buffer, BUFFERS + u64::from(buffer) * BUFFER_BYTES, bytes, WRITE, 0);
            self.receive.publish(buffer);
        }
        self.receive.kick();
    }

    /// Puts a probe and this header at [`FRAME`].
    pub fn prepare(self, header: Header) {
        header.write(FRAME);
        write_probe(TEMPLATE);
        copy(FRAME + u64::from(HEADER_BYTES), TEMPLATE, u64::from(PROBE_BYTES));
    }

    /// Sends what is at [`FRAME`] and waits until the device has given it back; false when it wants a reset instead.
    pub fn send(self, bytes: u32) -> bool {
        self.transmit.write(0, FRAME, bytes, 0, 0);
        self.transmit.send(0);
        self.transmit.settle()
    }

    /// A right probe and its answer.
    pub fn serves(self) -> bool {
        self.offer(BUFFER_COUNT, BUFFER_BYTES as u32);
        let mut seen = self.receive.used_index();
        self.prepare(Header::PLAIN);
        self.send(HEADER_BYTES + PROBE_BYTES) && cpu::wait_until(1 << 34, || self.is_answered(&mut seen))
    }

    /// Looks at what came since, and gives the buffers back.
    fn is_answered(self, seen: &mut u16) -> bool {
        let mut answered = false;
        while self.receive.used_index() != *seen {
            let entry = self.receive.used() + 4 + 8 * u64::from(*seen % self.receive.size);
            let buffer = read32(entry) as u16;
            let at = BUFFERS + u64::from(buffer) * BUFFER_BYTES;
            answered |= read16(at + TYPE_AT) == TYPE_ARP && read16(at + OPERATION_AT) == OPERATION_REPLY;
            write32(at + TYPE_AT, 0);
            *seen = seen.wrapping_add(1);
            self.receive.send(buffer);
        }
        answered
    }
}
