//! The socket device against real Unix sockets and a driver that follows the rules or breaks them.

mod credit;
mod hostile;

use super::connection::{BUFFER_BYTES, LARGE_BUFFER_BYTES};
use super::device::{MAX_CONNECTIONS, MAX_GUEST_CONNECTIONS, MAX_LARGE_BUFFERS, MAX_RESETS, VsockDevice};
use super::packet::{
    HEADER_BYTES, HOST_CID, Header, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use crate::devices::virtio::FEATURE_VERSION_1;
use crate::devices::virtio::driver::{DATA, Driven, Ring};
use crate::devices::virtio::mmio::NEEDS_RESET;
use crate::metrics::Metrics;
use proptest::prelude::*;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CID: u64 = 7;
const PORT: u32 = 1024;
const RX: usize = 0;
const TX: usize = 1;
const RX_BYTES: u32 = 4096 + HEADER_BYTES as u32;
const GUEST_BUFFER: u32 = 256 * 1024;
const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

struct Guest {
    driven: Driven,
    directory: tempfile::TempDir,
    rx_posted: u64,
}

type Packet = (Header, Vec<u8>);

impl Guest {
    fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.post(128);
        guest
    }

    fn without_buffers() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("vsock")).expect("bound");
        let prefix = directory.path().join("vsock").display().to_string();
        let metrics = Arc::new(Metrics::default());
        let device = VsockDevice::new(CID as u32, listener, prefix, Arc::clone(&metrics)).expect("a device");
        Self { driven: Driven::new(Box::new(device), metrics), directory, rx_posted: 0 }
    }

    /// Gives the device `count` receive buffers.
    fn post(&mut self, count: u64) {
        for _ in 0..count {
            let address = DATA + 0x10_0000 + (self.rx_posted % 256) * 0x2000;
            self.driven.rings[RX].send(&[(address, RX_BYTES, true)]);
            self.rx_posted += 1;
        }
        self.driven.transport.queue_event(RX);
    }

    fn header(&self, operation: Operation, guest_port: u32, host_port: u32) -> Header {
        Header {
            source_cid: CID,
            destination_cid: HOST_CID,
            source_port: guest_port,
            destination_port: host_port,
            kind: TYPE_STREAM,
            operation: operation.number(),
            buffer_bytes: GUEST_BUFFER,
            ..Default::default()
        }
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        let address = DATA;
        self.driven.write(address, &header.encode());
        self.driven.write(address + HEADER_BYTES as u64, payload);
        self.driven.rings[TX].send(&[(address, (HEADER_BYTES + payload.len()) as u32, false)]);
        self.driven.transport.queue_event(TX);
    }

    fn data(&mut self, guest_port: u32, host_port: u32, payload: &[u8]) {
        let header = self.header(Operation::ReadWrite, guest_port, host_port);
        self.send(Header { bytes: payload.len() as u32, ..header }, payload);
    }

    fn plain(&mut self, operation: Operation, guest_port: u32, host_port: u32) {
        let header = self.header(operation, guest_port, host_port);
        self.send(header, &[]);
    }

    fn shutdown(&mut self, guest_port: u32, host_port: u32, flags: u32) {
        let header = self.header(Operation::Shutdown, guest_port, host_port);
        self.send(Header { flags, ..header }, &[]);
    }

    /// What the device has sent, after it looked at its sockets; the buffers go back to it.
    fn receive(&mut self) -> Vec<Packet> {
        let mut all = Vec::new();
        for _ in 0..4 {
            self.driven.transport.host_event(0);
            let used = self.driven.rings[RX].take_used();
            let count = used.len() as u64;
            for (head, bytes) in used {
                let address = self.driven.rings[RX].descriptors() + 16 * u64::from(head);
                let address =
                    u64::from_le_bytes(self.driven.read(address, 8).try_into().expect("eight bytes"));
                let raw = self.driven.read(address, bytes as usize);
                let header = Header::decode(raw[..HEADER_BYTES].try_into().expect("a header"));
                assert_eq!(header.bytes as usize, raw.len() - HEADER_BYTES);
                assert_eq!((header.destination_cid, header.kind), (CID, TYPE_STREAM));
                all.push((header, raw[HEADER_BYTES..].to_vec()));
            }
            self.post(count);
        }
        all
    }

    fn operations(&mut self) -> Vec<Operation> {
        self.receive().iter().map(|(header, _)| operation(header)).collect()
    }

    fn listen(&self, port: u32) -> UnixListener {
        let listener =
            UnixListener::bind(self.directory.path().join(format!("vsock_{port}"))).expect("bound");
        listener.set_nonblocking(true).expect("non-blocking");
        listener
    }

    /// A connection that the guest opened: the host's end.
    fn guest_connects(&mut self, listener: &UnixListener, guest_port: u32, host_port: u32) -> UnixStream {
        self.plain(Operation::Request, guest_port, host_port);
        assert_eq!(self.operations(), [Operation::Response]);
        let stream = listener.accept().expect("connected").0;
        stream.set_nonblocking(true).expect("non-blocking");
        stream
    }

    fn host_connects(&self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.directory.path().join("vsock")).expect("connected");
        stream.write_all(line.as_bytes()).expect("sent");
        stream.set_nonblocking(true).expect("non-blocking");
        stream
    }

    /// A connection that the host opened to [`PORT`]: the host's end and the host's port.
    fn host_connected(&mut self) -> (UnixStream, u32) {
        let stream = self.host_connects(&format!("CONNECT {PORT}\n"));
        let packets = self.receive();
        assert_eq!(packets.len(), 1);
        assert_eq!(operation(&packets[0].0), Operation::Request);
        let host_port = packets[0].0.source_port;
        self.plain(Operation::Response, PORT, host_port);
        let mut greeting = [0; 64];
        let read = (&stream).read(&mut greeting).expect("the greeting");
        assert_eq!(std::str::from_utf8(&greeting[..read]), Ok(format!("OK {host_port}\n").as_str()));
        (stream, host_port)
    }
}

