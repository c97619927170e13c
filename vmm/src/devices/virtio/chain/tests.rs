//! Hostile descriptor tables: loops, bad links, bad addresses, bad order.

use super::*;
use crate::devices::virtio::driver::{INDIRECT, NEXT, Ring, WRITE, memory_with_hole};
use crate::devices::virtio::queue::BrokenQueue;
use proptest::prelude::*;

const SIZE: u16 = 16;
const TABLE: u64 = 0x2_0000;

fn ring() -> Ring {
    Ring::new(&memory_with_hole(), 0, SIZE)
}

/// What the device makes of the chain that starts at descriptor 0.
fn outcome(mut ring: Ring) -> Result<Chain, BrokenChain> {
    ring.publish(0);
    match ring.queue().pop(&ring.memory) {
        Ok(chain) => Ok(chain.expect("one was published")),
        Err(BrokenQueue::Chain(broken)) => Err(broken),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_right_chain_comes_out_as_it_went_in() {
    let ring = ring();
    ring.write(0, 0x4_0000, 16, NEXT, 5);
    ring.write(5, 0x4_1000, 512, NEXT | WRITE, 3);
    ring.write(3, 0x4_2000, 1, WRITE, 0);
    let chain = outcome(ring).expect("right");
    let buffer = |address, bytes| Buffer { address: GuestAddress(address), bytes };
    assert_eq!(chain.readable, [buffer(0x4_0000, 16)]);
    assert_eq!(chain.writable, [buffer(0x4_1000, 512), buffer(0x4_2000, 1)]);
}

#[test]
fn loops_end() {
    for length in [1, 2, SIZE] {
        let ring = ring();
        for index in 0..length {
            ring.write(index, 0x4_0000, 8, NEXT, (index + 1) % length);
        }
        assert_eq!(outcome(ring), Err(BrokenChain::TooLong), "a loop of {length}");
    }
}

#[test]
fn a_loop_in_an_indirect_table_ends() {
    let ring = ring();
    ring.write(0, TABLE, 16 * 4, INDIRECT, 0);
    for index in 0..4 {
        ring.write_at(TABLE, index, 0x4_0000, 8, NEXT, (index + 1) % 4);
    }
    assert_eq!(outcome(ring), Err(BrokenChain::TooLong));
}

#[test]
fn links_out_of_the_table_are_refused() {
    for next in [SIZE, SIZE + 1, 0x7fff, u16::MAX] {
        let ring = ring();
        ring.write(0, 0x4_0000, 8, NEXT, next);
        assert_eq!(outcome(ring), Err(BrokenChain::Links), "next {next}");
    }
}

#[test]
fn indirect_tables_of_wrong_form_are_refused() {
    let ring_with = |bytes, flags, inner_flags| {
        let ring = ring();
        ring.write(0, TABLE, bytes, flags, 1);
        ring.write(1, 0x4_0000, 8, 0, 0);
        ring.write_at(TABLE, 0, 0x5_0000, 8, inner_flags, 0);
        outcome(ring)
    };
    assert!(ring_with(16, INDIRECT, 0).is_ok());
    for bytes in [0, 1, 15, 17, (16 << 16) + 16, u32::MAX] {
        assert_eq!(ring_with(bytes, INDIRECT, 0), Err(BrokenChain::Indirect), "{bytes} bytes");
    }
    assert_eq!(ring_with(16, INDIRECT, INDIRECT), Err(BrokenChain::Indirect), "nested");
    assert_eq!(ring_with(16, INDIRECT | NEXT, 0), Err(BrokenChain::Indirect), "goes on outside its table");
    // a longer table than the queue is none of the device's business, as long as the chain is not
    assert!(ring_with(16 << 16, INDIRECT, 0).is_ok());
    // the direction of an indirect descriptor means nothing, unknown flags neither
    assert!(ring_with(16, INDIRECT | WRITE, 0).is_ok());
    assert!(ring_with(16, INDIRECT | 0xfff8, 0xfff8).is_ok());
}

#[test]
fn an_indirect_table_that_was_not_agreed_on_is_refused() {
    let mut ring = ring();
    ring.write(0, TABLE, 16, INDIRECT, 0);
    ring.write_at(TABLE, 0, 0x5_0000, 8, 0, 0);
    ring.publish(0);
    let mut queue = ring.queue();
    queue.set_features(false, false);
    assert!(matches!(queue.pop(&ring.memory), Err(BrokenQueue::Chain(BrokenChain::Indirect))));
}

#[test]
fn normal_descriptors_may_come_before_an_indirect_one() {
    let ring = ring();
    ring.write(0, 0x4_0000, 16, NEXT, 1);
    ring.write(1, TABLE, 32, INDIRECT, 0);
    ring.write_at(TABLE, 0, 0x5_0000, 8, NEXT, 1);
    ring.write_at(TABLE, 1, 0x5_1000, 8, WRITE, 0);
    let chain = outcome(ring).expect("right (virtio 1.2, 2.7.5.3.2)");
    assert_eq!((chain.readable.len(), chain.writable.len()), (2, 1));
}

#[test]
fn the_longest_chain_is_as_long_as_the_queue() {
    let ring = ring();
    ring.write(0, TABLE, 16 * u32::from(SIZE), INDIRECT, 0);
    for index in 0..SIZE {
        let flags = if index + 1 == SIZE { 0 } else { NEXT };
        ring.write_at(TABLE, index, 0x4_0000, 8, flags, index + 1);
    }
    assert_eq!(outcome(ring).expect("right").readable.len(), usize::from(SIZE));
}

#[test]
fn an_indirect_table_longer_than_the_queue_is_refused() {
    let ring = ring();
    let count = SIZE + 1;
    ring.write(0, TABLE, 16 * u32::from(count), INDIRECT, 0);
    for index in 0..count {
        let flags = if index + 1 == count { 0 } else { NEXT };
        ring.write_at(TABLE, index, 0x4_0000, 8, flags, index + 1);
    }
    assert_eq!(outcome(ring), Err(BrokenChain::TooLong));
}

#[test]
fn an_indirect_table_outside_memory_is_refused() {
    for table in [0x80_0000, 0xffff_f000, u64::MAX - 15, 0xd000_0000] {
        let ring = ring();
        ring.write(0, table, 16, INDIRECT, 0);
        assert_eq!(outcome(ring), Err(BrokenChain::TableOutsideMemory), "table at {table:#x}");
    }
}

#[test]
fn buffers_outside_memory_are_refused() {
    let cases = [
        (0x80_0000u64, 1u32, "past the end of a region"),
        (0x7f_ffff, 2, "over the end of a region"),
        (0x0fff_ffff, 2, "out of the hole into a region"),
        (0x100f_ffff, 2, "past the last region"),
        (0xd000_0000, 8, "in a device's window"),
        (u64::MAX, 1, "at the end of the address space"),
        (u64::MAX - 3, 8, "around the end of the address space"),
        (0, u32::MAX, "longer than memory"),
    ];
    for (address, bytes, what) in cases {
        for flags in [0, WRITE] {
            let ring = ring();
            ring.write(0, address, bytes, flags, 0);
            assert_eq!(outcome(ring), Err(BrokenChain::OutsideMemory), "{what}");
        }
    }
}

#[test]
fn a_buffer_over_two_adjoining_regions_is_memory() {
    let ring = ring();
    ring.write(0, 0xf_fff0, 32, 0, 0);
    let memory = ring.memory.clone();
    memory.write_slice(&[7; 32], GuestAddress(0xf_fff0)).expect("in memory");
    let chain = outcome(ring).expect("both regions are memory");
    let mut all = [0; 32];
    assert!(chain.read_exact(&memory, 0, &mut all));
    assert_eq!(all, [7; 32]);
}

#[test]
fn a_readable_buffer_after_a_writable_one_is_refused() {
    let ring = ring();
    ring.write(0, 0x4_0000, 8, NEXT | WRITE, 1);
    ring.write(1, 0x4_1000, 8, 0, 0);
    assert_eq!(outcome(ring), Err(BrokenChain::Order));
}

#[test]
fn a_chain_of_more_than_four_gib_is_refused() {
    let ring = ring();
    for index in 0..SIZE {
        let flags = if index + 1 == SIZE { 0 } else { NEXT };
        ring.write(index, 0, 0x1000_0000, flags, index + 1);
    }
    assert_eq!(outcome(ring), Err(BrokenChain::OutsideMemory), "a buffer longer than its region");
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1100_0000)]).expect("memory");
    let ring = Ring::new(&memory, 0, SIZE);
    for index in 0..SIZE {
        let flags = if index + 1 == SIZE { 0 } else { NEXT };
        ring.write(index, 0, 0x1000_0000, flags, index + 1);
    }
    assert_eq!(outcome(ring), Err(BrokenChain::TooManyBytes));
}

