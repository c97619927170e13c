//! A virtqueue: virtio-queue's split ring, with chains checked as they are taken and every fault an error.

use super::chain::{BrokenChain, Chain, Table};
use crate::memory::GuestMemory;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// A fault after which the ring cannot be trusted: the device needs a reset (virtio 1.2, 2.1.2).
#[derive(Debug, thiserror::Error)]
pub enum BrokenQueue {
    #[error("descriptor chain: {0}")]
    Chain(#[from] BrokenChain),
    #[error("ring: {0}")]
    Ring(virtio_queue::Error),
    #[error("the request breaks the rules of its device type: {0}")]
    Request(&'static str),
}

impl From<virtio_queue::Error> for BrokenQueue {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Ring(error)
    }
}

#[derive(Debug)]
pub struct VirtQueue {
    ring: Queue,
    /// VIRTIO_F_INDIRECT_DESC was agreed on
    indirect: bool,
    /// used index when the driver was last asked whether it wants an interrupt
    asked_at: u16,
}

impl VirtQueue {
    /// `max_size`: a power of two up to 32768.
    pub fn new(max_size: u16) -> Self {
        let ring = Queue::new(max_size).expect("queue sizes are constants of the devices, powers of two");
        Self { ring, indirect: false, asked_at: 0 }
    }

    /// A ring as it was saved: the driver has been asked about all that was given back until then.
    pub fn restore(&mut self, ring: Queue) {
        self.asked_at = ring.next_used();
        self.ring = ring;
    }

    /// What the driver agreed on that concerns the ring itself (virtio 1.2, 2.7.5.3 and 2.7.7).
    pub fn set_features(&mut self, event_idx: bool, indirect: bool) {
        self.ring.set_event_idx(event_idx);
        self.indirect = indirect;
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        self.ring.reset();
        self.indirect = false;
        self.asked_at = 0;
    }

    /// For the transport, which sets sizes and addresses.
    pub fn ring(&self) -> &Queue {
        &self.ring
    }

    pub fn ring_mut(&mut self) -> &mut Queue {
        &mut self.ring
    }

    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The next request; none when there is none or the driver has not set this queue up.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, BrokenQueue> {
        if !self.ring.ready() {
            return Ok(None);
        }
        let table = Table {
            address: GuestAddress(self.ring.desc_table()),
            size: self.ring.size(),
            indirect: self.indirect,
        };
        let Some(descriptors) = self.ring.iter(memory)?.next() else { return Ok(None) };
        Ok(Some(Chain::collect(memory, table, descriptors.head_index())?))
    }

