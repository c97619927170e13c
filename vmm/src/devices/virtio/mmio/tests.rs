//! The status machine and the registers, by the rules and against them.

use super::*;
use crate::devices::virtio::FEATURE_VERSION_1;
use crate::devices::virtio::TYPE_RNG;
use crate::devices::virtio::driver::{Driven, Ring};
use crate::devices::virtio::interrupt::CONFIG_CHANGE;
use crate::devices::virtio::rng::device::Rng;
use proptest::prelude::*;
use vm_memory::Bytes;
use vm_memory::GuestAddress;

const LIVE: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

fn fresh() -> (Transport, GuestMemory, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::default());
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 21)]).expect("memory");
    let device = Box::new(Rng::new(Arc::clone(&metrics)));
    (Transport::new(device, memory.clone(), Arc::clone(&metrics)).expect("a transport"), memory, metrics)
}

fn driven() -> Driven {
    let metrics = Arc::new(Metrics::default());
    Driven::new(Box::new(Rng::new(Arc::clone(&metrics))), metrics)
}

fn get(transport: &Transport, offset: u32) -> u32 {
    let mut bytes = [0; 4];
    transport.read(u64::from(offset), &mut bytes);
    u32::from_le_bytes(bytes)
}

fn put(transport: &Transport, offset: u32, value: u32) {
    transport.write(u64::from(offset), &value.to_le_bytes());
}

fn status(transport: &Transport) -> u32 {
    get(transport, register::VIRTIO_MMIO_STATUS)
}

