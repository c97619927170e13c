//! Requests of the driver on each queue.

use super::device::{Balloon, PAGE_BYTES, Role};
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::interrupt::USED_BUFFER;
use crate::devices::virtio::queue::{BrokenQueue, Handled, drain};
use crate::devices::virtio::{DeviceIo, Progress};
use crate::memory::GuestMemory;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Page numbers of one request, most. Linux sends 256.
pub const PAGES_MAX: usize = 16 << 10;
const NUMBER_BYTES: usize = 4;
/// Runs of pages that are given back in one turn: each is a system call or two, and other devices wait meanwhile.
pub const RUNS_MAX: usize = 1024;
/// `struct virtio_balloon_stat`: a tag of 16 bits and a value of 64, without a gap (5.5.6.3).
const STATISTIC_BYTES: usize = 10;
/// Linux knows some 16 of them.
pub const STATISTICS_MAX: usize = 64;
/// VIRTIO_BALLOON_S_AVAIL: bytes that could be used without swapping (5.5.6.3.3).
const AVAILABLE: u16 = 6;

/// One turn at a queue.
struct Turn<'a> {
    queue: usize,
    memory: &'a GuestMemory,
    runs_left: usize,
}

impl Balloon {
    pub(super) fn requests(&mut self, queue: usize, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        match self.role(queue) {
            Some(Role::Inflate) => self.serve(queue, io, Self::inflate),
            Some(Role::Deflate) => self.serve(queue, io, Self::deflate),
            Some(Role::Reporting) => self.serve(queue, io, Self::report),
            Some(Role::Statistics) => self.statistics(queue, io),
            // a queue that the driver has set up and not agreed on
            None => Ok(Progress::Done),
        }
    }

    fn serve(
        &mut self,
        queue: usize,
        io: &mut DeviceIo<'_>,
        act: fn(&mut Self, &mut Turn<'_>, &Chain) -> Result<Handled, BrokenQueue>,
    ) -> Result<Progress, BrokenQueue> {
        let (memory, interrupt) = (io.memory, io.interrupt);
        let mut turn = Turn { queue, memory, runs_left: RUNS_MAX };
        // nothing is written into the chains
        drain(&mut io.queues[queue], memory, interrupt, |chain| act(self, &mut turn, chain))
    }

    /// Pages that the guest gives away.
    fn inflate(&mut self, turn: &mut Turn<'_>, chain: &Chain) -> Result<Handled, BrokenQueue> {
        let mut pages = self.page_numbers(turn, chain)?;
        pages.sort_unstable();
        pages.dedup();
        let run = |run: &[u32]| {
            let start = u64::from(run[0]) * PAGE_BYTES;
            start..start + run.len() as u64 * PAGE_BYTES
        };
        let runs: Vec<_> = pages.chunk_by(|one, next| one + 1 == *next).map(run).collect();
        let metrics = Arc::clone(&self.metrics);
        // what is in them when they come back is not promised (5.5.6)
        Ok(self
            .give_back(turn, &runs, false, |bytes, _| metrics.balloon.inflated_pages.add(bytes / PAGE_BYTES)))
    }

    /// Pages that the guest takes back: it may use them at once, a fault brings them.
    fn deflate(&mut self, turn: &mut Turn<'_>, chain: &Chain) -> Result<Handled, BrokenQueue> {
        let pages = self.page_numbers(turn, chain)?;
        self.metrics.balloon.deflated_pages.add(pages.len() as u64);
        Ok(Handled::Done(0))
    }

    /// The page numbers of a request; those outside of memory are left out.
    fn page_numbers(&self, turn: &Turn<'_>, chain: &Chain) -> Result<Vec<u32>, BrokenQueue> {
        let bytes = chain.readable_bytes();
        let count = usize::try_from(bytes).unwrap_or(usize::MAX) / NUMBER_BYTES;
        let whole = bytes.is_multiple_of(NUMBER_BYTES as u64);
        if !whole || count > PAGES_MAX || !chain.writable.is_empty() {
            self.metrics.balloon.guest_errors.increment();
            return Err(BrokenQueue::Request("a list of balloon pages is too long or of wrong form"));
        }
        let mut raw = vec![0; count * NUMBER_BYTES];
        if !chain.read_exact(turn.memory, 0, &mut raw) {
            return Err(BrokenQueue::Request("a list of balloon pages has left memory"));
        }
        let (numbers, _) = raw.as_chunks::<NUMBER_BYTES>();
        let numbers = numbers.iter().map(|number| u32::from_le_bytes(*number));
        let (inside, outside): (Vec<u32>, Vec<u32>) =
            numbers.partition(|number| is_memory(turn.memory, u64::from(*number) * PAGE_BYTES));
        // once for each list, however many turns it takes
        if self.done[turn.queue] == 0 {
            self.metrics.balloon.guest_errors.add(outside.len() as u64);
        }
        Ok(inside)
    }

    /// Free pages of the guest: it may use them again as soon as it has them back, and finds them zero or as they were.
    fn report(&mut self, turn: &mut Turn<'_>, chain: &Chain) -> Result<Handled, BrokenQueue> {
        if !chain.readable.is_empty() {
            self.metrics.balloon.guest_errors.increment();
            return Err(BrokenQueue::Request("a report of free pages has a readable part"));
        }
        if self.is_poisoned() {
            // they must read as the driver has filled them (5.5.6.4): so they stay
            self.done[turn.queue] = 0;
            return Ok(Handled::Done(0));
        }
        let mut runs: Vec<Range<u64>> = Vec::new();
        for buffer in &chain.writable {
            let (start, bytes) = (buffer.address.0, u64::from(buffer.bytes));
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = start.saturating_add(bytes),
                _ => runs.push(start..start.saturating_add(bytes)),
            }
        }
        let metrics = Arc::clone(&self.metrics);
        Ok(self.give_back(turn, &runs, true, |_, released| metrics.balloon.reported_bytes.add(released)))
    }

