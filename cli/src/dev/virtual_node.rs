//! A virtual node: a worker host in a QEMU machine, with a `/dev/kvm` that runs stock guests on any computer. The
//! contract with the node's image is `images/node/README.md`.
//!
//! ```text
//!   launch --> Booting --"ready" on the console--> Up --poweroff, kill--> gone
//!                 |                                 |
//!                 +-- console silent for too long --+-- control shell silent --> Silent: kill it by its pid, say so
//! ```
//!
//! Emulated nested virtualisation livelocks now and then: a CPU spins, console and control shell fall silent. So every
//! wait here has a bound, and silence is an error of its own kind ([`NodeFailure::Silent`]), which a caller may answer
//! with a new node.

use super::artifacts::NodeFiles;
use super::control_shell::{Answer, ControlShell};
use super::file_watch::DirectoryWatch;
use super::process::{ProcessRef, spawn_detached};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Of the sparse file; nothing is taken until it is written.
const SCRATCH_BYTES: u64 = 32 * 1024 * 1024 * 1024;
/// Console lines that an error shows.
const TAIL_LINES: usize = 25;

/// How QEMU runs the node's own code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// everything is emulated, with SVM and nested paging
    Emulated,
    /// the host's own virtualisation
    Kvm,
}

/// What a node is made of.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// letters, digits, `-`
    pub name: String,
    pub memory_mib: u64,
    pub cpus: u32,
    pub acceleration: Acceleration,
    /// `http://127.0.0.1:PORT` on this machine
    pub scheduler: String,
    pub labels: Vec<(String, String)>,
}

/// Bounds of a start.
#[derive(Debug, Clone, Copy)]
pub struct StartLimits {
    pub whole: Duration,
    /// without a new byte on the console
    pub silence: Duration,
}

impl Default for StartLimits {
    fn default() -> Self {
        // a boot takes 4 s on two idle cores, and its longest silence is 1 s; the rest is for machines that are busy
        Self { whole: Duration::from_secs(180), silence: Duration::from_secs(40) }
    }
}

/// Why a node did not come up.
#[derive(Debug, thiserror::Error)]
pub enum NodeFailure {
    /// nothing on the console or the control shell: the livelock of emulated nested virtualisation
    #[error("node {name} fell silent: {what}")]
    Silent { name: String, what: String },
    #[error("node {name}: {what}\nthe end of its console:\n{console}")]
    Failed { name: String, what: String, console: String },
}

/// A node that was launched. Dropping it does not end it: see [`Self::kill`].
#[derive(Debug, Clone)]
pub struct VirtualNode {
    pub name: String,
    pub directory: PathBuf,
    pub process: ProcessRef,
}

impl VirtualNode {
    /// Writes the node's files into `directory` (which must not exist) and starts QEMU.
    pub fn launch(qemu: &Path, files: &NodeFiles, directory: &Path, options: &NodeOptions) -> Result<Self> {
        let context = || format!("cannot prepare node {} in {}", options.name, directory.display());
        std::fs::create_dir(directory).with_context(context)?;
        let scratch = File::create(directory.join("scratch.raw")).with_context(context)?;
        scratch.set_len(SCRATCH_BYTES).with_context(context)?;
        std::fs::write(directory.join("node-agent.toml"), agent_config(options)).with_context(context)?;
        File::create(directory.join("console.log")).with_context(context)?;
        let process =
            spawn_detached(qemu, &arguments(files, options), directory, &directory.join("qemu.log"))?;
        Ok(Self { name: options.name.clone(), directory: directory.to_owned(), process })
    }

