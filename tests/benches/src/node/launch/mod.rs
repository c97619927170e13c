//! Starting a VMM: ours, or QEMU's `microvm` machine, with the same kernel, disks and memory.

mod ours;
mod qemu;

use crate::clock;
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use pinfold_vmm_api::console::Reader;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// Most console output that is looked at in one go.
const CONSOLE_CHUNK_BYTES: usize = 64 * 1024;
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// Where sockets and files of a run lie, unless told otherwise: a tmpfs.
const DIRECTORY: &str = "/run/bench";
/// Of a guest's network device.
const MAC: [u8; 6] = [0x02, 0x00, 0x00, 0x00, 0x00, 0x01];
/// Disks that are made for a run, in its directory.
const DATA: &str = "data.raw";
const SCRATCH: &str = "scratch.ext4";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
    Pinfold,
    Qemu,
}

/// What to boot.
#[derive(Debug, Clone, Args)]
pub struct Machine {
    #[arg(long, value_enum, default_value = "pinfold")]
    pub vmm: Vmm,
    /// The VMM's binary
    #[arg(long)]
    pub program: PathBuf,
    #[arg(long)]
    pub kernel: PathBuf,
    #[arg(long)]
    pub initrd: Option<PathBuf>,
    /// PATH or PATH:ro
    #[arg(long)]
    pub disk: Vec<String>,
    /// For sockets and files; cleared first
    #[arg(long, default_value = DIRECTORY)]
    pub directory: PathBuf,
    /// One more disk, writable, made for this run with an empty ext4
    #[arg(long)]
    pub scratch_mib: Option<u64>,
    #[arg(long, default_value = "console=ttyS0 panic=-1")]
    pub cmdline: String,
    #[arg(long, default_value_t = 256)]
    pub memory_mib: u64,
    #[arg(long, default_value_t = 1)]
    pub vcpus: u32,
    /// One more disk, writable, made for this run and filled with data
    #[arg(long)]
    pub data_mib: Option<u64>,
    /// A network device over a tap of the node
    #[arg(long)]
    pub tap: bool,
    /// A balloon (ours only)
    #[arg(long)]
    pub balloon: bool,
    #[arg(long)]
    pub without_seccomp: bool,
    /// Transparent huge pages of the node from now on
    #[arg(long, value_enum)]
    pub huge_pages: Option<HugePages>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum HugePages {
    Always,
    Madvise,
    Never,
}

impl Machine {
    /// Path and whether it is read-only.
    pub fn disks(&self) -> Vec<(PathBuf, bool)> {
        let given = self.disk.iter().map(|disk| match disk.strip_suffix(":ro") {
            Some(path) => (PathBuf::from(path), true),
            None => (PathBuf::from(disk), false),
        });
        let data = self.data_mib.map(|_| (self.directory.join(DATA), false));
        given.chain(data).chain(self.scratch_mib.map(|_| (self.scratch(), false))).collect()
    }

    /// The disk of a sandbox.
    pub fn scratch(&self) -> PathBuf {
        self.directory.join(SCRATCH)
    }

    /// In memory, without holes: a hole costs the first write more than the next.
    fn make_data(&self) -> Result<()> {
        let Some(mib) = self.data_mib else { return Ok(()) };
        let mut file = File::create(self.directory.join(DATA)).context("making the data disk")?;
        let piece = vec![0xc3; 1 << 20];
        for _ in 0..mib {
            file.write_all(&piece).context("filling the data disk")?;
        }
        Ok(())
    }

    /// The node agent's disk of a sandbox, with its options.
    fn make_scratch(&self) -> Result<()> {
        let Some(mib) = self.scratch_mib else { return Ok(()) };
        let path = self.scratch();
        File::create(&path).and_then(|file| file.set_len(mib << 20)).context("making the scratch disk")?;
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-F", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal"]);
        mke2fs.args(["-E", "assume_storage_prezeroed=1,nodiscard"]).arg(path);
        let status = mke2fs.status().context("starting mke2fs")?;
        ensure!(status.success(), "mke2fs ended with {status}");
        Ok(())
    }

    /// Sets the node's huge pages, and reads every file that the start will need, so that no run pays for the disk.
    pub fn warm(&self) -> Result<()> {
        if let Some(pages) = self.huge_pages {
            let word = pages.to_possible_value().context("every value has a name")?;
            fs::write(HUGE_PAGES, word.get_name()).with_context(|| format!("writing {HUGE_PAGES}"))?;
        }
        let files = [Some(&self.program), Some(&self.kernel), self.initrd.as_ref()];
        for path in files.into_iter().flatten() {
            let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
            std::io::copy(&mut file, &mut std::io::sink())?;
        }
        Ok(())
    }
}

