//! Requests on the way: more than there are slots, offered twice, reset under, interrupts.

use super::*;
use crate::devices::virtio::block::engine::SLOTS;
use crate::devices::virtio::command::{Command, Direction, Outcome};
use crate::devices::virtio::mmio::DRIVER_OK;
use crate::devices::virtio::{FEATURE_EVENT_IDX, FEATURE_VERSION_1, VirtioDevice};
use pinfold_vmm_api::config::TokenBucket;
use std::os::fd::AsRawFd;
use virtio_bindings::virtio_mmio as register;

/// Waits until the device has something from the host, then lets it look.
fn wait_and_serve(disk: &Disk) {
    let source = disk.driven.transport.host_sources()[0];
    let mut poll = libc::pollfd { fd: source.fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, valid for writes.
    let ready = unsafe { libc::poll(&mut poll, 1, 10_000) };
    assert_eq!(ready, 1, "nothing ended within ten seconds");
    disk.driven.transport.host_event(0);
}

#[test]
fn more_requests_than_slots_are_all_served_once() {
    for (name, engine) in engines() {
        let mut disk = Disk::with(false, SECTORS * 512, engine);
        let count = 85u16;
        for index in 0..count {
            let header = HEADER + 16 * u64::from(index);
            let mut bytes = [0; 16];
            bytes[8] = (index % 60) as u8;
            disk.driven.write(header, &bytes);
            let body = BODY + 0x1000 * u64::from(index);
            disk.driven.rings[0].send(&[(header, 16, false), (body, 512, true), (body + 512, 1, true)]);
        }
        assert!(usize::from(count) > SLOTS);
        disk.driven.transport.queue_event(0);
        let mut used = disk.driven.rings[0].take_used();
        while used.len() < usize::from(count) {
            wait_and_serve(&disk);
            used.extend(disk.driven.rings[0].take_used());
        }
        let mut heads: Vec<u32> = used.iter().map(|(head, _)| *head).collect();
        heads.sort_unstable();
        heads.dedup();
        assert_eq!(heads.len(), usize::from(count), "{name}: each once");
        for index in 0..count {
            let body = disk.driven.read(BODY + 0x1000 * u64::from(index), 513);
            assert_eq!(body[..512], [(index % 60) as u8 + 1; 512], "{name}: request {index}");
            assert_eq!(body[512], 0);
        }
    }
}

#[test]
fn an_idle_disk_wakes_nobody() {
    for (name, engine) in engines() {
        let mut disk = Disk::with(false, SECTORS * 512, engine);
        assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, 512), 0);
        let source = disk.driven.transport.host_sources()[0];
        let mut poll = libc::pollfd { fd: source.fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, valid for writes.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, 0) }, 0, "{name}: the host's side is quiet");
        let kick = disk.driven.transport.kicks()[0].as_raw_fd();
        let mut poll = libc::pollfd { fd: kick, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, valid for writes.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, 0) }, 0, "{name}: it asks for no further turn");
    }
}

#[test]
fn a_flush_behind_one_that_is_on_the_way_is_a_flush_of_its_own() {
    for (name, engine) in engines() {
        let mut disk = Disk::with(false, SECTORS * 512, engine);
        disk.header(VIRTIO_BLK_T_FLUSH, 0);
        // both in one turn: the first may still fail when the second is looked at
        for _ in 0..2 {
            disk.driven.rings[0].send(&[(HEADER, 16, false), (STATUS, 1, true)]);
        }
        disk.driven.serve(0);
        assert_eq!(disk.driven.rings[0].take_used().len(), 2, "{name}");
        assert_eq!(disk.driven.metrics.block.syncs.get(), 2, "{name}");
        // and with nothing written since, there is nothing to do
        disk.driven.rings[0].send(&[(HEADER, 16, false), (STATUS, 1, true)]);
        disk.driven.serve(0);
        assert_eq!((disk.driven.rings[0].take_used().len(), disk.driven.metrics.block.syncs.get()), (1, 2));
    }
}

/// A disk whose file is a pipe to the engine: a read waits until somebody writes.
fn waiting_disk() -> (Disk, File) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let reader = File::from(std::os::fd::OwnedFd::from(reader));
    let disk = Disk::with(false, SECTORS * 512, |_| {
        let twin = reader.try_clone()?;
        Uring::new(&twin).map(|uring| Engine::Uring(Box::new(uring)))
    });
    (disk, File::from(std::os::fd::OwnedFd::from(writer)))
}

fn has_uring() -> bool {
    engines().len() == 2
}

