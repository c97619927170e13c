//! The device against a real tap in a network namespace of its own.

mod tap;

use super::device::{Net, QUEUE_SIZE, RECEIVE, TRANSMIT};
use super::header::{
    ETHERNET_BYTES, F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_HOST_TSO4, F_MRG_RXBUF, FRAME_BYTES_MAX,
    HEADER_BYTES,
};
use super::tap::TapError;
use crate::devices::virtio::command::{Command, Direction, Outcome};
use crate::devices::virtio::driver::{DATA, Driven};
use crate::devices::virtio::mmio::NEEDS_RESET;
use crate::devices::virtio::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1, VirtioDevice};
use crate::metrics::Metrics;
use pinfold_vmm_api::RateLimit;
use pinfold_vmm_api::config::TokenBucket;
use std::fs::File;
use std::sync::Arc;
use tap::{HostSide, TYPE, in_namespace};
use virtio_bindings::virtio_mmio as register;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const HOST: [u8; 6] = [2, 0, 0, 0, 0, 8];
const BASE: u64 = FEATURE_VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_IDX;
/// Receive buffers lie here, 4 KiB apart.
const BUFFERS: u64 = DATA + 0x20_0000;

struct Card {
    driven: Driven,
    host: HostSide,
}

/// Runs `act` with a card whose driver has agreed to `features`, or says why it cannot.
fn with_card(features: u64, act: impl FnOnce(Card) + Send + 'static) {
    in_namespace(move |host, tap| {
        let metrics = Arc::new(Metrics::default());
        let free = RateLimit::default();
        let net = Net::new(tap, MAC, free, free, Arc::clone(&metrics)).expect("a tap as it should be");
        let driven = Driven::with_features(Box::new(net), metrics, BASE | features);
        // the device learns of its driver
        driven.transport.queue_event(RECEIVE);
        act(Card { driven, host });
    });
}

fn frame(destination: [u8; 6], source: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source[..], &TYPE.to_be_bytes(), payload].concat()
}

impl Card {
    fn send(&mut self, header: [u8; HEADER_BYTES], frame: &[u8]) {
        self.driven.write(DATA, &header);
        self.driven.write(DATA + 64, frame);
        let chain = [(DATA, HEADER_BYTES as u32, false), (DATA + 64, frame.len() as u32, false)];
        self.driven.rings[TRANSMIT].send(&chain);
        self.driven.transport.queue_event(TRANSMIT);
    }

    /// Offers `count` receive buffers of so many bytes.
    fn offer(&mut self, count: u64, bytes: u32) {
        for index in 0..count {
            self.driven.rings[RECEIVE].send(&[(BUFFERS + 4096 * index, bytes, true)]);
        }
        self.driven.transport.queue_event(RECEIVE);
    }

    /// The frame in the first `lengths` buffers from `first` on, header included.
    fn received(&self, first: u64, used: &[(u32, u32)]) -> Vec<u8> {
        let piece = |(index, (_, bytes)): (usize, &(u32, u32))| {
            self.driven.read(BUFFERS + 4096 * (first + index as u64), *bytes as usize)
        };
        used.iter().enumerate().flat_map(piece).collect()
    }

    /// Lets the device look at its tap.
    fn host_event(&self) {
        self.driven.transport.host_event(0);
    }
}

#[test]
fn a_frame_goes_out_as_it_is_and_one_with_another_source_does_not() {
    with_card(0, |mut card| {
        let payload: Vec<u8> = (0..1400u32).map(|byte| byte as u8).collect();
        let good = frame(HOST, MAC, &payload);
        card.send([0; HEADER_BYTES], &frame(HOST, [2, 0, 0, 0, 0, 9], b"not me"));
        card.send([0; HEADER_BYTES], &good);
        assert_eq!(card.host.next_frame(), good, "the spoofed one did not come");
        assert_eq!(card.driven.rings[TRANSMIT].take_used().len(), 2, "both are given back");
        let net = &card.driven.metrics.net;
        assert_eq!((net.spoofed.get(), net.transmitted_frames.get()), (1, 1));
        assert_eq!(net.transmitted_bytes.get(), good.len() as u64);
        assert_eq!(card.driven.status() & NEEDS_RESET, 0);
    });
}

#[test]
fn frames_of_wrong_length_are_dropped_and_chains_of_wrong_form_break_the_queue() {
    with_card(0, |mut card| {
        card.send([0; HEADER_BYTES], &frame(HOST, MAC, b"")[..ETHERNET_BYTES - 1]);
        card.send([0; HEADER_BYTES], &frame(HOST, MAC, &vec![1; FRAME_BYTES_MAX - ETHERNET_BYTES + 1]));
        // asks for segments that were not agreed on
        card.send([1, 1, 54, 0, 0, 5, 34, 0, 16, 0, 0, 0], &frame(HOST, MAC, &[0; 2000]));
        assert_eq!(card.driven.metrics.net.guest_errors.get(), 3);
        assert_eq!(card.driven.metrics.net.transmitted_frames.get(), 0);
        assert_eq!(card.driven.rings[TRANSMIT].take_used().len(), 3);
        card.driven.rings[TRANSMIT].send(&[(DATA, HEADER_BYTES as u32 - 1, false)]);
        card.driven.transport.queue_event(TRANSMIT);
        assert_eq!(card.driven.status() & NEEDS_RESET, NEEDS_RESET);
    });
}

