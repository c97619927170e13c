//! The control socket against peers that behave and peers that do not.

use super::*;
use std::io::{BufRead, BufReader, Read};
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
            self.server.serve(&mut |request, _| {
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

#[test]
fn silent_peers_make_room_for_a_new_one_and_those_that_speak_or_watch_stay() {
    let mut rig = rig();
    let mut watcher = rig.connect();
    watcher.write_all(b"{\"request\":\"watch\"}\n").expect("sent");
    rig.serve();
    let mut held: Vec<_> = (1..MAX_CONNECTIONS).map(|_| rig.connect()).collect();
    rig.serve();
    held[0].write_all(b"{\"request\":\"status\"}\n").expect("sent");
    assert_eq!(rig.serve(), [Request::Status]);
    let mut late = rig.connect();
    late.write_all(b"{\"request\":\"kill\"}\n").expect("sent");
    assert_eq!(rig.serve(), [Request::Kill], "the new one is heard");
    let ended = |peer: &mut UnixStream| loop {
        match peer.read(&mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    };
    let all: Vec<bool> = [&mut watcher].into_iter().chain(&mut held).chain([&mut late]).map(ended).collect();
    let ended: Vec<usize> = (0..all.len()).filter(|index| all[*index]).collect();
    assert_eq!(ended, [2], "of those that neither spoke nor watch, the oldest");
}

fn event(count: u64) -> Event {
    let kind = pinfold_vmm_api::control::EventKind::GuestFault;
    Event { kind, device: "disk0".into(), count, message: "x".repeat(100) }
}

fn lines(peer: &mut UnixStream) -> Vec<Response> {
    let mut text = Vec::new();
    let mut buffer = [0; 64 * 1024];
    while let Ok(read) = peer.read(&mut buffer) {
        if read == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..read]);
    }
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("whole lines")).collect()
}

#[test]
fn a_watcher_hears_what_was_and_what_comes_and_may_still_ask() {
    let mut rig = rig();
    let (mut watcher, mut other) = (rig.connect(), rig.connect());
    watcher.write_all(b"{\"request\":\"watch\"}\n").expect("sent");
    other.write_all(b"{\"request\":\"status\"}\n").expect("sent");
    rig.serve();
    rig.server.catch_up(|| vec![event(1)]);
    rig.server.publish(&[event(2), event(3)]);
    rig.server.catch_up(|| panic!("nobody is behind"));
    let told = |count| Response::Event(event(count));
    assert_eq!(lines(&mut watcher), [Response::Done, told(1), told(2), told(3)]);
    assert_eq!(lines(&mut other), [Response::Killed], "the answer, and no event");
    watcher.write_all(b"{\"request\":\"kill\"}\n").expect("sent");
    assert_eq!(rig.serve(), [Request::Kill]);
    assert_eq!(lines(&mut watcher), [Response::Killed]);
}

#[test]
fn a_watcher_that_does_not_read_is_passed_over_and_told_the_latest_when_it_does() {
    let mut rig = rig();
    let mut watcher = rig.connect();
    watcher.write_all(b"{\"request\":\"watch\"}\n").expect("sent");
    rig.serve();
    rig.server.catch_up(Vec::new);
    const EVENTS: u64 = 100_000;
    for count in 1..=EVENTS {
        rig.server.publish(&[event(count)]);
    }
    let connection = rig.server.connections.values().next().expect("still there");
    assert!(connection.output.len() <= MAX_LINE_BYTES, "{} bytes wait", connection.output.len());
    let mut heard = lines(&mut watcher);
    assert!(heard.len() < 10_000, "{} lines fit into a socket", heard.len());
    for _ in 0..10 {
        rig.serve();
        rig.server.catch_up(|| vec![event(EVENTS)]);
        heard.extend(lines(&mut watcher));
    }
    assert_eq!(heard.last(), Some(&Response::Event(event(EVENTS))));
    assert_eq!(heard.iter().filter(|line| **line == Response::Event(event(EVENTS))).count(), 1);
}

#[test]
fn a_watcher_that_left_is_forgotten() {
    let mut rig = rig();
    let mut watcher = rig.connect();
    watcher.write_all(b"{\"request\":\"watch\"}\n").expect("sent");
    rig.serve();
    rig.server.catch_up(Vec::new);
    drop(watcher);
    rig.server.publish(&[event(1)]);
    rig.server.publish(&[event(2)]);
    assert!(rig.server.connections.is_empty());
}

/// A pipe's writing end goes along; the request gets it whole, and the next one none.
#[test]
fn descriptors_come_with_their_request_alone() {
    let mut rig = rig();
    let peer = rig.connect();
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let line: &[u8] = b"{\"request\":\"working_set\"}\n{\"request\":\"status\"}\n";
    peer.send_with_fds(&[line], &[writer.as_raw_fd()]).expect("sent");
    drop(writer);
    let mut counts = Vec::new();
    for _ in 0..10 {
        rig.server.serve(&mut |_, mut fds| {
            counts.push(fds.len());
            if let Some(fd) = fds.pop() {
                std::fs::File::from(fd).write_all(b"here").expect("written");
            }
            Response::Done
        });
    }
    assert_eq!(counts, [1, 0]);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("no end is left open");
    assert_eq!(text, "here");
}

#[test]
fn more_descriptors_than_any_request_has_end_the_connection() {
    let mut rig = rig();
    let peer = rig.connect();
    let files: Vec<_> = (0..3).map(|_| tempfile::tempfile().expect("a file")).collect();
    let numbers: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
    peer.send_with_fds(&[&b"{\"request\":\"pause\"}\n"[..]], &numbers).expect("sent");
    assert_eq!(rig.serve(), []);
    assert!(rig.server.connections.is_empty());
    let peer = rig.connect();
    for file in &files {
        peer.send_with_fds(&[&b"."[..]], &[file.as_raw_fd()]).expect("sent");
        rig.serve();
    }
    assert!(rig.server.connections.is_empty(), "neither may they come one by one");
}