fn operation(header: &Header) -> Operation {
    Operation::from_number(header.operation).expect("a known operation")
}

fn available(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    all
}

fn is_closed(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0; 1]), Ok(0))
}

#[test]
fn the_host_reaches_a_port_of_the_guest() {
    let mut guest = Guest::new();
    let (mut stream, host_port) = guest.host_connected();
    stream.write_all(b"to the guest").expect("sent");
    let packets = guest.receive();
    assert_eq!(packets[0].1, b"to the guest");
    assert_eq!((packets[0].0.source_port, packets[0].0.destination_port), (host_port, PORT));
    guest.data(PORT, host_port, b"to the host");
    assert_eq!(available(&mut stream), b"to the host");
    assert_eq!(guest.driven.metrics.snapshot().vsock_connections, 1);
    assert_eq!(guest.driven.guest_errors(), 0);
}

#[test]
fn bytes_behind_the_connect_line_are_the_guests() {
    let mut guest = Guest::new();
    let stream = guest.host_connects(&format!("CONNECT {PORT}\nearly"));
    let host_port = guest.receive()[0].0.source_port;
    guest.plain(Operation::Response, PORT, host_port);
    assert_eq!(guest.receive()[0].1, b"early");
    drop(stream);
}

#[test]
fn the_guest_reaches_a_published_port_of_the_host_and_no_other() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let mut stream = guest.guest_connects(&listener, 5000, 80);
    guest.data(5000, 80, b"hello");
    assert_eq!(available(&mut stream), b"hello");
    for port in [81, 0, u32::MAX, 1 << 30] {
        guest.plain(Operation::Request, 5001, port);
        assert_eq!(guest.operations(), [Operation::Reset], "port {port}");
    }
}

#[test]
fn a_line_that_asks_for_nothing_closes_the_connection() {
    let mut guest = Guest::new();
    for line in ["HELLO\n", "CONNECT x\n", "CONNECT 99999999999\n", "0123456789012345678901234"] {
        let mut stream = guest.host_connects(line);
        assert_eq!(guest.operations(), []);
        let ended = stream.read(&mut [0; 1]);
        let reset = matches!(&ended, Err(error) if error.kind() == ErrorKind::ConnectionReset);
        assert!(matches!(ended, Ok(0)) || reset, "{line:?}: {ended:?}");
    }
}

#[test]
fn a_port_where_nobody_listens_closes_the_connection() {
    let mut guest = Guest::new();
    let mut stream = guest.host_connects(&format!("CONNECT {PORT}\n"));
    let host_port = guest.receive()[0].0.source_port;
    guest.plain(Operation::Reset, PORT, host_port);
    assert!(is_closed(&mut stream));
    assert_eq!(guest.operations(), [], "a reset is not answered");
}

