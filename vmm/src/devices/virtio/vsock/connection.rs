//! One stream between a port of the guest and a Unix socket, with credit and half-closes.
//!
//! ```text
//!               REQUEST to the guest          RESPONSE
//!   host first:  Asked ------------------------> Open      each direction ends by itself:
//!   guest first: Open (RESPONSE to the guest)                host:  EOF -> SHUTDOWN(send), EPIPE -> SHUTDOWN(receive)
//!                                                            guest: SHUTDOWN -> the rest is delivered, then EOF
//!   over:        the guest ended both directions and all that it sent is delivered -> RST; or RST either way
//! ```
//!
//! Credit (virtio 1.2, 5.10.6.3): the guest may have [`Connection::buffer_bytes`] on their way to the host that the host has
//! not taken, which bounds [`Connection::to_host`]; the host never sends more than the guest says it has room for.

use super::packet::{Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;
use vmm_sys_util::epoll::EventSet;

/// Bytes from the guest that wait for the host at most: for each connection, and for the few that may have more, so that a
/// guest with much to say goes on while its host reads.
pub const BUFFER_BYTES: u32 = 64 * 1024;
pub const LARGE_BUFFER_BYTES: u32 = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// the guest was asked and has until then to answer
    Asked {
        until: Instant,
    },
    Open,
}

/// A packet for the guest; `bytes` of payload are in the caller's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    pub operation: Operation,
    pub flags: u32,
    pub bytes: usize,
}

/// The guest sent more than it had credit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverCredit;

#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    phase: Phase,
    /// name in the epoll set
    pub token: u64,
    /// what the epoll set watches for; none means that it is not in the set
    pub watched: Option<EventSet>,
    /// in the queue of connections that have something for the guest
    pub queued: bool,

    /// bound of `to_host`, which the guest is told
    buffer_bytes: u32,
    to_host: VecDeque<u8>,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// what the guest was last told of `forwarded`
    told: Wrapping<u32>,

    sent: Wrapping<u32>,
    guest_buffer_bytes: u32,
    guest_forwarded: Wrapping<u32>,

    guest_ended: Ends,
    host_ended: Ends,
    /// what the guest was told of `host_ended`
    host_ended_told: u32,
    guest_reset: bool,

    greeting: Option<Operation>,
    readable: bool,
    update_credit: bool,
    credit_asked: bool,
}

/// Which directions one side has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ends {
    sends: bool,
    receives: bool,
}

impl Ends {
    fn both(self) -> bool {
        self.sends && self.receives
    }

    /// Writes what the host takes of `bytes` now; how many. A host that takes nothing any more has ended that direction.
    fn offer(&mut self, mut stream: &UnixStream, bytes: &[u8]) -> usize {
        while !self.receives && !bytes.is_empty() {
            match stream.write(bytes) {
                Ok(written) => return written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return 0,
                Err(_) => self.receives = true,
            }
        }
        0
    }

    fn flags(self) -> u32 {
        (u32::from(self.receives) * SHUTDOWN_RECEIVE) | (u32::from(self.sends) * SHUTDOWN_SEND)
    }
}

impl Connection {
    /// The host wants it: the guest will be asked.
    pub fn asking(stream: UnixStream, token: u64, until: Instant, own_buffer_bytes: u32) -> Self {
        Self::new(stream, token, Phase::Asked { until }, Operation::Request, own_buffer_bytes)
    }

    /// The guest wanted it and the host has it. `stream` is non-blocking, as above.
    pub fn accepted(stream: UnixStream, token: u64, own_buffer_bytes: u32) -> Self {
        Self::new(stream, token, Phase::Open, Operation::Response, own_buffer_bytes)
    }