#[test]
fn a_driver_recognises_the_device() {
    let (transport, _, metrics) = fresh();
    assert_eq!(get(&transport, register::VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(get(&transport, register::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(get(&transport, register::VIRTIO_MMIO_DEVICE_ID), TYPE_RNG);
    put(&transport, register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(get(&transport, register::VIRTIO_MMIO_DEVICE_FEATURES), 1, "virtio 1.x");
    put(&transport, register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(get(&transport, register::VIRTIO_MMIO_DEVICE_FEATURES), 0);
    assert_eq!(get(&transport, register::VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    put(&transport, register::VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(get(&transport, register::VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "no such queue");
    assert_eq!(metrics.guest_errors.get(), 0);
}

#[test]
fn the_whole_initialisation_serves_a_request() {
    let mut driven = driven();
    driven.rings[0].send(&[(0x40_0000, 32, true)]);
    driven.transport.queue_event(0);
    assert_eq!(driven.rings[0].take_used(), [(0, 32)]);
    assert_ne!(driven.read(0x40_0000, 32), [0; 32]);
    assert_eq!(driven.get(register::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driven.put(register::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driven.get(register::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_eq!(driven.guest_errors(), 0);
}

#[test]
fn status_bits_come_in_order_and_stay() {
    let (transport, _, metrics) = fresh();
    for too_early in [DRIVER, FEATURES_OK, DRIVER_OK, LIVE, ACKNOWLEDGE | FEATURES_OK] {
        put(&transport, register::VIRTIO_MMIO_STATUS, too_early);
        assert_eq!(status(&transport), 0, "{too_early:#x}");
    }
    put(&transport, register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    put(&transport, register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
    assert_eq!(status(&transport), ACKNOWLEDGE | DRIVER, "bits are not taken back one by one");
    put(&transport, register::VIRTIO_MMIO_STATUS, LIVE);
    assert_eq!(status(&transport), ACKNOWLEDGE | DRIVER, "no stage is skipped");
    assert_eq!(metrics.guest_errors.get(), 7);
    put(&transport, register::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(status(&transport), 0);
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    for features in [0, 1 << 32 | 1 << 5, u64::MAX, 1 << 32 | 1 << 63] {
        let (transport, ..) = fresh();
        put(&transport, register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        for page in 0..2 {
            put(&transport, register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
            put(&transport, register::VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * page)) as u32);
        }
        put(&transport, register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(status(&transport) & FEATURES_OK, 0, "{features:#x}");
    }
}

#[test]
fn a_live_queue_cannot_be_moved_and_features_cannot_change() {
    let driven = driven();
    let before = driven.guest_errors();
    let frozen = [
        (register::VIRTIO_MMIO_QUEUE_NUM, 8),
        (register::VIRTIO_MMIO_QUEUE_DESC_LOW, 0),
        (register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 1),
        (register::VIRTIO_MMIO_QUEUE_USED_LOW, 0x1000),
        (register::VIRTIO_MMIO_QUEUE_READY, 1),
        (register::VIRTIO_MMIO_DRIVER_FEATURES, 0),
    ];
    for (offset, value) in frozen {
        driven.put(offset, value);
    }
    assert_eq!(driven.guest_errors(), before + frozen.len() as u64);
    assert_eq!(driven.status(), LIVE);
}

#[test]
fn queues_of_wrong_size_or_place_do_not_become_ready() {
    let set_up = |size: u32, descriptors: u64| {
        let (transport, ..) = fresh();
        put(&transport, register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        put(&transport, register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        put(&transport, register::VIRTIO_MMIO_DRIVER_FEATURES, 1);
        put(&transport, register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        put(&transport, register::VIRTIO_MMIO_QUEUE_NUM, size);
        put(&transport, register::VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors as u32);
        put(&transport, register::VIRTIO_MMIO_QUEUE_DESC_HIGH, (descriptors >> 32) as u32);
        put(&transport, register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2000);
        put(&transport, register::VIRTIO_MMIO_QUEUE_USED_LOW, 0x3000);
        let errors = |transport: &Transport| transport.metrics.guest_errors.get();
        let before = errors(&transport);
        put(&transport, register::VIRTIO_MMIO_QUEUE_READY, 1);
        (get(&transport, register::VIRTIO_MMIO_QUEUE_READY), before + errors(&transport))
    };
    assert_eq!(set_up(64, 0x1000), (1, 0));
    for descriptors in [1 << 21, !0xf, 0xd000_0000, (1 << 21) - 16] {
        let (ready, errors) = set_up(64, descriptors);
        assert_eq!(ready, 0, "descriptors at {descriptors:#x}");
        assert!(errors > 0);
    }
    // a refused size leaves the largest one, a refused address the old one: counted either way
    for (size, descriptors) in [(0, 0x1000), (3, 0x1000), (128, 0x1000), (0x1_0000, 0x1000), (64, 0x1001)] {
        assert!(set_up(size, descriptors).1 > 0, "size {size}, descriptors at {descriptors:#x}");
    }
}

#[test]
fn a_broken_queue_stops_the_device_until_it_is_reset() {
    let mut driven = driven();
    driven.rings[0].write(0, 0x40_0000, 8, 1, 0);
    driven.rings[0].publish(0);
    driven.transport.queue_event(0);
    assert_eq!(driven.status() & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(driven.get(register::VIRTIO_MMIO_INTERRUPT_STATUS) & CONFIG_CHANGE, CONFIG_CHANGE);
    driven.rings[0].send(&[(0x40_0000, 8, true)]);
    driven.transport.queue_event(0);
    assert_eq!(driven.rings[0].take_used(), [], "nothing is served before the reset");

    driven.put(register::VIRTIO_MMIO_STATUS, 0);
    let ring = Ring::new(&driven.memory, 0x20_0000, 64);
    driven.rings = vec![ring];
    driven.initialise(FEATURE_VERSION_1);
    driven.rings[0].send(&[(0x40_0000, 8, true)]);
    driven.transport.queue_event(0);
    assert_eq!(driven.rings[0].take_used(), [(0, 8)]);
}

#[test]
fn a_reset_with_requests_waiting_forgets_them() {
    let mut driven = driven();
    driven.rings[0].send(&[(0x40_0000, 8, true)]);
    driven.put(register::VIRTIO_MMIO_STATUS, 0);
    driven.transport.queue_event(0);
    assert_eq!(driven.rings[0].take_used(), []);
    assert_eq!(driven.read(0x40_0000, 8), [0; 8]);
}

#[test]
fn a_kick_without_a_request_raises_no_interrupt() {
    let driven = driven();
    driven.transport.queue_event(0);
    assert_eq!(driven.get(register::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_device_takes_at_most_one_round_of_requests_before_others_have_their_turn() {
    let mut driven = driven();
    for _ in 0..64 {
        driven.rings[0].send(&[(0x40_0000, 1, true)]);
    }
    driven.transport.queue_event(0);
    assert_eq!(driven.rings[0].take_used().len(), 64);
    assert_eq!(driven.transport.kicks()[0].read().expect("it asked to come back"), 1);
}

#[test]
fn every_access_of_every_width_at_every_offset_is_survived() {
    let driven = driven();
    for offset in 0..0x1000 {
        for width in [0, 1, 2, 3, 4, 5, 8, 16] {
            let mut data = vec![0xee; width];
            driven.transport.read(offset, &mut data);
            if width != 4 && offset < CONFIG_OFFSET {
                assert!(data.iter().all(|byte| *byte == 0), "{width} bytes at {offset:#x}");
            }
            driven.transport.write(offset, &vec![0xff; width]);
        }
    }
    driven.transport.read(u64::MAX, &mut [0; 8]);
    driven.transport.write(u64::MAX, &[0; 8]);
}

proptest! {
    /// No order of register writes makes a device live without accepted features, or panics.
    #[test]
    fn any_walk_keeps_the_order(walk in proptest::collection::vec((0..0x41u32, any::<u32>(), 0..4u8), 0..200)) {
        let (transport, memory, _) = fresh();
        memory.write_slice(&[0x55; 4096], GuestAddress(0x1000)).expect("in memory");
        for (word, value, small) in walk {
            // small values reach states that random ones do not
            let value = match small { 0 => value, 1 => value % 16, 2 => value % 2, _ => value & 0x1f_f000 };
            put(&transport, word * 4, value);
            transport.queue_event(0);
            let state = transport.lock();
            if state.status & DRIVER_OK != 0 {
                prop_assert_eq!(state.status & LIVE, LIVE);
            }
            if state.status & FEATURES_OK != 0 {
                prop_assert_eq!(state.driver_features & !state.offered_features(), 0);
                prop_assert_ne!(state.driver_features & FEATURE_VERSION_1, 0);
            }
        }
    }
}
