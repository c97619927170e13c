//! The host's side: connections of the host, their first line, and connections to sockets of the host.

use super::connection::Connection;
use super::device::{
    ANSWER_TIME, HANDSHAKE_TIME, Key, MAX_HANDSHAKES, MAX_RESETS, TOKEN_LISTENER, TOKEN_TIMER, VsockDevice,
};
use crate::devices::virtio::queue::BrokenQueue;
use crate::devices::virtio::{DeviceIo, Progress};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

/// "CONNECT 4294967295\n" and a carriage return.
const LINE_BYTES_MAX: usize = 20;
/// Events taken from the kernel at once.
const EVENTS: usize = 32;

/// A connection of the host that has not said yet which port it wants.
#[derive(Debug)]
pub(super) struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
    pub until: Instant,
}

/// What became of a handshake.
enum Line {
    Incomplete,
    Port(u32),
    Wrong,
}

impl VsockDevice {
    /// Something happened on the host's sockets.
    pub(super) fn socket_events(&mut self, io: Option<&mut DeviceIo<'_>>) -> Result<Progress, BrokenQueue> {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            match event.data() {
                TOKEN_LISTENER => self.accept(io.is_some()),
                TOKEN_TIMER => {
                    let _ = self.timer.wait();
                    self.expire(Instant::now());
                }
                token => self.socket_event(token, event.event_set()),
            }
        }
        match io {
            Some(io) => self.driver_event(io),
            None => {
                self.set_timer();
                Ok(Progress::Done)
            }
        }
    }

    fn socket_event(&mut self, token: u64, events: EventSet) {
        if self.handshakes.contains_key(&token) {
            return self.shake(token);
        }
        let Some(key) = self.tokens.get(&token).copied() else { return };
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            connection.closed();
        }
        if events.contains(EventSet::OUT) {
            connection.flush();
        }
        if events.contains(EventSet::IN) {
            connection.became_readable();
        }
        self.touched(key);
    }

    /// Without a driver there is nobody to ask: the host sees the end of file at once.
    pub(super) fn accept(&mut self, has_driver: bool) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if !has_driver
            || self.is_full()
            || self.handshakes.len() >= MAX_HANDSHAKES
            || self.resets.len() >= MAX_RESETS
            || stream.set_nonblocking(true).is_err()
        {
            self.metrics.vsock.refused.increment();
            return;
        }
        let token = self.new_token();
        let event = EpollEvent::new(EventSet::IN, token);
        if self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event).is_ok() {
            let until = Instant::now() + HANDSHAKE_TIME;
            self.handshakes.insert(token, Handshake { stream, line: Vec::new(), until });
        }
    }

    pub(super) fn shake(&mut self, token: u64) {
        let Some(handshake) = self.handshakes.get_mut(&token) else { return };
        let outcome = handshake.read();
        if matches!(outcome, Line::Incomplete) {
            return;
        }
        let Some(handshake) = self.handshakes.remove(&token) else { return };
        let _ = self.epoll.ctl(ControlOperation::Delete, handshake.stream.as_raw_fd(), EpollEvent::default());
        let Line::Port(guest_port) = outcome else {
            self.metrics.vsock.refused.increment();
            return;
        };
        let key = Key { guest_port, host_port: self.new_host_port(guest_port) };
        let until = Instant::now() + ANSWER_TIME;
        let connection = Connection::asking(handshake.stream, token, until, self.next_buffer_bytes());
        self.insert(key, connection);
    }

    /// A port that no other connection to this port of the guest has.
    fn new_host_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let host_port = self.next_host_port;
            self.next_host_port = if host_port == u32::MAX - 1 { 1 << 30 } else { host_port + 1 };
            if !self.connections.contains_key(&Key { guest_port, host_port }) {
                return host_port;
            }
        }
    }

    /// Connects to the socket that stands for `port` of the host, without waiting.
    pub(super) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        connect(&format!("{}_{port}", self.prefix))
    }
}

impl Handshake {
    /// Reads byte by byte: what follows the line belongs to the guest.
    fn read(&mut self) -> Line {
        let mut byte = [0];
        while self.line.len() < LINE_BYTES_MAX {
            match self.stream.read(&mut byte) {
                Ok(0) => return Line::Wrong,
                Ok(_) if byte == *b"\n" => return port(&self.line).map_or(Line::Wrong, Line::Port),
                Ok(_) => self.line.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Line::Incomplete,
                Err(_) => return Line::Wrong,
            }
        }
        Line::Wrong
    }
}

/// The port of a `CONNECT <port>` line.
fn port(line: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(line).ok()?.trim_end_matches('\r').strip_prefix("CONNECT ")?;
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().ok()).flatten()
}

/// A connect that would wait, because the listener's backlog is full, is an error.
fn connect(path: &str) -> io::Result<UnixStream> {
    let mut address =
        libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    // one byte less than the array, for the NUL
    if path.len() >= address.sun_path.len() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the socket's path is too long"));
    }
    for (slot, byte) in address.sun_path.iter_mut().zip(path.bytes()) {
        *slot = byte as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: makes a new descriptor from constants.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` is a whole, initialised sockaddr_un that lives through the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(UnixStream::from(socket)) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::port;

    #[test]
    fn only_a_whole_decimal_port_is_one() {
        assert_eq!(port(b"CONNECT 1024"), Some(1024));
        assert_eq!(port(b"CONNECT 1024\r"), Some(1024));
        assert_eq!(port(b"CONNECT 4294967295"), Some(u32::MAX));
        for wrong in [
            "CONNECT",
            "CONNECT ",
            "CONNECT 4294967296",
            "CONNECT +1",
            "CONNECT -1",
            "CONNECT 1 ",
            "connect 1",
            "GET / HTTP/1.1",
        ] {
            assert_eq!(port(wrong.as_bytes()), None, "{wrong:?}");
        }
    }
}
