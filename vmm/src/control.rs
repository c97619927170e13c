//! The control socket, served by the device thread: [`pinfold_vmm_api::control`].
//!
//! Few connections: the quietest makes room for a new one, watchers last. Bounded lines, and no new request is read from a peer
//! that does not take its answers. A watcher that does not take its events is passed over, and told the latest of each kind
//! once it does.

use pinfold_vmm_api::control::{Event, MAX_LINE_BYTES, Request, Response};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// The node agent has one; a person with a tool may have another.
pub const MAX_CONNECTIONS: usize = 8;

const LISTENER: u64 = 0;

/// Most descriptors that come with one request: a snapshot's state and its memory.
pub const MAX_DESCRIPTORS: usize = 2;

/// Decides on a request and the descriptors that came with it.
pub type Answer<'a> = dyn FnMut(Request, Vec<OwnedFd>) -> Response + 'a;

#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    epoll: Epoll,
    connections: BTreeMap<u64, Connection>,
    next_id: u64,
    /// counts what was heard of all connections
    heard: u64,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// when it was heard of last, by the server's count
    heard: u64,
    input: Vec<u8>,
    output: Vec<u8>,
    /// for the request whose line is not whole yet
    descriptors: Vec<OwnedFd>,
    watches: bool,
    /// it watches, and has to be told what it has missed
    behind: bool,
}

impl ControlServer {
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, LISTENER);
        epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), event)?;
        Ok(Self { listener, epoll, connections: BTreeMap::new(), next_id: LISTENER + 1, heard: 0 })
    }

    /// Does what there is to do; `answer` decides on each request.
    pub fn serve(&mut self, answer: &mut Answer<'_>) {
        let mut events = [EpollEvent::default(); MAX_CONNECTIONS + 1];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept(),
                id => self.progress(id, answer),
            }
        }
    }

    fn accept(&mut self) {
        // one for each event: level-triggered, so more come back
        let Ok((stream, _)) = self.listener.accept() else { return };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            self.end_quietest();
        }
        let id = self.next_id;
        let event = EpollEvent::new(EventSet::IN, id);
        if self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event).is_ok() {
            self.next_id += 1;
            self.heard += 1;
            self.connections.insert(id, Connection::new(stream, self.heard));
        }
    }

    /// Makes room: of those that do not watch, else of the watchers, the one goes that was heard of longest ago.
    fn end_quietest(&mut self) {
        let heard = |(_, connection): &(&u64, &Connection)| (connection.watches, connection.heard);
        let quietest = self.connections.iter().min_by_key(heard).map(|(id, _)| *id);
        // closing the descriptor takes it out of the epoll set
        quietest.and_then(|id| self.connections.remove(&id));
    }

    /// Sends `events` to every watcher that takes them now; the others are behind.
    pub fn publish(&mut self, events: &[Event]) {
        self.for_watchers(|connection| {
            if connection.output.is_empty() && !connection.behind {
                connection.tell(events)
            } else {
                connection.behind = true;
                true
            }
        });
    }

    /// Tells watchers that are new or behind the `latest` of each event. To be called after [`Self::serve`].
    pub fn catch_up(&mut self, latest: impl Fn() -> Vec<Event>) {
        self.for_watchers(|connection| {
            if !connection.behind || !connection.output.is_empty() {
                return true;
            }
            connection.behind = false;
            connection.tell(&latest())
        });
    }

    /// Runs `act` on every watcher, and drops those for which it says that they are gone.
    fn for_watchers(&mut self, mut act: impl FnMut(&mut Connection) -> bool) {
        let epoll = &self.epoll;
        self.connections
            .retain(|id, connection| !connection.watches || act(connection) && watch(epoll, *id, connection));
    }

    fn progress(&mut self, id: u64, answer: &mut Answer<'_>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        self.heard += 1;
        connection.heard = self.heard;
        if !connection.progress(answer) || !watch(&self.epoll, id, connection) {
            // closing the descriptor takes it out of the epoll set
            self.connections.remove(&id);
        }
    }
}

/// Waits for what the connection needs next; false when that is impossible.
fn watch(epoll: &Epoll, id: u64, connection: &Connection) -> bool {
    let wanted = if connection.output.is_empty() { EventSet::IN } else { EventSet::OUT };
    epoll.ctl(ControlOperation::Modify, connection.stream.as_raw_fd(), EpollEvent::new(wanted, id)).is_ok()
}

impl AsRawFd for ControlServer {
    /// Readable when [`ControlServer::serve`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl Connection {
    fn new(stream: UnixStream, heard: u64) -> Self {
        Self {
            stream,
            heard,
            input: Vec::new(),
            output: Vec::new(),
            descriptors: Vec::new(),
            watches: false,
            behind: false,
        }
    }

    /// Writes `events` out as far as the peer takes them. False when the connection is over.
    fn tell(&mut self, events: &[Event]) -> bool {
        for event in events {
            self.push(&Response::Event(event.clone()));
        }
        self.send()
    }

    fn push(&mut self, response: &Response) {
        self.output.extend(serde_json::to_vec(response).unwrap_or_default());
        self.output.push(b'\n');
    }

    /// False when it is over.
    fn progress(&mut self, answer: &mut Answer<'_>) -> bool {
        if !self.answer_buffered(answer) {
            return false;
        }
        if !self.output.is_empty() {
            return true;
        }
        let mut chunk = [0; 1024];
        match self.receive(&mut chunk) {
            Ok(0) => return false,
            Ok(read) => self.input.extend_from_slice(&chunk[..read]),
            Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
        // what is left of the line may be longer than a line may be
        self.answer_buffered(answer) && self.input.len() <= MAX_LINE_BYTES
    }

    /// Reads bytes, and keeps the descriptors that came with them. More than a request may have end the connection.
    fn receive(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        let mut fds = [-1; MAX_DESCRIPTORS];
        let mut buffers = [libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() }];
        // SAFETY: the buffer is `chunk`, which lives through the call and may be overwritten.
        let (read, count) = unsafe { self.stream.recv_with_fds(&mut buffers, &mut fds) }
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        for fd in &fds[..count] {
            // SAFETY: the kernel made the descriptor for this message; nobody else has it.
            self.descriptors.push(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
        if self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::from_raw_os_error(libc::EPROTO));
        }
        Ok(read)
    }

    /// Answers the whole lines that are here, as far as the peer takes the answers: where it does not, they wait, and
    /// nothing more is read. False when the connection is over.
    fn answer_buffered(&mut self, answer: &mut Answer<'_>) -> bool {
        while self.send() {
            if !self.output.is_empty() {
                return true;
            }
            let Some(end) = self.input.iter().position(|byte| *byte == b'\n') else { return true };
            let line: Vec<u8> = self.input.drain(..=end).collect();
            // they come with the last byte of their line or before
            let descriptors = std::mem::take(&mut self.descriptors);
            let response = match serde_json::from_slice(&line) {
                Ok(Request::Watch) => {
                    (self.watches, self.behind) = (true, true);
                    Response::Done
                }
                Ok(request) => answer(request, descriptors),
                Err(error) => Response::Error { message: format!("not a request: {error}") },
            };
            self.push(&response);
        }
        false
    }

    fn send(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return false,
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
