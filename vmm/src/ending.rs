//! The end of the machine: whoever finds a reason first states it, the device thread acts on it.

use pinfold_vmm_api::control::ExitReason;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

#[derive(Debug)]
pub struct Ending {
    stated: Mutex<Option<(ExitReason, String)>>,
    wake: EventFd,
}

impl Ending {
    pub fn new() -> io::Result<Self> {
        Ok(Self { stated: Mutex::new(None), wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// The first statement stands; later ones are consequences of it.
    pub fn state(&self, reason: ExitReason, message: impl Into<String>) {
        let mut stated = self.stated.lock().unwrap_or_else(PoisonError::into_inner);
        if stated.is_none() {
            *stated = Some((reason, message.into()));
        }
        // the counter of an eventfd cannot overflow here, and a full one wakes all the same
        let _ = self.wake.write(1);
    }

    pub fn stated(&self) -> Option<(ExitReason, String)> {
        self.stated.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl AsRawFd for Ending {
    /// Readable once an end was stated.
    fn as_raw_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stands() {
        let ending = Ending::new().expect("an eventfd");
        assert_eq!(ending.stated(), None);
        ending.state(ExitReason::GuestReset, "i8042");
        ending.state(ExitReason::VcpuFailed, "later");
        assert_eq!(ending.stated(), Some((ExitReason::GuestReset, "i8042".into())));
    }
}
