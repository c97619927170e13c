//! A virtual node for measuring: the node image without an agent, with the benchmark's disk beside it. The contract with the
//! image is `images/node/README.md`.
//!
//! ```text
//!   start --> booting --"ready"--> up: run(command) ... --> dropped: QEMU is killed by its pid
//!                |                     |
//!                +--- silent too long -+--> Failure::Silent, which a caller answers with another node
//! ```
//!
//! Invariant: QEMU ends with this value, and with this process (`setpriv --pdeathsig`).

use crate::workspace::Workspace;
use anyhow::{Context, Result, anyhow, ensure};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const SCRATCH_BYTES: u64 = 8 << 30;
const MEMORY_MIB: u64 = 4096;
/// Of a whole boot; it takes 5 s on two idle cores, 20 s when instructions are counted.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// Of the control shell; each waits 4 s.
const SYNCHRONISATIONS: u32 = 10;
const END_OF_OUTPUT: u8 = 0x1e;
/// Most output of a command that is kept.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// What time means in the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// 2 ns for each instruction, one processor, one microVM per boot
    Counted,
    /// the wall's, two processors
    Real,
}

/// Nothing was heard for too long: the livelock of emulated nested virtualisation, most often.
#[derive(Debug)]
pub struct Silent(String);

impl Silent {
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl std::fmt::Display for Silent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the virtual node fell silent: {}", self.0)
    }
}

impl std::error::Error for Silent {}

pub struct Node {
    qemu: Child,
    directory: PathBuf,
    commands: u32,
}

impl Node {
    /// Boots a node in `build/bench/node`, with `disk` as its third disk, mounted on `/bench`.
    pub fn start(workspace: &Workspace, disk: &Path, time: Time) -> Result<Self> {
        let directory = workspace.build.join("bench/node");
        if directory.exists() {
            fs::remove_dir_all(&directory).context("clearing the last node's directory")?;
        }
        fs::create_dir_all(&directory)?;
        File::create(directory.join("scratch.raw"))?.set_len(SCRATCH_BYTES)?;
        let log = File::create(directory.join("qemu.log"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args(arguments(&workspace.build.join("node"), disk, time)).current_dir(&directory);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let qemu = command.spawn().context("starting QEMU through setpriv")?;
        let mut node = Self { qemu, directory, commands: 0 };
        node.wait_booted()?;
        let mount = "mkdir -p /bench && for d in /sys/block/*; do [ \"$(cat $d/serial 2>/dev/null)\" != bench ] || \
                     mount -t ext4 -o ro,noatime /dev/${d##*/} /bench; done && /bench/prepare";
        node.run(mount, Duration::from_secs(60)).context("preparing the node")?;
        Ok(node)
    }

    fn wait_booted(&mut self) -> Result<()> {
        let began = Instant::now();
        let (mut seen, mut grown_at) = (0, began);
        loop {
            let console = fs::read(self.directory.join("console.log")).unwrap_or_default();
            let text = String::from_utf8_lossy(&console);
            if text.contains("pinfold-node: ready after ") {
                ensure!(!text.contains("pinfold-node: FAILED"), "the node did not boot well:\n{text}");
                return Ok(());
            }
            if let Some(status) = self.qemu.try_wait()? {
                let log = fs::read_to_string(self.directory.join("qemu.log")).unwrap_or_default();
                return Err(anyhow!("QEMU ended with {status}: {}", log.trim()));
            }
            if console.len() != seen {
                (seen, grown_at) = (console.len(), Instant::now());
            }
            if began.elapsed() > BOOT_LIMIT || grown_at.elapsed() > SILENCE_LIMIT {
                return Err(Silent(format!("not ready after {} s", began.elapsed().as_secs())).into());
            }
            // the console is a file that QEMU writes
            sleep(Duration::from_millis(100));
        }
    }

    /// Runs one line of shell in the node; its output. Another exit code than 0 is an error with the output in it.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        ensure!(
            command.len() < 4000 && !command.contains('\n'),
            "the control shell takes one line of 4,000 bytes"
        );
        let mut stream = self.connect()?;
        self.synchronise(&mut stream)?;
        self.commands += 1;
        let id = format!("bench-{}", self.commands);
        stream.write_all(format!("{id} {command}\n").as_bytes())?;
        let marker = [&[END_OF_OUTPUT], id.as_bytes(), b" "].concat();
        let output = self.read_until(&mut stream, &marker, limit).with_context(|| command.to_owned())?;
        let at = find(&output, &marker).context("the answer has no end")?;
        let text = String::from_utf8_lossy(&output[..at]).into_owned();
        let code = String::from_utf8_lossy(&output[at + marker.len()..]).trim().to_owned();
        ensure!(code == "0", "`{command}` ended with {code} in the node:\n{}", text.trim());
        Ok(text)
    }