    fn new(stream: UnixStream, token: u64, phase: Phase, greeting: Operation, buffer_bytes: u32) -> Self {
        Self {
            stream,
            phase,
            token,
            watched: None,
            queued: false,
            buffer_bytes,
            to_host: VecDeque::new(),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            sent: Wrapping(0),
            guest_buffer_bytes: 0,
            guest_forwarded: Wrapping(0),
            guest_ended: Ends::default(),
            host_ended: Ends::default(),
            host_ended_told: 0,
            guest_reset: false,
            greeting: Some(greeting),
            readable: false,
            update_credit: false,
            credit_asked: false,
        }
    }

    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// `buf_alloc` of every packet to the guest.
    pub fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    /// `fwd_cnt` of the next packet to the guest.
    pub fn forwarded(&self) -> u32 {
        self.forwarded.0
    }

    /// Every packet of the guest says what room it has.
    pub fn note_credit(&mut self, buffer_bytes: u32, forwarded: u32) {
        self.guest_buffer_bytes = buffer_bytes;
        self.guest_forwarded = Wrapping(forwarded);
        self.credit_asked &= self.credit() == 0;
    }

    /// Bytes that may be sent to the guest now. A guest whose numbers make no sense has no room.
    fn credit(&self) -> u32 {
        let on_the_way = (self.sent - self.guest_forwarded).0;
        self.guest_buffer_bytes.saturating_sub(on_the_way)
    }

    /// The guest accepted: the host is told its own port, then bytes flow. False when the connection was open already.
    pub fn answered(&mut self, host_port: u32) -> bool {
        if self.phase == Phase::Open {
            return false;
        }
        self.phase = Phase::Open;
        let line = format!("OK {host_port}\n");
        if !matches!(self.stream.write(line.as_bytes()), Ok(sent) if sent == line.len()) {
            self.hung_up();
        }
        true
    }

    /// Whether the guest has credit for so many bytes.
    pub fn has_room(&self, bytes: u32) -> bool {
        let waiting = (self.received - self.forwarded).0;
        u64::from(bytes) + u64::from(waiting) <= u64::from(self.buffer_bytes)
    }

    /// Payload of the guest.
    pub fn receive(&mut self, payload: &[u8]) -> Result<(), OverCredit> {
        let bytes = u32::try_from(payload.len()).map_err(|_| OverCredit)?;
        if !self.has_room(bytes) {
            return Err(OverCredit);
        }
        self.received += Wrapping(bytes);
        // what the host takes at once does not wait
        let taken = if self.to_host.is_empty() { self.host_ended.offer(&self.stream, payload) } else { 0 };
        self.delivered(taken);
        self.to_host.extend(&payload[taken..]);
        self.flush();
        Ok(())
    }

    /// Writes what waits for the host as far as the host takes it.
    pub fn flush(&mut self) {
        while !self.to_host.is_empty() && !self.host_ended.receives {
            let taken = self.host_ended.offer(&self.stream, self.to_host.as_slices().0);
            if taken == 0 && !self.host_ended.receives {
                return;
            }
            self.to_host.drain(..taken);
            self.delivered(taken);
        }
        if self.host_ended.receives {
            // nobody will take it; for the guest it is as good as delivered, and it learns by SHUTDOWN
            self.delivered(self.to_host.len());
            self.to_host.clear();
        }
        if self.to_host.is_empty() {
            // gives the memory of a burst back
            self.to_host = VecDeque::new();
            if self.guest_ended.sends {
                let _ = self.stream.shutdown(Shutdown::Write);
            }
        }
    }

    fn delivered(&mut self, bytes: usize) {
        self.forwarded += Wrapping(bytes as u32);
        if (self.forwarded - self.told).0 >= self.buffer_bytes / 2 {
            self.update_credit = true;
        }
    }

