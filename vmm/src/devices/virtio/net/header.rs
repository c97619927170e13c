//! `struct virtio_net_hdr` (virtio 1.2, 5.1.6): what a frame that is sent may ask of the host.

use virtio_bindings::virtio_net as net;

/// With `num_buffers`, as every driver of virtio 1.x has it.
pub const HEADER_BYTES: usize = 12;
/// Destination, source, type.
pub const ETHERNET_BYTES: usize = 14;
/// Longest frame: 64 KiB of IP behind an Ethernet header (virtio 1.2, 5.1.6.3.1).
pub const FRAME_BYTES_MAX: usize = 65_550;
/// Where `num_buffers` is.
pub const NUM_BUFFERS_AT: u64 = 10;

const NEEDS_CSUM: u8 = net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_NONE: u8 = net::VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = net::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = net::VIRTIO_NET_HDR_GSO_TCPV6 as u8;

pub const F_CSUM: u64 = 1 << net::VIRTIO_NET_F_CSUM;
pub const F_GUEST_CSUM: u64 = 1 << net::VIRTIO_NET_F_GUEST_CSUM;
pub const F_MAC: u64 = 1 << net::VIRTIO_NET_F_MAC;
pub const F_GUEST_TSO4: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO4;
pub const F_GUEST_TSO6: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO6;
pub const F_HOST_TSO4: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO4;
pub const F_HOST_TSO6: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO6;
pub const F_MRG_RXBUF: u64 = 1 << net::VIRTIO_NET_F_MRG_RXBUF;

/// Why a frame of the guest is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    #[error("it has {0} bytes")]
    Length(usize),
    #[error("its source address is not the guest's")]
    Source,
    #[error("it asks for what was not agreed on")]
    Feature,
    #[error("its checksum lies outside of it")]
    Checksum,
    #[error("it is to be cut into pieces without a size, or its headers are longer than it")]
    Segments,
}

/// Checks the start of a frame, header and Ethernet header, and makes the header say no more than was checked. `bytes`:
/// length of the frame without the virtio header.
pub fn check(
    start: &mut [u8; HEADER_BYTES + ETHERNET_BYTES],
    bytes: usize,
    features: u64,
    mac: [u8; 6],
) -> Result<(), BadFrame> {
    if !(ETHERNET_BYTES..=FRAME_BYTES_MAX).contains(&bytes) {
        return Err(BadFrame::Length(bytes));
    }
    if start[HEADER_BYTES + 6..HEADER_BYTES + 12] != mac {
        return Err(BadFrame::Source);
    }
    let word = |at: usize| u16::from_le_bytes([start[at], start[at + 1]]);
    let (needs_csum, gso) = (start[0] & NEEDS_CSUM != 0, start[1]);
    let (header_bytes, gso_bytes) = (word(2), word(4));
    let (csum_start, csum_offset) = (word(6), word(8));
    if needs_csum {
        if features & F_CSUM == 0 {
            return Err(BadFrame::Feature);
        }
        // the checksum itself has two bytes
        if usize::from(csum_start) + usize::from(csum_offset) + 2 > bytes {
            return Err(BadFrame::Checksum);
        }
    }
    let agreed = match gso {
        GSO_NONE => true,
        GSO_TCPV4 => features & F_HOST_TSO4 != 0,
        GSO_TCPV6 => features & F_HOST_TSO6 != 0,
        _ => false,
    };
    if !agreed {
        return Err(BadFrame::Feature);
    }
    // who wants segments wants their checksums made too (virtio 1.2, 5.1.6.2.1)
    if gso != GSO_NONE && (!needs_csum || gso_bytes == 0 || usize::from(header_bytes) > bytes) {
        return Err(BadFrame::Segments);
    }
    start[0] &= NEEDS_CSUM;
    if !needs_csum {
        start[6..10].fill(0);
    }
    if gso == GSO_NONE {
        start[2..6].fill(0);
    }
    // num_buffers is of received frames
    start[10..12].fill(0);
    Ok(())
}

/// Whether a choice of features keeps the rules of 5.1.3.1: segments need checksums.
pub fn is_consistent(features: u64) -> bool {
    let needs = |wanted: u64, needed: u64| features & wanted == 0 || features & needed != 0;
    needs(F_GUEST_TSO4 | F_GUEST_TSO6, F_GUEST_CSUM) && needs(F_HOST_TSO4 | F_HOST_TSO6, F_CSUM)
}

/// Whether a frame whose header begins so is one for a guest with these features.
pub fn may_receive(start: [u8; 2], features: u64) -> bool {
    let [flags, gso] = start;
    let segments = match gso {
        GSO_NONE => true,
        GSO_TCPV4 => features & F_GUEST_TSO4 != 0,
        GSO_TCPV6 => features & F_GUEST_TSO6 != 0,
        _ => false,
    };
    segments && (flags & NEEDS_CSUM == 0 || features & F_GUEST_CSUM != 0)
}