/// Where a machine begins.
enum Origin<'a> {
    Kernel,
    Snapshot(&'a Template),
}

/// The files of a saved machine.
#[derive(Debug, Clone)]
pub struct Template {
    pub state: PathBuf,
    pub memory: PathBuf,
    pub disk: PathBuf,
    pub working_set: Option<PathBuf>,
}

/// What all snapshots of the benchmark are authenticated with.
pub const KEY: &str = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a";

/// A VMM at work. Dropping it ends it.
pub struct Running {
    pub child: Child,
    pub console: Console,
    /// our control socket
    pub control: Option<PathBuf>,
    /// where a guest agent says hello
    pub hello: Option<UnixListener>,
    /// where the benchmark's guest calls in over vsock
    pub bench_listener: Option<UnixListener>,
    /// the host's end of a virtio serial port
    pub bench_socket: Option<PathBuf>,
    /// just before the process was made
    pub began_us: u64,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes the directory and the disks, and starts the VMM on the kernel.
pub fn start(machine: &Machine) -> Result<Running> {
    clear(&machine.directory)?;
    machine.make_scratch()?;
    machine.make_data()?;
    match machine.vmm {
        Vmm::Pinfold => ours::start(machine, Origin::Kernel),
        Vmm::Qemu => qemu::start(machine),
    }
}

/// Goes on from a snapshot, in a directory of its own with a copy of the disk. Ours only.
pub fn restore(machine: &Machine, template: &Template) -> Result<Running> {
    clear(&machine.directory)?;
    copy_sparse(&template.disk, &machine.scratch())?;
    ours::start(machine, Origin::Snapshot(template))
}

/// An empty directory.
fn clear(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("clearing {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))
}

/// Holes stay holes, and are not read.
pub fn copy_sparse(source: &Path, target: &Path) -> Result<()> {
    let (mut from, to) = (File::open(source)?, File::create(target)?);
    to.set_len(from.metadata()?.len())?;
    let mut at = 0;
    loop {
        let start = match lseek(&from, at, Whence::SeekData) {
            Ok(start) => start,
            // no data behind `at`
            Err(Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error).context("looking for data"),
        };
        at = lseek(&from, start, Whence::SeekHole)?;
        let bytes = u64::try_from(at - start)?;
        from.seek(SeekFrom::Start(u64::try_from(start)?))?;
        (&to).seek(SeekFrom::Start(u64::try_from(start)?))?;
        std::io::copy(&mut (&from).take(bytes), &mut &to)?;
    }
}

/// What the guest's serial port has said.
pub struct Console {
    source: Source,
    seen: Vec<u8>,
}

enum Source {
    Ring(Reader),
    Plain(File),
}

impl Console {
    fn ring(path: &Path) -> Result<Self> {
        Ok(Self { source: Source::Ring(Reader::new(File::open(path)?)), seen: Vec::new() })
    }

    fn plain(path: &Path) -> Result<Self> {
        Ok(Self { source: Source::Plain(File::open(path)?), seen: Vec::new() })
    }

    /// Everything so far.
    pub fn text(&mut self) -> Result<String> {
        let from = self.seen.len() as u64;
        let new = match &self.source {
            Source::Ring(reader) => reader.read(from, CONSOLE_CHUNK_BYTES)?.data,
            Source::Plain(file) => {
                let mut buffer = vec![0; CONSOLE_CHUNK_BYTES];
                let count = file.read_at(&mut buffer, from)?;
                buffer.truncate(count);
                buffer
            }
        };
        self.seen.extend(new);
        Ok(String::from_utf8_lossy(&self.seen).into_owned())
    }
}

fn spawn(command: &mut Command) -> Result<(Child, u64)> {
    let began_us = clock::now_us();
    let child = command.spawn().with_context(|| format!("starting {:?}", command.get_program()))?;
    Ok((child, began_us))
}

fn mac_text() -> String {
    MAC.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let directory = std::env::temp_dir().join(format!("pinfold-bench-copy-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (source, target) = (directory.join("a"), directory.join("b"));
        let file = File::create(&source).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"one", 0).unwrap();
        file.write_all_at(b"two", 40 << 20).unwrap();
        copy_sparse(&source, &target).unwrap();
        let same = fs::read(&source).unwrap() == fs::read(&target).unwrap();
        let blocks = fs::metadata(&target).unwrap().blocks();
        fs::remove_dir_all(&directory).unwrap();
        assert!(same && blocks < 2048, "same: {same}, {blocks} blocks");
    }
}