    /// Puts the last popped chain back.
    pub fn undo_pop(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Puts the last `count` popped chains back.
    pub fn undo_pops(&mut self, count: u16) {
        self.ring.set_next_avail(self.ring.next_avail().wrapping_sub(count));
    }

    /// Gives a chain back; `written` bytes of its writable part hold data.
    pub fn push_used(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), BrokenQueue> {
        Ok(self.ring.add_used(memory, head, written)?)
    }

    /// Gives several chains back as one: the driver sees all of them or none.
    pub fn push_used_together(
        &mut self,
        memory: &GuestMemory,
        chains: &[(u16, u32)],
    ) -> Result<(), BrokenQueue> {
        let Some(((head, written), others)) = chains.split_last() else { return Ok(()) };
        for (head, written) in others {
            // what stands past the used index is nobody's yet (virtio 1.2, 2.7.8)
            let slot = u64::from(self.ring.next_used() % self.ring.size());
            let at = GuestAddress(self.ring.used_ring() + 4 + 8 * slot);
            let element = u64::from(*head) | u64::from(*written) << 32;
            memory.write_obj(element.to_le(), at).map_err(virtio_queue::Error::GuestMemory)?;
            self.ring.set_next_used(self.ring.next_used().wrapping_add(1));
        }
        // writes the last one, then the index over all of them
        self.push_used(memory, *head, *written)
    }

    /// True when the driver wants an interrupt for what was given back since the last call.
    pub fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, BrokenQueue> {
        let (now, before) = (self.ring.next_used(), self.asked_at);
        self.asked_at = now;
        if now == before || !self.ring.ready() {
            return Ok(false);
        }
        // what was given back is visible before the driver's wish is read: else both sides could wait for each other
        fence(Ordering::SeqCst);
        let load = |address| -> Result<u16, BrokenQueue> {
            let value = memory.load(GuestAddress(address), Ordering::Relaxed);
            Ok(u16::from_le(value.map_err(virtio_queue::Error::GuestMemory)?))
        };
        if !self.ring.event_idx_enabled() {
            let flags = load(self.ring.avail_ring())?;
            return Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        // used_event follows the elements of the available ring (virtio 1.2, 2.7.6)
        let event = load(self.ring.avail_ring() + 4 + 2 * u64::from(self.ring.size()))?;
        Ok(passes(event, before, now))
    }

    /// Index of the available ring: it counts what the driver has ever offered.
    pub fn available(&self, memory: &GuestMemory) -> Result<u16, BrokenQueue> {
        Ok(self.ring.avail_idx(memory, Ordering::Acquire)?.0)
    }

    /// Asks for a kick with the next request, whether or not others wait; the index of the available ring.
    pub fn await_kick(&mut self, memory: &GuestMemory) -> Result<u16, BrokenQueue> {
        self.ring.enable_notification(memory)?;
        let available = self.available(memory)?;
        if self.ring.event_idx_enabled() {
            // avail_event follows the elements of the used ring (virtio 1.2, 2.7.8)
            let event = self.ring.used_ring() + 4 + 8 * u64::from(self.ring.size());
            memory
                .store(available.to_le(), GuestAddress(event), Ordering::SeqCst)
                .map_err(|_| BrokenQueue::Request("the used ring has left guest memory"))?;
        }
        Ok(available)
    }

    /// Asks for no kicks while the device looks at the queue anyway.
    pub fn disable_kicks(&mut self, memory: &GuestMemory) -> Result<(), BrokenQueue> {
        if self.ring.ready() {
            self.ring.disable_notification(memory)?;
        }
        Ok(())
    }

    /// Asks for kicks again; true when requests came in between.
    pub fn enable_kicks(&mut self, memory: &GuestMemory) -> Result<bool, BrokenQueue> {
        Ok(self.ring.ready() && self.ring.enable_notification(memory)?)
    }
}

/// Whether an index that moved from `before` to `now` has passed `event` (virtio 1.2, 2.7.7.1 and `vring_need_event`).
fn passes(event: u16, before: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

/// Bytes of requests after which other devices get their turn. The device thread is one: while it serves a disk, sockets
/// and the control socket wait.
pub const TURN_BYTES: u64 = 4 << 20;
/// What a request counts for at least: it costs a system call, however short it is.
const REQUEST_BYTES_MIN: u64 = 16 << 10;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// so many bytes were written into the chain
    Done(u32),
    /// it stays in the queue and comes again in the next turn
    Later,
}

/// Runs `handle` over the requests of a queue, at most as many as the queue is long and not much more than [`TURN_BYTES`],
/// and interrupts the driver if it wants that.
pub fn drain(
    queue: &mut VirtQueue,
    memory: &GuestMemory,
    interrupt: &super::interrupt::Interrupt,
    mut handle: impl FnMut(&Chain) -> Result<Handled, BrokenQueue>,
) -> Result<super::Progress, BrokenQueue> {
    queue.disable_kicks(memory)?;
    let mut progress = super::Progress::Done;
    let mut left = queue.size();
    let mut bytes = 0;
    loop {
        while left > 0 && bytes < TURN_BYTES {
            let Some(chain) = queue.pop(memory)? else { break };
            left -= 1;
            bytes += REQUEST_BYTES_MIN.max(chain.readable_bytes() + chain.writable_bytes());
            match handle(&chain)? {
                Handled::Done(written) => queue.push_used(memory, chain.head, written)?,
                Handled::Later => {
                    queue.undo_pop();
                    left = 0;
                }
            }
        }
        if left == 0 || bytes >= TURN_BYTES {
            progress = super::Progress::More;
            break;
        }
        if !queue.enable_kicks(memory)? {
            break;
        }
        queue.disable_kicks(memory)?;
    }
    if queue.needs_interrupt(memory)? {
        interrupt.raise(super::interrupt::USED_BUFFER);
    }
    Ok(progress)
}

#[cfg(test)]
mod tests;
