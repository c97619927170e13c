//! Between the serial port and the console ring: a bounded buffer.
//!
//! The vCPU thread that writes a byte only puts it here; the device thread moves what has gathered into the ring, at
//! most every [`FLUSH_INTERVAL`], and not more than [`BYTES_PER_SECOND`] after [`BURST_BYTES`]. So a guest that
//! floods its console costs its own vCPU time and 200 small writes a second, and never waits for the host's disk. What is
//! more is dropped, counted and told.

use crate::events::Source;
use crate::metrics::Metrics;
use pinfold_vmm_api::console::Writer;
use pinfold_vmm_api::control::EventKind;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Bytes that wait for the device thread at most; more are dropped and counted.
pub const BUFFER_BYTES: usize = 64 * 1024;
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(5);
/// Steady rate into the ring. A kernel that boots with all its messages stays within the burst.
pub const BYTES_PER_SECOND: u64 = 64 * 1024;
/// What may go at once.
pub const BURST_BYTES: u64 = 256 * 1024;

/// The end that vCPU threads write to.
#[derive(Debug, Clone)]
pub struct ConsoleBuffer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bytes: Mutex<Vec<u8>>,
    wake: EventFd,
    allowance: Mutex<Allowance>,
    metrics: Arc<Metrics>,
    source: Arc<Source>,
}

/// A token bucket in nanobytes, so that no part of a byte is lost between two flushes.
#[derive(Debug)]
struct Allowance {
    nanobytes: u128,
    filled_at: Instant,
}

impl Allowance {
    const NANO: u128 = 1_000_000_000;
    const FULL: u128 = BURST_BYTES as u128 * Self::NANO;

    fn new(now: Instant) -> Self {
        Self { nanobytes: Self::FULL, filled_at: now }
    }

    /// How many of `bytes` may go now.
    fn take(&mut self, bytes: usize, now: Instant) -> usize {
        let elapsed = now.saturating_duration_since(self.filled_at).as_nanos();
        self.nanobytes = self.nanobytes.saturating_add(elapsed.saturating_mul(u128::from(BYTES_PER_SECOND)));
        self.nanobytes = self.nanobytes.min(Self::FULL);
        self.filled_at = now;
        let granted = bytes.min(usize::try_from(self.nanobytes / Self::NANO).unwrap_or(usize::MAX));
        self.nanobytes -= granted as u128 * Self::NANO;
        granted
    }
}

impl ConsoleBuffer {
    pub fn new(metrics: Arc<Metrics>) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let bytes = Mutex::new(Vec::with_capacity(4096));
        let allowance = Mutex::new(Allowance::new(Instant::now()));
        let source = metrics.events.source("console");
        Ok(Self { shared: Arc::new(Shared { bytes, wake, allowance, metrics, source }) })
    }

    fn push(&self, data: &[u8]) {
        let mut bytes = self.shared.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = bytes.is_empty();
        let taken = data.len().min(BUFFER_BYTES - bytes.len());
        bytes.extend_from_slice(&data[..taken]);
        self.dropped(data.len() - taken);
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
        let granted = self.take(gathered.len(), Instant::now());
        self.dropped(gathered.len() - granted);
        if granted == 0 { Ok(()) } else { ring.append(&gathered[..granted]) }
    }

    fn take(&self, bytes: usize, now: Instant) -> usize {
        self.shared.allowance.lock().unwrap_or_else(PoisonError::into_inner).take(bytes, now)
    }

    fn dropped(&self, bytes: usize) {
        self.shared.metrics.console_dropped_bytes.add(bytes as u64);
        let why = || format!("output faster than {BYTES_PER_SECOND} bytes a second is dropped");
        self.shared.source.report_many(EventKind::Limited, bytes as u64, why);
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
    use pinfold_vmm_api::console::{HEADER_BYTES, RING_BYTES, Reader};
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
    fn a_flood_reaches_the_ring_at_its_rate_only() {
        let began = Instant::now();
        let mut allowance = Allowance::new(began);
        assert_eq!(allowance.take(usize::MAX, began), BURST_BYTES as usize);
        assert_eq!(allowance.take(1, began), 0);
        // a thousand flushes of one second together get what one flush would
        let granted: usize =
            (1..=1000).map(|ms| allowance.take(usize::MAX, began + Duration::from_millis(ms))).sum();
        assert_eq!(granted, BYTES_PER_SECOND as usize);
        // a long silence is no more than a burst
        assert_eq!(allowance.take(usize::MAX, began + Duration::from_secs(86_400)), BURST_BYTES as usize);
    }

    #[test]
    fn what_the_rate_drops_is_counted_and_told() {
        let metrics = Arc::new(Metrics::default());
        let file = tempfile::tempfile().expect("a temporary file");
        let mut ring = Writer::create(file.try_clone().expect("a second descriptor")).expect("a ring");
        let mut buffer = ConsoleBuffer::new(Arc::clone(&metrics)).expect("an eventfd");
        let blocks = 4 * BURST_BYTES / BUFFER_BYTES as u64;
        for _ in 0..blocks {
            buffer.write_all(&[b'x'; BUFFER_BYTES]).expect("never fails");
            buffer.flush_into(&mut ring).expect("flushed");
        }
        let dropped = metrics.console_dropped_bytes.get();
        assert!((2 * BURST_BYTES..=3 * BURST_BYTES).contains(&dropped), "{dropped} of {blocks} blocks");
        let counts = metrics.events.counts();
        assert_eq!((counts[0].kind, counts[0].device.as_str()), (EventKind::Limited, "console"));
        assert_eq!(counts[0].count, dropped);
        assert_eq!(file.metadata().expect("metadata").len(), RING_BYTES + HEADER_BYTES);
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