    pub fn console_path(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// The last lines of the console.
    pub fn console_tail(&self, lines: usize) -> String {
        tail(&self.console_path(), lines).unwrap_or_else(|error| format!("(cannot be read: {error})"))
    }

    pub fn control(&self) -> ControlShell {
        ControlShell::new(self.directory.join("control.sock"))
    }

    /// Runs one line of shell in the node.
    pub async fn run(&self, command: &str, limit: Duration) -> Result<Answer> {
        self.control().run(command, limit).await
    }

    /// It answers on its control shell.
    pub async fn answers(&self, limit: Duration) -> bool {
        self.process.is_alive() && self.run("true", limit).await.is_ok_and(|answer| answer.code == 0)
    }

    fn failed(&self, what: impl Into<String>) -> NodeFailure {
        let mut console = self.console_tail(TAIL_LINES);
        if console.is_empty() {
            console = tail(&self.directory.join("qemu.log"), TAIL_LINES).unwrap_or_default();
        }
        NodeFailure::Failed { name: self.name.clone(), what: what.into(), console }
    }

    /// Waits until the boot script says that the node is ready; the seconds that it took, by the node's own clock.
    pub async fn wait_booted(&self, limits: StartLimits) -> Result<String, NodeFailure> {
        let failed = |error: anyhow::Error| self.failed(format!("{error:#}"));
        let mut watch = DirectoryWatch::new(&self.directory).map_err(failed)?;
        let deadline = Instant::now() + limits.whole;
        let (mut seen, mut grown_at) = (0, Instant::now());
        loop {
            let console = std::fs::read(self.console_path())
                .map_err(|error| self.failed(format!("its console cannot be read: {error}")))?;
            let console = String::from_utf8_lossy(&console);
            if let Some(line) = console.lines().find(|line| line.contains("pinfold-node: FAILED")) {
                return Err(self.failed(format!("a step of its boot failed: {line}")));
            }
            if let Some((_, after)) = console.split_once("pinfold-node: ready after ")
                && let Some((seconds, _)) = after.split_once(' ')
            {
                return Ok(seconds.to_owned());
            }
            if !self.process.is_alive() {
                return Err(self.failed("QEMU ended while the node booted"));
            }
            if console.len() != seen {
                (seen, grown_at) = (console.len(), Instant::now());
            }
            // writes to the node's disk wake us too; only the console counts as life
            let silent_at = grown_at + limits.silence;
            let now = Instant::now();
            if now >= deadline {
                return Err(self.failed(format!("it did not boot within {} s", limits.whole.as_secs())));
            }
            if now >= silent_at {
                let what = format!("nothing on its console for {} s", limits.silence.as_secs());
                return Err(NodeFailure::Silent { name: self.name.clone(), what });
            }
            if let Ok(changed) = tokio::time::timeout_at(deadline.min(silent_at), watch.changed()).await {
                changed.map_err(failed)?;
            }
        }
    }

    /// Powers the node off through its control shell; ends QEMU by its pid when that does not help in `grace`.
    pub async fn power_off(&self, grace: Duration) -> Result<()> {
        if self.process.is_alive() {
            // the node does not answer any more: the end of QEMU is the answer
            let off = self.control();
            let asked = async { off.run("sync; poweroff -f", grace).await.is_ok() };
            tokio::select! {
                ended = self.process.wait(grace) => {
                    if ended? {
                        return Ok(());
                    }
                }
                _ = asked => {
                    if self.process.wait(grace).await? {
                        return Ok(());
                    }
                }
            }
        }
        self.process.end(Duration::from_secs(2)).await
    }

    /// Ends QEMU at once, by its pid.
    pub async fn kill(&self) -> Result<()> {
        self.process.kill().await
    }
}

/// The last `lines` of a file, of which at most 64 KiB are read.
fn tail(path: &Path, lines: usize) -> std::io::Result<String> {
    const MOST: u64 = 64 * 1024;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MOST)))?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().map(|line| line.trim_end_matches('\r')).collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}

/// The agent's configuration as the node sees things: 10.0.2.2 is the loopback of this machine.
fn agent_config(options: &NodeOptions) -> String {
    let scheduler = options.scheduler.replace("127.0.0.1", "10.0.2.2");
    let mut text = format!(
        "node_id = {:?}\nscheduler = {scheduler:?}\n# more than there is: sandboxes of a dev fleet are mostly idle\n\
         cpu_millis = {}\n",
        options.name,
        u64::from(options.cpus) * 4000,
    );
    if !options.labels.is_empty() {
        text.push_str("\n[labels]\n");
        for (key, value) in &options.labels {
            text.push_str(&format!("{key:?} = {value:?}\n"));
        }
    }
    text
}

