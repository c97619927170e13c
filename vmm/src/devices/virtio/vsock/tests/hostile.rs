//! Guests that lie, hoard and reset: packets out of place, bounds on connections and queues.

use super::super::device::ANSWER_TIME;
use super::*;

#[test]
fn packets_for_unknown_connections_are_reset_but_resets_are_not() {
    let mut guest = Guest::new();
    for operation in
        [Operation::Response, Operation::Shutdown, Operation::CreditUpdate, Operation::CreditRequest]
    {
        guest.plain(operation, 1, 2);
        assert_eq!(guest.operations(), [Operation::Reset]);
    }
    guest.data(1, 2, b"x");
    assert_eq!(guest.operations(), [Operation::Reset]);
    guest.plain(Operation::Reset, 1, 2);
    assert_eq!(guest.operations(), []);
}

#[test]
fn packets_that_lie_are_counted_and_harm_nobody() {
    let mut guest = Guest::new();
    let (mut stream, host_port) = guest.host_connected();
    let right = guest.header(Operation::ReadWrite, PORT, host_port);
    for source_cid in [0, 1, 2, 3, u64::MAX] {
        guest.send(Header { source_cid, bytes: 1, ..right }, b"x");
    }
    assert_eq!(guest.operations(), [], "nobody to answer to");
    guest.send(Header { destination_cid: 9, ..right }, &[]);
    guest.send(Header { kind: 2, ..right }, &[]);
    guest.send(Header { operation: 99, ..right }, &[]);
    assert_eq!(guest.operations(), [Operation::Reset; 3]);
    assert_eq!(available(&mut stream), b"");
    assert_eq!(guest.driven.guest_errors(), 8);
    // longer than its buffers: the connection ends
    guest.send(Header { bytes: 100, ..right }, b"short");
    assert_eq!(guest.operations(), [Operation::Reset]);
    assert!(is_closed(&mut stream));
    assert_eq!(guest.driven.status() & NEEDS_RESET, 0);
}

#[test]
fn a_packet_without_a_whole_header_breaks_the_queue() {
    let mut guest = Guest::new();
    guest.driven.rings[TX].send(&[(DATA, HEADER_BYTES as u32 - 1, false)]);
    guest.driven.transport.queue_event(TX);
    assert_eq!(guest.driven.status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn a_receive_buffer_without_room_breaks_the_queue() {
    let mut guest = Guest::without_buffers();
    guest.driven.rings[RX].send(&[(DATA, HEADER_BYTES as u32, true)]);
    guest.plain(Operation::Response, 1, 2);
    assert_eq!(guest.driven.status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn the_guest_may_open_so_many_connections_and_the_host_still_gets_through() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let mut held = Vec::new();
    for port in 0..300 {
        guest.plain(Operation::Request, port, 80);
        held.extend(listener.accept().ok());
        let expected =
            if (port as usize) < MAX_GUEST_CONNECTIONS { Operation::Response } else { Operation::Reset };
        assert_eq!(guest.operations(), [expected], "connection {port}");
    }
    assert_eq!(held.len(), MAX_GUEST_CONNECTIONS);
    guest.host_connected();
}

#[test]
fn all_connections_together_are_bounded() {
    let mut guest = Guest::new();
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        held.push(guest.host_connected());
    }
    let mut one_more = guest.host_connects("CONNECT 1\n");
    assert_eq!(guest.operations(), []);
    let ended = one_more.read(&mut [0; 1]);
    assert!(!matches!(&ended, Err(error) if error.kind() == ErrorKind::WouldBlock), "{ended:?}");
    drop(held);
    // a file descriptor for each is all that they cost: once the guest lets go there is room again
    loop {
        let packets = guest.receive();
        if packets.is_empty() {
            break;
        }
        for (header, _) in packets {
            guest.plain(Operation::Reset, PORT, header.source_port);
            guest.driven.rings[TX].take_used();
        }
    }
    guest.host_connected();
}

#[test]
fn a_guest_that_takes_no_packets_cannot_make_resets_pile_up() {
    let mut guest = Guest::without_buffers();
    let sent = 3 * MAX_RESETS;
    let mut taken = 0;
    for port in 0..sent {
        let header = guest.header(Operation::Shutdown, port as u32, 2);
        guest.driven.write(DATA, &header.encode());
        // as far as the ring has room
        if port - taken < 256 {
            guest.driven.rings[TX].send(&[(DATA, HEADER_BYTES as u32, false)]);
            guest.driven.transport.queue_event(TX);
        }
        taken += guest.driven.rings[TX].take_used().len();
    }
    assert_eq!(taken, MAX_RESETS, "then the device stops taking");
    // with buffers it goes on, and every packet is answered
    let mut resets = 0;
    for _ in 0..20 {
        guest.post(64);
        guest.driven.transport.queue_event(TX);
        resets += guest.operations().len();
        taken += guest.driven.rings[TX].take_used().len();
    }
    assert!(taken > MAX_RESETS);
    assert_eq!(resets, taken);
}

#[test]
fn connections_of_the_host_that_nobody_answers_cannot_make_resets_pile_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("vsock");
    let listener = UnixListener::bind(&path).expect("bound");
    let mut device =
        VsockDevice::new(CID as u32, listener, path.display().to_string(), Arc::default()).expect("a device");
    for _ in 0..3 * MAX_RESETS {
        let mut stream = UnixStream::connect(&path).expect("connected");
        stream.write_all(b"CONNECT 1024\n").expect("sent");
        device.accept(true);
        device.shake(device.next_token);
        // a guest that takes nothing does not answer in time
        device.expire(Instant::now() + ANSWER_TIME + Duration::from_secs(1));
    }
    assert_eq!(device.resets.len(), MAX_RESETS);
    assert_eq!(device.connections.len() + device.handshakes.len(), 0);
}

#[test]
fn reopening_a_connection_with_the_same_ports_ends_the_old_one() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let mut old = guest.guest_connects(&listener, 5000, 80);
    let mut new = guest.guest_connects(&listener, 5000, 80);
    assert!(is_closed(&mut old));
    guest.data(5000, 80, b"new");
    assert_eq!(available(&mut new), b"new");
}