    /// Gives `runs` back to the host, as many as the turn has left; those of this request that are done are not done again.
    /// `count` is told the bytes of each run, and how many of them went. Until the last one is done the guest may change the
    /// list: it would lose pages of its own at most.
    fn give_back(
        &mut self,
        turn: &mut Turn<'_>,
        runs: &[Range<u64>],
        zero: bool,
        count: impl Fn(u64, u64),
    ) -> Handled {
        let from = self.done[turn.queue].min(runs.len());
        let to = runs.len().min(from + turn.runs_left);
        for run in &runs[from..to] {
            let bytes = run.end - run.start;
            let released = self.releaser.release(GuestAddress(run.start), bytes, zero);
            self.metrics.balloon.kept_bytes.add(bytes - released);
            count(bytes, released);
        }
        turn.runs_left -= to - from;
        let is_done = to == runs.len();
        self.done[turn.queue] = if is_done { 0 } else { to };
        if is_done { Handled::Done(0) } else { Handled::Later }
    }

    /// Takes the statistics that the driver has brought, and asks for new ones if the host wants them.
    fn statistics(&mut self, queue: usize, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        let memory = io.memory;
        io.queues[queue].disable_kicks(memory)?;
        loop {
            // bounded: each turn takes one chain of the driver, of which one is kept
            while let Some(chain) = io.queues[queue].pop(memory)? {
                self.take_statistics(memory, &chain)?;
                if let Some(before) = self.statistics.replace(chain) {
                    self.metrics.balloon.guest_errors.increment();
                    io.queues[queue].push_used(memory, before.head, 0)?;
                    // a driver that has more than one buffer here is answered at the next event
                    return self.interrupt(queue, io, Progress::More);
                }
            }
            if !io.queues[queue].enable_kicks(memory)? {
                break;
            }
            io.queues[queue].disable_kicks(memory)?;
        }
        if std::mem::take(&mut self.statistics_wanted)
            && let Some(chain) = self.statistics.take()
        {
            io.queues[queue].push_used(memory, chain.head, 0)?;
        }
        self.interrupt(queue, io, Progress::Done)
    }

    fn interrupt(
        &self,
        queue: usize,
        io: &mut DeviceIo<'_>,
        progress: Progress,
    ) -> Result<Progress, BrokenQueue> {
        if io.queues[queue].needs_interrupt(io.memory)? {
            io.interrupt.raise(USED_BUFFER);
        }
        Ok(progress)
    }

    fn take_statistics(&self, memory: &GuestMemory, chain: &Chain) -> Result<(), BrokenQueue> {
        let bytes = usize::try_from(chain.readable_bytes()).unwrap_or(usize::MAX);
        if bytes > STATISTICS_MAX * STATISTIC_BYTES || !chain.writable.is_empty() {
            self.metrics.balloon.guest_errors.increment();
            return Err(BrokenQueue::Request("balloon statistics are too long or writable"));
        }
        let mut raw = vec![0; bytes];
        if !chain.read_exact(memory, 0, &mut raw) {
            return Err(BrokenQueue::Request("balloon statistics have left memory"));
        }
        let (statistics, _) = raw.as_chunks::<STATISTIC_BYTES>();
        for [tag_low, tag_high, value @ ..] in statistics {
            if u16::from_le_bytes([*tag_low, *tag_high]) == AVAILABLE {
                let available = u64::from_le_bytes(*value).min(self.releaser.memory_bytes());
                self.metrics.balloon.available_bytes.set(available);
            }
        }
        Ok(())
    }
}

fn is_memory(memory: &GuestMemory, address: u64) -> bool {
    memory.check_range(GuestAddress(address), PAGE_BYTES as usize)
}
