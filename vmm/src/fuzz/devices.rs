//! Devices on a model of guest memory, driven by arbitrary operations.

use super::ops::{self, Op};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::device::Block;
use crate::devices::virtio::driver::{DATA, Driven};
use crate::devices::virtio::rng::device::Rng;
use crate::devices::virtio::vsock::device::VsockDevice;
use crate::devices::virtio::vsock::packet::{HEADER_BYTES, HOST_CID, Header, TYPE_STREAM};
use crate::metrics::Metrics;
use arbitrary::{Arbitrary, Unstructured};
use pinfold_vmm_api::RateLimit;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const DISK_BYTES: u64 = 64 << 10;
const CID: u32 = 7;
/// packets of one run
const PACKETS_MAX: usize = 64;
const PAYLOAD_MAX: usize = 4096;

fn operations(data: &[u8]) -> Vec<Op> {
    Vec::arbitrary_take_rest(Unstructured::new(data)).unwrap_or_default()
}

/// Registers only: a driver that never sets the device up by the rules.
pub fn transport(data: &[u8]) {
    let metrics = Arc::new(Metrics::default());
    let mut driven = ops::driven(Box::new(Rng::new(Arc::clone(&metrics))), metrics);
    driven.put(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    ops::play(&mut driven, &operations(data));
}

pub fn rng(data: &[u8]) {
    let metrics = Arc::new(Metrics::default());
    let mut driven = ops::driven(Box::new(Rng::new(Arc::clone(&metrics))), metrics);
    ops::play(&mut driven, &operations(data));
}

/// The first byte chooses whether the disk can be written.
pub fn block(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let metrics = Arc::new(Metrics::default());
    let mut driven = ops::driven(block_device(first & 1 == 1, &metrics), metrics);
    ops::play(&mut driven, &operations(rest));
}

pub(super) fn block_device(read_only: bool, metrics: &Arc<Metrics>) -> Box<dyn VirtioDevice> {
    let disk = memory_file(&[]);
    disk.set_len(DISK_BYTES).expect("memory for a small disk");
    let device = Block::new(disk, "fuzz", read_only, RateLimit::default(), true, Arc::clone(metrics));
    Box::new(device.expect("a disk"))
}

/// A file without a name, in memory.
pub(super) fn memory_file(content: &[u8]) -> File {
    // SAFETY: the name is a C string; the call touches no other memory.
    let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "a memfd");
    // SAFETY: it was just made and nobody else knows it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(content).expect("memory");
    file
}

pub(super) struct Sockets {
    address: SocketAddr,
    pub driven: Driven,
}

/// The device listens at an abstract name: no file is left behind, whatever happens.
pub(super) fn sockets() -> Sockets {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("pinfold-fuzz-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    let listener = UnixListener::bind_addr(&address).expect("bound");
    let metrics = Arc::new(Metrics::default());
    let device = VsockDevice::new(CID, listener, "/nonexistent/vsock".into(), Arc::clone(&metrics));
    Sockets { address, driven: ops::driven(Box::new(device.expect("a device")), metrics) }
}

pub fn vsock(data: &[u8]) {
    ops::play(&mut sockets().driven, &operations(data));
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// the guest sends; ports are few, so that packets meet connections
    Packet {
        operation: u8,
        guest_port: u8,
        host_port: u8,
        flags: u8,
        credit: Option<(u32, u32)>,
        bytes: u16,
    },
    /// any header at all
    Header {
        wire: [u8; 11],
        claimed: u32,
        bytes: u16,
    },
    Receive {
        buffers: u8,
    },
    Connect {
        line: ConnectLine,
    },
    Write {
        stream: u8,
        bytes: u16,
    },
    Drain {
        stream: u8,
    },
    Close {
        stream: u8,
    },
    Host,
}

#[derive(Debug, Arbitrary)]
enum ConnectLine {
    Port(u8),
    Bytes(Vec<u8>),
}

/// A guest that knows the packet format against real peers on the host.
pub fn vsock_packets(data: &[u8]) {
    let steps = Vec::<Step>::arbitrary_take_rest(Unstructured::new(data)).unwrap_or_default();
    let mut sockets = sockets();
    let mut streams: Vec<UnixStream> = Vec::new();
    for step in steps.iter().take(PACKETS_MAX) {
        peer(step, &mut sockets, &mut streams);
        sockets.driven.transport.host_event(0);
    }
    let open = streams.len() as u64 + steps.len() as u64;
    assert!(sockets.driven.metrics.vsock.connections.get() <= open, "a connection that nobody asked for");
}

fn peer(step: &Step, sockets: &mut Sockets, streams: &mut Vec<UnixStream>) {
    let driven = &mut sockets.driven;
    match step {
        Step::Packet { operation, guest_port, host_port, flags, credit, bytes } => {
            let (buffer_bytes, forwarded) = credit.unwrap_or((64 << 10, 0));
            let bytes = usize::from(*bytes) % PAYLOAD_MAX;
            let header = Header {
                source_cid: u64::from(CID),
                destination_cid: HOST_CID,
                source_port: u32::from(guest_port % 4) + 1024,
                destination_port: if *host_port < 128 { 1024 } else { (1 << 30) + u32::from(host_port % 4) },
                bytes: bytes as u32,
                kind: TYPE_STREAM,
                operation: u16::from(operation % 9),
                flags: u32::from(*flags),
                buffer_bytes,
                forwarded,
            };
            transmit(driven, &header.encode(), bytes);
        }
        Step::Header { wire, claimed, bytes } => {
            let mut header = [0; HEADER_BYTES];
            for (index, byte) in wire.iter().enumerate() {
                header[index * 4] = *byte;
            }
            header[24..28].copy_from_slice(&claimed.to_le_bytes());
            transmit(driven, &header, usize::from(*bytes) % PAYLOAD_MAX);
        }
        Step::Receive { buffers } => {
            for index in 0..u64::from(*buffers % 32) {
                driven.rings[0].send(&[(DATA + 0x2_0000 + index * 0x1000, 0x1000, true)]);
            }
            driven.transport.queue_event(0);
        }
        Step::Connect { line } => {
            let Ok(mut stream) = UnixStream::connect_addr(&sockets.address) else { return };
            let _ = stream.set_nonblocking(true);
            let _ = match line {
                ConnectLine::Port(port) => {
                    stream.write(format!("CONNECT {}\n", u32::from(*port) + 1024).as_bytes())
                }
                ConnectLine::Bytes(bytes) => stream.write(bytes),
            };
            streams.push(stream);
        }
        Step::Write { stream, bytes } => with(streams, *stream, |stream| {
            let _ = stream.write(&vec![0x61; usize::from(*bytes)]);
        }),
        Step::Drain { stream } => with(streams, *stream, |stream| {
            let _ = stream.read(&mut [0; PAYLOAD_MAX]);
        }),
        Step::Close { stream } => {
            if !streams.is_empty() {
                streams.swap_remove(usize::from(*stream) % streams.len());
            }
        }
        Step::Host => {}
    }
}

fn with(streams: &mut [UnixStream], index: u8, act: impl FnOnce(&mut UnixStream)) {
    if !streams.is_empty() {
        let index = usize::from(index) % streams.len();
        act(&mut streams[index]);
    }
}

fn transmit(driven: &mut Driven, header: &[u8], payload_bytes: usize) {
    driven.try_write(DATA, header);
    driven.rings[1].send(&[(DATA, (header.len() + payload_bytes) as u32, false)]);
    driven.transport.queue_event(1);
}