#[test]
fn an_available_index_that_jumps_breaks_the_queue() {
    for jump in [SIZE + 1, 0x7fff, u16::MAX] {
        let mut ring = ring();
        let mut queue = ring.queue();
        ring.set_available(jump);
        assert!(matches!(queue.pop(&ring.memory), Err(BrokenQueue::Ring(_))), "jump of {jump}");
    }
}

#[test]
fn a_head_out_of_the_table_breaks_the_queue() {
    for head in [SIZE, 0x8000, u16::MAX] {
        let mut ring = ring();
        ring.publish(head);
        assert!(ring.queue().pop(&ring.memory).is_err(), "head {head}");
    }
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![0..0x80_0000u64, 0x1000_0000..0x1010_0000u64, any::<u64>(), Just(0x2_0000u64),];
    let bytes = prop_oneof![0..4096u32, any::<u32>(), (0..20u32).prop_map(|n| n * 16)];
    (address, bytes, prop_oneof![0..8u16, any::<u16>()], prop_oneof![0..SIZE, any::<u16>()])
}

proptest! {
    /// Whatever the tables hold, a chain that is accepted lies in memory, is no longer than the queue, and reads first.
    #[test]
    fn any_table_is_refused_or_safe(
        direct in proptest::collection::vec(descriptor(), usize::from(SIZE)),
        indirect in proptest::collection::vec(descriptor(), 20),
    ) {
        let ring = ring();
        for (index, (address, bytes, flags, next)) in direct.into_iter().enumerate() {
            ring.write(index as u16, address, bytes, flags, next);
        }
        for (index, (address, bytes, flags, next)) in indirect.into_iter().enumerate() {
            ring.write_at(TABLE, index as u16, address, bytes, flags, next);
        }
        let memory = ring.memory.clone();
        if let Ok(chain) = outcome(ring) {
            prop_assert!(chain.readable.len() + chain.writable.len() <= usize::from(SIZE));
            for buffer in chain.readable.iter().chain(&chain.writable) {
                prop_assert!(memory.check_range(buffer.address, buffer.bytes as usize));
            }
        }
    }

    /// A slice of buffers is what the same slice of their bytes would be.
    #[test]
    fn slices_of_buffers_are_slices_of_bytes(
        lengths in proptest::collection::vec(0..9u32, 0..6),
        skip in 0..40u64,
        bytes in 0..40u64,
    ) {
        let mut at = 0;
        let mut buffers = Vec::new();
        let mut addresses = Vec::new();
        for length in &lengths {
            buffers.push(Buffer { address: GuestAddress(at), bytes: *length });
            addresses.extend(at..at + u64::from(*length));
            at += 100;
        }
        let wanted = addresses.get(skip as usize..(skip + bytes) as usize);
        let pieces = slice(&buffers, skip, bytes);
        prop_assert_eq!(pieces.is_some(), wanted.is_some());
        if let (Some(pieces), Some(wanted)) = (pieces, wanted) {
            let got: Vec<u64> = pieces.iter().flat_map(|p| p.address.0..p.address.0 + u64::from(p.bytes)).collect();
            prop_assert_eq!(got, wanted);
        }
    }

    #[test]
    fn a_slice_past_the_end_or_around_it_is_none(skip in any::<u64>(), bytes in any::<u64>()) {
        let buffers = [Buffer { address: GuestAddress(0), bytes: 8 }];
        let fits = skip.checked_add(bytes).is_some_and(|end| end <= 8);
        prop_assert_eq!(slice(&buffers, skip, bytes).is_some(), fits);
    }
}
