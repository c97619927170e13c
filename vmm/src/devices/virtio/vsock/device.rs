//! The socket device: its table of connections and what is on its way to the guest.

use super::connection::{BUFFER_BYTES, Connection, LARGE_BUFFER_BYTES, Phase};
use super::host::Handshake;
use super::packet::{HOST_CID, Header, TYPE_STREAM};
use super::persist::ResetNotice;
use crate::devices::virtio::persist::{DeviceState, DeviceStateError};
use crate::devices::virtio::queue::BrokenQueue;
use crate::devices::virtio::{DeviceIo, HostSource, Progress, TYPE_VSOCK, VirtioDevice};
use crate::metrics::Metrics;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

/// Connections of a machine, those that are being made included.
pub const MAX_CONNECTIONS: usize = 256;
/// Of these the guest may open so many: the rest is kept for the host, which must reach its guest agent.
pub const MAX_GUEST_CONNECTIONS: usize = 128;
/// So many connections at once have a large buffer: with the others, 22 MiB wait at most for a host that reads nothing, in
/// queues that may have room for twice that.
pub const MAX_LARGE_BUFFERS: usize = 32;
/// Payload is moved in pieces of this many bytes at most.
pub(super) const PIECE_BYTES: usize = 64 * 1024;
/// Descriptors that are left for all else when the process may open fewer than the connections need.
const RESERVED_DESCRIPTORS: u64 = 128;
/// Host connections that have not said yet which port they want.
pub const MAX_HANDSHAKES: usize = 32;
/// RST packets that wait for room in the receive queue; while there are so many, nothing is taken from the guest and no
/// connection of the host is accepted. Those that are there may still end, so there are never more than this and
/// [`MAX_CONNECTIONS`] together.
pub const MAX_RESETS: usize = 256;
/// How long the host may take to say what it wants, and the guest to answer.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
pub const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How often deadlines are looked at while there are any.
const TICK: Duration = Duration::from_millis(500);

pub(super) const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;
/// receive, transmit, event (virtio 1.2, 5.10.2)
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// Ports of the host for connections that the host makes: from here up, above what anyone listens on.
const FIRST_HOST_PORT: u32 = 1 << 30;

pub(super) const TOKEN_LISTENER: u64 = 0;
pub(super) const TOKEN_TIMER: u64 = 1;
const FIRST_TOKEN: u64 = 2;

/// A connection by its two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub guest_port: u32,
    pub host_port: u32,
}

/// A RST for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reset {
    pub from_cid: u64,
    pub key: Key,
}

pub struct VsockDevice {
    pub(super) cid: u64,
    pub(super) config: [u8; 8],
    pub(super) listener: UnixListener,
    pub(super) prefix: String,
    pub(super) epoll: Epoll,
    pub(super) timer: TimerFd,
    pub(super) timer_runs: bool,
    pub(super) connections: BTreeMap<Key, Connection>,
    pub(super) tokens: BTreeMap<u64, Key>,
    pub(super) handshakes: BTreeMap<u64, Handshake>,
    /// connections that have something for the guest, each once
    pub(super) ready: VecDeque<Key>,
    pub(super) resets: VecDeque<Reset>,
    /// the transmit queue was left because `resets` is full
    pub(super) transmit_stalled: bool,
    pub(super) max_connections: usize,
    pub(super) next_token: u64,
    pub(super) next_host_port: u32,
    pub(super) reset_notice: ResetNotice,
    pub(super) scratch: Box<[u8]>,
    pub(super) metrics: Arc<Metrics>,
}