#[test]
fn a_storm_of_requests_without_receive_buffers_keeps_the_queue_of_packets_short() {
    let mut guest = Guest::without_buffers();
    let listener = guest.listen(80);
    let mut last = None;
    for _ in 0..2000 {
        guest.plain(Operation::Request, 5000, 80);
        last = listener.accept().ok();
        guest.driven.rings[TX].take_used();
    }
    assert!(last.is_some());
    guest.post(128);
    assert_eq!(guest.operations(), [Operation::Response], "one connection is left, with one answer");
}

#[test]
fn a_driver_reset_closes_everything() {
    let mut guest = Guest::new();
    let (mut stream, _) = guest.host_connected();
    guest.driven.put(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    assert!(!is_closed(&mut stream), "a vCPU thread wrote the register: it touches no socket");
    assert_eq!(guest.driven.transport.kicks()[0].read().expect("the device thread is woken"), 1);
    guest.driven.transport.queue_event(0);
    assert!(is_closed(&mut stream));
}

#[test]
fn a_driver_that_comes_back_at_once_finds_no_connection_of_before() {
    let mut guest = Guest::new();
    let (mut stream, host_port) = guest.host_connected();
    guest.driven.put(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    let memory = guest.driven.memory.clone();
    guest.driven.rings = (0..3)
        .map(|ring| Ring::new(&memory, 0x80_0000 + 0x1_0000 * ring, [256, 256, 16][ring as usize]))
        .collect();
    guest.driven.initialise(FEATURE_VERSION_1);
    guest.post(16);
    guest.data(PORT, host_port, b"to a connection of before");
    assert_eq!(guest.operations(), [Operation::Reset]);
    assert!(is_closed(&mut stream));
    guest.host_connected();
}

#[test]
fn large_transfers_to_the_guest_arrive_whole() {
    let mut guest = Guest::new();
    let (mut stream, host_port) = guest.host_connected();
    let text: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let (mut offered, mut got) = (0, Vec::new());
    while got.len() < text.len() {
        if let Ok(sent) = stream.write(&text[offered..]) {
            offered += sent;
        }
        for (header, payload) in guest.receive() {
            assert_eq!(operation(&header), Operation::ReadWrite);
            got.extend(payload);
        }
        let header = guest.header(Operation::CreditUpdate, PORT, host_port);
        guest.send(Header { forwarded: got.len() as u32, ..header }, &[]);
        guest.driven.rings[TX].take_used();
    }
    assert!(got == text);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any sequence of packets is survived: no panic, bounded tables, and the device still serves the host.
    #[test]
    fn any_packets_are_survived(
        packets in proptest::collection::vec(
            (0..9u16, 0..3u32, 0..3u32, 0..5u32, prop_oneof![0..200u32, any::<u32>()], any::<u32>(), any::<u32>()), 0..120),
    ) {
        let mut guest = Guest::new();
        let listener = guest.listen(2);
        let mut held = Vec::new();
        for (number, guest_port, host_port, flags, bytes, buffer_bytes, forwarded) in packets {
            let header = guest.header(Operation::Request, guest_port, host_port);
            let header = Header { operation: number, flags, bytes, buffer_bytes, forwarded, ..header };
            guest.send(header, &[5; 100]);
            guest.driven.rings[TX].take_used();
            held.extend(listener.accept().ok());
            guest.receive();
        }
        prop_assert_eq!(guest.driven.status() & NEEDS_RESET, 0);
        guest.host_connected();
    }
}