#[test]
fn a_frame_comes_in_when_the_guest_has_a_buffer() {
    with_card(0, |mut card| {
        let sent = frame(MAC, HOST, b"hello, guest");
        card.host.send(&sent);
        card.host_event();
        assert_eq!(card.driven.rings[RECEIVE].take_used(), [], "it waits in the tap");
        card.offer(4, 2048);
        let used = card.driven.rings[RECEIVE].take_used();
        assert_eq!(used.len(), 1);
        let received = card.received(0, &used);
        assert_eq!(received[HEADER_BYTES..], sent);
        assert_eq!(received[10..12], [1, 0], "one buffer");
        card.host.send(&sent);
        card.host_event();
        assert_eq!(card.driven.rings[RECEIVE].take_used().len(), 1);
        assert_eq!(card.driven.metrics.net.received_frames.get(), 2);
    });
}

#[test]
fn a_frame_that_is_too_long_for_its_buffer_is_dropped_whole() {
    with_card(0, |mut card| {
        card.offer(4, 100);
        card.host.send(&frame(MAC, HOST, &[7; 1000]));
        card.host_event();
        assert_eq!(card.driven.rings[RECEIVE].take_used(), []);
        assert_eq!(card.driven.metrics.net.dropped.get(), 1);
        // exactly as long as there is room
        let fits = frame(MAC, HOST, &[7; 100 - HEADER_BYTES - ETHERNET_BYTES]);
        card.host.send(&fits);
        card.host_event();
        let used = card.driven.rings[RECEIVE].take_used();
        assert_eq!(used.len(), 1);
        assert_eq!(card.received(0, &used)[HEADER_BYTES..], fits);
    });
}

#[test]
fn a_frame_behind_many_that_are_dropped_comes_without_another_event() {
    with_card(0, |mut card| {
        card.offer(4, 100);
        for _ in 0..QUEUE_SIZE + 20 {
            card.host.send(&frame(MAC, HOST, &[7; 1000]));
        }
        card.host.send(&frame(MAC, HOST, b"short enough"));
        card.host_event();
        let kick = &card.driven.transport.kicks()[RECEIVE];
        // as the event loop does: the device is called again while it asks for that
        let mut turns = 1;
        while kick.read().is_ok() && turns < 10 {
            card.driven.transport.queue_event(RECEIVE);
            turns += 1;
        }
        assert_eq!(card.driven.metrics.net.dropped.get(), u64::from(QUEUE_SIZE) + 20);
        assert_eq!(card.driven.rings[RECEIVE].take_used().len(), 1, "after {turns} turns");
        assert!((2..10).contains(&turns), "{turns} turns");
    });
}

#[test]
fn a_long_frame_fills_several_buffers_of_a_guest_that_merges_them() {
    let features = F_MRG_RXBUF | F_GUEST_CSUM | F_GUEST_TSO4;
    with_card(features, |mut card| {
        card.offer(64, 1536);
        let sent = card.host.send_segments(MAC, 40_000);
        card.host_event();
        let used = card.driven.rings[RECEIVE].take_used();
        let received = card.received(0, &used);
        assert_eq!(used.len(), (sent.len() + HEADER_BYTES).div_ceil(1536), "a single frame: {used:?}");
        assert_eq!(usize::from(u16::from_le_bytes([received[10], received[11]])), used.len());
        assert_eq!(received[1], 1, "segments of TCP over IPv4 are left to the guest");
        assert_eq!(received.len(), sent.len() + HEADER_BYTES);
        assert_eq!(received[received.len() - 1000..], sent[sent.len() - 1000..]);
    });
}

#[test]
fn a_guest_that_agreed_to_no_segments_gets_none() {
    with_card(F_MRG_RXBUF, |mut card| {
        card.offer(64, 2048);
        card.host.send_segments(MAC, 14_000);
        for _ in 0..20 {
            card.host_event();
        }
        let used = card.driven.rings[RECEIVE].take_used();
        assert!(used.len() >= 10, "{} frames of at most 1514 bytes", used.len());
        for (index, (_, bytes)) in used.iter().enumerate() {
            assert!(*bytes as usize <= HEADER_BYTES + 1514);
            assert_eq!(card.driven.read(BUFFERS + 4096 * index as u64, 2), [0, 0], "nothing is left to do");
        }
    });
}

#[test]
fn segments_of_the_guest_are_cut_by_the_host() {
    with_card(F_CSUM | F_HOST_TSO4, |mut card| {
        let (header, sent) = tap::segments(HOST, MAC, 20_000);
        card.send(header, &sent);
        let got = card.host.next_frame();
        assert_eq!(got.len(), sent.len(), "the host's kernel has it whole, as its own");
        assert_eq!(card.driven.metrics.net.transmitted_frames.get(), 1);
    });
}

