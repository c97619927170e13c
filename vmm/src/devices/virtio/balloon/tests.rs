//! Pages that go and come, right and wrong, over memory of several kinds.

use super::device::{Balloon, F_DEFLATE_ON_OOM, F_PAGE_POISON, F_REPORTING, F_STATS};
use super::events::RUNS_MAX;
use super::release::BLOCK_BYTES;
use crate::devices::virtio::command::{Command, Outcome};
use crate::devices::virtio::driver::{DATA, Driven};
use crate::devices::virtio::interrupt::CONFIG_CHANGE;
use crate::devices::virtio::mmio::NEEDS_RESET;
use crate::devices::virtio::{FEATURE_INDIRECT, FEATURE_VERSION_1, VirtioDevice};
use crate::memory::GuestMemory;
use crate::metrics::Metrics;
use crate::snapshot::released::Released;
use proptest::prelude::*;
use std::sync::Arc;
use virtio_bindings::virtio_mmio as register;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestRegionMmap};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const BYTES: u64 = 64 << 20;
const BASE: u64 = FEATURE_VERSION_1 | FEATURE_INDIRECT;
/// Pages that nothing else in these tests uses.
const PAGES: u64 = 32 << 20;

fn balloon(features: u64) -> Driven {
    let metrics = Arc::new(Metrics::default());
    let memory = crate::memory::allocate(BYTES).expect("memory");
    let device = Balloon::new(&memory, Arc::new(Released::new(&memory)), Arc::clone(&metrics));
    let driven = Driven::over_with(memory, Box::new(device), metrics, BASE | features);
    driven.transport.queue_event(INFLATE);
    driven
}

fn pages(driven: &mut Driven, queue: usize, numbers: &[u32]) {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    driven.write(DATA, &bytes);
    driven.rings[queue].send(&[(DATA, bytes.len() as u32, false)]);
    driven.transport.queue_event(queue);
}

fn number(address: u64) -> u32 {
    (address / 4096) as u32
}

#[test]
fn pages_in_the_balloon_are_given_back_and_come_again_when_they_are_used() {
    let mut driven = balloon(0);
    driven.write(PAGES, &[7; 4 * 4096]);
    // in any order and twice
    let first = number(PAGES);
    pages(&mut driven, INFLATE, &[first + 2, first, first + 1, first]);
    assert_eq!(driven.rings[INFLATE].take_used().len(), 1);
    assert_eq!(driven.read(PAGES, 3 * 4096), vec![0; 3 * 4096], "gone");
    assert_eq!(driven.read(PAGES + 3 * 4096, 4096), [7; 4096], "and no more than these");
    assert_eq!(driven.metrics.balloon.inflated_pages.get(), 3);
    pages(&mut driven, DEFLATE, &[first, first + 1]);
    driven.write(PAGES, &[9; 4096]);
    assert_eq!(driven.read(PAGES, 4096), [9; 4096]);
    assert_eq!(driven.metrics.balloon.deflated_pages.get(), 2);
    assert_eq!(driven.guest_errors(), 0);
}

/// Calls the device as long as it asks for it, as the event loop does; how many turns it took.
fn turns(driven: &Driven, queue: usize) -> usize {
    let mut turns = 1;
    while driven.transport.kicks()[queue].read().is_ok() {
        driven.transport.queue_event(queue);
        turns += 1;
        assert!(turns < 1000, "it asks for ever");
    }
    turns
}

#[test]
fn a_list_of_scattered_pages_takes_turns() {
    let mut driven = balloon(0);
    driven.write(PAGES, &vec![7; 16 << 20]);
    // every other page: no two go together; one is no memory
    let mut list: Vec<u32> = (0..2 * RUNS_MAX as u32 + 100).map(|index| number(PAGES) + 2 * index).collect();
    list.push(u32::MAX);
    pages(&mut driven, INFLATE, &list);
    assert_eq!(driven.metrics.balloon.inflated_pages.get(), RUNS_MAX as u64, "of one turn");
    assert_eq!(driven.rings[INFLATE].take_used(), [], "the guest must wait");
    assert_eq!(turns(&driven, INFLATE), 3);
    assert_eq!(driven.rings[INFLATE].take_used().len(), 1);
    assert_eq!(driven.metrics.balloon.inflated_pages.get(), list.len() as u64 - 1, "each once");
    assert_eq!(driven.guest_errors(), 1);
    let (even, odd) = (PAGES + 4096 * 4000, PAGES + 4096 * 3999);
    assert_eq!((driven.read(even, 1), driven.read(odd, 1)), (vec![0], vec![7]));
}

/// What a region of huge pages is for the device, of pages that every host has.
fn as_huge_pages() -> GuestMemory {
    let plain = crate::memory::allocate(BYTES).expect("memory");
    let region = plain.iter().next().expect("one region");
    // SAFETY: the mapping has this length and protection, and is never unmapped.
    let builder = unsafe { MmapRegionBuilder::new(region.size()).with_raw_mmap_pointer(region.as_ptr()) };
    let huge = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    let mapping = builder.with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE).with_mmap_flags(huge).build();
    let region = GuestRegionMmap::new(mapping.expect("a mapping"), GuestAddress(0)).expect("at the start");
    GuestMemory::from_regions(vec![region]).expect("memory")
}

