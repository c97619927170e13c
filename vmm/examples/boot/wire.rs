//! The control socket, the exit record and the vsock of a machine, from the outside.

use crate::machine::{listen, scratch};
use anyhow::{Context, bail};
use pinfold_vmm_api::console::Reader;
use pinfold_vmm_api::control::{ExitRecord, Request, Response, SnapshotKind, SnapshotRequest};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Whoever works on the VMM by hand has nothing to hide.
pub const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// Between two looks at a file.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(20);

pub fn ask(socket: &Path, request: &Request) -> anyhow::Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

pub fn snapshot(socket: &Path, to: &Path, kind: SnapshotKind) -> anyhow::Result<Response> {
    std::fs::create_dir_all(to)?;
    let (state, memory) = (scratch(&to.join("state"))?, scratch(&to.join("memory"))?);
    let request = Request::Snapshot(SnapshotRequest { kind, key: KEY.into() });
    let line = format!("{}\n", serde_json::to_string(&request)?);
    let stream = UnixStream::connect(socket)?;
    stream
        .send_with_fds(&[line.as_bytes()], &[state.as_raw_fd(), memory.as_raw_fd()])
        .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

/// Sends a line and half-closes; returns the greeting and all that comes until the end.
pub fn talk(socket: &Path, port: u32) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut text = String::new();
    reader.read_line(&mut text)?;
    stream.write_all(b"a line from the host\n")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut all = Vec::new();
    let result = reader.read_to_end(&mut all);
    text += &format!(
        "then {} bytes, {:?}, end {result:?}",
        all.len(),
        String::from_utf8_lossy(&all[..all.len().min(60)])
    );
    Ok(text)
}

pub fn echo_server(path: &Path) -> anyhow::Result<()> {
    let listener = listen(path)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                let result = (&stream).read_to_end(&mut all);
                println!("[boot] the guest sent {} bytes, end {result:?}", all.len());
                let _ = (&stream).write_all(format!("{} bytes\n", all.len()).as_bytes());
            });
        }
    });
    Ok(())
}

/// Waits until the console has said `text`; all that it has said.
pub fn wait_for(directory: &Path, text: &str, limit: Duration) -> anyhow::Result<String> {
    let began = Instant::now();
    loop {
        let said = console(directory)?;
        if said.contains(text) {
            return Ok(said);
        }
        if began.elapsed() > limit || record(directory).is_ok() {
            let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
            bail!("no {text:?} within {} s on the console:\n{said}\nthe VMM's log:\n{log}", limit.as_secs());
        }
        // the console is a file: there is nothing to wait on but time
        std::thread::sleep(LOOK_INTERVAL);
    }
}

pub fn console(directory: &Path) -> anyhow::Result<String> {
    let chunk = Reader::new(File::open(directory.join("console"))?).read(0, 1 << 20)?;
    Ok(String::from_utf8_lossy(&chunk.data).into_owned())
}

/// Why the machine ended, if it has.
pub fn record(directory: &Path) -> anyhow::Result<ExitRecord> {
    let bytes = std::fs::read(directory.join("exit"))?;
    serde_json::from_slice(&bytes).context("no exit record")
}

/// Waits until the machine's process, whose id is in `pid`, is gone.
pub fn wait_ended(directory: &Path, limit: Duration) -> anyhow::Result<ExitRecord> {
    let pid = std::fs::read_to_string(directory.join("pid"))?;
    let process = Path::new("/proc").join(pid.trim());
    let began = Instant::now();
    while process.exists() {
        anyhow::ensure!(began.elapsed() < limit, "no end within {} s", limit.as_secs());
        // not a child of this process
        std::thread::sleep(LOOK_INTERVAL);
    }
    record(directory)
}
