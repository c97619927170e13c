//! Both sides in one process, each on a thread of its own. They need `/dev/userfaultfd`, which is root's.

use super::descriptor::Userfault;
use super::server::{AROUND_BYTES, Ahead, ServeError, Served, serve};
use super::source::{PageSource, attach};
use crate::devices::virtio::balloon::release::Releaser;
use crate::ending::Ending;
use crate::layout;
use crate::memory::{GuestMemory, PAGE_BYTES};
use crate::seccomp;
use crate::snapshot::released::Released;
use crate::snapshot::{pages, working_set};
use pinfold_vmm_api::control::ExitReason;
use pinfold_vmm_api::page_fault::{Layout, Region, VERSION};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const MIB: u64 = 1 << 20;

fn device() -> Option<File> {
    let device = File::open("/dev/userfaultfd");
    if let Err(error) = &device {
        println!("SKIPPED: /dev/userfaultfd cannot be opened: {error}");
    }
    device.ok()
}

/// A memory file with something at its beginning, past the hole of the guest's address space if it is as large, and at its
/// end.
fn memory_file(bytes: u64) -> File {
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(bytes).expect("a sparse file");
    file.write_all_at(b"first", 0).expect("written");
    file.write_all_at(&[7; 3 * PAGE_BYTES as usize], 5 * MIB).expect("written");
    file.write_all_at(b"last!", bytes - 5).expect("written");
    file
}

/// A machine's memory, and the handler that serves it.
fn served(bytes: u64, ahead: Ahead, device: &File) -> (GuestMemory, PageSource, JoinHandle<Served>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let file = memory_file(bytes);
    let handler = std::thread::spawn(move || serve(theirs, &file, &ahead).expect("served"));
    let (memory, source) = attach("test", bytes, ours, device).expect("attached");
    (memory, source, handler)
}

fn text(memory: &GuestMemory, at: u64) -> [u8; 5] {
    memory.read_obj(GuestAddress(at)).expect("in memory")
}

fn resident(memory: &GuestMemory) -> u64 {
    let pagemap = File::open("/proc/self/pagemap").expect("procfs");
    let of = |region: &vm_memory::GuestRegionMmap<()>| {
        let runs = pages::mapped(&pagemap, region.as_ptr() as u64, region.len()).expect("read");
        runs.iter().map(|run| run.end - run.start).sum::<u64>()
    };
    memory.iter().map(of).sum()
}

#[test]
fn memory_comes_page_by_page_as_it_is_touched() {
    let Some(device) = device() else { return };
    let bytes = 4 << 30;
    let (memory, source, handler) = served(bytes, Ahead::default(), &device);
    assert_eq!(resident(&memory), 0);
    assert_eq!(&text(&memory, 0), b"first");
    assert_eq!(resident(&memory), AROUND_BYTES);
    assert_eq!(&text(&memory, layout::HOLE_END + MIB * 1024 - 5), b"last!");
    assert_eq!(text(&memory, 5 * MIB + PAGE_BYTES), [7; 5]);
    assert_eq!(text(&memory, 40 * MIB), [0; 5], "a hole of the file");
    memory.write_obj(9u8, GuestAddress(5 * MIB)).expect("in memory");
    assert_eq!(text(&memory, 5 * MIB), [9, 7, 7, 7, 7]);
    assert_eq!(resident(&memory), 4 * AROUND_BYTES);
    drop(source);
    let served = handler.join().expect("no panic");
    assert_eq!(served, Served { faults: 4, ahead_bytes: 0, complete: false });
}

#[test]
fn a_working_set_is_in_place_before_it_is_asked_for() {
    let Some(device) = device() else { return };
    let first = crate::memory::map_private(96 * MIB, &memory_file(96 * MIB)).expect("mapped");
    first.write_obj(1u8, GuestAddress(5 * MIB)).expect("in memory");
    let (file, pagemap) =
        (tempfile::tempfile().expect("a file"), File::open("/proc/self/pagemap").expect("procfs"));
    let bytes = working_set::write(&first, Some(&pagemap), &file).expect("written");
    let (memory, source, handler) =
        served(96 * MIB, Ahead { working_set: Some(rewound(file)), fill: false }, &device);
    let until = Instant::now() + Duration::from_secs(10);
    while resident(&memory) < bytes && Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!(text(&memory, 5 * MIB), [7; 5], "from the file, not from the other machine");
    drop(source);
    let served = handler.join().expect("no panic");
    assert_eq!((served.faults, served.ahead_bytes), (0, bytes));
}

fn rewound(mut file: File) -> File {
    use std::io::Seek;
    file.rewind().expect("seek");
    file
}

