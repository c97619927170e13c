//! Loops over `/dev/vda`, past the guest's page cache.

use super::serve::{Done, repeated};
use super::set_up::appears;
use anyhow::{Context, Result, bail, ensure};
use nix::libc::O_DIRECT;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const DEVICE: &str = "/dev/vda";
/// O_DIRECT wants buffers aligned to the device's block; a page is enough for all.
const ALIGNMENT: usize = 4096;
const SEQUENTIAL_BYTES: usize = 128 * 1024;
const RANDOM_BYTES: usize = 4096;
/// Requests in flight in the loops that have several: one thread each.
const DEPTH: u64 = 8;

/// `read`, `write`: sequential. `random-read`, `random-write`: one at a time. `deep-read`, `deep-write`: random, [`DEPTH`] at
/// a time. `flush`: one small write and a flush.
pub fn run(kind: &str, span: Duration) -> Result<Done> {
    ensure!(appears(|| Path::new(DEVICE).exists()), "{DEVICE} does not appear");
    let device = open()?;
    let bytes = (&device).seek(SeekFrom::End(0))?;
    ensure!(bytes >= 1 << 20, "{DEVICE} has {bytes} bytes, at least 1 MiB is needed");
    match kind {
        "read" => sequential(&device, bytes, span, |buffer, at| device.read_exact_at(buffer, at)),
        "write" => sequential(&device, bytes, span, |buffer, at| device.write_all_at(buffer, at)),
        "random-read" => random(&device, bytes, span, 1, false),
        "random-write" => random(&device, bytes, span, 1, true),
        "deep-read" => deep(bytes, span, false),
        "deep-write" => deep(bytes, span, true),
        "flush" => flush(&device, bytes, span),
        _ => bail!("no block loop is called {kind}"),
    }
}

fn open() -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(O_DIRECT).open(DEVICE).context(DEVICE)
}

/// A buffer whose first byte is aligned, by its offset in a larger one.
struct Buffer {
    memory: Vec<u8>,
    from: usize,
    bytes: usize,
}

impl Buffer {
    fn new(bytes: usize) -> Self {
        let memory = vec![0xa5; bytes + ALIGNMENT];
        let from = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, from, bytes }
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + self.bytes]
    }
}

fn sequential(
    _device: &File,
    bytes: u64,
    span: Duration,
    mut act: impl FnMut(&mut [u8], u64) -> std::io::Result<()>,
) -> Result<Done> {
    let mut buffer = Buffer::new(SEQUENTIAL_BYTES);
    let pieces = bytes / SEQUENTIAL_BYTES as u64;
    let mut next = 0;
    repeated(span, || {
        act(buffer.slice(), next % pieces * SEQUENTIAL_BYTES as u64)?;
        next += 1;
        Ok(SEQUENTIAL_BYTES as u64)
    })
}

fn random(device: &File, bytes: u64, span: Duration, seed: u64, write: bool) -> Result<Done> {
    let mut buffer = Buffer::new(RANDOM_BYTES);
    let pieces = bytes / RANDOM_BYTES as u64;
    let mut state = seed;
    repeated(span, || {
        // a linear congruential generator (Knuth, MMIX): the same places under every VMM
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (state >> 33) % pieces * RANDOM_BYTES as u64;
        if write {
            device.write_all_at(buffer.slice(), at)?;
        } else {
            device.read_exact_at(buffer.slice(), at)?;
        }
        Ok(RANDOM_BYTES as u64)
    })
}

fn deep(bytes: u64, span: Duration, write: bool) -> Result<Done> {
    let began = Instant::now();
    let workers: Vec<_> =
        (1..=DEPTH).map(|seed| thread::spawn(move || random(&open()?, bytes, span, seed, write))).collect();
    let mut sum = Done { operations: 0, bytes: 0, us: 0 };
    for worker in workers {
        let done = worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        sum.operations += done.operations;
        sum.bytes += done.bytes;
    }
    sum.us = began.elapsed().as_micros() as u64;
    Ok(sum)
}

fn flush(device: &File, bytes: u64, span: Duration) -> Result<Done> {
    let mut buffer = Buffer::new(RANDOM_BYTES);
    let pieces = bytes / RANDOM_BYTES as u64;
    let mut next = 0;
    repeated(span, || {
        device.write_all_at(buffer.slice(), next % pieces * RANDOM_BYTES as u64)?;
        device.sync_data()?;
        next += 1;
        Ok(RANDOM_BYTES as u64)
    })
}
