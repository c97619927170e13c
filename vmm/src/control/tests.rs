//! The control socket against peers that behave and peers that do not.

use super::*;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

struct Rig {
    server: ControlServer,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

fn rig() -> Rig {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("control");
    let server = ControlServer::new(UnixListener::bind(&path).expect("bound")).expect("a server");
    Rig { server, path, _directory: directory }
}

impl Rig {
    fn connect(&mut self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).expect("connected");
        stream.set_nonblocking(true).expect("non-blocking");
        stream
    }

    /// Enough rounds for what was sent so far.
    fn serve(&mut self) -> Vec<Request> {
        let mut seen = Vec::new();
        for _ in 0..40 {
            self.server.serve(&mut |request| {
                seen.push(request);
                Response::Killed
            });
        }
        seen
    }
}

#[test]
fn requests_are_answered_in_order() {
    let mut rig = rig();
    let mut peer = rig.connect();
    peer.write_all(b"{\"request\":\"status\"}\n{\"request\":\"kill\"}\n").expect("sent");
    assert_eq!(rig.serve(), [Request::Status, Request::Kill]);
    let mut reader = BufReader::new(peer);
    for _ in 0..2 {
        let mut line = String::new();
        reader.read_line(&mut line).expect("an answer");
        assert_eq!(serde_json::from_str::<Response>(&line).expect("JSON"), Response::Killed);
    }
}

#[test]
fn every_line_is_answered_also_when_the_peer_reads_late() {
    const LINES: usize = 20_000;
    let mut rig = rig();
    let mut peer = rig.connect();
    let sent = vec![b'\n'; LINES];
    let (mut written, mut answers) = (0, 0);
    let mut buffer = [0; 4096];
    for _ in 0..LINES {
        if written < LINES {
            written += peer.write(&sent[written..]).unwrap_or(0);
        }
        rig.serve();
        if let Ok(read) = peer.read(&mut buffer) {
            answers += buffer[..read].iter().filter(|byte| **byte == b'\n').count();
        }
        if answers == LINES {
            return;
        }
    }
    panic!("{answers} answers to {LINES} lines");
}

#[test]
fn a_request_in_pieces_is_one() {
    let mut rig = rig();
    let mut peer = rig.connect();
    peer.write_all(b"{\"request\":").expect("sent");
    assert_eq!(rig.serve(), []);
    peer.write_all(b"\"kill\"}\n").expect("sent");
    assert_eq!(rig.serve(), [Request::Kill]);
}

#[test]
fn what_is_no_request_gets_an_error_and_the_connection_lives() {
    let mut rig = rig();
    let mut peer = rig.connect();
    peer.write_all(b"hello\n{\"request\":\"reboot\"}\n\xff\xfe\n{\"request\":\"kill\"}\n").expect("sent");
    assert_eq!(rig.serve(), [Request::Kill]);
    let lines: Vec<String> = BufReader::new(peer).lines().map_while(Result::ok).collect();
    assert_eq!(lines.len(), 4);
    for line in &lines[..3] {
        assert!(matches!(serde_json::from_str(line).expect("JSON"), Response::Error { .. }), "{line}");
    }
}

#[test]
fn a_line_without_end_closes_the_connection() {
    let mut rig = rig();
    let mut peer = rig.connect();
    let mut sent = 0;
    while let Ok(now) = peer.write(&[b'x'; 1024]) {
        sent += now;
        rig.serve();
        assert!(sent < 1 << 20, "1 MiB was taken");
    }
    assert!(rig.server.connections.is_empty());
}

#[test]
fn a_peer_that_takes_no_answers_is_not_read_any_more() {
    let mut rig = rig();
    let mut peer = rig.connect();
    let mut sent = 0;
    while let Ok(now) = peer.write(b"{\"request\":\"status\"}\n") {
        sent += now;
        rig.serve();
        assert!(sent < 64 << 20);
    }
    let connection = rig.server.connections.values().next().expect("still there");
    assert!(connection.output.len() <= 2 * MAX_LINE_BYTES);
    assert!(connection.input.len() <= MAX_LINE_BYTES);
}

#[test]
fn connections_are_bounded_and_come_free_again() {
    let mut rig = rig();
    let held: Vec<_> = (0..MAX_CONNECTIONS + 3).map(|_| rig.connect()).collect();
    rig.serve();
    assert_eq!(rig.server.connections.len(), MAX_CONNECTIONS);
    drop(held);
    rig.serve();
    assert!(rig.server.connections.is_empty());
    let mut peer = rig.connect();
    peer.write_all(b"{\"request\":\"kill\"}\n").expect("sent");
    assert_eq!(rig.serve(), [Request::Kill]);
}