/// What the guest gave back stays zero: the handler, which has the old contents, is not asked.
#[test]
fn memory_that_was_released_is_the_handlers_no_more() {
    let Some(device) = device() else { return };
    let (memory, source, handler) = served(96 * MIB, Ahead::default(), &device);
    assert_eq!(text(&memory, 5 * MIB), [7; 5]);
    let released = Releaser::new(&memory, Arc::new(Released::new(&memory))).release(
        GuestAddress(4 * MIB),
        2 * MIB,
        true,
    );
    assert_eq!(released, 2 * MIB);
    assert_eq!(text(&memory, 5 * MIB), [0; 5]);
    assert_eq!(text(&memory, 5 * MIB + PAGE_BYTES), [0; 5]);
    drop(source);
    assert_eq!(handler.join().expect("no panic").faults, 1);
}

/// Once all is in place the machine needs nobody, and the watching thread ends under its filter.
#[test]
fn a_machine_that_has_all_of_its_memory_goes_on_alone() {
    let Some(device) = device() else { return };
    let (memory, source, handler) = served(96 * MIB, Ahead { working_set: None, fill: true }, &device);
    let (ending, exit) =
        (Arc::new(Ending::new().expect("an eventfd")), tempfile::tempfile().expect("a file"));
    let binding = seccomp::pages(true).expect("compiles");
    let thread = source.watch(binding, Arc::clone(&ending), exit).expect("watched");
    let served = handler.join().expect("no panic");
    thread.join().expect("it ends, and its filter allows that");
    assert!(served.complete && served.ahead_bytes >= 5 * PAGE_BYTES, "{served:?}");
    assert_eq!((&text(&memory, 0), text(&memory, 5 * MIB)), (b"first", [7; 5]));
    // nobody is there to ask: the kernel knows by now that it is zero
    assert_eq!(text(&memory, 40 * MIB), [0; 5]);
    assert_eq!(ending.stated(), None);
}

/// The kernel takes no range that ends in another mapping: such a one goes page by page, or its first part would stay missing
/// and be zero once the handler is gone.
#[test]
fn pages_before_and_after_the_end_of_a_mapping_come_too() {
    let Some(device) = device() else { return };
    let memory = crate::memory::allocate(96 * MIB).expect("memory");
    let userfault = Userfault::new(&device).expect("a userfaultfd");
    let start = memory.iter().next().expect("one region").as_ptr() as u64;
    userfault.register(start, 96 * MIB).expect("registered");
    // another mapping of the handler's begins at 4 MiB, and one that is not its any more at 8 MiB
    let upper = (start + 4 * MIB) as *mut libc::c_void;
    // SAFETY: guest memory of this test; the advice says what is in a core dump.
    assert_eq!(unsafe { libc::madvise(upper, 2 * MIB as usize, libc::MADV_DODUMP) }, 0);
    assert_eq!(
        Releaser::new(&memory, Arc::new(Released::new(&memory))).release(
            GuestAddress(8 * MIB),
            2 * MIB,
            true
        ),
        2 * MIB
    );
    let zeroes = [0; 4 * PAGE_BYTES as usize];
    for (end, after) in [(4 * MIB, 7), (8 * MIB, 0)] {
        let at = end - 2 * PAGE_BYTES;
        assert!(userfault.fill(start + at, &[7; 4 * PAGE_BYTES as usize]).expect("put in place"));
        assert!(userfault.fill(start + at + 2 * MIB, &zeroes).expect("put in place"));
        // nobody would serve a page that is missing still
        let there =
            pages::mapped(&File::open("/proc/self/pagemap").expect("procfs"), start + at, 2 * PAGE_BYTES);
        let bytes: u64 = there.expect("read").iter().map(|run| run.end - run.start).sum();
        assert_eq!(bytes, 2 * PAGE_BYTES);
        for (page, holds) in [7, 7, after, after].into_iter().enumerate() {
            assert_eq!(
                text(&memory, at + page as u64 * PAGE_BYTES),
                [holds; 5],
                "page {page} about {end:#x}"
            );
        }
    }
}

