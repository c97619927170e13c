//! JSON from outside: the config of a machine, requests on the control socket.

use crate::control::ControlServer;
use pinfold_vmm_api::MachineConfig;
use pinfold_vmm_api::control::{MAX_LINE_BYTES, Response};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};

/// What is accepted is within its limits and survives being written and read again.
pub fn config(data: &[u8]) {
    let Ok(config) = serde_json::from_slice::<MachineConfig>(data) else { return };
    if config.validate().is_err() {
        return;
    }
    let again = serde_json::to_vec(&config).expect("a config can be written");
    assert_eq!(serde_json::from_slice::<MachineConfig>(&again).expect("and read"), config);
}

/// A peer that sends anything in pieces; the first byte is their length. No more answers than lines come back.
pub fn control(data: &[u8]) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let Some((first, rest)) = data.split_first() else { return };
    let name =
        format!("pinfold-fuzz-control-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    let mut server = ControlServer::new(UnixListener::bind_addr(&address).expect("bound")).expect("a server");
    let mut peer = UnixStream::connect_addr(&address).expect("connected");
    peer.set_nonblocking(true).expect("a socket");
    let mut answers = Vec::new();
    let rest = &rest[..rest.len().min(4 * MAX_LINE_BYTES)];
    for piece in rest.chunks(usize::from(*first).max(1) * 16) {
        if peer.write_all(piece).is_err() {
            break;
        }
        server.serve(&mut |_, _| Response::Killed);
        drain(&mut peer, &mut answers);
    }
    let _ = peer.shutdown(Shutdown::Write);
    for _ in 0..rest.len() / 512 + 4 {
        server.serve(&mut |_, _| Response::Killed);
        drain(&mut peer, &mut answers);
    }
    let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
    assert!(lines(&answers) <= lines(rest), "an answer that nobody asked for");
}

fn drain(peer: &mut UnixStream, answers: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = peer.read(&mut buffer) {
        answers.extend_from_slice(&buffer[..read]);
    }
}
