//! The requests that are on the way, one in each slot.
//!
//! Invariant: while a slot is on the way the vectors of its job stay where they are, and the guest memory they point to
//! stays mapped. A slot ends only when the engine has given it back; the slots wait for all when they are dropped.

use super::engine::{Done, Engine, Job, SLOTS};
use super::request::Status;
use super::vectors::Vectors;
use crate::devices::virtio::chain::Chain;
use crate::memory::GuestMemory;
use std::io;

/// How often a request is tried again that the kernel only put off (EINTR, EAGAIN).
const TRIES: u8 = 8;

/// What a request does when it has ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read {
        bytes: u64,
    },
    Write {
        bytes: u64,
    },
    Flush,
    Discard,
    /// written, where the file system cannot zero a range
    WriteZeroes {
        offset: u64,
        bytes: u64,
    },
}

/// A request on its way.
#[derive(Debug)]
pub struct Pending {
    pub chain: Chain,
    /// where the status byte is in the writable part
    pub status_at: u64,
    pub kind: Kind,
    pub job: Job,
    pub tries: u8,
}

/// What a slot that the engine gave back comes to.
#[derive(Debug)]
pub enum Ended {
    /// the rest of it is on its way
    Again,
    Request(Box<Pending>, Result<Status, io::Error>),
}

#[derive(Debug)]
pub struct Slots {
    engine: Engine,
    /// boxed, so that vectors and their list stay where they are
    pending: Vec<Option<Box<Pending>>>,
    on_the_way: usize,
    /// heads of chains that are on the way, a bit for each: a driver must not offer one twice
    heads: [u64; 4],
    /// keeps what the vectors point to
    memory: Option<GuestMemory>,
}

impl Slots {
    pub fn new(engine: Engine) -> Self {
        Self {
            engine,
            pending: std::iter::repeat_with(|| None).take(SLOTS).collect(),
            on_the_way: 0,
            heads: [0; 4],
            memory: None,
        }
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub fn on_the_way(&self) -> usize {
        self.on_the_way
    }

    pub fn has_room(&self) -> bool {
        self.on_the_way < self.pending.len()
    }

    pub fn is_flushing(&self) -> bool {
        self.pending.iter().flatten().any(|pending| pending.kind == Kind::Flush)
    }

    /// Whether a chain with this head is on the way. Heads are below the size of the queue, 256.
    pub fn has_head(&self, head: u16) -> bool {
        self.heads[usize::from(head / 64) % 4] >> (head % 64) & 1 == 1
    }

    fn flip_head(&mut self, head: u16) {
        self.heads[usize::from(head / 64) % 4] ^= 1 << (head % 64);
    }

    /// Begins a request at the next [`Self::submit`]. `memory` is what its vectors point into. Gives the request back when
    /// there is no room.
    pub fn begin(&mut self, memory: &GuestMemory, pending: Pending) -> Result<(), Box<Pending>> {
        let pending = Box::new(pending);
        let Some(slot) = self.pending.iter().position(Option::is_none) else { return Err(pending) };
        if self.memory.is_none() {
            self.memory = Some(memory.clone());
        }
        let head = pending.chain.head;
        self.pending[slot] = Some(pending);
        if !self.push(slot) {
            return self.pending[slot].take().map_or(Ok(()), Err);
        }
        self.flip_head(head);
        self.on_the_way += 1;
        Ok(())
    }

    fn push(&mut self, slot: usize) -> bool {
        let Some(pending) = self.pending[slot].as_deref() else { return false };
        // SAFETY: the job stays in its box, and `memory` mapped, until the engine has given the slot back; `Drop` waits.
        unsafe { self.engine.push(slot, &pending.job) }
    }

    /// Errors: not all could begin; call again.
    pub fn submit(&mut self) -> io::Result<()> {
        self.engine.submit()
    }

    /// The next slot that the engine gave back.
    pub fn next_ended(&mut self) -> Option<Ended> {
        let done = self.engine.take_done()?;
        let pending = self.pending.get_mut(done.slot).and_then(Option::as_deref_mut);
        let outcome = match pending {
            Some(pending) => pending.outcome(done),
            // the engine gives back what it was given; anything else is of no request
            None => return Some(Ended::Again),
        };
        if let Some(outcome) = outcome {
            return self.end(done.slot, outcome);
        }
        if self.push(done.slot) {
            Some(Ended::Again)
        } else {
            self.end(done.slot, Err(io::ErrorKind::WouldBlock.into()))
        }
    }

    fn end(&mut self, slot: usize, outcome: Result<Status, io::Error>) -> Option<Ended> {
        let pending = self.pending[slot].take()?;
        self.on_the_way -= 1;
        self.flip_head(pending.chain.head);
        Some(Ended::Request(pending, outcome))
    }

    /// Waits until at least one more slot was given back.
    pub fn wait(&mut self) -> io::Result<()> {
        self.engine.wait()
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        while self.on_the_way > 0 {
            if self.next_ended().is_none() && self.wait().is_err() {
                // the memory must outlive what the kernel may still write to: it is given up, not freed
                let _ = self.memory.take().map(std::mem::ManuallyDrop::new);
                let _ = std::mem::ManuallyDrop::new(std::mem::take(&mut self.pending));
                return;
            }
        }
    }
}

impl Pending {
    /// The end of the request, or none when the job goes on with what is left.
    fn outcome(&mut self, done: Done) -> Option<Result<Status, io::Error>> {
        match done.result {
            result if result >= 0 => self.moved(result as usize),
            result => self.failed(-result),
        }
    }

    fn moved(&mut self, moved: usize) -> Option<Result<Status, io::Error>> {
        let (Job::Read { offset, vectors } | Job::Write { offset, vectors }) = &mut self.job else {
            return Some(Ok(Status::Ok));
        };
        if vectors.bytes_left() == 0 {
            return Some(Ok(Status::Ok));
        }
        if moved == 0 {
            // the file became shorter
            return Some(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        vectors.advance(moved);
        *offset += moved as u64;
        (vectors.bytes_left() == 0).then_some(Ok(Status::Ok))
    }

    fn failed(&mut self, errno: i32) -> Option<Result<Status, io::Error>> {
        let error = io::Error::from_raw_os_error(errno);
        match (errno, self.kind, &self.job) {
            (libc::EINTR | libc::EAGAIN, ..) if self.tries < TRIES => {
                self.tries += 1;
                None
            }
            // a discard is a hint: a file system that knows no holes keeps the data
            (libc::EOPNOTSUPP, Kind::Discard, _) => Some(Ok(Status::Ok)),
            (libc::EOPNOTSUPP, Kind::WriteZeroes { offset, bytes }, Job::Allocate { .. }) => {
                self.job = Job::Write { offset, vectors: Vectors::zeroes(bytes) };
                None
            }
            _ => Some(Err(error)),
        }
    }
}