#[test]
fn a_reset_waits_for_what_is_on_the_way() {
    if !has_uring() {
        return;
    }
    let (mut disk, writer) = waiting_disk();
    disk.header(VIRTIO_BLK_T_IN, 0);
    disk.driven.rings[0].send(&[(HEADER, 16, false), (BODY, 512, true), (STATUS, 1, true)]);
    disk.driven.transport.queue_event(0);
    assert_eq!(disk.driven.rings[0].take_used(), [], "it waits for the host");
    let transport = &disk.driven.transport;
    std::thread::scope(|scope| {
        // a vCPU that resets the device
        let vcpu = scope.spawn(|| {
            disk.driven.put(register::VIRTIO_MMIO_STATUS, 0);
            (disk.driven.status(), disk.driven.read(BODY, 512))
        });
        while transport.kicks()[0].read().is_err() {
            std::thread::yield_now();
        }
        transport.queue_event(0);
        assert_ne!(disk.driven.status(), 0, "the host may still write to guest memory");
        std::io::Write::write_all(&mut &writer, &[0x5a; 512]).expect("written");
        wait_and_serve(&disk);
        let (status, body) = vcpu.join().expect("no panic");
        assert_eq!(status, 0);
        assert_eq!(body, [0x5a; 512], "what was on the way had ended before status was 0");
    });
    assert_eq!(disk.driven.rings[0].take_used(), [], "a driver that is gone gets nothing back");
}

#[test]
fn a_driver_that_resets_and_comes_back_finds_a_working_disk() {
    for (name, engine) in engines() {
        let mut disk = Disk::with(false, SECTORS * 512, engine);
        for round in 0..3 {
            disk.header(VIRTIO_BLK_T_IN, 1);
            disk.driven.rings[0].send(&[(HEADER, 16, false), (BODY, 512, true), (STATUS, 1, true)]);
            disk.driven.transport.queue_event(0);
            std::thread::scope(|scope| {
                let vcpu = scope.spawn(|| disk.driven.put(register::VIRTIO_MMIO_STATUS, 0));
                while !vcpu.is_finished() {
                    disk.driven.transport.host_event(0);
                    std::thread::yield_now();
                }
            });
            assert_eq!(disk.driven.status(), 0, "{name}, round {round}");
            disk.driven.new_rings();
            disk.driven.initialise(FEATURE_VERSION_1);
            assert_eq!(disk.request(VIRTIO_BLK_T_IN, 2, 512), 0);
            assert_eq!(disk.driven.read(BODY, 512), [3; 512]);
        }
    }
}

#[test]
fn a_queue_that_breaks_behind_a_good_request_can_be_reset() {
    for (name, engine) in engines() {
        let mut disk = Disk::with(false, SECTORS * 512, engine);
        disk.header(VIRTIO_BLK_T_IN, 1);
        // begun in one turn with a request that breaks the queue
        disk.driven.rings[0].send(&[(HEADER, 16, false), (BODY, 512, true), (STATUS, 1, true)]);
        disk.driven.rings[0].send(&[(HEADER, 1, false)]);
        disk.driven.transport.queue_event(0);
        assert_eq!(disk.driven.status() & NEEDS_RESET, NEEDS_RESET, "{name}");
        std::thread::scope(|scope| {
            let vcpu = scope.spawn(|| disk.driven.put(register::VIRTIO_MMIO_STATUS, 0));
            wait_and_serve(&disk);
            while !vcpu.is_finished() {
                disk.driven.transport.queue_event(0);
                std::thread::yield_now();
            }
        });
        assert_eq!(disk.driven.status(), 0, "{name}: the reset waits for a request that never began");
        disk.driven.new_rings();
        disk.driven.initialise(FEATURE_VERSION_1);
        assert_eq!(disk.request(VIRTIO_BLK_T_IN, 2, 512), 0, "{name}");
    }
}

