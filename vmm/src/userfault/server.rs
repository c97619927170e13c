//! A page-fault handler: one process that serves one machine from the memory file of its snapshot.
//!
//! ```text
//!   greet -> serve faults, and between them what is in the backlog -> the machine is gone, or all is in place
//! ```
//!
//! The backlog is the working set, then, if it is to fill, everything that the file holds. A fault never waits for more than
//! one chunk of it. What a machine says of its memory is compared with the file; its addresses mean something in its own
//! process only, where it could do the same by itself.

use super::descriptor::Userfault;
use crate::memory::PAGE_BYTES;
use crate::snapshot::memory::data_of;
use crate::snapshot::working_set::{self, WorkingSetError};
use pinfold_vmm_api::page_fault::{
    GREETING_TIME, HandlerWord, Layout, MAX_LINE_BYTES, MAX_REGIONS, Region, VERSION,
};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Instant;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Bytes of the backlog that are put in place between two looks at the faults.
const CHUNK_BYTES: u64 = 256 << 10;
/// A fault brings the pages around it along, aligned; as much as Linux does for a mapped file (`fault_around_bytes`).
pub(super) const AROUND_BYTES: u64 = 64 << 10;
/// What the event loop hears.
const FAULT: u64 = 0;
const SOCKET: u64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the machine did not greet as it must, within {seconds} s: {0}", seconds = GREETING_TIME.as_secs())]
    Greeting(#[source] io::Error),
    #[error(
        "the machine's layout is not one of version {VERSION} that is the whole memory file, {bytes} bytes, range after range"
    )]
    Layout { bytes: u64 },
    #[error("the machine sent no userfaultfd with its layout")]
    NoUserfault,
    #[error("{0}")]
    WorkingSet(#[from] WorkingSetError),
    #[error("the memory file cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("a page fault at {address:#x} is outside the machine's memory")]
    Outside { address: u64 },
    #[error("pages cannot be put in place: {0}")]
    Place(#[source] io::Error),
    #[error("the machine cannot be heard: {0}")]
    Wait(#[source] io::Error),
}

/// What was done for a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Served {
    pub faults: u64,
    /// put in place without a fault, in bytes
    pub ahead_bytes: u64,
    /// every page of the file is in place; else the machine ended before
    pub complete: bool,
}

/// What to put in place before it is asked for.
#[derive(Debug, Default)]
pub struct Ahead {
    /// see [`working_set`]
    pub working_set: Option<File>,
    /// all that the file holds: the machine needs nobody when that is done
    pub fill: bool,
}

/// Serves the machine at `socket` from `memory` until it is gone, or has all of it.
pub fn serve(socket: UnixStream, memory: &File, ahead: &Ahead) -> Result<Served, ServeError> {
    let (regions, userfault) = greet(&socket, memory)?;
    let epoll = Epoll::new().map_err(ServeError::Wait)?;
    for (fd, source) in [(userfault.as_raw_fd(), FAULT), (socket.as_raw_fd(), SOCKET)] {
        let event = EpollEvent::new(EventSet::IN, source);
        epoll.ctl(ControlOperation::Add, fd, event).map_err(ServeError::Wait)?;
    }
    let (backlog, served) = (VecDeque::new(), Served::default());
    let mut server = Server { regions, userfault, epoll, memory, backlog, served };
    server.plan(ahead)?;
    say(&socket, HandlerWord::Serving)?;
    while server.turn()? {
        if ahead.fill && server.backlog.is_empty() {
            server.served.complete = true;
            say(&socket, HandlerWord::Complete)?;
            break;
        }
    }
    Ok(server.served)
}

fn greet(socket: &UnixStream, memory: &File) -> Result<(Vec<Region>, Userfault), ServeError> {
    let (line, file) = first_line(socket, Instant::now() + GREETING_TIME).map_err(ServeError::Greeting)?;
    let userfault = Userfault::from(OwnedFd::from(file.ok_or(ServeError::NoUserfault)?));
    let bytes = memory.metadata().map_err(ServeError::Read)?.len();
    let layout: Layout = serde_json::from_slice(&line).map_err(|_| ServeError::Layout { bytes })?;
    let is_known = layout.version == VERSION && (1..=MAX_REGIONS).contains(&layout.regions.len());
    if is_known && end_of(&layout.regions) == Some(bytes) {
        Ok((layout.regions, userfault))
    } else {
        Err(ServeError::Layout { bytes })
    }
}

/// The machine's first line, which is whole before `until`, and the descriptor that came with it.
fn first_line(mut socket: &UnixStream, until: Instant) -> io::Result<(Vec<u8>, Option<File>)> {
    let wait = || {
        let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        socket.set_read_timeout(Some(left.ok_or(io::ErrorKind::TimedOut)?))
    };
    let mut line = vec![0; MAX_LINE_BYTES];
    wait()?;
    let (mut filled, file) =
        socket.recv_with_fd(&mut line).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    while !line[..filled].ends_with(b"\n") {
        wait()?;
        let read = socket.read(&mut line[filled..])?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("its line does not end within {MAX_LINE_BYTES} bytes, or was cut off after {filled}"),
            ));
        }
        filled += read;
    }
    line.truncate(filled);
    Ok((line, file))
}

