//! The inherited file descriptors, taken over by their numbers.

use pinfold_vmm_api::{MachineConfig, RestoreMemory};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    #[error("descriptor {number} of {what} is below 3 or given twice")]
    Number { what: &'static str, number: RawFd },
    #[error("descriptor {number} of {what} is not open")]
    Closed { what: &'static str, number: RawFd, source: io::Error },
}

/// Everything that a machine works with, owned.
#[derive(Debug)]
pub struct Descriptors {
    pub kernel: Option<File>,
    pub initrd: Option<File>,
    pub restore: Option<RestoreDescriptors>,
    pub disks: Vec<File>,
    pub nets: Vec<File>,
    pub vsock: Option<UnixListener>,
    pub kvm: OwnedFd,
    pub control: UnixListener,
    pub console: File,
}

#[derive(Debug)]
pub struct RestoreDescriptors {
    pub state: File,
    pub memory: MemorySource,
    pub working_set: Option<File>,
}

/// See [`pinfold_vmm_api::RestoreMemory`].
#[derive(Debug)]
pub enum MemorySource {
    File(File),
    Handler { socket: UnixStream, userfaultfd: File },
}

/// Takes the descriptor of the exit record, which is wanted first and kept longest.
///
/// # Safety
/// No other part of the process owns the descriptor.
pub unsafe fn take_exit(config: &MachineConfig) -> Result<File, DescriptorError> {
    let mut taker = Taker::default();
    // SAFETY: promised by the caller.
    unsafe { taker.take("the exit record", config.exit) }.map(File::from)
}

impl Descriptors {
    /// Takes all descriptors of `config` but that of the exit record.
    ///
    /// # Safety
    /// No other part of the process owns one of them.
    pub unsafe fn take(config: &MachineConfig) -> Result<Self, DescriptorError> {
        let mut taker = Taker::default();
        taker.seen.insert(config.exit);
        let mut take = |what, number| {
            // SAFETY: promised by the caller.
            unsafe { taker.take(what, number) }
        };
        let mut disks = Vec::new();
        for disk in &config.disks {
            disks.push(take("a disk", disk.file)?.into());
        }
        let mut nets = Vec::new();
        for net in &config.nets {
            nets.push(take("a tap", net.tap)?.into());
        }
        let restore = match &config.restore {
            None => None,
            Some(restore) => Some(RestoreDescriptors {
                state: take("the snapshot's state", restore.state)?.into(),
                memory: match restore.memory {
                    RestoreMemory::File(number) => {
                        MemorySource::File(take("the snapshot's memory", number)?.into())
                    }
                    RestoreMemory::Handler(handler) => MemorySource::Handler {
                        socket: take("the page-fault handler", handler.socket)?.into(),
                        userfaultfd: take("/dev/userfaultfd", handler.userfaultfd)?.into(),
                    },
                },
                working_set: restore
                    .working_set
                    .map(|number| take("the working set", number))
                    .transpose()?
                    .map(File::from),
            }),
        };
        Ok(Self {
            kernel: config.kernel.map(|number| take("the kernel", number)).transpose()?.map(File::from),
            initrd: config.initrd.map(|number| take("the initramfs", number)).transpose()?.map(File::from),
            restore,
            disks,
            nets,
            vsock: config
                .vsock
                .as_ref()
                .map(|vsock| take("the vsock listener", vsock.listener))
                .transpose()?
                .map(UnixListener::from),
            kvm: take("/dev/kvm", config.kvm)?,
            control: take("the control listener", config.control)?.into(),
            console: take("the console", config.console)?.into(),
        })
    }
}

#[derive(Default)]
struct Taker {
    seen: BTreeSet<RawFd>,
}

impl Taker {
    /// # Safety
    /// No other part of the process owns the descriptor.
    unsafe fn take(&mut self, what: &'static str, number: RawFd) -> Result<OwnedFd, DescriptorError> {
        if number < 3 || !self.seen.insert(number) {
            return Err(DescriptorError::Number { what, number });
        }
        // SAFETY: F_GETFD takes any number and only reads.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            return Err(DescriptorError::Closed { what, number, source: io::Error::last_os_error() });
        }
        // SAFETY: it is open, taken once, and nobody else's by the caller's promise.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }
}

/// A test or a tool that opens files by path gives them up by number.
pub fn give(file: impl Into<OwnedFd>) -> RawFd {
    file.into().into_raw_fd()
}
