//! io_uring, driven from the device thread: no thread of ours, one system call for a batch of requests, and what is in
//! the page cache is done when that call returns.
//!
//! The ring is made before the seccomp filters. It is restricted to four operations on one registered file, so that
//! it cannot be used to get around the filters: nothing else can be opened, connected or registered through it.

use super::{Done, Job, SLOTS};
use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// The disk's place among the ring's files.
const FILE: types::Fixed = types::Fixed(0);
/// Threads that the kernel may use for one disk's requests that must wait; none for sockets and the like.
const KERNEL_WORKERS: [u32; 2] = [4, 1];

pub struct Uring {
    ring: IoUring,
    /// pushed, and not taken by the kernel yet
    unsubmitted: usize,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("unsubmitted", &self.unsubmitted).finish_non_exhaustive()
    }
}

impl Uring {
    /// Errors: the kernel has no io_uring, or none for us (sysctl, seccomp of a container), or an old one.
    pub fn new(file: &File) -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().dontfork().build(SLOTS as u32)?;
        // without these a completion could be lost, or a request read its vectors late
        if !ring.params().is_feature_nodrop() || !ring.params().is_feature_submit_stable() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        // kernels before 5.15 do not know it and have a bound of their own
        let _ = submitter.register_iowq_max_workers(&mut KERNEL_WORKERS.clone());
        let codes = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
        let mut allowed = Vec::from(codes.map(Restriction::sqe_op));
        allowed.push(Restriction::sqe_flags_allowed(Flags::FIXED_FILE.bits()));
        allowed.push(Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()));
        submitter.register_restrictions(&mut allowed)?;
        submitter.register_enable_rings()?;
        Ok(Self { ring, unsubmitted: 0 })
    }

    /// # Safety
    /// See [`super::Engine::push`].
    pub unsafe fn push(&mut self, slot: usize, job: &Job) -> bool {
        let entry = entry(job).user_data(slot as u64);
        // SAFETY: the caller keeps the vectors and what they point to; the other fields are numbers.
        let pushed = unsafe { self.ring.submission().push(&entry) }.is_ok();
        self.unsubmitted += usize::from(pushed);
        pushed
    }

    pub fn submit(&mut self) -> io::Result<()> {
        while self.unsubmitted > 0 {
            match self.ring.submit() {
                Ok(0) => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(taken) => self.unsubmitted -= taken.min(self.unsubmitted),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub fn take_done(&mut self) -> Option<Done> {
        let entry = self.ring.completion().next()?;
        // a number that was never pushed is no slot: it is looked up with a check
        Some(Done { slot: usize::try_from(entry.user_data()).unwrap_or(usize::MAX), result: entry.result() })
    }

    pub fn wait(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(taken) => {
                    self.unsubmitted -= taken.min(self.unsubmitted);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn entry(job: &Job) -> Entry {
    match job {
        Job::Read { offset, vectors } => {
            let left = vectors.left();
            opcode::Readv::new(FILE, left.as_ptr(), left.len() as u32).offset(*offset).build()
        }
        Job::Write { offset, vectors } => {
            let left = vectors.left();
            opcode::Writev::new(FILE, left.as_ptr(), left.len() as u32).offset(*offset).build()
        }
        Job::Sync => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        Job::Allocate { offset, bytes, mode } => {
            opcode::Fallocate::new(FILE, *bytes).offset(*offset).mode(*mode).build()
        }
    }
}

impl AsRawFd for Uring {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring as the device has it, and a file.
    fn ring() -> Option<(Uring, File)> {
        let file = tempfile::tempfile().expect("a temporary file");
        match Uring::new(&file) {
            Ok(uring) => Some((uring, file)),
            Err(error) => {
                println!("skipped: this kernel gives no io_uring: {error}");
                None
            }
        }
    }

    fn result_of(uring: &mut Uring, entry: Entry) -> i32 {
        // SAFETY: the entries of these tests point to nothing that ends before them.
        unsafe { uring.ring.submission().push(&entry) }.expect("room");
        uring.ring.submit_and_wait(1).expect("submitted");
        uring.take_done().expect("one is done").result
    }

    #[test]
    fn the_ring_does_its_four_operations_on_its_file_only() {
        let Some((mut uring, file)) = ring() else { return };
        let sync = opcode::Fsync::new(FILE).build();
        assert_eq!(result_of(&mut uring, sync), 0);
        let by_number = opcode::Fsync::new(types::Fd(file.as_raw_fd())).build();
        assert_eq!(result_of(&mut uring, by_number), -libc::EACCES, "a file that was not registered");
        let path = c"/proc/self/status";
        let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
        assert_eq!(result_of(&mut uring, open), -libc::EACCES);
        let socket = opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build();
        assert_eq!(result_of(&mut uring, socket), -libc::EACCES);
        assert_eq!(result_of(&mut uring, opcode::Nop::new().build()), -libc::EACCES);
    }

    #[test]
    fn the_ring_takes_no_more_files() {
        let Some((uring, file)) = ring() else { return };
        assert!(uring.ring.submitter().register_files_update(0, &[file.as_raw_fd()]).is_err());
        assert!(uring.ring.submitter().unregister_files().is_err());
    }
}