#[test]
fn huge_pages_stay_and_no_reports_of_them_are_asked_for() {
    let memory = as_huge_pages();
    let metrics = Arc::new(Metrics::default());
    let device = Balloon::new(&memory, Arc::new(Released::new(&memory)), Arc::clone(&metrics));
    assert_eq!(device.features() & (F_REPORTING | F_PAGE_POISON), 0);
    let mut driven = Driven::over_with(memory, Box::new(device), metrics, BASE);
    driven.write(PAGES, &vec![7; BLOCK_BYTES as usize]);
    let all: Vec<u32> = (number(PAGES)..number(PAGES + BLOCK_BYTES)).collect();
    pages(&mut driven, INFLATE, &all);
    assert_eq!(driven.rings[INFLATE].take_used().len(), 1);
    assert_eq!(driven.read(PAGES, BLOCK_BYTES as usize), vec![7; BLOCK_BYTES as usize]);
    assert_eq!(driven.metrics.balloon.kept_bytes.get(), BLOCK_BYTES);
}

#[test]
fn pages_outside_of_memory_are_counted_and_left() {
    let mut driven = balloon(0);
    pages(&mut driven, INFLATE, &[number(BYTES), u32::MAX, number(0xfee0_0000)]);
    assert_eq!(driven.rings[INFLATE].take_used().len(), 1);
    assert_eq!((driven.guest_errors(), driven.metrics.balloon.inflated_pages.get()), (3, 0));
    assert_eq!(driven.status() & NEEDS_RESET, 0);
}

#[test]
fn lists_that_are_too_long_or_of_wrong_form_break_the_queue() {
    for (bytes, writable) in [(2, false), (70_000, false), (4, true)] {
        let mut driven = balloon(0);
        driven.rings[INFLATE].send(&[(DATA, bytes, writable)]);
        driven.transport.queue_event(INFLATE);
        assert_eq!(driven.status() & NEEDS_RESET, NEEDS_RESET, "{bytes} bytes");
    }
}

#[test]
fn the_host_asks_and_the_driver_says_how_far_it_came() {
    let driven = balloon(F_DEFLATE_ON_OOM);
    let before = driven.get(register::VIRTIO_MMIO_CONFIG_GENERATION);
    let set = |target_bytes| driven.transport.command(Command::SetBalloon { target_bytes });
    assert_eq!(set(16 << 20), Outcome::ConfigChanged);
    assert_eq!(driven.get(0x100), 4096, "pages");
    assert_eq!(driven.get(register::VIRTIO_MMIO_INTERRUPT_STATUS), CONFIG_CHANGE);
    assert_ne!(driven.get(register::VIRTIO_MMIO_CONFIG_GENERATION), before);
    driven.put(0x104, 1000);
    assert_eq!(driven.metrics.balloon.held_bytes.get(), 4_096_000);
    driven.put(0x104, u32::MAX);
    assert_eq!(driven.metrics.balloon.held_bytes.get(), BYTES, "no more than there is");
    assert!(matches!(set(BYTES + 4096), Outcome::Refused(_)));
    assert!(matches!(set(u64::MAX), Outcome::Refused(_)));
    // what is the host's is not the driver's to write
    let errors = driven.guest_errors();
    driven.put(0x100, 1);
    driven.transport.write(0x105, &[1, 2]);
    driven.transport.write(0x10e, &[1, 2, 3, 4]);
    assert_eq!(driven.guest_errors(), errors + 3);
    assert_eq!(driven.get(0x100), 4096);
}

#[test]
fn reported_pages_are_given_back_and_read_zero() {
    let mut driven = balloon(F_REPORTING);
    // without statistics the reporting queue is the third: drivers number without gaps
    driven.write(PAGES, &vec![7; 2 * BLOCK_BYTES as usize]);
    driven.rings[2].send(&[(PAGES, BLOCK_BYTES as u32, true)]);
    driven.transport.queue_event(2);
    assert_eq!(driven.rings[2].take_used().len(), 1);
    assert_eq!(driven.read(PAGES, BLOCK_BYTES as usize), vec![0; BLOCK_BYTES as usize]);
    assert_eq!(driven.read(PAGES + BLOCK_BYTES, 4096), [7; 4096]);
    assert_eq!(driven.metrics.snapshot().reported_bytes, BLOCK_BYTES);
}

