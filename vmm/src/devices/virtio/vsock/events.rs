//! Packets of the guest, and packets to it.

use super::connection::{Connection, Phase};
use super::device::{
    Key, MAX_GUEST_CONNECTIONS, MAX_RESETS, PIECE_BYTES, RECEIVE, Reset, TRANSMIT, VsockDevice,
};
use super::packet::{HEADER_BYTES, HOST_CID, Header, Operation, TYPE_STREAM};
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::interrupt::USED_BUFFER;
use crate::devices::virtio::queue::{BrokenQueue, VirtQueue};
use crate::devices::virtio::{DeviceIo, Progress};
use crate::memory::GuestMemory;

/// Receive buffers that one read of a host's socket may fill. Linux gives buffers of a page.
const BUFFERS_AT_ONCE: u16 = 16;

impl VsockDevice {
    /// Moves what there is in both directions, as far as there is room.
    pub(super) fn driver_event(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        let received = self.receive(io)?;
        let sent = if self.awaits_reset(io)? { Progress::Done } else { self.send(io)? };
        self.set_timer();
        // a queue that was left because RSTs waited is taken up again once they are gone
        let resumes = self.transmit_stalled && self.resets.len() < MAX_RESETS;
        let more = resumes || received == Progress::More || sent == Progress::More;
        Ok(if more { Progress::More } else { Progress::Done })
    }

    /// Takes packets from the guest, at most as many as the queue is long.
    fn receive(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        let (memory, queue) = (io.memory, &mut io.queues[TRANSMIT]);
        queue.disable_kicks(memory)?;
        self.transmit_stalled = false;
        let mut progress = Progress::Done;
        let mut left = queue.size();
        loop {
            if self.resets.len() >= MAX_RESETS {
                self.transmit_stalled = true;
                break;
            }
            if left == 0 {
                progress = Progress::More;
                break;
            }
            let Some(chain) = queue.pop(memory)? else {
                if queue.enable_kicks(memory)? {
                    continue;
                }
                break;
            };
            left -= 1;
            self.packet(memory, &chain)?;
            queue.push_used(memory, chain.head, 0)?;
        }
        if queue.needs_interrupt(memory)? {
            io.interrupt.raise(USED_BUFFER);
        }
        Ok(progress)
    }

    /// One packet of the guest.
    fn packet(&mut self, memory: &GuestMemory, chain: &Chain) -> Result<(), BrokenQueue> {
        let mut wire = [0; HEADER_BYTES];
        if !chain.read_exact(memory, 0, &mut wire) {
            self.metrics.vsock.guest_errors.increment();
            return Err(BrokenQueue::Request("a packet is shorter than its header"));
        }
        let header = Header::decode(&wire);
        // a guest that names another source is ignored: no answer could reach the right one
        if header.source_cid != self.cid {
            self.metrics.vsock.guest_errors.increment();
            return Ok(());
        }
        let key = Key { guest_port: header.source_port, host_port: header.destination_port };
        let operation = Operation::from_number(header.operation);
        if header.kind != TYPE_STREAM || header.destination_cid != HOST_CID || operation.is_none() {
            self.metrics.vsock.guest_errors.increment();
            if operation != Some(Operation::Reset) {
                self.resets.push_back(Reset { from_cid: header.destination_cid, key });
            }
            return Ok(());
        }
        match operation {
            Some(Operation::Request) => self.request(key, &header),
            Some(operation) => self.on_connection(memory, chain, key, &header, operation),
            None => {}
        }
        Ok(())
    }

    /// The guest wants a connection to a port of the host.
    fn request(&mut self, key: Key, header: &Header) {
        // whatever was known by these ports is over for the guest
        self.remove(key);
        let of_guest = self.connections.keys().filter(|known| known.host_port < 1 << 30).count();
        if self.is_full() || of_guest >= MAX_GUEST_CONNECTIONS || key.host_port >= 1 << 30 {
            self.metrics.vsock.refused.increment();
            return self.reset(key);
        }
        match self.connect(key.host_port) {
            Ok(stream) => {
                self.metrics.vsock.connections.increment();
                let token = self.new_token();
                let mut connection = Connection::accepted(stream, token, self.next_buffer_bytes());
                connection.note_credit(header.buffer_bytes, header.forwarded);
                self.insert(key, connection);
            }
            Err(_) => {
                self.metrics.vsock.refused.increment();
                self.reset(key);
            }
        }
    }

    fn on_connection(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        key: Key,
        header: &Header,
        operation: Operation,
    ) {
        let Some(connection) = self.connections.get_mut(&key) else {
            if operation != Operation::Reset {
                self.reset(key);
            }
            return;
        };
        connection.note_credit(header.buffer_bytes, header.forwarded);
        let open = connection.phase() == Phase::Open;
        let legal = match operation {
            Operation::Response => {
                let first = connection.answered(key.host_port);
                self.metrics.vsock.connections.add(u64::from(first));
                first
            }
            Operation::ReadWrite if open => self.payload(memory, chain, key, header.bytes),
            Operation::Shutdown if open => {
                connection.guest_shutdown(header.flags);
                true
            }
            Operation::CreditUpdate => true,
            Operation::CreditRequest => {
                connection.ask_credit_update();
                true
            }
            Operation::Reset if open => {
                connection.guest_reset();
                true
            }
            Operation::Reset => {
                self.metrics.vsock.refused.increment();
                self.remove(key);
                true
            }
            Operation::Request | Operation::ReadWrite | Operation::Shutdown => false,
        };
        if legal {
            self.touched(key);
        } else {
            self.metrics.vsock.guest_errors.increment();
            self.remove(key);
            self.reset(key);
        }
    }

