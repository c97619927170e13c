//! Requests of a driver, right and wrong, against a file.

mod asynchronous;
mod ranges;

use super::device::{Block, BlockError};
use super::engine::Engine;
use super::engine::uring::Uring;
use super::engine::worker::Worker;
use crate::devices::virtio::driver::{DATA, Driven, NEXT, WRITE};
use crate::devices::virtio::mmio::NEEDS_RESET;
use crate::metrics::Metrics;
use crate::seccomp;
use pinfold_vmm_api::RateLimit;
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use virtio_bindings::virtio_blk::*;

const SECTORS: u64 = 64;
const HEADER: u64 = DATA;
const BODY: u64 = DATA + 0x1000;
const STATUS: u64 = DATA + 0x20_0000;
const UNTOUCHED: u8 = 0xee;

struct Disk {
    driven: Driven,
    file: File,
}

type MakeEngine = fn(&File) -> std::io::Result<Engine>;

/// Each engine that this host has: io_uring is not everywhere.
fn engines() -> Vec<(&'static str, MakeEngine)> {
    let worker: MakeEngine =
        |file| Worker::new(file, seccomp::worker(true).expect("compiles")).map(Engine::Worker);
    let uring: MakeEngine = |file| Uring::new(file).map(|uring| Engine::Uring(Box::new(uring)));
    match Uring::new(&tempfile::tempfile().expect("a temporary file")) {
        Ok(_) => vec![("worker", worker), ("io_uring", uring)],
        Err(error) => {
            println!("io_uring is left out: {error}");
            vec![("worker", worker)]
        }
    }
}

impl Disk {
    fn new(read_only: bool) -> Self {
        Self::of(read_only, SECTORS * 512)
    }

    fn of(read_only: bool, bytes: u64) -> Self {
        Self::with(read_only, bytes, |file| Engine::new(file, true))
    }

    /// Sparse behind the first sectors.
    fn with(read_only: bool, bytes: u64, engine: impl FnOnce(&File) -> std::io::Result<Engine>) -> Self {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(bytes).expect("length");
        for sector in 0..SECTORS {
            file.write_all_at(&[sector as u8 + 1; 512], sector * 512).expect("written");
        }
        let metrics = Arc::new(Metrics::default());
        let twin = file.try_clone().expect("a second descriptor");
        let block = Block::with_engine(twin, "serial-0123", read_only, Arc::clone(&metrics), engine);
        let block = block.expect("a disk");
        Self { driven: Driven::new(Box::new(block), metrics), file }
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.driven.write(HEADER, &header);
        self.driven.write(STATUS, &[UNTOUCHED]);
    }

    /// One request with `bytes` of data; the status byte.
    fn request(&mut self, kind: u32, sector: u64, bytes: u32) -> u8 {
        self.header(kind, sector);
        let to_guest = matches!(kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID);
        let mut chain = vec![(HEADER, 16, false)];
        if bytes > 0 {
            chain.push((BODY, bytes, to_guest));
        }
        chain.push((STATUS, 1, true));
        self.driven.rings[0].send(&chain);
        self.driven.serve(0);
        assert_eq!(self.driven.rings[0].take_used().len(), 1);
        self.driven.read(STATUS, 1)[0]
    }

    fn on_disk(&self, sector: u64) -> Vec<u8> {
        let mut data = vec![0; 512];
        self.file.read_exact_at(&mut data, sector * 512).expect("read");
        data
    }
}

#[test]
fn reads_and_writes_whole_sectors() {
    for (name, engine) in engines() {
        println!("{name}");
        reads_and_writes(Disk::with(false, SECTORS * 512, engine));
    }
}

fn reads_and_writes(mut disk: Disk) {
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 3, 1024), 0);
    assert_eq!(disk.driven.read(BODY, 1024), [[4; 512], [5; 512]].concat());
    disk.driven.write(BODY, &[0xab; 512]);
    assert_eq!(disk.request(VIRTIO_BLK_T_OUT, SECTORS - 1, 512), 0);
    assert_eq!(disk.on_disk(SECTORS - 1), [0xab; 512]);
    assert_eq!(disk.request(VIRTIO_BLK_T_FLUSH, 0, 0), 0);
    let counters = disk.driven.metrics.snapshot();
    assert_eq!(
        (counters.block_read_bytes, counters.block_write_bytes, counters.guest_errors),
        (1024, 512, 0)
    );
}

