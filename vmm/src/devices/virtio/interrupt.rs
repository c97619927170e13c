//! The interrupt of a device: a status word that the driver reads and acknowledges, and an irqfd.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Interrupt status bits (virtio 1.2, 4.2.2).
pub const USED_BUFFER: u32 = 1;
pub const CONFIG_CHANGE: u32 = 2;

/// Shared by the device thread, which raises it, and vCPU threads, which read and acknowledge without a lock.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    pub fn new() -> io::Result<Self> {
        Ok(Self { status: AtomicU32::new(0), line: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// To be registered with KVM for an edge-triggered line.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    pub fn raise(&self, cause: u32) {
        // the status is visible before the line: the handler reads it
        self.status.fetch_or(cause, Ordering::SeqCst);
        let _ = self.line.write(1);
    }

    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The status as a snapshot kept it; the line stays as it is.
    pub fn restore(&self, status: u32) {
        self.status.store(status, Ordering::SeqCst);
    }

    pub fn acknowledge(&self, causes: u32) {
        self.status.fetch_and(!causes, Ordering::SeqCst);
    }
}