#[test]
fn a_chain_that_is_offered_while_it_is_on_the_way_breaks_the_queue() {
    if !has_uring() {
        return;
    }
    let (mut disk, writer) = waiting_disk();
    disk.header(VIRTIO_BLK_T_IN, 0);
    let head = disk.driven.rings[0].send(&[(HEADER, 16, false), (BODY, 512, true), (STATUS, 1, true)]);
    disk.driven.transport.queue_event(0);
    disk.driven.rings[0].publish(head);
    disk.driven.transport.queue_event(0);
    assert_eq!(disk.driven.status() & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(disk.driven.status() & DRIVER_OK, DRIVER_OK);
    std::io::Write::write_all(&mut &writer, &[0x5a; 512]).expect("written");
    wait_and_serve(&disk);
    assert_eq!(disk.driven.rings[0].take_used(), [], "a broken queue is left alone");
}

#[test]
fn a_batch_is_one_interrupt_and_with_an_event_index_none_before_it_is_due() {
    for (name, engine) in engines() {
        let disk = Disk::with(false, SECTORS * 512, engine);
        let Disk { driven, file } = disk;
        drop(driven);
        let metrics = Arc::new(Metrics::default());
        let block = Block::with_engine(file, "", false, Arc::clone(&metrics), engine).expect("a disk");
        let features = FEATURE_VERSION_1 | FEATURE_EVENT_IDX;
        let mut driven = Driven::with_features(Box::new(block), metrics, features);
        driven.write(HEADER, &[0; 16]);
        driven.rings[0].set_used_event(7);
        for _ in 0..7 {
            driven.rings[0].send(&[(HEADER, 16, false), (BODY, 512, true), (STATUS, 1, true)]);
        }
        driven.serve(0);
        assert_eq!(driven.rings[0].take_used().len(), 7);
        assert_eq!(driven.get(register::VIRTIO_MMIO_INTERRUPT_STATUS), 0, "{name}: seven are no eight");
        driven.rings[0].send(&[(HEADER, 16, false), (BODY, 512, true), (STATUS, 1, true)]);
        driven.serve(0);
        assert_eq!(driven.get(register::VIRTIO_MMIO_INTERRUPT_STATUS), 1, "{name}");
        assert_eq!(driven.rings[0].avail_event(), 8, "{name}: the next request is to be kicked");
        let line = driven.transport.interrupt().line();
        assert_eq!(line.read().expect("raised"), 1, "{name}: once");
    }
}

#[test]
fn a_limited_disk_serves_its_burst_then_waits_for_the_timer_or_a_new_limit() {
    let mut disk = Disk::new(false);
    let operations = Some(TokenBucket { per_second: 20, burst: 3, first_burst: 0 });
    let limit = RateLimit { bytes: None, operations };
    let set = |disk: &Disk, limit| {
        let command = Command::SetRate { direction: Direction::Transmit, limit };
        disk.driven.transport.command(command)
    };
    assert_eq!(set(&disk, limit), Outcome::Done);
    disk.header(VIRTIO_BLK_T_IN, 0);
    for _ in 0..10 {
        disk.driven.rings[0].send(&[(HEADER, 16, false), (BODY, 512, true), (STATUS, 1, true)]);
    }
    disk.driven.serve(0);
    assert_eq!(disk.driven.rings[0].take_used().len(), 3);
    let timer = disk.driven.transport.host_sources()[1];
    let mut poll = libc::pollfd { fd: timer.fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, valid for writes.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 10_000) }, 1, "the timer fires");
    disk.driven.transport.host_event(1);
    disk.driven.transport.quiesce().expect("at rest");
    let served = disk.driven.rings[0].take_used().len();
    assert!((1..7).contains(&served), "{served} after a twentieth of a second");
    assert_eq!(set(&disk, RateLimit::default()), Outcome::Done);
    disk.driven.serve(0);
    assert_eq!(disk.driven.rings[0].take_used().len(), 7 - served, "the rest at once");
    assert!(disk.driven.metrics.block.throttled.get() > 0);
}

#[test]
fn a_saved_disk_goes_on_with_one_of_the_same_size_only() {
    let metrics = Arc::new(Metrics::default());
    let new = |sectors: u64, read_only| {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(sectors * 512).expect("length");
        Block::new(file, "", read_only, RateLimit::default(), true, Arc::clone(&metrics)).expect("a disk")
    };
    let state = new(8, false).save();
    assert!(new(8, false).restore(&state).is_ok());
    assert!(new(16, false).restore(&state).is_err());
    assert!(new(8, true).restore(&state).is_err());
}

/// The ring's descriptor is one of something else for a while, so that nobody can wait for the ring.
#[test]
fn a_disk_whose_requests_cannot_be_waited_for_is_not_at_rest_and_goes_on() {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let reader = File::from(std::os::fd::OwnedFd::from(reader));
    let Ok(uring) = Uring::new(&reader) else {
        println!("skipped: this kernel gives no io_uring");
        return;
    };
    // a pipe keeps a read waiting as long as it is empty
    let mut disk = Disk::with(false, SECTORS * 512, |_| Ok(Engine::Uring(Box::new(uring))));
    disk.header(VIRTIO_BLK_T_IN, 0);
    disk.driven.rings[0].send(&[(HEADER, 16, false), (BODY, 512, true), (STATUS, 1, true)]);
    disk.driven.transport.queue_event(0);
    let ring = disk.driven.transport.host_sources()[0].fd;
    let other = File::open("/dev/null").expect("a file");
    // SAFETY: duplicates of open descriptors; that of the ring is put back below.
    let kept = unsafe { libc::fcntl(ring, libc::F_DUPFD_CLOEXEC, 0) };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), ring) }, ring);
    let refused = disk.driven.transport.quiesce();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::dup2(kept, ring) }, ring);
    // SAFETY: the duplicate is nobody else's.
    unsafe { libc::close(kept) };
    let message = refused.expect_err("a request is on the way").to_string();
    assert!(message.contains("device of type 2"), "{message}");
    std::io::Write::write_all(&mut writer, &[5; 512]).expect("written");
    disk.driven.transport.quiesce().expect("at rest now");
    assert_eq!(disk.driven.rings[0].take_used().len(), 1, "it is answered");
    assert_eq!(disk.driven.read(BODY, 512), [5; 512]);
}