    /// Data of the guest. False when it breaks a rule: longer than its buffers, or than its credit.
    fn payload(&mut self, memory: &GuestMemory, chain: &Chain, key: Key, bytes: u32) -> bool {
        let Some(connection) = self.connections.get_mut(&key) else { return false };
        let end = HEADER_BYTES as u64 + u64::from(bytes);
        if !connection.has_room(bytes) || chain.readable_bytes() < end {
            return false;
        }
        for from in (HEADER_BYTES as u64..end).step_by(PIECE_BYTES) {
            let piece = usize::try_from(end - from).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
            let payload = &mut self.scratch[..piece];
            if !chain.read_exact(memory, from, payload) || connection.receive(payload).is_err() {
                return false;
            }
        }
        self.metrics.vsock.to_host_bytes.add(u64::from(bytes));
        true
    }

    /// Gives the guest what waits for it, as far as it has buffers: one buffer at first, then more at once as long as each
    /// was needed.
    fn send(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, BrokenQueue> {
        let memory = io.memory;
        let queue = &mut io.queues[RECEIVE];
        let mut left = queue.size();
        let mut at_once = 1;
        while self.has_packets() && left > 0 {
            let chains = pop_some(queue, memory, left.min(at_once))?;
            if chains.is_empty() {
                if queue.enable_kicks(memory)? {
                    continue;
                }
                break;
            }
            let filled = self.fill(memory, &chains)?;
            queue.undo_pops((chains.len() - filled.len()) as u16);
            if filled.is_empty() {
                break;
            }
            queue.push_used_together(memory, &filled)?;
            left -= filled.len() as u16;
            at_once = if filled.len() == chains.len() { BUFFERS_AT_ONCE.min(at_once * 2) } else { 1 };
        }
        if queue.needs_interrupt(memory)? {
            io.interrupt.raise(USED_BUFFER);
        }
        Ok(if left == 0 { Progress::More } else { Progress::Done })
    }

    /// Writes the next packet into buffers of the guest, its payload as several packets where one has no room for it. The
    /// buffers that it took, from the first on, with the bytes in each; none when there is no packet after all.
    fn fill(&mut self, memory: &GuestMemory, chains: &[Chain]) -> Result<Vec<(u16, u32)>, BrokenQueue> {
        let mut rooms = Vec::with_capacity(chains.len());
        for chain in chains {
            let room = chain.writable_bytes().saturating_sub(HEADER_BYTES as u64);
            if room == 0 {
                self.metrics.vsock.guest_errors.increment();
                return Err(BrokenQueue::Request("a receive buffer has no room for a packet with payload"));
            }
            rooms.push(usize::try_from(room).unwrap_or(usize::MAX).min(PIECE_BYTES));
        }
        let Some((header, bytes)) = self.next_packet(rooms.iter().sum()) else { return Ok(Vec::new()) };
        let mut filled = Vec::with_capacity(chains.len());
        let mut payload = &self.scratch[..bytes];
        for (chain, room) in chains.iter().zip(rooms) {
            let (now, later) = payload.split_at(room.min(payload.len()));
            let header = Header { bytes: now.len() as u32, ..header };
            if !chain.write_all(memory, 0, &header.encode())
                || !chain.write_all(memory, HEADER_BYTES as u64, now)
            {
                return Err(BrokenQueue::Request("a receive buffer left guest memory"));
            }
            filled.push((chain.head, (HEADER_BYTES + now.len()) as u32));
            payload = later;
            if payload.is_empty() {
                break;
            }
        }
        self.metrics.vsock.to_guest_bytes.add(bytes as u64);
        Ok(filled)
    }

    /// RSTs first; then each connection one packet in turn. The payload is in `scratch`.
    fn next_packet(&mut self, room: usize) -> Option<(Header, usize)> {
        if let Some(reset) = self.resets.pop_front() {
            let header =
                Header { operation: Operation::Reset.number(), ..self.header(reset.from_cid, reset.key) };
            return Some((header, 0));
        }
        for _ in 0..self.ready.len() {
            let key = self.ready.pop_front()?;
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            connection.queued = false;
            let limit = self.scratch.len().min(room);
            let packet = connection.next_packet(&mut self.scratch[..limit]);
            let (forwarded, buffer_bytes) = (connection.forwarded(), connection.buffer_bytes());
            self.touched(key);
            if let Some(packet) = packet {
                let header = Header {
                    operation: packet.operation.number(),
                    flags: packet.flags,
                    bytes: packet.bytes as u32,
                    buffer_bytes,
                    forwarded,
                    ..self.header(HOST_CID, key)
                };
                return Some((header, packet.bytes));
            }
        }
        None
    }
}

/// At most `count` buffers of the guest, in order.
fn pop_some(queue: &mut VirtQueue, memory: &GuestMemory, count: u16) -> Result<Vec<Chain>, BrokenQueue> {
    let mut chains = Vec::with_capacity(usize::from(count));
    while chains.len() < usize::from(count) {
        let Some(chain) = queue.pop(memory)? else { break };
        chains.push(chain);
    }
    Ok(chains)
}
