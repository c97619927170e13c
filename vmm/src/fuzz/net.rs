//! A network card between arbitrary operations of a driver and arbitrary frames of the host. In place of the tap stands one
//! end of a socket that keeps the borders of frames; the other end is the host's.

use super::ops::{self, Op};
use crate::devices::virtio::driver::{DATA, Driven};
use crate::devices::virtio::net::device::{Net, RECEIVE, TRANSMIT};
use crate::devices::virtio::net::header::{ETHERNET_BYTES, FRAME_BYTES_MAX, HEADER_BYTES};
use crate::devices::virtio::net::tap::Tap;
use crate::devices::virtio::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1, VirtioDevice};
use crate::metrics::Metrics;
use arbitrary::{Arbitrary, Unstructured};
use pinfold_vmm_api::RateLimit;
use pinfold_vmm_api::config::TokenBucket;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// Steps of one run, and frames of one step.
const STEPS_MAX: usize = 128;
const FRAMES_MAX: u8 = 16;
const RESET_TIMES_MAX: usize = 8;
/// Receive buffers lie here, and frames that are sent before them.
const BUFFERS: u64 = DATA + 0x10_0000;
const BUFFER_STEP: u64 = 0x4000;
const BUFFERS_MAX: u8 = 64;
/// A frame of the host longer than this tells nothing new.
const HOST_FRAME_MAX: usize = 16 << 10;

#[derive(Debug, Arbitrary)]
enum Step {
    Op(Op),
    /// frames of the host, with any virtio header
    FromHost {
        header: [u8; HEADER_BYTES],
        bytes: u16,
        count: u8,
    },
    /// a frame of the guest, as a good driver makes it, cut into two buffers
    ToHost {
        header: [u8; HEADER_BYTES],
        bytes: u32,
        cut: u16,
        source: Option<[u8; 6]>,
    },
    /// receive buffers
    Offer {
        count: u8,
        bytes: u16,
    },
    /// the device hears of its tap, or of a timer of its rates
    Told {
        source: u8,
    },
    HostReads {
        count: u8,
    },
    Rest,
    /// a new driver with any choice of the features
    Begin {
        features: u32,
    },
}

/// The first byte chooses whether the rates are limited.
pub fn net(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let steps = Vec::<Step>::arbitrary_take_rest(Unstructured::new(rest)).unwrap_or_default();
    let (mut driven, host) = card(first & 1 == 1);
    let (mut sent, mut resets) = (0, 0);
    for step in steps.iter().take(STEPS_MAX) {
        // each costs the clearing of the rings
        resets += usize::from(matches!(step, Step::Begin { .. }));
        if resets <= RESET_TIMES_MAX {
            sent += one(&mut driven, &host, step);
        }
    }
    host_reads(&host, usize::MAX);
    let net = &driven.metrics.net;
    assert!(net.received_frames.get() <= sent, "a frame that nobody sent");
    assert!(net.spoofed.get() <= net.guest_errors.get());
}

/// A card on a socket; the other end of it.
fn card(limited: bool) -> (Driven, UnixDatagram) {
    let metrics = Arc::new(Metrics::default());
    let (device, host) = device(limited, &metrics);
    (ops::driven(device, metrics), host)
}

pub(super) fn device(limited: bool, metrics: &Arc<Metrics>) -> (Box<dyn VirtioDevice>, UnixDatagram) {
    let (ours, host) = UnixDatagram::pair().expect("a pair of sockets");
    host.set_nonblocking(true).expect("a socket");
    // nothing comes back within a run: how far it gets depends on its steps alone
    let bucket = TokenBucket { per_second: 1, burst: 64 << 10, first_burst: 0 };
    let rate =
        if limited { RateLimit { bytes: Some(bucket), operations: None } } else { RateLimit::default() };
    let tap = Tap::over_socket(ours).expect("a socket");
    let net = Net::over(tap, MAC, rate, rate, Arc::clone(metrics)).expect("a card");
    (Box::new(net), host)
}

/// How many frames the host sent.
fn one(driven: &mut Driven, host: &UnixDatagram, step: &Step) -> u64 {
    match step {
        Step::Op(op) => ops::play(driven, std::slice::from_ref(op)),
        Step::FromHost { header, bytes, count } => {
            let mut frame = vec![0x61; HEADER_BYTES + usize::from(*bytes) % HOST_FRAME_MAX];
            frame[..HEADER_BYTES].copy_from_slice(header);
            return (0..count % FRAMES_MAX).filter(|_| host.send(&frame).is_ok()).count() as u64;
        }
        Step::ToHost { header, bytes, cut, source } => to_host(driven, header, *bytes, *cut, *source),
        Step::Offer { count, bytes } => {
            for index in 0..u64::from(count % BUFFERS_MAX) {
                let length = u32::from(*bytes) % BUFFER_STEP as u32;
                driven.rings[RECEIVE].send(&[(BUFFERS + BUFFER_STEP * index, length, true)]);
            }
            driven.transport.queue_event(RECEIVE);
        }
        Step::Told { source } => driven.transport.host_event(usize::from(source % 3)),
        Step::HostReads { count } => host_reads(host, usize::from(*count)),
        Step::Rest => driven.transport.quiesce().expect("a network is never busy"),
        Step::Begin { features } => {
            driven.put(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
            driven.transport.host_event(0);
            driven.new_rings();
            let rings = FEATURE_VERSION_1 | FEATURE_INDIRECT;
            let events = if features & 1 == 1 { FEATURE_EVENT_IDX } else { 0 };
            driven.begin(rings | events | u64::from(features & !1));
        }
    }
    0
}

fn to_host(driven: &mut Driven, header: &[u8; HEADER_BYTES], bytes: u32, cut: u16, source: Option<[u8; 6]>) {
    let all = HEADER_BYTES as u32 + bytes % (FRAME_BYTES_MAX as u32 + 2);
    let first = u32::from(cut).clamp(1, all - 1);
    driven.try_write(DATA, header);
    driven.try_write(DATA + HEADER_BYTES as u64 + 6, &source.unwrap_or(MAC));
    let chain = [(DATA, first, false), (DATA + u64::from(first), all - first, false)];
    driven.rings[TRANSMIT].send(&chain);
    driven.transport.queue_event(TRANSMIT);
}

/// What comes out of a machine bears its address and asks for nothing that was not checked.
fn host_reads(host: &UnixDatagram, count: usize) {
    let mut frame = vec![0; HEADER_BYTES + FRAME_BYTES_MAX + 1];
    for _ in 0..count {
        let Ok(bytes) = host.recv(&mut frame) else { return };
        let length = bytes.checked_sub(HEADER_BYTES).expect("a whole header");
        assert!((ETHERNET_BYTES..=FRAME_BYTES_MAX).contains(&length), "a frame of {length} bytes");
        assert_eq!(frame[HEADER_BYTES + 6..HEADER_BYTES + 12], MAC, "another source");
        assert!(frame[0] <= 1 && matches!(frame[1], 0 | 1 | 4), "asks for {:?}", &frame[..2]);
        assert_eq!(frame[10..12], [0, 0], "num_buffers is of received frames");
    }
}
