//! Credit: neither side sends more than the other has room for (virtio 1.2, 5.10.6.3).

use super::*;

#[test]
fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    guest.plain(Operation::Request, 5000, 80);
    let mut stream = listener.accept().expect("connected").0;
    guest.receive();
    let room = |guest: &mut Guest, buffer_bytes, forwarded| {
        let header = guest.header(Operation::CreditUpdate, 5000, 80);
        guest.send(Header { buffer_bytes, forwarded, ..header }, &[]);
    };
    room(&mut guest, 10, 0);
    stream.write_all(b"0123456789abcdef").expect("sent");
    let packets = guest.receive();
    assert_eq!(packets[0].1, b"0123456789");
    let rest: Vec<_> = packets[1..].iter().map(|(header, _)| operation(header)).collect();
    assert_eq!(rest, [Operation::CreditRequest], "asked once, sent nothing more");
    room(&mut guest, 10, 4);
    assert_eq!(guest.receive()[0].1, b"abcd");
    room(&mut guest, 0, 14);
    assert_eq!(guest.operations(), [], "it was asked already");
    // a guest that says it took more than it got has no room
    room(&mut guest, 10, 1000);
    assert_eq!(guest.receive().iter().map(|packet| packet.1.len()).sum::<usize>(), 0);
    room(&mut guest, u32::MAX, 14);
    assert_eq!(guest.receive()[0].1, b"ef");
}

#[test]
fn a_guest_that_sends_more_than_its_credit_is_reset() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let _stream = guest.guest_connects(&listener, 5000, 80);
    let block = vec![1; 32 * 1024];
    // the host does not read: its socket takes some, the rest waits here, and no more than that
    for _ in 0..64 {
        guest.data(5000, 80, &block);
        if guest.operations().contains(&Operation::Reset) {
            assert_eq!(guest.driven.guest_errors(), 1);
            return;
        }
    }
    panic!("2 MiB were taken for a host that reads nothing");
}

#[test]
fn the_guest_gets_credit_back_as_the_host_reads() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let mut stream = guest.guest_connects(&listener, 5000, 80);
    let (mut sent, mut read, mut forwarded) = (0u32, Vec::new(), 0u32);
    let block = vec![9; 4096];
    while read.len() < 4 << 20 {
        while sent - forwarded + 4096 <= LARGE_BUFFER_BYTES {
            guest.data(5000, 80, &block);
            sent += 4096;
        }
        read.extend(available(&mut stream));
        for (header, _) in guest.receive() {
            assert_ne!(operation(&header), Operation::Reset);
            assert_eq!(header.buffer_bytes, LARGE_BUFFER_BYTES);
            forwarded = header.forwarded;
        }
        assert!(sent - forwarded <= LARGE_BUFFER_BYTES);
    }
    assert!(read.iter().all(|byte| *byte == 9));
    assert_eq!(guest.driven.guest_errors(), 0);
}

#[test]
fn a_credit_request_is_answered() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let _stream = guest.guest_connects(&listener, 5000, 80);
    guest.data(5000, 80, b"12345");
    guest.plain(Operation::CreditRequest, 5000, 80);
    let packets = guest.receive();
    assert_eq!(operation(&packets[0].0), Operation::CreditUpdate);
    assert_eq!(packets[0].0.forwarded, 5);
}

#[test]
fn only_so_many_connections_have_a_large_buffer() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let (mut streams, mut told) = (Vec::new(), Vec::new());
    let mut connect = |guest: &mut Guest, port| {
        guest.plain(Operation::Request, port, 80);
        streams.push(listener.accept().expect("connected").0);
        let packets = guest.receive();
        assert_eq!(operation(&packets[0].0), Operation::Response);
        packets[0].0.buffer_bytes
    };
    for port in 0..MAX_LARGE_BUFFERS as u32 + 8 {
        told.push(connect(&mut guest, 5000 + port));
    }
    let (large, small) = told.split_at(MAX_LARGE_BUFFERS);
    assert!(large.iter().all(|bytes| *bytes == LARGE_BUFFER_BYTES), "{told:?}");
    assert!(small.iter().all(|bytes| *bytes == BUFFER_BYTES), "{told:?}");
    guest.plain(Operation::Reset, 5000, 80);
    assert_eq!(connect(&mut guest, 6000), LARGE_BUFFER_BYTES, "one was given back");
    assert_eq!(connect(&mut guest, 6001), BUFFER_BYTES);
}

#[test]
fn a_packet_may_be_as_long_as_the_credit() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let mut stream = guest.guest_connects(&listener, 5000, 80);
    let block: Vec<u8> = (0..LARGE_BUFFER_BYTES / 2 + 77).map(|at| (at % 251) as u8).collect();
    guest.data(5000, 80, &block);
    assert_eq!(guest.driven.guest_errors(), 0);
    let mut read = Vec::new();
    for _ in 0..64 {
        read.extend(available(&mut stream));
        // the rest goes when the socket has room again
        guest.receive();
    }
    assert!(read == block, "{} of {} bytes", read.len(), block.len());
}

#[test]
fn what_the_host_sends_fills_buffers_in_order() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let mut stream = guest.guest_connects(&listener, 5000, 80);
    let block: Vec<u8> = (0..50_000u32).map(|at| (at % 241) as u8).collect();
    stream.write_all(&block).expect("the socket takes it");
    let packets = guest.receive();
    let lengths: Vec<usize> = packets.iter().map(|(_, payload)| payload.len()).collect();
    assert!(packets.iter().all(|(header, payload)| header.bytes as usize == payload.len()), "{lengths:?}");
    let whole = (RX_BYTES as usize) - HEADER_BYTES;
    assert!(lengths[..lengths.len() - 1].iter().all(|length| *length == whole), "{lengths:?}");
    assert!(packets.into_iter().flat_map(|(_, payload)| payload).eq(block), "{lengths:?}");
}
