//! A thread that does one job after the other, for hosts without io_uring.
//!
//! It sleeps on a condition variable while there is nothing to do and ends when its disk does. It is bound by a seccomp
//! filter of its own before it takes the first job.

use super::super::vectors::Vectors;
use super::{Done, Job, SLOTS};
use crate::seccomp::Binding;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What a system call needs of a job, so that the thread has no reference to it.
#[derive(Debug, Clone, Copy)]
enum Call {
    Read { vectors: *const libc::iovec, count: usize, offset: u64 },
    Write { vectors: *const libc::iovec, count: usize, offset: u64 },
    Sync,
    Allocate { offset: u64, bytes: u64, mode: i32 },
}

// SAFETY: who pushes a job keeps what the pointers refer to until the job is done, whichever thread does it.
unsafe impl Send for Call {}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<(usize, Call)>,
    done: VecDeque<Done>,
    ended: bool,
}

#[derive(Debug)]
struct Shared {
    /// closed by the device thread: the worker's filter knows no close
    file: File,
    state: Mutex<State>,
    job_came: Condvar,
    job_ended: Condvar,
    /// told once for some jobs that ended
    told: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub fn new(file: &File, binding: Binding) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            file: file.try_clone()?,
            state: Mutex::default(),
            job_came: Condvar::new(),
            job_ended: Condvar::new(),
            told: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        });
        let twin = Arc::clone(&shared);
        let (began, has_begun) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("disk".into()).spawn(move || {
            let bound = binding.bind().map_err(io::Error::other);
            let is_bound = bound.is_ok();
            let told = began.send(bound);
            if is_bound && told.is_ok() {
                run(&twin);
            }
        })?;
        has_begun.recv().map_err(io::Error::other)??;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// # Safety
    /// See [`super::Engine::push`].
    pub unsafe fn push(&mut self, slot: usize, job: &Job) -> bool {
        let mut state = self.shared.lock();
        let room = state.jobs.len() < SLOTS;
        if room {
            state.jobs.push_back((slot, Call::of(job)));
        }
        room
    }

    pub fn submit(&mut self) {
        self.shared.job_came.notify_one();
    }

    pub fn take_done(&mut self) -> Option<Done> {
        let mut state = self.shared.lock();
        let done = state.done.pop_front();
        if state.done.is_empty() {
            // under the lock: what ends from now on tells again
            let _ = self.shared.told.read();
        }
        done
    }

    pub fn wait(&mut self) {
        self.shared.job_came.notify_one();
        let state = self.shared.lock();
        let waited = self.shared.job_ended.wait_while(state, |state| state.done.is_empty());
        drop(waited);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.job_came.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl AsRawFd for Worker {
    fn as_raw_fd(&self) -> RawFd {
        self.shared.told.as_raw_fd()
    }
}

fn run(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        let waited = shared.job_came.wait_while(state, |state| state.jobs.is_empty() && !state.ended);
        state = waited.unwrap_or_else(PoisonError::into_inner);
        let Some((slot, call)) = state.jobs.pop_front() else { return };
        drop(state);
        let result = call.make(&shared.file);
        state = shared.lock();
        if state.done.is_empty() {
            let _ = shared.told.write(1);
        }
        state.done.push_back(Done { slot, result });
        shared.job_ended.notify_one();
    }
}

impl Call {
    fn of(job: &Job) -> Self {
        let parts = |vectors: &Vectors| (vectors.left().as_ptr(), vectors.left().len());
        match job {
            Job::Read { offset, vectors } => {
                let (vectors, count) = parts(vectors);
                Self::Read { vectors, count, offset: *offset }
            }
            Job::Write { offset, vectors } => {
                let (vectors, count) = parts(vectors);
                Self::Write { vectors, count, offset: *offset }
            }
            Job::Sync => Self::Sync,
            Job::Allocate { offset, bytes, mode } => {
                Self::Allocate { offset: *offset, bytes: *bytes, mode: *mode }
            }
        }
    }

    /// What the system call gives: a number, or the negative errno. Offsets and lengths are within a file, so they fit.
    fn make(self, file: &File) -> i32 {
        let fd = file.as_raw_fd();
        let result = match self {
            Self::Read { vectors, count, offset } => {
                // SAFETY: who pushed the job keeps the vectors and the memory they name until it is done.
                unsafe { libc::preadv(fd, vectors, count as libc::c_int, offset as libc::off_t) }
            }
            Self::Write { vectors, count, offset } => {
                // SAFETY: who pushed the job keeps the vectors and the memory they name until it is done.
                unsafe { libc::pwritev(fd, vectors, count as libc::c_int, offset as libc::off_t) }
            }
            // SAFETY: it takes a descriptor that is open.
            Self::Sync => unsafe { libc::fdatasync(fd) as isize },
            Self::Allocate { offset, bytes, mode } => {
                // SAFETY: it takes a descriptor that is open, and numbers.
                let result =
                    unsafe { libc::fallocate(fd, mode, offset as libc::off_t, bytes as libc::off_t) };
                result as isize
            }
        };
        if result < 0 {
            return -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        }
        i32::try_from(result).unwrap_or(i32::MAX)
    }
}