    /// A request that does nothing, until one is answered: just after the start nobody may read yet, and the first bytes of an
    /// answer may be lost. The empty line ends what an earlier client left.
    fn synchronise(&mut self, stream: &mut UnixStream) -> Result<()> {
        for _ in 0..SYNCHRONISATIONS {
            self.commands += 1;
            let id = format!("bench-{}", self.commands);
            stream.write_all(format!("\n{id} :\n").as_bytes())?;
            let marker = [&[END_OF_OUTPUT], id.as_bytes(), b" "].concat();
            match self.read_until(stream, &marker, Duration::from_secs(4)) {
                Ok(_) => return Ok(()),
                Err(error) if error.is::<Silent>() => {}
                Err(error) => return Err(error),
            }
        }
        Err(Silent("its control shell does not answer".to_owned()).into())
    }

    fn read_until(&mut self, stream: &mut UnixStream, marker: &[u8], limit: Duration) -> Result<Vec<u8>> {
        let deadline = Instant::now() + limit;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let (mut output, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            if let Some(at) = find(&output, marker)
                && output[at + marker.len()..].contains(&b'\n')
            {
                return Ok(output);
            }
            ensure!(output.len() < OUTPUT_BYTES_MAX, "more than {OUTPUT_BYTES_MAX} bytes of output");
            match stream.read(&mut chunk) {
                Ok(0) => return Err(anyhow!("the node ended")),
                Ok(count) => output.extend_from_slice(&chunk[..count]),
                Err(error) if timed_out(&error) => {
                    if Instant::now() > deadline {
                        let said = String::from_utf8_lossy(&output).into_owned();
                        return Err(
                            Silent(format!("no answer for {} s; so far: {said}", limit.as_secs())).into()
                        );
                    }
                }
                Err(error) => return Err(error).context("reading the control shell"),
            }
        }
    }

    /// Through a descriptor of the directory: the path of a socket has room for 107 bytes.
    fn connect(&self) -> Result<UnixStream> {
        let directory = File::open(&self.directory)?;
        let path = format!("/proc/self/fd/{}/control.sock", directory.as_raw_fd());
        UnixStream::connect(path).context("connecting to the node's control shell")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let _ = fs::remove_file(self.directory.join("scratch.raw"));
    }
}

fn timed_out(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn arguments(image: &Path, disk: &Path, time: Time) -> Vec<String> {
    let acceleration: &[&str] = match time {
        Time::Counted => &["-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off", "-smp", "1"],
        Time::Real => &["-accel", "tcg,thread=multi", "-smp", "2"],
    };
    // a comma in a value of an option is doubled
    let path = |path: &Path| path.display().to_string().replace(',', ",,");
    let read_only = |name: &str, file: &Path| {
        [
            "-drive".to_owned(),
            format!("if=none,id={name},file={},format=raw,readonly=on", path(file)),
            "-device".to_owned(),
            format!("virtio-blk-pci,drive={name},serial={name}"),
        ]
    };
    let mut arguments: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "q35", "-cpu", "max,+svm"]
            .iter()
            .chain(acceleration)
            .map(|&argument| argument.to_owned())
            .collect();
    arguments.extend(read_only("images", &image.join("images.ext4")));
    arguments.extend(read_only("bench", disk));
    for (flag, value) in [
        ("-m", MEMORY_MIB.to_string()),
        ("-kernel", image.join("vmlinuz").display().to_string()),
        ("-initrd", image.join("initrd.cpio").display().to_string()),
        ("-append", "console=ttyS0 reboot=t panic=-1 no5lvl pinfold.node=bench".to_owned()),
        ("-drive", "if=none,id=scratch,file=scratch.raw,format=raw,discard=unmap,cache=unsafe".to_owned()),
        ("-device", "virtio-blk-pci,drive=scratch,serial=scratch".to_owned()),
        ("-netdev", "user,id=net".to_owned()),
        ("-device", "virtio-net-pci,netdev=net,romfile=".to_owned()),
        ("-device", "virtio-rng-pci".to_owned()),
        ("-chardev", "file,id=console,path=console.log".to_owned()),
        ("-serial", "chardev:console".to_owned()),
        ("-chardev", "socket,id=control,path=control.sock,server=on,wait=off".to_owned()),
        ("-serial", "chardev:control".to_owned()),
    ] {
        arguments.extend([flag.to_owned(), value]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_time_has_one_processor() {
        let line = arguments(Path::new("/n"), Path::new("/a,b"), Time::Counted).join(" ");
        assert!(line.contains("-icount shift=1,sleep=off -smp 1"), "{line}");
        assert!(line.contains("file=/a,,b,format=raw,readonly=on"), "{line}");
    }
}