#[test]
fn a_request_in_many_pieces_is_one_request() {
    let mut disk = Disk::new(false);
    disk.header(VIRTIO_BLK_T_IN, 0);
    // header in two pieces, data in a hundred odd ones, the last of which holds the status too
    let mut chain = vec![(HEADER, 7, false), (HEADER + 7, 9, false)];
    let mut at = 0;
    for piece in 0..100u64 {
        let bytes = 40 + (piece % 3) as u32;
        chain.push((BODY + at, bytes, true));
        at += u64::from(bytes);
    }
    let rest = (at + 1).next_multiple_of(512) + 1 - at;
    chain.push((BODY + at, rest as u32, true));
    disk.driven.rings[0].send(&chain);
    disk.driven.serve(0);
    assert_eq!(disk.driven.rings[0].take_used().len(), 1);
    let total = (at + rest - 1) as usize;
    let expected: Vec<u8> = (0..total).map(|byte| (byte / 512) as u8 + 1).collect();
    assert_eq!(disk.driven.read(BODY, total), expected);
    assert_eq!(disk.driven.read(BODY + total as u64, 1), [0], "the status follows the data");
}

#[test]
fn transfers_past_the_end_are_refused_and_move_nothing() {
    let mut disk = Disk::new(false);
    let cases = [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (u64::MAX / 512 + 1, 512),
        (1 << 55, 512),
        (0, SECTORS as u32 * 512 + 512),
    ];
    for (sector, bytes) in cases {
        disk.driven.write(BODY, &[UNTOUCHED; 16]);
        assert_eq!(disk.request(VIRTIO_BLK_T_IN, sector, bytes), 1, "read at {sector}");
        assert_eq!(disk.driven.read(BODY, 16), [UNTOUCHED; 16]);
        assert_eq!(disk.request(VIRTIO_BLK_T_OUT, sector, bytes), 1, "write at {sector}");
    }
    assert_eq!(disk.file.metadata().expect("metadata").len(), SECTORS * 512, "the file did not grow");
    assert_eq!(disk.driven.guest_errors(), 2 * cases.len() as u64);
    assert_eq!(disk.driven.status() & NEEDS_RESET, 0, "the queue itself is fine");
}

#[test]
fn a_transfer_of_any_length_cannot_keep_the_thread() {
    let mut disk = Disk::of(false, 1 << 30);
    for (pieces, expected) in [(32, VIRTIO_BLK_S_OK), (33, VIRTIO_BLK_S_IOERR)] {
        disk.header(VIRTIO_BLK_T_IN, 0);
        // the same memory again and again
        let mut chain = vec![(HEADER, 16, false)];
        chain.extend((0..pieces).map(|_| (BODY, 1 << 20, true)));
        chain.push((STATUS, 1, true));
        disk.driven.rings[0].send(&chain);
        disk.driven.serve(0);
        assert_eq!(disk.driven.rings[0].take_used().len(), 1);
        assert_eq!(u32::from(disk.driven.read(STATUS, 1)[0]), expected, "{pieces} MiB");
    }
}

#[test]
fn after_some_megabytes_other_devices_have_their_turn() {
    let mut disk = Disk::of(false, 1 << 30);
    disk.header(VIRTIO_BLK_T_IN, 0);
    for _ in 0..8 {
        disk.driven.rings[0].send(&[(HEADER, 16, false), (BODY, 1 << 20, true), (STATUS, 1, true)]);
    }
    disk.driven.serve(0);
    assert_eq!(disk.driven.rings[0].take_used().len(), 4);
    // it has asked to come back, and then does the rest
    disk.driven.serve(0);
    assert_eq!(disk.driven.rings[0].take_used().len(), 4);
}

#[test]
fn parts_of_sectors_are_refused() {
    let mut disk = Disk::new(false);
    for bytes in [1, 511, 513] {
        assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, bytes), 1);
        assert_eq!(disk.request(VIRTIO_BLK_T_OUT, 0, bytes), 1);
    }
    assert_eq!(disk.on_disk(0), [1; 512]);
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let mut disk = Disk::new(true);
    disk.driven.write(BODY, &[0xab; 512]);
    assert_eq!(disk.request(VIRTIO_BLK_T_OUT, 0, 512), 1);
    assert_eq!(disk.on_disk(0), [1; 512]);
    assert_eq!(disk.request(VIRTIO_BLK_T_FLUSH, 0, 0), 0);
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, 512), 0);
    assert_eq!(disk.driven.guest_errors(), 1);
}

