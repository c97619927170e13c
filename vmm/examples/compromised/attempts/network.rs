//! Sockets: of each family, and to each kind of peer.

use super::{Attempt, JAIL, Outcome, SECCOMP, Stops, UID, World, both, call, landlock};

/// Unix stream sockets can be made on the device thread: the guest's connections to the host are such.
const REACHED_ONLY_IN_A_JAIL: Stops = Stops { seccomp: false, ..JAIL };

pub const ALL: &[Attempt] = &[
    Attempt { name: "tcp-connect", what: "connect to a port of the host", stops: both(4), act: tcp_connect },
    Attempt { name: "tcp-bind", what: "take a TCP port", stops: landlock(4), act: tcp_bind },
    Attempt { name: "udp-send", what: "send a datagram", stops: both(10), act: udp_send },
    Attempt {
        name: "unix-service",
        what: "connect to a service of the host by its path",
        stops: Stops { landlock: Some(9), ..REACHED_ONLY_IN_A_JAIL },
        act: unix_service,
    },
    Attempt {
        name: "unix-abstract",
        what: "connect to a service of the host by its abstract name",
        stops: Stops { landlock: Some(6), ..REACHED_ONLY_IN_A_JAIL },
        act: unix_abstract,
    },
    Attempt {
        name: "unix-datagram",
        what: "make a Unix datagram socket",
        stops: SECCOMP,
        act: unix_datagram,
    },
    Attempt { name: "netlink", what: "talk to the kernel's network", stops: SECCOMP, act: netlink },
    Attempt { name: "packet", what: "see frames of the network", stops: UID, act: packet },
    Attempt { name: "raw", what: "send raw packets", stops: UID, act: raw },
    Attempt { name: "alg", what: "reach the kernel's cryptography", stops: SECCOMP, act: alg },
];

const STREAM: usize = libc::SOCK_STREAM as usize;
const DATAGRAM: usize = libc::SOCK_DGRAM as usize;

fn socket(family: i32, kind: usize) -> Outcome {
    call(libc::SYS_socket, [family as usize, kind, 0])
}

/// `struct sockaddr_in` of a port of the loopback, or of all addresses.
fn internet(port: u16, loopback: bool) -> [u8; 16] {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    address[2..4].copy_from_slice(&port.to_be_bytes());
    if loopback {
        address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    }
    address
}

fn tcp_connect(world: &World) -> Outcome {
    let socket = socket(libc::AF_INET, STREAM)? as usize;
    let address = internet(world.port, true);
    call(libc::SYS_connect, [socket, address.as_ptr() as usize, address.len()])
}

fn tcp_bind(_: &World) -> Outcome {
    let socket = socket(libc::AF_INET, STREAM)? as usize;
    let address = internet(0, false);
    call(libc::SYS_bind, [socket, address.as_ptr() as usize, address.len()])
}

fn udp_send(world: &World) -> Outcome {
    let socket = socket(libc::AF_INET, DATAGRAM)? as usize;
    let address = internet(world.port, true);
    let (byte, place) = (c"x".as_ptr() as usize, address.as_ptr() as usize);
    call(libc::SYS_sendto, [socket, byte, 1, 0, place, address.len()])
}

/// As the vsock device makes its sockets.
fn own_kind() -> Outcome {
    socket(libc::AF_UNIX, STREAM | (libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) as usize)
}

fn unix_address(name: &[u8]) -> Vec<u8> {
    [&(libc::AF_UNIX as u16).to_ne_bytes()[..], name].concat()
}

fn unix_service(world: &World) -> Outcome {
    let socket = own_kind()? as usize;
    let address = unix_address(world.path("service").as_bytes_with_nul());
    call(libc::SYS_connect, [socket, address.as_ptr() as usize, address.len()])
}

fn unix_abstract(world: &World) -> Outcome {
    let socket = own_kind()? as usize;
    let address = unix_address(&[b"\0", world.abstract_name.as_bytes()].concat());
    call(libc::SYS_connect, [socket, address.as_ptr() as usize, address.len()])
}

fn unix_datagram(_: &World) -> Outcome {
    socket(libc::AF_UNIX, DATAGRAM)
}

fn netlink(_: &World) -> Outcome {
    socket(libc::AF_NETLINK, libc::SOCK_RAW as usize)
}

fn packet(_: &World) -> Outcome {
    socket(libc::AF_PACKET, libc::SOCK_RAW as usize)
}

fn raw(_: &World) -> Outcome {
    call(libc::SYS_socket, [libc::AF_INET as usize, libc::SOCK_RAW as usize, libc::IPPROTO_ICMP as usize])
}

/// The family is there only where its module is: what counts is that the filter is asked first.
fn alg(_: &World) -> Outcome {
    match socket(libc::AF_ALG, libc::SOCK_SEQPACKET as usize) {
        Err(libc::EAFNOSUPPORT) => Ok(0),
        other => other,
    }
}
