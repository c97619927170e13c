//! Who does the work of a disk: io_uring where the host's kernel lets us have it, else a thread.
//!
//! Both take jobs for numbered slots and give each slot back once, with what the kernel said. At most [`SLOTS`] are on
//! the way.

pub mod uring;
pub mod worker;

use super::vectors::Vectors;
use crate::seccomp;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use uring::Uring;
use worker::Worker;

/// Jobs on the way at once. Guest memory that they fill is the guest's; ours is some kilobytes for each.
pub const SLOTS: usize = 64;

/// One thing to do with the file.
#[derive(Debug)]
pub enum Job {
    Read {
        offset: u64,
        vectors: Vectors,
    },
    Write {
        offset: u64,
        vectors: Vectors,
    },
    /// fdatasync
    Sync,
    /// fallocate with this mode
    Allocate {
        offset: u64,
        bytes: u64,
        mode: i32,
    },
}

/// A slot that is done: bytes moved, 0, or a negative errno, as system calls of the kernel give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    pub slot: usize,
    pub result: i32,
}

#[derive(Debug)]
pub enum Engine {
    Uring(Box<Uring>),
    Worker(Worker),
}

impl Engine {
    /// io_uring, or a worker thread, with or without its filter, where the kernel refuses it.
    pub fn new(file: &File, with_filter: bool) -> io::Result<Self> {
        match Uring::new(file) {
            Ok(uring) => Ok(Self::Uring(Box::new(uring))),
            Err(_) => {
                let binding = seccomp::worker(with_filter).map_err(io::Error::other)?;
                Ok(Self::Worker(Worker::new(file, binding)?))
            }
        }
    }

    /// Readable when [`Self::take_done`] has something.
    pub fn fd(&self) -> RawFd {
        match self {
            Self::Uring(uring) => uring.as_raw_fd(),
            Self::Worker(worker) => worker.as_raw_fd(),
        }
    }

    /// Queues a job. It begins with [`Self::submit`] at the latest. False when there is no room, which cannot be while
    /// there are no more jobs than slots.
    ///
    /// # Safety
    /// What the job's vectors point to stays mapped, and the vectors where they are, until the slot is done.
    #[must_use]
    pub unsafe fn push(&mut self, slot: usize, job: &Job) -> bool {
        match self {
            // SAFETY: promised by the caller.
            Self::Uring(uring) => unsafe { uring.push(slot, job) },
            // SAFETY: promised by the caller.
            Self::Worker(worker) => unsafe { worker.push(slot, job) },
        }
    }

    /// Lets what was queued begin. Errors: it could not all begin; call again later.
    pub fn submit(&mut self) -> io::Result<()> {
        match self {
            Self::Uring(uring) => uring.submit(),
            Self::Worker(worker) => {
                worker.submit();
                Ok(())
            }
        }
    }

    /// A slot that is done since the last call.
    pub fn take_done(&mut self) -> Option<Done> {
        match self {
            Self::Uring(uring) => uring.take_done(),
            Self::Worker(worker) => worker.take_done(),
        }
    }

    /// Waits until a slot is done. Only while one is on the way.
    pub fn wait(&mut self) -> io::Result<()> {
        match self {
            Self::Uring(uring) => uring.wait(),
            Self::Worker(worker) => {
                worker.wait();
                Ok(())
            }
        }
    }
}