impl VsockDevice {
    /// `prefix`: guest connections to port P of the host go to the Unix socket `<prefix>_<P>`.
    pub fn new(cid: u32, listener: UnixListener, prefix: String, metrics: Arc<Metrics>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let timer = TimerFd::new()?;
        for (fd, token) in [(listener.as_raw_fd(), TOKEN_LISTENER), (timer.as_raw_fd(), TOKEN_TIMER)] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))?;
        }
        Ok(Self {
            cid: u64::from(cid),
            config: u64::from(cid).to_le_bytes(),
            listener,
            prefix,
            epoll,
            timer,
            timer_runs: false,
            connections: BTreeMap::new(),
            tokens: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            transmit_stalled: false,
            max_connections: connections_within(open_files_limit()?),
            next_token: FIRST_TOKEN,
            next_host_port: FIRST_HOST_PORT,
            reset_notice: ResetNotice::None,
            scratch: vec![0; PIECE_BYTES].into_boxed_slice(),
            metrics,
        })
    }

    pub(super) fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// What the next connection may keep for a host that does not read.
    pub(super) fn next_buffer_bytes(&self) -> u32 {
        let is_large = |connection: &&Connection| connection.buffer_bytes() > BUFFER_BYTES;
        let large = self.connections.values().filter(is_large).count();
        if large < MAX_LARGE_BUFFERS { LARGE_BUFFER_BYTES } else { BUFFER_BYTES }
    }

    pub(super) fn is_full(&self) -> bool {
        self.connections.len() + self.handshakes.len() >= self.max_connections
    }

    pub(super) fn insert(&mut self, key: Key, connection: Connection) {
        self.tokens.insert(connection.token, key);
        self.connections.insert(key, connection);
        self.touched(key);
    }

    /// Forgets a connection; its socket closes, which also takes it out of the epoll set.
    pub(super) fn remove(&mut self, key: Key) {
        if let Some(connection) = self.connections.remove(&key) {
            self.tokens.remove(&connection.token);
            self.unwatch(&connection);
            if connection.queued {
                self.ready.retain(|queued| *queued != key);
            }
        }
    }

    /// To be called after anything that may have changed a connection: ends it, queues it, watches its socket.
    pub(super) fn touched(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.is_over() {
            let wants_reset = !connection.was_reset();
            self.remove(key);
            if wants_reset {
                self.reset(key);
            }
            return;
        }
        if connection.has_packet() && !connection.queued {
            connection.queued = true;
            self.ready.push_back(key);
        }
        let interest = connection.interest();
        if interest != connection.watched {
            let operation = match (connection.watched, interest) {
                (None, _) => ControlOperation::Add,
                (Some(_), None) => ControlOperation::Delete,
                (Some(_), Some(_)) => ControlOperation::Modify,
            };
            let events = interest.unwrap_or(EventSet::empty());
            let event = EpollEvent::new(events, connection.token);
            let result = self.epoll.ctl(operation, connection.fd(), event);
            connection.watched = interest;
            if result.is_err() {
                // the host's kernel is out of memory for it: better no connection than one that hangs
                self.remove(key);
                self.reset(key);
            }
        }
    }

    fn unwatch(&self, connection: &Connection) {
        if connection.watched.is_some() {
            let event = EpollEvent::default();
            let _ = self.epoll.ctl(ControlOperation::Delete, connection.fd(), event);
        }
    }

    /// Sends a RST for a connection of the host's own context.
    pub(super) fn reset(&mut self, key: Key) {
        self.resets.push_back(Reset { from_cid: HOST_CID, key });
    }

    /// True when there is something for the guest.
    pub(super) fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// A header from the host to the guest, without operation and length.
    pub(super) fn header(&self, from_cid: u64, key: Key) -> Header {
        Header {
            source_cid: from_cid,
            destination_cid: self.cid,
            source_port: key.host_port,
            destination_port: key.guest_port,
            kind: TYPE_STREAM,
            ..Default::default()
        }
    }

    /// Runs the timer while something has a deadline.
    pub(super) fn set_timer(&mut self) {
        let asked = |connection: &Connection| matches!(connection.phase(), Phase::Asked { .. });
        let wanted = !self.handshakes.is_empty() || self.connections.values().any(asked);
        if wanted != self.timer_runs {
            let result = if wanted { self.timer.reset(TICK, Some(TICK)) } else { self.timer.clear() };
            self.timer_runs = wanted && result.is_ok();
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.handshakes.retain(|_, handshake| handshake.until > now);
        let late: Vec<Key> = self
            .connections
            .iter()
            .filter(|(_, connection)| matches!(connection.phase(), Phase::Asked { until } if until <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in late {
            self.metrics.vsock.refused.increment();
            self.remove(key);
            self.reset(key);
        }
    }
}

/// A connection that cannot be accepted for want of descriptors would wake the event loop for ever: so as many are
/// taken, and the others turned away, as there are descriptors for.
fn connections_within(open_files: u64) -> usize {
    let room = usize::try_from(open_files.saturating_sub(RESERVED_DESCRIPTORS)).unwrap_or(usize::MAX);
    room.clamp(1, MAX_CONNECTIONS)
}

fn open_files_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writes.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    if result == 0 { Ok(limit.rlim_cur) } else { Err(io::Error::last_os_error()) }
}

impl VirtioDevice for VsockDevice {
    fn kind(&self) -> u32 {
        TYPE_VSOCK
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    /// The driver is gone, and with it every socket of the guest: the host's ends see the end of file.
    fn reset(&mut self) {
        for key in self.connections.keys().copied().collect::<Vec<_>>() {
            self.remove(key);
        }
        self.handshakes.clear();
        self.ready.clear();
        self.resets.clear();
        self.transmit_stalled = false;
        self.reset_notice = ResetNotice::None;
        self.set_timer();
    }

    /// Whichever queue was kicked: what the guest sent may wait for room in the other.
    fn queue_event(&mut self, _queue: usize, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        self.driver_event(io)
    }

    fn host_sources(&self) -> Vec<HostSource> {
        vec![HostSource::level(self.epoll.as_raw_fd())]
    }

    fn host_event(&mut self, _source: usize, io: Option<&mut DeviceIo<'_>>) -> Result<Progress, BrokenQueue> {
        self.socket_events(io)
    }

    fn save(&self) -> DeviceState {
        self.state()
    }

    fn restore(&mut self, saved: &DeviceState) -> Result<(), DeviceStateError> {
        self.take_state(saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_rest() {
        assert_eq!(connections_within(1024), MAX_CONNECTIONS);
        assert_eq!(connections_within(RESERVED_DESCRIPTORS + 10), 10);
        assert_eq!(connections_within(0), 1);
    }
}
