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
        while sent - forwarded + 4096 <= BUFFER_BYTES {
            guest.data(5000, 80, &block);
            sent += 4096;
        }
        read.extend(available(&mut stream));
        for (header, _) in guest.receive() {
            assert_ne!(operation(&header), Operation::Reset);
            assert_eq!(header.buffer_bytes, BUFFER_BYTES);
            forwarded = header.forwarded;
        }
        assert!(sent - forwarded <= BUFFER_BYTES);
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
