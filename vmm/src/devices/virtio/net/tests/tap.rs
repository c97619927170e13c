//! A tap and the host's end of it, in a network namespace that ends with its thread.

use crate::devices::virtio::net::header::{ETHERNET_BYTES, HEADER_BYTES};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// An Ethernet type that nobody uses (IEEE 802, local experiments).
pub const TYPE: u16 = 0x88b5;
const IPV4: u16 = 0x0800;
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TAP_FLAGS: i16 = 0x0002 | 0x1000 | 0x4000;
/// `linux/if_packet.h`: frames on this socket begin with a virtio header of ten bytes.
const PACKET_VNET_HDR: libc::c_int = 15;
const NAME: &str = "tap0";

/// The host's end: a packet socket on the tap.
pub struct HostSide {
    socket: OwnedFd,
}

/// Runs `act` in a thread with a network namespace of its own, or says why that is not possible here.
pub fn in_namespace(act: impl FnOnce(HostSide, File) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: it concerns this thread alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!("skipped: no network namespace: {}", io::Error::last_os_error());
            return;
        }
        match make(NAME, TAP_FLAGS) {
            Ok(tap) => act(HostSide::new().expect("the host's end"), tap),
            Err(error) => println!("skipped: no tap: {error}"),
        }
    });
    thread.join().expect("the test itself");
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    request
}

/// Makes a tap and brings it up.
pub fn make(name: &str, flags: i16) -> io::Result<File> {
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut wanted = request(name);
    wanted.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &mut wanted) })?;
    // without it the kernel itself would send on the new interface
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut up = request(name);
    up.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &mut up) })?;
    Ok(tap)
}

fn socket(family: libc::c_int, kind: libc::c_int, protocol: u16) -> io::Result<OwnedFd> {
    // SAFETY: it takes numbers; the descriptor is new.
    let fd = check(unsafe {
        libc::socket(family, kind | libc::SOCK_CLOEXEC, libc::c_int::from(protocol.to_be()))
    })?;
    // SAFETY: it is open and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(protocol: u16) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: all zeroes is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let name = std::ffi::CString::new(NAME).expect("no NUL");
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    // SAFETY: the name ends in NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    address.sll_ifindex = check(index as libc::c_int)?;
    Ok(address)
}

impl HostSide {
    fn new() -> io::Result<Self> {
        let all = libc::ETH_P_ALL as u16;
        let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, all)?;
        let address = address(all)?;
        let bytes = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: an address of the length that is said.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), bytes) })?;
        let on: libc::c_int = 1;
        let bytes = size_of::<libc::c_int>() as libc::socklen_t;
        let option = (&raw const on).cast();
        // SAFETY: one int of the length that is said.
        let result =
            unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, PACKET_VNET_HDR, option, bytes) };
        check(result)?;
        Ok(Self { socket })
    }

    fn write(&self, bytes: &[u8]) {
        // SAFETY: as many bytes as are said.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
    }

    /// Sends a frame to the guest.
    pub fn send(&self, frame: &[u8]) {
        self.write(&[&[0; 10], frame].concat());
    }

    /// Sends TCP data to the guest that is still to be cut; the frame.
    pub fn send_segments(&self, to: [u8; 6], bytes: usize) -> Vec<u8> {
        let (header, frame) = segments(to, [2, 0, 0, 0, 0, 8], bytes);
        self.write(&[&header[..10], &frame].concat());
        frame
    }

    /// The next frame that came out of the guest: not those that this side has sent.
    pub fn next_frame(&self) -> Vec<u8> {
        let mut bytes = vec![0; 70_000];
        loop {
            let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, valid for writes.
            assert_eq!(unsafe { libc::poll(&mut poll, 1, 10_000) }, 1, "no frame within ten seconds");
            // SAFETY: all zeroes is a valid address.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            let (buffer, address) = (bytes.as_mut_ptr().cast(), (&raw mut from).cast());
            // SAFETY: buffers of the lengths that are said.
            let read = unsafe {
                libc::recvfrom(self.socket.as_raw_fd(), buffer, bytes.len(), 0, address, &mut length)
            };
            let read = usize::try_from(read).expect("read");
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                return bytes[10..read].to_vec();
            }
        }
    }
}

/// A virtio header and a frame of TCP over IPv4 with `bytes` of data, to be cut at 1448 and summed by who gets it.
pub fn segments(to: [u8; 6], from: [u8; 6], bytes: usize) -> ([u8; HEADER_BYTES], Vec<u8>) {
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let length = (ip.len() + 20 + bytes) as u16;
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    let sum = fold(&ip, 0);
    ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
    let mut tcp = vec![0; 20];
    tcp[..4].copy_from_slice(&[0x10, 0, 0x20, 0]);
    // data begins after five words; ACK
    tcp[12..14].copy_from_slice(&[5 << 4, 0x10]);
    // the sum over the pseudo header, for who makes the rest
    let pseudo = fold(&ip[12..20], 6 + 20 + bytes as u32);
    tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
    let data: Vec<u8> = (0..bytes).map(|byte| (byte / 7) as u8).collect();
    let frame = [&to[..], &from[..], &IPV4.to_be_bytes(), &ip, &tcp, &data].concat();
    let start = ETHERNET_BYTES as u16 + 20;
    let mut header = [0; HEADER_BYTES];
    header[0] = 1;
    header[1] = 1;
    header[2..4].copy_from_slice(&(start + 20).to_le_bytes());
    header[4..6].copy_from_slice(&1448u16.to_le_bytes());
    header[6..8].copy_from_slice(&start.to_le_bytes());
    header[8..10].copy_from_slice(&16u16.to_le_bytes());
    (header, frame)
}

/// One's complement sum of 16-bit words (RFC 1071).
fn fold(bytes: &[u8], first: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum = words.sum::<u32>() + first;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