#[test]
fn without_a_driver_the_host_is_turned_away_at_once() {
    let guest = Guest::new();
    guest.driven.put(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    let mut stream = guest.host_connects("CONNECT 1\n");
    guest.driven.transport.host_event(0);
    let ended = stream.read(&mut [0; 1]);
    assert!(!matches!(&ended, Err(error) if error.kind() == ErrorKind::WouldBlock), "{ended:?}");
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut guest = Guest::new();
    let mut stream = guest.host_connects(&format!("CONNECT {PORT}\n"));
    assert_eq!(guest.operations(), [Operation::Request]);
    let began = Instant::now();
    let mut ended = false;
    while !ended && began.elapsed() < Duration::from_secs(15) {
        // the deadline is a timer of the kernel
        std::thread::sleep(Duration::from_millis(100));
        guest.driven.transport.host_event(0);
        ended = is_closed(&mut stream);
    }
    assert!(ended);
    assert_eq!(guest.operations(), [Operation::Reset]);
}

#[test]
fn after_the_host_stopped_sending_the_guest_still_delivers() {
    let mut guest = Guest::new();
    let (mut stream, host_port) = guest.host_connected();
    stream.write_all(b"last words").expect("sent");
    stream.shutdown(Shutdown::Write).expect("half-closed");
    let packets = guest.receive();
    assert_eq!(packets[0].1, b"last words");
    assert_eq!((operation(&packets[1].0), packets[1].0.flags), (Operation::Shutdown, SHUTDOWN_SEND));
    guest.data(PORT, host_port, b"the answer");
    assert_eq!(available(&mut stream), b"the answer");
    guest.shutdown(PORT, host_port, BOTH);
    assert!(is_closed(&mut stream));
    assert_eq!(guest.operations(), [Operation::Reset], "the end is confirmed");
}

#[test]
fn after_the_guest_stopped_sending_the_host_still_delivers() {
    let mut guest = Guest::new();
    let (mut stream, host_port) = guest.host_connected();
    guest.data(PORT, host_port, b"a question");
    guest.shutdown(PORT, host_port, SHUTDOWN_SEND);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("the end of file came");
    assert_eq!(all, b"a question");
    stream.write_all(b"an answer").expect("sent");
    drop(stream);
    let packets = guest.receive();
    assert_eq!(packets[0].1, b"an answer");
    assert_eq!(operation(&packets[1].0), Operation::Shutdown);
    guest.shutdown(PORT, host_port, BOTH);
    assert_eq!(guest.operations(), [Operation::Reset]);
}

/// What the guest sent before it closed or reset must reach a host that reads slowly.
#[test]
fn the_rest_is_delivered_after_close_and_after_reset() {
    for by_reset in [false, true] {
        let mut guest = Guest::new();
        let (mut stream, host_port) = guest.host_connected();
        let mut sent = 0;
        let block = vec![3; 16 * 1024];
        // until the host's socket is full and bytes wait in the device
        let mut forwarded = 0;
        while sent - forwarded == 0 {
            guest.data(PORT, host_port, &block);
            sent += block.len() as u32;
            guest.plain(Operation::CreditRequest, PORT, host_port);
            forwarded = guest.receive().last().expect("an update").0.forwarded;
        }
        if by_reset {
            guest.plain(Operation::Reset, PORT, host_port);
        } else {
            guest.shutdown(PORT, host_port, BOTH);
        }
        assert_eq!(guest.operations(), []);
        let mut got = 0;
        let began = Instant::now();
        loop {
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => got += read as u32,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            guest.driven.transport.host_event(0);
            assert!(began.elapsed() < Duration::from_secs(20), "the end of file did not come");
        }
        assert_eq!(got, sent);
        let expected: &[Operation] = if by_reset { &[] } else { &[Operation::Reset] };
        assert_eq!(guest.operations(), expected);
    }
}

#[test]
fn a_host_that_is_gone_is_told_to_the_guest() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let stream = guest.guest_connects(&listener, 5000, 80);
    drop(stream);
    let packets = guest.receive();
    assert_eq!(packets.len(), 1);
    assert_eq!((operation(&packets[0].0), packets[0].0.flags), (Operation::Shutdown, BOTH));
    guest.data(5000, 80, b"into the void");
    assert_eq!(guest.operations(), []);
    guest.plain(Operation::Reset, 5000, 80);
    assert_eq!(guest.operations(), []);
}

/// A host that gives a stream up is told at once, though bytes of it still wait for a guest that does not read.
#[test]
fn a_host_that_is_gone_is_told_to_a_guest_that_reads_nothing() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    guest.plain(Operation::Request, 5000, 80);
    let mut stream = listener.accept().expect("connected").0;
    let update = |guest: &mut Guest, buffer_bytes| {
        let header = guest.header(Operation::CreditUpdate, 5000, 80);
        guest.send(Header { buffer_bytes, ..header }, &[]);
    };
    update(&mut guest, 4);
    stream.write_all(b"0123456789").expect("sent");
    let sent: Vec<u8> = guest.receive().into_iter().flat_map(|packet| packet.1).collect();
    assert_eq!(sent, b"0123");
    drop(stream);
    let packets = guest.receive();
    assert_eq!((operation(&packets[0].0), packets[0].0.flags), (Operation::Shutdown, SHUTDOWN_RECEIVE));
    assert_eq!(guest.operations(), [], "once");
    update(&mut guest, 100);
    let packets = guest.receive();
    assert_eq!(packets[0].1, b"456789");
    assert_eq!((operation(&packets[1].0), packets[1].0.flags), (Operation::Shutdown, BOTH));
}