#[test]
fn the_id_fits_or_is_cut() {
    let mut disk = Disk::new(true);
    assert_eq!(disk.request(VIRTIO_BLK_T_GET_ID, 0, 20), 0);
    assert_eq!(&disk.driven.read(BODY, 20)[..12], b"serial-0123\0");
    disk.driven.write(BODY, &[UNTOUCHED; 40]);
    assert_eq!(disk.request(VIRTIO_BLK_T_GET_ID, 0, 40), 0);
    assert_eq!(disk.driven.read(BODY + 20, 20), [UNTOUCHED; 20], "nothing past the id");
    assert_eq!(disk.request(VIRTIO_BLK_T_GET_ID, 0, 6), 0);
    assert_eq!(&disk.driven.read(BODY, 6), b"serial");
    assert_eq!(disk.request(VIRTIO_BLK_T_GET_ID, 0, 0), 0);
}

#[test]
fn unknown_requests_say_so() {
    let mut disk = Disk::new(false);
    for kind in [2, 3, 5, 12, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(disk.request(kind, 0, 512), 2, "type {kind}");
    }
    assert_eq!(disk.on_disk(0), [1; 512]);
}

#[test]
fn a_disk_that_shrank_gives_an_error_not_old_memory() {
    let mut disk = Disk::new(false);
    disk.file.set_len(512).expect("shortened");
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, 512), 0);
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 1, 512), 1);
    assert_eq!(disk.driven.metrics.block.host_errors.get(), 1);
}

#[test]
fn requests_without_header_or_status_break_the_queue() {
    type Chain = &'static [(u64, u32, bool)];
    let chains: [Chain; 5] = [
        &[(HEADER, 15, false), (STATUS, 1, true)],
        &[(STATUS, 1, true)],
        &[(HEADER, 16, false)],
        &[(HEADER, 16, false), (STATUS, 0, true)],
        &[(HEADER, 0, false)],
    ];
    for chain in chains {
        let mut disk = Disk::new(false);
        disk.header(VIRTIO_BLK_T_OUT, 0);
        disk.driven.rings[0].send(chain);
        disk.driven.serve(0);
        assert_eq!(disk.driven.status() & NEEDS_RESET, NEEDS_RESET, "{chain:?}");
    }
}

#[test]
fn writable_data_for_a_write_is_no_data() {
    let mut disk = Disk::new(false);
    disk.header(VIRTIO_BLK_T_OUT, 0);
    disk.driven.rings[0].send(&[(HEADER, 16, false), (BODY, 512, true), (STATUS, 1, true)]);
    disk.driven.serve(0);
    assert_eq!(disk.on_disk(0), [1; 512]);
}

#[test]
fn disks_that_cannot_be_used_are_refused() {
    let metrics = Arc::<Metrics>::default;
    let open = |file: File, read_only| {
        Block::new(file, "", read_only, RateLimit::default(), true, metrics()).map(|_| ())
    };
    let empty = tempfile::tempfile().expect("a temporary file");
    assert!(matches!(open(empty, false), Err(BlockError::Size { bytes: 0 })));
    let odd = tempfile::tempfile().expect("a temporary file");
    odd.set_len(513).expect("length");
    assert!(matches!(open(odd, false), Err(BlockError::Size { bytes: 513 })));
    assert!(matches!(open(File::open("/").expect("the root"), true), Err(BlockError::Kind)));
    assert!(matches!(open(File::open("/dev/null").expect("null"), true), Err(BlockError::Kind)));
    let path = tempfile::NamedTempFile::new().expect("a temporary file");
    path.as_file().set_len(512).expect("length");
    let read_only = || File::open(path.path()).expect("opens");
    assert!(matches!(open(read_only(), false), Err(BlockError::NotWritable)));
    assert!(open(read_only(), true).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Requests of any form neither panic nor change more than the sectors that a valid write names.
    #[test]
    fn any_request_is_survived_and_a_read_only_disk_never_changes(
        kind in prop_oneof![0..15u32, any::<u32>()],
        sector in prop_oneof![0..80u64, any::<u64>()],
        pieces in proptest::collection::vec((0..0x8000u64, 0..2000u32, any::<bool>()), 0..8),
    ) {
        let mut disk = Disk::new(true);
        disk.header(kind, sector);
        let ring = &mut disk.driven.rings[0];
        ring.write(0, HEADER, 16, NEXT, 1);
        for (index, (offset, bytes, writable)) in pieces.iter().enumerate() {
            let flags = NEXT | if *writable { WRITE } else { 0 };
            ring.write(index as u16 + 1, BODY + offset, *bytes, flags, index as u16 + 2);
        }
        ring.write(pieces.len() as u16 + 1, STATUS, 1, WRITE, 0);
        ring.publish(0);
        disk.driven.serve(0);
        for sector in 0..SECTORS {
            prop_assert_eq!(disk.on_disk(sector), vec![sector as u8 + 1; 512]);
        }
    }
}