/// Where the last of `regions` ends in the memory file, if they follow each other there from its first byte on.
fn end_of(regions: &[Region]) -> Option<u64> {
    regions.iter().try_fold(0u64, |end, region| {
        let all = [region.guest_address, region.host_address, region.bytes];
        let whole = all.iter().all(|value| value.is_multiple_of(PAGE_BYTES)) && region.file_offset == end;
        region.guest_address.checked_add(region.bytes)?;
        region.host_address.checked_add(region.bytes)?;
        end.checked_add(region.bytes).filter(|_| whole)
    })
}

/// A machine that is gone hears nothing, and need not.
fn say(mut socket: &UnixStream, word: HandlerWord) -> Result<(), ServeError> {
    let mut line = serde_json::to_vec(&word).map_err(|error| ServeError::Wait(error.into()))?;
    line.push(b'\n');
    match socket.write_all(&line) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ServeError::Wait(error)),
        _ => Ok(()),
    }
}

struct Server<'a> {
    regions: Vec<Region>,
    userfault: Userfault,
    epoll: Epoll,
    memory: &'a File,
    /// file offsets, whole pages, each within one region
    backlog: VecDeque<Range<u64>>,
    served: Served,
}

impl Server<'_> {
    fn plan(&mut self, ahead: &Ahead) -> Result<(), ServeError> {
        if let Some(file) = &ahead.working_set {
            for run in working_set::runs(file)? {
                let of = |region: &&Region| {
                    run.start >= region.guest_address && run.end <= region.guest_address + region.bytes
                };
                // advice: what lies elsewhere is not this machine's
                let Some(region) = self.regions.iter().find(of) else { continue };
                let start = run.start - region.guest_address + region.file_offset;
                self.backlog.push_back(start..start + (run.end - run.start));
            }
        }
        if ahead.fill {
            for region in &self.regions {
                let data =
                    data_of(self.memory, region.file_offset, region.bytes).map_err(ServeError::Read)?;
                let offset = region.file_offset;
                self.backlog.extend(data.into_iter().map(|run| run.start + offset..run.end + offset));
            }
        }
        Ok(())
    }

    /// One round: faults that wait, else a chunk of the backlog, else sleep. `false`: the machine is gone.
    fn turn(&mut self) -> Result<bool, ServeError> {
        let timeout_ms = if self.backlog.is_empty() { -1 } else { 0 };
        let mut events = [EpollEvent::default(); 2];
        let count = match self.epoll.wait(timeout_ms, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            waited => waited.map_err(ServeError::Wait)?,
        };
        let is = |source| events[..count].iter().any(|event| event.data() == source);
        if is(FAULT) {
            let mut faults = Vec::new();
            self.userfault.faults(&mut faults).map_err(ServeError::Wait)?;
            self.served.faults += faults.len() as u64;
            for address in faults {
                if !self.serve_fault(address)? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        if is(SOCKET) {
            // a machine says nothing more: it has closed the connection
            return Ok(false);
        }
        self.go_ahead()
    }

    fn serve_fault(&mut self, address: u64) -> Result<bool, ServeError> {
        let of =
            |region: &&Region| (region.host_address..region.host_address + region.bytes).contains(&address);
        let region = self.regions.iter().find(of).ok_or(ServeError::Outside { address })?;
        let start = (address - region.host_address) / AROUND_BYTES * AROUND_BYTES;
        let bytes = AROUND_BYTES.min(region.bytes - start);
        self.put(region.host_address + start, region.file_offset + start, bytes)
    }

    fn go_ahead(&mut self) -> Result<bool, ServeError> {
        let Some(mut run) = self.backlog.pop_front() else { return Ok(true) };
        let bytes = CHUNK_BYTES.min(run.end - run.start);
        let offset = run.start;
        run.start += bytes;
        if !run.is_empty() {
            self.backlog.push_front(run);
        }
        let of = |region: &&Region| (region.file_offset..region.file_offset + region.bytes).contains(&offset);
        let Some(region) = self.regions.iter().find(of) else { return Ok(true) };
        let to = region.host_address + (offset - region.file_offset);
        self.served.ahead_bytes += bytes;
        self.put(to, offset, bytes)
    }

    /// Puts `bytes` of the file in place at `to`, as far as nothing is there. `false`: the machine is gone.
    fn put(&self, to: u64, offset: u64, bytes: u64) -> Result<bool, ServeError> {
        let mut data = vec![0; bytes as usize];
        self.memory.read_exact_at(&mut data, offset).map_err(ServeError::Read)?;
        self.userfault.fill(to, &data).map_err(ServeError::Place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_machine_that_greets_byte_by_byte_is_waited_for_once() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let machine = std::thread::spawn(move || {
            while theirs.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let began = Instant::now();
        let error = first_line(&ours, began + Duration::from_millis(200)).expect_err("no line");
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
        assert!(began.elapsed() < Duration::from_secs(20), "4,096 bytes take longer");
        drop(ours);
        machine.join().expect("no panic");
    }
}