#[test]
fn pages_that_the_guest_fills_with_something_stay_as_they_are() {
    let mut driven = balloon(F_REPORTING | F_PAGE_POISON);
    driven.put(0x10c, 0xaaaa_aaaa);
    driven.write(PAGES, &[0xaa; 4096]);
    let report = |driven: &mut Driven| {
        driven.rings[2].send(&[(PAGES, BLOCK_BYTES as u32, true)]);
        driven.transport.queue_event(2);
        driven.rings[2].take_used().len()
    };
    assert_eq!(report(&mut driven), 1);
    assert_eq!(driven.read(PAGES, 4096), [0xaa; 4096]);
    assert_eq!(driven.metrics.balloon.reported_bytes.get(), 0);
    driven.put(0x10c, 0);
    assert_eq!(report(&mut driven), 1);
    assert_eq!(driven.read(PAGES, 4096), [0; 4096], "cleared pages may come back clear");
}

fn statistics(driven: &mut Driven, all: &[(u16, u64)]) {
    let bytes: Vec<u8> =
        all.iter().flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()).collect();
    driven.write(DATA, &bytes);
    driven.rings[2].send(&[(DATA, bytes.len() as u32, false)]);
    driven.transport.queue_event(2);
}

#[test]
fn statistics_are_asked_for_when_the_host_wants_them_and_not_before() {
    let mut driven = balloon(F_STATS | F_REPORTING);
    // free memory, an unknown one, available memory
    statistics(&mut driven, &[(4, 1 << 20), (999, 1), (6, 5 << 20)]);
    assert_eq!(driven.metrics.balloon.available_bytes.get(), 5 << 20);
    assert_eq!(driven.rings[2].take_used(), [], "the device keeps the buffer");
    assert_eq!(driven.transport.command(Command::Refresh), Outcome::Done);
    driven.transport.queue_event(2);
    assert_eq!(driven.rings[2].take_used().len(), 1, "given back: tell again");
    statistics(&mut driven, &[(6, u64::MAX)]);
    assert_eq!(driven.metrics.balloon.available_bytes.get(), BYTES, "a lie is no more than there is");
    assert_eq!(driven.rings[2].take_used(), []);
}

#[test]
fn a_device_at_rest_takes_its_statistics_again_afterwards() {
    let mut driven = balloon(F_STATS);
    statistics(&mut driven, &[(6, 5 << 20)]);
    driven.transport.quiesce().expect("at rest");
    driven.transport.queue_event(2);
    assert_eq!(driven.transport.command(Command::Refresh), Outcome::Done);
    driven.transport.queue_event(2);
    assert_eq!(driven.rings[2].take_used().len(), 1, "each buffer is given back once");
}

#[test]
fn more_buffers_for_statistics_than_one_come_back() {
    let mut driven = balloon(F_STATS);
    for _ in 0..5 {
        statistics(&mut driven, &[(6, 1 << 20)]);
    }
    driven.transport.queue_event(2);
    assert_eq!(driven.rings[2].take_used().len(), 4);
    let long = [(6, 1); 65];
    statistics(&mut driven, &long);
    assert_eq!(driven.status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn a_reset_keeps_the_target_and_forgets_the_driver() {
    let mut driven = balloon(F_STATS);
    driven.transport.command(Command::SetBalloon { target_bytes: 8 << 20 });
    driven.put(0x104, 100);
    statistics(&mut driven, &[(6, 1 << 20)]);
    driven.put(register::VIRTIO_MMIO_STATUS, 0);
    driven.new_rings();
    driven.initialise(BASE);
    driven.transport.queue_event(INFLATE);
    assert_eq!((driven.get(0x100), driven.get(0x104)), (2048, 0));
    assert_eq!(driven.metrics.balloon.held_bytes.get(), 0);
}

#[test]
fn a_balloon_goes_on_where_it_was_saved() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), BYTES as usize)]).expect("memory");
    let new = || Balloon::new(&memory, Arc::new(Released::new(&memory)), Arc::default());
    let mut one = new();
    one.command(Command::SetBalloon { target_bytes: 8 << 20 });
    assert!(one.write_config(4, &77u32.to_le_bytes()));
    let mut other = new();
    other.restore(&one.save()).expect("the same kind");
    assert_eq!(other.config(), one.config());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is reported or inflated, memory outside of it keeps its contents.
    #[test]
    fn only_what_is_named_goes(
        ranges in proptest::collection::vec((0..BYTES * 2, 0..3 * BLOCK_BYTES as u32), 1..6),
        numbers in proptest::collection::vec(number(PAGES)..number(PAGES) + 64, 0..20),
    ) {
        let mut driven = balloon(F_REPORTING);
        driven.write(PAGES, &vec![7; 64 * 4096]);
        for (start, bytes) in &ranges {
            // whole reports stay clear of the rings and of what is looked at
            let start = PAGES + 64 * 4096 + start % (BYTES - PAGES);
            driven.rings[2].send(&[(start, *bytes, true)]);
            driven.transport.queue_event(2);
        }
        if driven.status() & NEEDS_RESET == 0 {
            pages(&mut driven, INFLATE, &numbers);
            for page in 0..64 {
                let expected = if numbers.contains(&(number(PAGES) + page)) { 0 } else { 7 };
                prop_assert_eq!(driven.read(PAGES + u64::from(page) * 4096, 1), [expected]);
            }
        }
    }
}