/// In a child process, which the thread ends when its main thread cannot: this one waits for a page for ever.
#[test]
fn a_machine_whose_handler_is_gone_ends_with_a_record_and_not_with_zeroes() {
    let Some(device) = device() else { return };
    let exit = tempfile::tempfile().expect("a temporary file");
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    // SAFETY: the child uses its own copy of this thread alone, and ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(theirs);
        let (memory, source) = attach("test", 96 * MIB, ours, &device).expect("attached");
        let ending = Arc::new(Ending::new().expect("an eventfd"));
        source.watch(seccomp::pages(true).expect("compiles"), ending, exit).expect("watched");
        let _: u8 = memory.read_obj(GuestAddress(MIB)).expect("in memory");
        // SAFETY: ends the child at once; it got a page from nobody.
        unsafe { libc::_exit(7) };
    }
    drop(ours);
    let (layout, userfault) = greeting(&theirs);
    assert_eq!((layout.version, layout.id.as_str(), layout.regions.len()), (VERSION, "test", 1));
    theirs.write_all(b"\"serving\"\n").expect("said");
    let mut faults = Vec::new();
    let until = Instant::now() + Duration::from_secs(10);
    while faults.is_empty() && Instant::now() < until {
        userfault.faults(&mut faults).expect("heard");
        std::thread::yield_now();
    }
    assert_eq!(faults, [layout.regions[0].host_address + MIB]);
    drop((theirs, userfault));
    let mut status = 0;
    // SAFETY: `status` is valid for writes, the child is ours.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 1));
    let mut record = String::new();
    rewound(exit).read_to_string(&mut record).expect("read");
    let record: pinfold_vmm_api::control::ExitRecord = serde_json::from_str(&record).expect("a record");
    assert_eq!(record.reason, ExitReason::PageFaultHandler);
    assert!(record.message.contains("left before all of guest memory"), "{}", record.message);
}

/// A machine's greeting, as a handler takes it.
fn greeting(socket: &UnixStream) -> (Layout, Userfault) {
    let mut line = [0; 4096];
    let (read, file) = socket.recv_with_fd(&mut line).expect("a greeting");
    let userfault = Userfault::from(std::os::fd::OwnedFd::from(file.expect("a descriptor")));
    (serde_json::from_slice(&line[..read]).expect("a layout"), userfault)
}

#[test]
fn a_handler_that_does_not_take_over_is_told_at_once() {
    let Some(device) = device() else { return };
    for word in [&b""[..], b"\"complete\"\n", b"\"surprise\"\n", b"no JSON\n", &[b'x'; 8192]] {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(word).expect("said");
        theirs.shutdown(std::net::Shutdown::Write).expect("closed");
        let error = attach("test", 96 * MIB, ours, &device).expect_err("no handler");
        assert!(error.to_string().contains("did not take over"), "{error}");
    }
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    let error = attach(&"x".repeat(5000), 96 * MIB, ours, &device).expect_err("no handler would read it");
    assert!(error.to_string().contains("its limit is 4096"), "{error}");
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    let null = File::open("/dev/null").expect("null");
    let error = attach("test", 96 * MIB, ours, &null).expect_err("no userfaultfd");
    assert!(error.to_string().contains("the host gives no userfaultfd"), "{error}");
}

#[test]
fn a_handler_refuses_what_is_no_layout_of_its_file() {
    let region = Region { guest_address: 0, host_address: 1 << 40, bytes: 96 * MIB, file_offset: 0 };
    let with = |change: fn(&mut Layout)| {
        let mut layout = Layout { version: VERSION, id: "test".into(), regions: vec![region] };
        change(&mut layout);
        serde_json::to_string(&layout).expect("JSON")
    };
    let bad = [
        with(|layout| layout.version = 2),
        with(|layout| layout.regions.clear()),
        with(|layout| layout.regions = vec![layout.regions[0]; 9]),
        with(|layout| layout.regions[0].bytes += PAGE_BYTES),
        // a machine with less memory than the snapshot's, and one that has some of it twice
        with(|layout| layout.regions[0].bytes -= PAGE_BYTES),
        with(|layout| layout.regions = vec![layout.regions[0]; 2]),
        with(|layout| layout.regions[0].file_offset = u64::MAX - 4095),
        with(|layout| layout.regions[0].host_address = u64::MAX - 4095),
        with(|layout| layout.regions[0].guest_address = u64::MAX - 4095),
        with(|layout| layout.regions[0].host_address += 1),
        "{}".into(),
        "x".repeat(5000),
    ];
    let null = File::open("/dev/null").expect("null");
    for line in bad {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.send_with_fd(format!("{line}\n").as_bytes(), null.as_raw_fd()).expect("sent");
        ours.shutdown(std::net::Shutdown::Write).expect("closed");
        let error = serve(theirs, &memory_file(96 * MIB), &Ahead::default()).expect_err("refused");
        let told = matches!(error, ServeError::Layout { .. } | ServeError::Greeting(_));
        assert!(told, "{line}: {error}");
    }
    let good = with(|_| {});
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    ours.write_all(format!("{good}\n").as_bytes()).expect("sent");
    let error = serve(theirs, &memory_file(96 * MIB), &Ahead::default()).expect_err("refused");
    assert!(matches!(error, ServeError::NoUserfault), "{error}");
}