fn arguments(files: &NodeFiles, options: &NodeOptions) -> Vec<String> {
    let acceleration: &[&str] = match options.acceleration {
        Acceleration::Emulated => &["-accel", "tcg,thread=multi", "-cpu", "max,+svm"],
        Acceleration::Kvm => &["-accel", "kvm", "-cpu", "host"],
    };
    let name = &options.name;
    // a comma in a value of an option is doubled
    let path = |path: &Path| path.display().to_string().replace(',', ",,");
    let append = format!("console=ttyS0 reboot=t panic=-1 no5lvl pinfold.node={name}");
    let mut arguments: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "q35"]
            .iter()
            .chain(acceleration)
            .map(|&argument| argument.to_owned())
            .collect();
    let images = format!("if=none,id=images,file={},format=raw,readonly=on", path(&files.images));
    for (flag, value) in [
        ("-name", format!("pinfold-node-{name}")),
        ("-smp", options.cpus.to_string()),
        ("-m", options.memory_mib.to_string()),
        ("-kernel", files.kernel.display().to_string()),
        ("-initrd", files.initrd.display().to_string()),
        ("-append", append),
        ("-drive", images),
        ("-device", "virtio-blk-pci,drive=images,serial=images".to_owned()),
        // the working directory is the node's: sockets have short paths
        ("-drive", "if=none,id=scratch,file=scratch.raw,format=raw,discard=unmap,cache=unsafe".to_owned()),
        ("-device", "virtio-blk-pci,drive=scratch,serial=scratch".to_owned()),
        ("-netdev", "user,id=net".to_owned()),
        ("-device", "virtio-net-pci,netdev=net,romfile=".to_owned()),
        ("-device", "virtio-rng-pci".to_owned()),
        ("-chardev", "file,id=console,path=console.log,append=on".to_owned()),
        ("-serial", "chardev:console".to_owned()),
        ("-chardev", "socket,id=control,path=control.sock,server=on,wait=off".to_owned()),
        ("-serial", "chardev:control".to_owned()),
        ("-fw_cfg", "name=opt/pinfold/node-agent.toml,file=node-agent.toml".to_owned()),
        ("-pidfile", "qemu.pid".to_owned()),
    ] {
        arguments.extend([flag.to_owned(), value]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> NodeOptions {
        NodeOptions {
            name: "node-1".into(),
            memory_mib: 1024,
            cpus: 2,
            acceleration: Acceleration::Emulated,
            scheduler: "http://127.0.0.1:40001".into(),
            labels: vec![("kind".into(), "virtual".into())],
        }
    }

    #[test]
    fn the_agent_is_told_how_the_node_sees_this_machine() {
        assert_eq!(
            agent_config(&options()),
            "node_id = \"node-1\"\nscheduler = \"http://10.0.2.2:40001\"\n\
             # more than there is: sandboxes of a dev fleet are mostly idle\ncpu_millis = 8000\n\n\
             [labels]\n\"kind\" = \"virtual\"\n"
        );
    }

    #[test]
    fn a_comma_in_a_path_does_not_become_an_option() {
        let file = |name: &str| Path::new("/a,readonly=off").join(name);
        let files = NodeFiles { kernel: file("k"), initrd: file("i"), images: file("images.ext4") };
        let line = arguments(&files, &options()).join(" ");
        assert!(line.contains("file=/a,,readonly=off/images.ext4,format=raw,readonly=on"), "{line}");
        assert!(line.contains("-accel tcg,thread=multi -cpu max,+svm"));
    }

    fn a_process(directory: &Path) -> VirtualNode {
        let process =
            spawn_detached(Path::new("/bin/sleep"), &["60"], directory, &directory.join("qemu.log")).unwrap();
        VirtualNode { name: "n".into(), directory: directory.to_owned(), process }
    }

    fn limits(silence_ms: u64) -> StartLimits {
        StartLimits { whole: Duration::from_secs(20), silence: Duration::from_millis(silence_ms) }
    }

    #[tokio::test]
    async fn a_silent_console_is_found_and_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let node = a_process(directory.path());
        std::fs::write(node.console_path(), "Linux version\n").unwrap();
        let failure = node.wait_booted(limits(200)).await.unwrap_err();
        assert!(matches!(failure, NodeFailure::Silent { .. }), "{failure}");
        node.kill().await.unwrap();
        let failure = node.wait_booted(limits(200)).await.unwrap_err();
        assert!(failure.to_string().contains("QEMU ended while the node booted"), "{failure}");
        assert!(failure.to_string().contains("Linux version"), "{failure}");
    }

    #[tokio::test]
    async fn the_ready_line_and_a_failed_step_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let node = a_process(directory.path());
        std::fs::write(node.console_path(), "x\npinfold-node: ready after 3.41 s, kvm 1\n").unwrap();
        assert_eq!(node.wait_booted(limits(200)).await.unwrap(), "3.41");
        std::fs::write(node.console_path(), "pinfold-node: FAILED mount -t cgroup2\n").unwrap();
        let failure = node.wait_booted(limits(200)).await.unwrap_err();
        assert!(failure.to_string().contains("FAILED mount -t cgroup2"), "{failure}");
        node.kill().await.unwrap();
    }
}
