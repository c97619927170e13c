//! Discard and write-zeroes: what they free, what they zero, what they refuse (virtio 1.2, 5.2.6.2).

use super::*;
use crate::devices::virtio::block::request::{DISCARD_SECTORS_MAX, WRITE_ZEROES_SECTORS_MAX};
use std::os::unix::fs::MetadataExt;

const BYTES: u64 = 8 << 20;

/// A disk of eight MiB, all of it written.
fn full(engine: MakeEngine) -> Disk {
    let disk = Disk::with(false, BYTES, engine);
    disk.file.write_all_at(&vec![0xcc; BYTES as usize], 0).expect("written");
    disk.file.sync_all().expect("on the disk");
    disk
}

impl Disk {
    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut segment = [0; 16];
        segment[..8].copy_from_slice(&sector.to_le_bytes());
        segment[8..12].copy_from_slice(&sectors.to_le_bytes());
        segment[12..].copy_from_slice(&flags.to_le_bytes());
        self.driven.write(BODY, &segment);
        self.request(kind, 0, 16)
    }

    fn bytes(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.file.read_exact_at(&mut data, offset).expect("read");
        data
    }

    fn blocks(&self) -> u64 {
        self.file.metadata().expect("metadata").blocks()
    }
}

#[test]
fn a_discarded_range_is_free_and_reads_zero() {
    for (name, engine) in engines() {
        let mut disk = full(engine);
        let before = disk.blocks();
        assert_eq!(disk.range(VIRTIO_BLK_T_DISCARD, 2048, 8192, 0), 0, "{name}");
        assert_eq!(disk.bytes(1 << 20, 4 << 20), vec![0; 4 << 20]);
        assert_eq!(disk.bytes((1 << 20) - 512, 512), [0xcc; 512], "nothing before it");
        assert_eq!(disk.bytes(5 << 20, 512), [0xcc; 512], "nothing behind it");
        assert!(disk.blocks() + 8000 < before, "{name}: {} of {before} blocks left", disk.blocks());
        assert_eq!(disk.file.metadata().expect("metadata").len(), BYTES);
        assert_eq!(disk.driven.metrics.block.discards.get(), 1);
    }
}

#[test]
fn zeroed_ranges_read_zero_whether_they_are_freed_or_not() {
    for (name, engine) in engines() {
        for unmap in [0, 1] {
            let mut disk = full(engine);
            assert_eq!(disk.range(VIRTIO_BLK_T_WRITE_ZEROES, 3, 1001, unmap), 0, "{name}");
            assert_eq!(disk.bytes(3 * 512, 1001 * 512), vec![0; 1001 * 512]);
            assert_eq!(disk.bytes(2 * 512, 512), [0xcc; 512]);
            assert_eq!(disk.bytes(1004 * 512, 512), [0xcc; 512]);
        }
    }
}

/// A memfd knows holes but cannot zero a range: the zeroes are written.
#[test]
fn a_host_that_cannot_zero_a_range_writes_zeroes() {
    for (name, engine) in engines() {
        // SAFETY: the name is a literal that ends in NUL; the descriptor is new.
        let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: the descriptor is open and nobody else's.
        let file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        let bytes = u64::from(WRITE_ZEROES_SECTORS_MAX) * 512;
        file.write_all_at(&vec![0xcc; bytes as usize + 512], 0).expect("written");
        let metrics = Arc::new(Metrics::default());
        let twin = file.try_clone().expect("a second descriptor");
        let block = Block::with_engine(twin, "", false, Arc::clone(&metrics), engine).expect("a disk");
        let mut disk = Disk { driven: Driven::new(Box::new(block), metrics), file };
        assert_eq!(disk.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, WRITE_ZEROES_SECTORS_MAX, 0), 0, "{name}");
        assert_eq!(disk.bytes(0, bytes as usize), vec![0; bytes as usize], "{name}");
        assert_eq!(disk.bytes(bytes, 512), [0xcc; 512], "{name}");
    }
}

#[test]
fn ranges_past_the_end_too_long_or_of_wrong_form_are_refused_and_change_nothing() {
    let sectors = BYTES / 512;
    let mut disk = full(|file| Engine::new(file, true));
    let io_error = VIRTIO_BLK_S_IOERR as u8;
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        for (sector, count) in
            [(sectors, 1), (sectors - 1, 2), (u64::MAX, 1), (u64::MAX / 512, 8), (1 << 55, 8)]
        {
            assert_eq!(disk.range(kind, sector, count, 0), io_error, "{count} at {sector}");
        }
        assert_eq!(disk.range(kind, 0, u32::MAX, 0), io_error);
        // one segment, whole
        for bytes in [0, 8, 15, 17, 32] {
            assert_eq!(disk.request(kind, 0, bytes), io_error, "{bytes} bytes of segments");
        }
        assert_eq!(disk.range(kind, 0, 0, 0), 0, "nothing is no error");
    }
    assert_eq!(disk.range(VIRTIO_BLK_T_DISCARD, 0, DISCARD_SECTORS_MAX + 1, 0), io_error);
    let unsupported = VIRTIO_BLK_S_UNSUPP as u8;
    assert_eq!(disk.range(VIRTIO_BLK_T_DISCARD, 0, 8, 1), unsupported, "a discard has no unmap flag");
    assert_eq!(disk.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 2), unsupported);
    assert_eq!(disk.bytes(0, BYTES as usize), vec![0xcc; BYTES as usize]);
    assert_eq!(disk.driven.status() & NEEDS_RESET, 0);
}

#[test]
fn a_read_only_disk_offers_neither_and_refuses_both() {
    let mut disk = Disk::new(true);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(disk.range(kind, 0, 8, 0), VIRTIO_BLK_S_IOERR as u8);
    }
    assert_eq!(disk.on_disk(0), [1; 512]);
}

#[test]
fn the_configuration_space_names_the_limits() {
    let disk = Disk::new(false);
    let config = |offset: u64| {
        let mut bytes = [0; 4];
        disk.driven.transport.read(0x100 + offset, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    assert_eq!(u64::from(config(0)), SECTORS);
    assert_eq!(config(12), 254);
    assert_eq!((config(36), config(40), config(44)), (DISCARD_SECTORS_MAX, 1, 8));
    assert_eq!((config(48), config(52), config(56)), (WRITE_ZEROES_SECTORS_MAX, 1, 1));
}

#[test]
fn a_flush_after_no_write_asks_nothing_of_the_host() {
    let mut disk = Disk::new(false);
    for _ in 0..3 {
        assert_eq!(disk.request(VIRTIO_BLK_T_FLUSH, 0, 0), 0);
    }
    assert_eq!(disk.driven.metrics.block.flushes.get(), 3);
    assert_eq!(
        disk.driven.metrics.block.syncs.get(),
        1,
        "only the first: before it somebody may have written"
    );
    disk.driven.write(BODY, &[0xab; 512]);
    assert_eq!(disk.request(VIRTIO_BLK_T_OUT, 0, 512), 0);
    assert_eq!(disk.request(VIRTIO_BLK_T_FLUSH, 0, 0), 0);
    assert_eq!(disk.driven.metrics.block.syncs.get(), 2);
}