#[test]
fn rates_hold_in_both_directions_and_can_be_lifted() {
    with_card(0, |mut card| {
        let few = TokenBucket { per_second: 1, burst: 2, first_burst: 0 };
        let limit = RateLimit { bytes: None, operations: Some(few) };
        let set = |card: &Card, limit| {
            for direction in [Direction::Receive, Direction::Transmit] {
                let command = Command::SetRate { direction, limit };
                assert_eq!(card.driven.transport.command(command), Outcome::Done);
            }
        };
        set(&card, limit);
        card.offer(16, 2048);
        for _ in 0..5 {
            card.send([0; HEADER_BYTES], &frame(HOST, MAC, b"out"));
            card.host.send(&frame(MAC, HOST, b"in"));
        }
        card.host_event();
        assert_eq!(card.driven.rings[TRANSMIT].take_used().len(), 2);
        assert_eq!(card.driven.rings[RECEIVE].take_used().len(), 2);
        set(&card, RateLimit::default());
        card.driven.transport.queue_event(TRANSMIT);
        card.driven.transport.queue_event(RECEIVE);
        assert_eq!(card.driven.rings[TRANSMIT].take_used().len(), 3);
        assert_eq!(card.driven.rings[RECEIVE].take_used().len(), 3, "those that waited were not lost");
    });
}

#[test]
fn a_card_at_rest_has_given_its_buffers_back() {
    with_card(F_MRG_RXBUF, |mut card| {
        card.offer(8, 2048);
        card.driven.transport.quiesce().expect("at rest");
        card.host.send(&frame(MAC, HOST, b"after the pause"));
        card.driven.transport.queue_event(RECEIVE);
        let used = card.driven.rings[RECEIVE].take_used();
        assert_eq!(used.iter().map(|(head, _)| *head).collect::<Vec<_>>(), [0], "the first one offered");
    });
}

#[test]
fn a_driver_that_resets_and_comes_back_gets_frames_again() {
    with_card(F_MRG_RXBUF, |mut card| {
        card.offer(8, 2048);
        card.driven.put(register::VIRTIO_MMIO_STATUS, 0);
        card.host.send(&frame(MAC, HOST, b"for nobody"));
        card.host_event();
        card.driven.new_rings();
        card.driven.initialise(BASE);
        card.offer(8, 2048);
        let used = card.driven.rings[RECEIVE].take_used();
        assert_eq!(used.len(), 1);
        assert!(card.received(0, &used).ends_with(b"for nobody"));
    });
}

#[test]
fn receive_buffers_of_wrong_form_break_the_queue() {
    for chain in
        [&[(BUFFERS, 64, false), (BUFFERS, 64, true)][..], &[(BUFFERS, HEADER_BYTES as u32 - 1, true)][..]]
    {
        let chain = chain.to_vec();
        with_card(0, move |mut card| {
            card.driven.rings[RECEIVE].send(&chain);
            card.driven.transport.queue_event(RECEIVE);
            assert_eq!(card.driven.status() & NEEDS_RESET, NEEDS_RESET);
        });
    }
}

#[test]
fn more_buffers_than_a_readv_takes_do_no_harm() {
    with_card(F_MRG_RXBUF | F_GUEST_CSUM | F_GUEST_TSO4, |mut card| {
        // buffers of one byte, as many as a chain can have, in indirect tables
        for table in 0..8u64 {
            let at = DATA + 0x10_0000 + 0x1000 * table;
            for index in 0..QUEUE_SIZE {
                let flags = 2 | u16::from(index + 1 < QUEUE_SIZE);
                card.driven.rings[RECEIVE].write_at(at, index, BUFFERS, 1, flags, index + 1);
            }
            card.driven.rings[RECEIVE].write(table as u16, at, 16 * u32::from(QUEUE_SIZE), 4, 0);
            card.driven.rings[RECEIVE].publish(table as u16);
        }
        for index in 8..QUEUE_SIZE {
            card.driven.rings[RECEIVE].write(index, BUFFERS, 2048, 2, 0);
            card.driven.rings[RECEIVE].publish(index);
        }
        card.host.send(&frame(MAC, HOST, &[7; 1400]));
        card.driven.transport.queue_event(RECEIVE);
        card.host_event();
        let served = card.driven.rings[RECEIVE].take_used().len() as u64;
        assert!(served > 0 || card.driven.metrics.net.dropped.get() > 0);
    });
}

#[test]
fn a_descriptor_that_is_no_tap_or_a_wrong_one_is_refused() {
    let metrics = Arc::new(Metrics::default());
    let free = RateLimit::default();
    let null = File::open("/dev/null").expect("null");
    let refused = Net::new(null, MAC, free, free, Arc::clone(&metrics)).map(|net| net.kind());
    assert!(matches!(refused, Err(super::device::NetError::Tap(TapError::NotATap(_)))));
    in_namespace(|_, _| {
        let plain = tap::make("plain0", 0x0002 | 0x1000).expect("a tap without headers");
        assert!(matches!(super::tap::Tap::new(plain), Err(TapError::Flags { .. })));
    });
}
