//! Between the serial port and the console ring: a bounded buffer.
//!
//! The vCPU thread that writes a byte only puts it here; the device thread moves what has gathered into the ring, at
//! most every [`FLUSH_INTERVAL`]. So a guest that floods its console costs its own vCPU time and 200 small writes a
//! second, and never waits for the host's disk.

use crate::metrics::Metrics;
use pinfold_vmm_api::console::Writer;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Bytes that wait for the device thread at most; more are dropped and counted.
pub const BUFFER_BYTES: usize = 64 * 1024;
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(5);

/// The end that vCPU threads write to.
#[derive(Debug, Clone)]
pub struct ConsoleBuffer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bytes: Mutex<Vec<u8>>,
    wake: EventFd,
    metrics: Arc<Metrics>,
}

impl ConsoleBuffer {
    pub fn new(metrics: Arc<Metrics>) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let bytes = Mutex::new(Vec::with_capacity(4096));
        Ok(Self { shared: Arc::new(Shared { bytes, wake, metrics }) })
    }

    fn push(&self, data: &[u8]) {
        let mut bytes = self.shared.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = bytes.is_empty();
        let taken = data.len().min(BUFFER_BYTES - bytes.len());
        bytes.extend_from_slice(&data[..taken]);
        self.shared.metrics.console_dropped_bytes.add((data.len() - taken) as u64);
        if was_empty && taken > 0 {
            let _ = self.shared.wake.write(1);
        }
    }

    /// The wake was seen; another comes when bytes gather after the next flush.
    pub fn seen(&self) {
        let _ = self.shared.wake.read();
    }

    /// Moves what has gathered into the ring.
    pub fn flush_into(&self, ring: &mut Writer) -> io::Result<()> {
        let _ = self.shared.wake.read();
        let gathered = {
            let mut bytes = self.shared.bytes.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *bytes)
        };
        if gathered.is_empty() { Ok(()) } else { ring.append(&gathered) }
    }
}

impl io::Write for ConsoleBuffer {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.push(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for ConsoleBuffer {
    /// Readable when there is something to flush.
    fn as_raw_fd(&self) -> RawFd {
        self.shared.wake.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_vmm_api::console::Reader;
    use std::io::Write as _;

    #[test]
    fn what_is_written_arrives_in_the_ring_in_order() {
        let file = tempfile::tempfile().expect("a temporary file");
        let reader = Reader::new(file.try_clone().expect("a second descriptor"));
        let mut ring = Writer::create(file).expect("a ring");
        let mut buffer = ConsoleBuffer::new(Arc::default()).expect("an eventfd");
        buffer.write_all(b"one ").expect("never fails");
        buffer.write_all(b"two").expect("never fails");
        assert_eq!(buffer.shared.wake.read().expect("woken"), 1, "one wake for both");
        buffer.flush_into(&mut ring).expect("flushed");
        assert_eq!(reader.read(0, 100).expect("read").data, b"one two");
    }

    #[test]
    fn a_flood_is_dropped_and_counted_not_kept() {
        let metrics = Arc::new(Metrics::default());
        let mut buffer = ConsoleBuffer::new(Arc::clone(&metrics)).expect("an eventfd");
        for _ in 0..3 {
            buffer.write_all(&[b'x'; BUFFER_BYTES]).expect("never fails");
        }
        assert_eq!(metrics.console_dropped_bytes.get(), 2 * BUFFER_BYTES as u64);
        assert_eq!(buffer.shared.bytes.lock().expect("not poisoned").len(), BUFFER_BYTES);
    }
}
