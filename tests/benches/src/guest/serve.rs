//! One line asked, one line answered.
//!
//! ```text
//!   ping              ok
//!   exec              ok, after a program has run and ended
//!   send N            N bytes, without a line
//!   take N, N bytes   ok
//!   block KIND MS     {"operations", "bytes", "us"}
//!   net KIND MS       the same
//!   clock             nanoseconds of CLOCK_MONOTONIC
//!   quit              ok, and no more
//! ```

use super::{block, channel, net};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

const LINE_BYTES_MAX: usize = 256;
const CHUNK_BYTES: usize = 64 * 1024;

/// What a timed loop did.
#[derive(Debug, Serialize)]
pub struct Done {
    pub operations: u64,
    pub bytes: u64,
    pub us: u64,
}

/// Repeats `operation`, which says how many bytes it moved, for about `span`.
pub fn repeated(span: Duration, mut operation: impl FnMut() -> Result<u64>) -> Result<Done> {
    let began = Instant::now();
    let (mut operations, mut bytes) = (0, 0);
    while began.elapsed() < span {
        bytes += operation()?;
        operations += 1;
    }
    Ok(Done { operations, bytes, us: began.elapsed().as_micros() as u64 })
}

pub fn serve(channel: &mut File) -> Result<()> {
    let mut input = Vec::new();
    loop {
        let line = line(channel, &mut input)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["ping"] => "ok".to_owned(),
            ["exec"] => exec()?,
            ["send", count] => {
                send(channel, count.parse()?)?;
                continue;
            }
            ["take", count] => take(channel, &mut input, count.parse()?)?,
            ["block", kind, ms] => serde_json::to_string(&block::run(kind, millis(ms)?)?)?,
            ["net", kind, ms] => serde_json::to_string(&net::run(kind, millis(ms)?)?)?,
            ["quit"] => {
                channel.write_all(b"ok\n")?;
                return Ok(());
            }
            _ => bail!("nobody knows how to {line:?}"),
        };
        channel.write_all(format!("{answer}\n").as_bytes()).context("answering")?;
    }
}

fn millis(text: &str) -> Result<Duration> {
    Ok(Duration::from_millis(text.parse()?))
}

fn line(channel: &mut File, input: &mut Vec<u8>) -> Result<String> {
    loop {
        if let Some(end) = input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = input.drain(..=end).collect();
            return Ok(String::from_utf8_lossy(&line).trim().to_owned());
        }
        anyhow::ensure!(input.len() <= LINE_BYTES_MAX, "a line has more than {LINE_BYTES_MAX} bytes");
        let mut chunk = [0; LINE_BYTES_MAX];
        let count = channel::read(channel, &mut chunk)?;
        input.extend_from_slice(&chunk[..count]);
    }
}

fn exec() -> Result<String> {
    let status = Command::new("/init").arg("true").status().context("starting a program")?;
    anyhow::ensure!(status.success(), "the program ended with {status}");
    Ok("ok".to_owned())
}

fn send(channel: &mut File, count: u64) -> Result<()> {
    let chunk = vec![0x5a; CHUNK_BYTES];
    let mut left = count;
    while left > 0 {
        let now = left.min(CHUNK_BYTES as u64);
        channel.write_all(&chunk[..now as usize])?;
        left -= now;
    }
    Ok(())
}

fn take(channel: &mut File, input: &mut Vec<u8>, count: u64) -> Result<String> {
    let already = input.len().min(count as usize);
    input.drain(..already);
    let mut left = count - already as u64;
    let mut chunk = vec![0; CHUNK_BYTES];
    while left > 0 {
        let most = left.min(CHUNK_BYTES as u64) as usize;
        left -= channel::read(channel, &mut chunk[..most])? as u64;
    }
    Ok("ok".to_owned())
}