/// Bytes that a receive buffer needs, the header included, before a frame is taken from the host (5.1.6.3.1).
pub fn receive_bytes(features: u64) -> u64 {
    let segments = features & (F_GUEST_TSO4 | F_GUEST_TSO6) != 0;
    // 1514 bytes of frame, and four of a VLAN tag
    (HEADER_BYTES + if segments { FRAME_BYTES_MAX } else { 1518 }) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const ALL: u64 = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6;

    fn start(header: [u8; HEADER_BYTES]) -> [u8; HEADER_BYTES + ETHERNET_BYTES] {
        let mut start = [0xff; HEADER_BYTES + ETHERNET_BYTES];
        start[..HEADER_BYTES].copy_from_slice(&header);
        start[HEADER_BYTES + 6..HEADER_BYTES + 12].copy_from_slice(&MAC);
        start
    }

    #[test]
    fn a_plain_frame_passes_and_its_header_is_emptied() {
        let mut frame = start([0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]);
        assert_eq!(check(&mut frame, 60, 0, MAC), Ok(()));
        assert_eq!(frame[..HEADER_BYTES], [0; HEADER_BYTES]);
    }

    #[test]
    fn segments_need_their_feature_a_size_and_a_checksum() {
        // 54 bytes of headers, 1448 of a segment, checksum at 34 + 16
        let good = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        assert_eq!(check(&mut start(good), 9000, ALL, MAC), Ok(()));
        assert_eq!(check(&mut start(good), 9000, F_CSUM, MAC), Err(BadFrame::Feature));
        assert_eq!(check(&mut start(good), 9000, 0, MAC), Err(BadFrame::Feature));
        assert_eq!(check(&mut start(good), 51, ALL, MAC), Err(BadFrame::Checksum));
        assert_eq!(check(&mut start(good), 53, ALL, MAC), Err(BadFrame::Segments));
        let change = |at: usize, value: u8| {
            let mut header = good;
            header[at] = value;
            header
        };
        assert_eq!(check(&mut start(change(0, 0)), 9000, ALL, MAC), Err(BadFrame::Segments));
        let mut sizeless = good;
        sizeless[4..6].fill(0);
        assert_eq!(check(&mut start(sizeless), 9000, ALL, MAC), Err(BadFrame::Segments));
        for kind in [2, 3, 5, 0x80, 0x81, 0xff] {
            assert_eq!(check(&mut start(change(1, kind)), 9000, ALL, MAC), Err(BadFrame::Feature), "{kind}");
        }
    }

    #[test]
    fn another_source_address_is_refused() {
        for byte in 0..6 {
            let mut frame = start([0; HEADER_BYTES]);
            frame[HEADER_BYTES + 6 + byte] ^= 1;
            assert_eq!(check(&mut frame, 60, ALL, MAC), Err(BadFrame::Source));
        }
    }

    #[test]
    fn features_that_need_others_are_taken_with_them_only() {
        assert!(is_consistent(0));
        assert!(is_consistent(ALL | F_GUEST_CSUM | F_GUEST_TSO4));
        assert!(!is_consistent(F_GUEST_TSO6));
        assert!(!is_consistent(F_HOST_TSO4 | F_GUEST_CSUM));
    }

    #[test]
    fn a_guest_gets_no_more_than_it_agreed_to() {
        assert!(may_receive([0, 0], 0));
        assert!(may_receive([2, 0], 0), "a checksum that was looked at is no work for the guest");
        assert!(!may_receive([1, 0], 0));
        assert!(may_receive([1, 1], F_GUEST_CSUM | F_GUEST_TSO4));
        assert!(!may_receive([1, 4], F_GUEST_CSUM | F_GUEST_TSO4));
        assert!(!may_receive([1, 3], u64::MAX), "datagrams in segments were never offered");
    }

    proptest! {
        /// What passes names a checksum within the frame, and segments only with a size.
        #[test]
        fn what_passes_is_safe(
            header in any::<[u8; HEADER_BYTES]>(),
            bytes in prop_oneof![0..100usize, 0..70_000usize],
            features in any::<u64>(),
        ) {
            let mut frame = start(header);
            if check(&mut frame, bytes, features, MAC).is_ok() {
                let word = |at: usize| usize::from(u16::from_le_bytes([frame[at], frame[at + 1]]));
                prop_assert!((ETHERNET_BYTES..=FRAME_BYTES_MAX).contains(&bytes));
                prop_assert!(frame[0] <= 1);
                prop_assert!(frame[0] == 0 || word(6) + word(8) + 2 <= bytes);
                prop_assert!(matches!(frame[1], 0 | 1 | 4));
                prop_assert!(frame[1] == 0 || frame[0] == 1 && word(4) > 0 && word(2) <= bytes);
            }
        }
    }
}
