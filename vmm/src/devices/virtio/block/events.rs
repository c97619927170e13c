//! From the queue to the engine and back.

use super::device::Block;
use super::engine::Job;
use super::request::{Request, Status};
use super::slots::{Ended, Kind, Pending};
use super::vectors::Vectors;
use crate::devices::virtio::chain::{Buffer, Chain};
use crate::devices::virtio::interrupt::USED_BUFFER;
use crate::devices::virtio::queue::{BrokenQueue, TURN_BYTES};
use crate::devices::virtio::{DeviceIo, Progress};
use crate::memory::GuestMemory;
use std::io;

/// Bytes that a request counts for at least in a turn: it costs something, however short it is.
const REQUEST_BYTES_MIN: u64 = 16 << 10;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// Why no more requests were taken from the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Empty,
    /// every slot is on the way: goes on when one has ended
    Full,
    /// the rate is used up: goes on when the timer fires
    Rate,
    /// other devices have their turn
    Turn,
}

/// What may still be done before other devices have their turn.
struct Turn {
    requests: u16,
    bytes: u64,
}

impl Block {
    /// Takes requests, begins them, and gives back what has ended.
    pub(super) fn serve(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        let memory = io.memory;
        io.queues[0].disable_kicks(memory)?;
        let mut turn = Turn { requests: io.queues[0].size(), bytes: TURN_BYTES };
        let mut progress = Progress::Done;
        loop {
            let stop = self.take(io, &mut turn);
            // also before a broken queue is given up: a reset waits for what was begun
            let begun = self.slots.submit();
            let stop = stop?;
            let ended = self.finish(io)?;
            if begun.is_err() {
                // the kernel is short of something: try again after the others
                progress = Progress::More;
            }
            match stop {
                Stop::Full if ended > 0 => {}
                Stop::Full | Stop::Rate => break,
                Stop::Turn => {
                    progress = Progress::More;
                    break;
                }
                Stop::Empty if io.queues[0].enable_kicks(memory)? => io.queues[0].disable_kicks(memory)?,
                Stop::Empty => break,
            }
        }
        interrupt(io)?;
        Ok(progress)
    }

    fn take(&mut self, io: &mut DeviceIo<'_>, turn: &mut Turn) -> Result<Stop, BrokenQueue> {
        let memory = io.memory;
        loop {
            if turn.requests == 0 || turn.bytes == 0 {
                return Ok(Stop::Turn);
            }
            if !self.slots.has_room() {
                return Ok(Stop::Full);
            }
            let Some(chain) = io.queues[0].pop(memory)? else { return Ok(Stop::Empty) };
            let (request, status_at) = match Request::parse(memory, &chain, self.geometry) {
                _ if self.slots.has_head(chain.head) => {
                    return self.broken(BrokenQueue::Request("a chain is offered while it is in use"));
                }
                Ok(parsed) => parsed,
                Err(broken) => return self.broken(broken),
            };
            if !self.gate.pass(request.bytes()) {
                self.metrics.block.throttled.increment();
                io.queues[0].undo_pop();
                return Ok(Stop::Rate);
            }
            turn.requests -= 1;
            turn.bytes = turn.bytes.saturating_sub(request.bytes().max(REQUEST_BYTES_MIN));
            self.begin(io, chain, request, status_at)?;
        }
    }

    fn broken<T>(&self, broken: BrokenQueue) -> Result<T, BrokenQueue> {
        self.metrics.block.guest_errors.increment();
        Err(broken)
    }

    fn begin(
        &mut self,
        io: &mut DeviceIo<'_>,
        chain: Chain,
        request: Request,
        status_at: u64,
    ) -> Result<(), BrokenQueue> {
        let memory = io.memory;
        let (kind, job) = match self.job(memory, &chain, request) {
            Ok(job) => job,
            Err(status) => return self.answer(io, &chain, status_at, status),
        };
        let pending = Pending { chain, status_at, kind, job, tries: 0 };
        match self.slots.begin(memory, pending) {
            Ok(()) => Ok(()),
            // there was room when the request was taken
            Err(pending) => {
                self.metrics.block.host_errors.increment();
                self.answer(io, &pending.chain, status_at, Status::IoError)
            }
        }
    }

