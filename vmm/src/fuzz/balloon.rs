//! A balloon over memory of each kind that a guest may have, told arbitrary pages, reports and statistics.

use super::devices::memory_file;
use super::ops::{self, Op};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::device::{Balloon, F_PAGE_POISON, F_REPORTING, F_STATS};
use crate::devices::virtio::command::Command;
use crate::devices::virtio::driver::{DATA, Driven, memory_with_hole};
use crate::devices::virtio::{FEATURE_INDIRECT, FEATURE_VERSION_1};
use crate::memory::{GuestMemory, PAGE_BYTES};
use crate::metrics::Metrics;
use crate::snapshot::released::Released;
use arbitrary::{Arbitrary, Unstructured};
use std::sync::Arc;
use vm_memory::{FileOffset, GuestAddress};

const STEPS_MAX: usize = 64;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// A page that no step names: it holds what was written at the beginning.
const KEPT: u64 = 0x1008_0000;
const MARK: [u8; 8] = *b"kept as ";
/// Pages that steps name lie between the lists and the end of the middle piece of memory.
const FIRST_PAGE: u32 = 0x600;
const PAGES: u16 = 0x200;

#[derive(Debug, Arbitrary)]
enum Step {
    Op(Op),
    /// a list of pages, as a driver makes it
    Pages {
        deflate: bool,
        first: u16,
        step: u8,
        count: u16,
    },
    /// free pages
    Report {
        ranges: [(u16, u32); 3],
    },
    Statistics {
        tags: Vec<(u16, u64)>,
    },
    Target {
        bytes: u64,
    },
    Refresh,
    Rest,
    Begin {
        features: u8,
    },
}

/// The first byte chooses what the memory is made of: anonymous, a memfd, a file that is mapped privately.
pub fn balloon(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let steps = Vec::<Step>::arbitrary_take_rest(Unstructured::new(rest)).unwrap_or_default();
    let metrics = Arc::new(Metrics::default());
    let memory = memory(first % 3);
    let device = Box::new(Balloon::new(&memory, Arc::new(Released::new(&memory)), Arc::clone(&metrics)));
    let mut driven = Driven::over(memory, device, metrics);
    driven.write(KEPT, &MARK);
    let only_named = !steps.iter().any(|step| matches!(step, Step::Op(_)));
    for step in steps.iter().take(STEPS_MAX) {
        one(&mut driven, step);
    }
    if only_named {
        assert_eq!(driven.read(KEPT, MARK.len()), MARK, "a page went that nobody named");
    }
    let all = driven.metrics.balloon.held_bytes.get();
    assert!(all <= 9 << 20, "{all} bytes are in the balloon of a machine of 9 MiB");
}

pub(super) fn device(metrics: &Arc<Metrics>) -> (GuestMemory, Box<dyn VirtioDevice>) {
    let memory = memory_with_hole();
    let device = Box::new(Balloon::new(&memory, Arc::new(Released::new(&memory)), Arc::clone(metrics)));
    (memory, device)
}

fn memory(kind: u8) -> GuestMemory {
    let anonymous = memory_with_hole();
    if kind == 0 {
        return anonymous;
    }
    let mut ranges = Vec::new();
    for (start, bytes) in [(0, 0x10_0000), (0x10_0000, 0x70_0000), (0x1000_0000, 0x10_0000)] {
        let file = memory_file(&[]);
        file.set_len(bytes as u64).expect("memory");
        ranges.push((GuestAddress(start), bytes, file));
    }
    if kind == 1 {
        let shared = ranges.into_iter().map(|(at, bytes, file)| (at, bytes, Some(FileOffset::new(file, 0))));
        return GuestMemory::from_ranges_with_files(shared).expect("memory");
    }
    for (at, bytes, file) in ranges {
        crate::memory::map_over(&anonymous, at, bytes as u64, &file, 0).expect("mapped");
    }
    anonymous
}

fn one(driven: &mut Driven, step: &Step) {
    match step {
        Step::Op(op) => ops::play(driven, std::slice::from_ref(op)),
        Step::Pages { deflate, first, step, count } => {
            let queue = if *deflate { DEFLATE } else { INFLATE };
            let page =
                |index: u32| FIRST_PAGE + (u32::from(*first) + index * u32::from(*step)) % u32::from(PAGES);
            let list: Vec<u8> =
                (0..u32::from(count % 1024)).flat_map(|index| page(index).to_le_bytes()).collect();
            driven.write(DATA, &list);
            driven.rings[queue].send(&[(DATA, list.len() as u32, false)]);
            driven.transport.queue_event(queue);
        }
        Step::Report { ranges } => {
            let first = u64::from(FIRST_PAGE) * PAGE_BYTES;
            let room = u64::from(PAGES) * PAGE_BYTES;
            let buffer = |(page, bytes): &(u16, u32)| {
                let offset = u64::from(page % PAGES) * PAGE_BYTES;
                (first + offset, (u64::from(*bytes) % (room - offset) + 1) as u32, true)
            };
            let last = driven.rings.len() - 2;
            driven.rings[last].send(&ranges.each_ref().map(buffer));
            driven.transport.queue_event(last);
        }
        Step::Statistics { tags } => {
            let bytes: Vec<u8> = tags
                .iter()
                .take(128)
                .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
                .collect();
            driven.write(DATA, &bytes);
            driven.rings[2].send(&[(DATA, bytes.len() as u32, false)]);
            driven.transport.queue_event(2);
        }
        Step::Target { bytes } => {
            driven.transport.command(Command::SetBalloon { target_bytes: *bytes });
        }
        Step::Refresh => {
            driven.transport.command(Command::Refresh);
            driven.transport.queue_event(2);
        }
        Step::Rest => driven.transport.quiesce().expect("a balloon is never busy"),
        Step::Begin { features } => {
            driven.put(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
            driven.transport.host_event(0);
            driven.new_rings();
            let offered = F_STATS | F_REPORTING | F_PAGE_POISON | 1 << 2;
            driven.begin(FEATURE_VERSION_1 | FEATURE_INDIRECT | u64::from(*features) & offered);
        }
    }
}
