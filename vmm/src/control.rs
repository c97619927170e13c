//! The control socket, served by the device thread: [`pinfold_vmm_api::control`].
//!
//! Few connections, bounded lines, and no new request is read from a peer that does not take its answers.

use pinfold_vmm_api::control::{MAX_LINE_BYTES, Request, Response};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The node agent has one; a person with a tool may have another.
pub const MAX_CONNECTIONS: usize = 8;

const LISTENER: u64 = 0;

#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    epoll: Epoll,
    connections: BTreeMap<u64, Connection>,
    next_id: u64,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl ControlServer {
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, LISTENER);
        epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), event)?;
        Ok(Self { listener, epoll, connections: BTreeMap::new(), next_id: LISTENER + 1 })
    }

    /// Does what there is to do; `answer` decides on each request.
    pub fn serve(&mut self, answer: &mut dyn FnMut(Request) -> Response) {
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
        if self.connections.len() >= MAX_CONNECTIONS || stream.set_nonblocking(true).is_err() {
            return;
        }
        let id = self.next_id;
        let event = EpollEvent::new(EventSet::IN, id);
        if self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event).is_ok() {
            self.next_id += 1;
            self.connections.insert(id, Connection { stream, input: Vec::new(), output: Vec::new() });
        }
    }

    fn progress(&mut self, id: u64, answer: &mut dyn FnMut(Request) -> Response) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let alive = connection.progress(answer);
        let wanted = if connection.output.is_empty() { EventSet::IN } else { EventSet::OUT };
        let event = EpollEvent::new(wanted, id);
        let fd = connection.stream.as_raw_fd();
        if !alive || self.epoll.ctl(ControlOperation::Modify, fd, event).is_err() {
            // closing the descriptor takes it out of the epoll set
            self.connections.remove(&id);
        }
    }
}

impl AsRawFd for ControlServer {
    /// Readable when [`ControlServer::serve`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl Connection {
    /// False when it is over.
    fn progress(&mut self, answer: &mut dyn FnMut(Request) -> Response) -> bool {
        if !self.answer_buffered(answer) {
            return false;
        }
        if !self.output.is_empty() {
            return true;
        }
        let mut chunk = [0; 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => return false,
            Ok(read) => self.input.extend_from_slice(&chunk[..read]),
            Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
        // what is left of the line may be longer than a line may be
        self.answer_buffered(answer) && self.input.len() <= MAX_LINE_BYTES
    }

    /// Answers the whole lines that are here, as far as the peer takes the answers: where it does not, they wait, and
    /// nothing more is read. False when the connection is over.
    fn answer_buffered(&mut self, answer: &mut dyn FnMut(Request) -> Response) -> bool {
        while self.send() {
            if !self.output.is_empty() {
                return true;
            }
            let Some(end) = self.input.iter().position(|byte| *byte == b'\n') else { return true };
            let line: Vec<u8> = self.input.drain(..=end).collect();
            let response = respond(&line, answer);
            self.output.extend(serde_json::to_vec(&response).unwrap_or_default());
            self.output.push(b'\n');
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

fn respond(line: &[u8], answer: &mut dyn FnMut(Request) -> Response) -> Response {
    match serde_json::from_slice(line) {
        Ok(request) => answer(request),
        Err(error) => Response::Error { message: format!("not a request: {error}") },
    }
}

#[cfg(test)]
mod tests;