    /// What the host has to do for a request, or the status of one that is done without it.
    fn job(&mut self, memory: &GuestMemory, chain: &Chain, request: Request) -> Result<(Kind, Job), Status> {
        let vectors = |buffers: &[Buffer]| Vectors::of(memory, buffers).ok_or(Status::IoError);
        Ok(match request {
            Request::Read { offset, buffers } => {
                let vectors = vectors(&buffers)?;
                (Kind::Read { bytes: vectors.bytes_left() }, Job::Read { offset, vectors })
            }
            Request::Write { offset, buffers } => {
                let vectors = vectors(&buffers)?;
                (Kind::Write { bytes: vectors.bytes_left() }, Job::Write { offset, vectors })
            }
            Request::Flush => {
                self.metrics.block.flushes.increment();
                // what is on the way is not covered: the driver waits for a write before it flushes it
                // A flush on the way may still fail, and what it covers is not on the disk before it ends.
                if !std::mem::take(&mut self.unflushed) && !self.slots.is_flushing() {
                    return Err(Status::Ok);
                }
                (Kind::Flush, Job::Sync)
            }
            Request::Discard { bytes: 0, .. } | Request::WriteZeroes { bytes: 0, .. } => {
                return Err(Status::Ok);
            }
            Request::Discard { offset, bytes } => {
                (Kind::Discard, Job::Allocate { offset, bytes, mode: PUNCH })
            }
            Request::WriteZeroes { offset, bytes, unmap } => {
                let mode = if unmap { PUNCH } else { ZERO };
                (Kind::WriteZeroes { offset, bytes }, Job::Allocate { offset, bytes, mode })
            }
            Request::GetId { bytes } => return Err(self.get_id(memory, chain, bytes)),
            Request::Refused(status) => {
                self.metrics.block.guest_errors.increment();
                return Err(status);
            }
        })
    }

    /// Gives back what has ended; how many requests these are.
    fn finish(&mut self, io: &mut DeviceIo<'_>) -> Result<usize, BrokenQueue> {
        let (mut ended, mut again) = (0, false);
        while let Some(one) = self.slots.next_ended() {
            match one {
                Ended::Again => again = true,
                Ended::Request(pending, result) => {
                    ended += 1;
                    let status = self.account(pending.kind, result);
                    self.answer(io, &pending.chain, pending.status_at, status)?;
                }
            }
        }
        if again {
            // what cannot begin now begins with the next request, or the next that ends
            let _ = self.slots.submit();
        }
        Ok(ended)
    }

    fn account(&mut self, kind: Kind, result: Result<Status, io::Error>) -> Status {
        let writes = !matches!(kind, Kind::Read { .. } | Kind::Flush);
        // a flush that failed has covered nothing; a write that failed may have written something
        self.unflushed |= writes || kind == Kind::Flush && result.is_err();
        let metrics = &self.metrics.block;
        let Ok(status) = result else {
            metrics.host_errors.increment();
            return Status::IoError;
        };
        match kind {
            Kind::Read { bytes } => metrics.read_bytes.add(bytes),
            Kind::Write { bytes } => metrics.write_bytes.add(bytes),
            Kind::Discard => metrics.discards.increment(),
            Kind::WriteZeroes { .. } => metrics.zeroes.increment(),
            Kind::Flush => metrics.syncs.increment(),
        }
        status
    }

    /// The status is the last byte, so the length covers all of the writable part.
    fn answer(
        &self,
        io: &mut DeviceIo<'_>,
        chain: &Chain,
        status_at: u64,
        status: Status,
    ) -> Result<(), BrokenQueue> {
        chain.write_all(io.memory, status_at, &[status as u8]);
        let written = u32::try_from(status_at + 1).unwrap_or(u32::MAX);
        io.queues[0].push_used(io.memory, chain.head, written)
    }

    /// The id is 20 bytes; a shorter buffer takes what fits.
    fn get_id(&self, memory: &GuestMemory, chain: &Chain, room: u64) -> Status {
        let bytes = room.min(self.id.len() as u64);
        if bytes < self.id.len() as u64 {
            self.metrics.block.guest_errors.increment();
        }
        if chain.write_all(memory, 0, &self.id[..bytes as usize]) { Status::Ok } else { Status::IoError }
    }

    /// Gives back all that is on the way, as far as the host can wait for it: what stays makes the device busy, and goes on
    /// as before. Takes nothing new from the queue.
    pub(super) fn wait_for_all(&mut self, io: &mut DeviceIo<'_>) -> Result<(), BrokenQueue> {
        while self.slots.on_the_way() > 0 {
            match self.finish(io) {
                Ok(0) if self.slots.on_the_way() > 0 && self.slots.wait().is_err() => break,
                Ok(_) => {}
                Err(broken) => {
                    // the queue is lost, and what is on the way may still write to memory
                    self.abandon_all();
                    return Err(broken);
                }
            }
        }
        interrupt(io)
    }

    /// The driver is gone: what has ended is nobody's.
    pub(super) fn abandon(&mut self) {
        while let Some(ended) = self.slots.next_ended() {
            self.unflushed |= matches!(ended, Ended::Request(..));
        }
        // what cannot begin now begins with the next that ends
        let _ = self.slots.submit();
    }

    pub(super) fn abandon_all(&mut self) {
        self.abandon();
        while self.slots.on_the_way() > 0 && self.slots.wait().is_ok() {
            self.abandon();
        }
    }
}

fn interrupt(io: &mut DeviceIo<'_>) -> Result<(), BrokenQueue> {
    if io.queues[0].needs_interrupt(io.memory)? {
        io.interrupt.raise(USED_BUFFER);
    }
    Ok(())
}