    /// SHUTDOWN of the guest: flags add up.
    pub fn guest_shutdown(&mut self, flags: u32) {
        self.guest_ended.sends |= flags & SHUTDOWN_SEND != 0;
        self.guest_ended.receives |= flags & SHUTDOWN_RECEIVE != 0;
        if self.guest_ended.receives {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.flush();
    }

    /// RST of the guest: what it sent before is still delivered.
    pub fn guest_reset(&mut self) {
        self.guest_reset = true;
        self.guest_shutdown(SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    }

    /// True after [`Self::guest_reset`]: the guest knows of its end and wants no RST.
    pub fn was_reset(&self) -> bool {
        self.guest_reset
    }

    pub fn ask_credit_update(&mut self) {
        self.update_credit = true;
    }

    /// The host has bytes, or its end.
    pub fn became_readable(&mut self) {
        self.readable = true;
    }

    /// The host has closed its end. What it sent before is still to be read; what the guest sends, nobody reads.
    pub fn closed(&mut self) {
        self.host_ended.receives = true;
        self.readable = true;
        self.flush();
    }

    /// The host is gone in both directions.
    pub fn hung_up(&mut self) {
        self.host_ended = Ends { sends: true, receives: true };
        self.readable = false;
        self.flush();
    }

    /// Nothing will come of it any more.
    pub fn is_over(&self) -> bool {
        self.guest_ended.both() && self.to_host.is_empty()
    }

    /// True when [`Self::next_packet`] may have one.
    pub fn has_packet(&self) -> bool {
        self.greeting.is_some()
            || self.phase == Phase::Open
                && (self.wants_to_read() && (self.credit() > 0 || !self.credit_asked)
                    || self.host_ended.flags() != self.host_ended_told
                    || self.update_credit)
    }

    fn wants_to_read(&self) -> bool {
        self.readable && !self.host_ended.sends && !self.guest_ended.receives
    }

    /// The next packet for the guest; payload goes into `buffer`, at most all of it.
    pub fn next_packet(&mut self, buffer: &mut [u8]) -> Option<Outgoing> {
        let packet = self.choose(buffer)?;
        // every packet carries the count
        self.told = self.forwarded;
        self.update_credit = false;
        Some(packet)
    }

    fn choose(&mut self, buffer: &mut [u8]) -> Option<Outgoing> {
        let plain = |operation| Some(Outgoing { operation, flags: 0, bytes: 0 });
        if let Some(operation) = self.greeting.take() {
            return plain(operation);
        }
        if self.phase != Phase::Open {
            return None;
        }
        if self.wants_to_read() {
            let room = buffer.len().min(self.credit() as usize);
            if room > 0 {
                if let Some(bytes) = self.read(&mut buffer[..room]) {
                    self.sent += Wrapping(bytes as u32);
                    return Some(Outgoing { operation: Operation::ReadWrite, flags: 0, bytes });
                }
            } else if self.credit() == 0 && !self.credit_asked {
                self.credit_asked = true;
                return plain(Operation::CreditRequest);
            }
        }
        let flags = self.host_ended.flags();
        if flags != self.host_ended_told {
            self.host_ended_told = flags;
            return Some(Outgoing { operation: Operation::Shutdown, flags, bytes: 0 });
        }
        if self.update_credit { plain(Operation::CreditUpdate) } else { None }
    }

    /// Bytes of the host; none when there are none now, or no more ever.
    fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => self.host_ended.sends = true,
                Ok(bytes) => return Some(bytes),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.hung_up(),
            }
            self.readable = false;
            return None;
        }
    }

    /// What the epoll set should watch for; nothing still reports a host that hung up. None once that is known and the
    /// guest has to move first: the set would report it without end.
    pub fn interest(&self) -> Option<EventSet> {
        if self.phase != Phase::Open {
            return None;
        }
        let mut interest = EventSet::empty();
        if !self.readable && !self.host_ended.sends && !self.guest_ended.receives {
            interest |= EventSet::IN;
        }
        if !self.to_host.is_empty() && !self.host_ended.receives {
            interest |= EventSet::OUT;
        }
        (!interest.is_empty() || !self.host_ended.receives).then_some(interest)
    }
}
