//! A request is a writable chain; the answer is random bytes, at most [`REQUEST_BYTES`].

use super::device::Rng;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::queue::{BrokenQueue, Handled, drain};
use crate::devices::virtio::{DeviceIo, Progress};
use crate::memory::GuestMemory;
use std::io;

/// Longer requests are answered in part, so that a guest cannot make the device thread draw gigabytes.
pub const REQUEST_BYTES: u64 = 4096;

impl Rng {
    pub(super) fn requests(&mut self, queue: usize, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        let (memory, interrupt) = (io.memory, io.interrupt);
        drain(&mut io.queues[queue], memory, interrupt, |chain| self.answer(memory, chain).map(Handled::Done))
    }

    fn answer(&self, memory: &GuestMemory, chain: &Chain) -> Result<u32, BrokenQueue> {
        if !chain.readable.is_empty() {
            self.metrics.rng.guest_errors.increment();
            return Err(BrokenQueue::Request("the entropy device reads nothing"));
        }
        let mut bytes = [0; REQUEST_BYTES as usize];
        let wanted = chain.writable_bytes().min(REQUEST_BYTES) as usize;
        let drawn = draw(&mut bytes[..wanted]).unwrap_or(0);
        if !chain.write_all(memory, 0, &bytes[..drawn]) {
            return Ok(0);
        }
        self.metrics.rng.bytes.add(drawn as u64);
        Ok(drawn as u32)
    }
}

fn draw(into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `into` is valid for writes of its length.
    let drawn = unsafe { libc::getrandom(into.as_mut_ptr().cast(), into.len(), 0) };
    usize::try_from(drawn).map_err(|_| io::Error::last_os_error())
}
