//! Machines of the node without an agent, a jail or an image: the VMM's own promises, with a Linux guest that is busybox.
//!
//! `boot` (`vmm/examples/boot`) starts them and asks them. It is no part of a node, so the node fetches it from this process. The
//! guest's init says `READY` through the kernel's log, counts on each of two processors, and has a shell on its network.
//!
//! ```text
//!   this process --control shell--> node: boot start, ask, snapshot --control socket--> VMM
//!                                   node: nc 10.9.0.2 --tap--> the guest's shell
//! ```

use crate::context::Context;
use anyhow::{Context as _, Result, bail, ensure};
use pinfold_cli::dev::artifacts;
use pinfold_domain::SandboxId;
use pinfold_vmm_api::control::{
    ExitRecord, MachineState, Request, Response, SnapshotKind, SnapshotTaken, Status,
};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

/// In the node.
const HERE: &str = "/run/bare";
/// Its command line is the image's too.
const IMAGE: &str = "/var/lib/pinfold/images/kernels/pinfold";
pub const MEMORY_MIB: u64 = 160;
/// As in `vmm/examples/boot/wire.rs`.
const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// For the node to fetch a program of a few megabytes.
const FETCH_LIMIT: Duration = Duration::from_secs(60);
/// For a guest to do something that takes it a moment.
const EVENTUALLY: Duration = Duration::from_secs(40);

/// Names of processor features that a guest tells of: all of them would be more than its kernel's log takes at once.
pub const BASE_V2: [&str; 3] = ["sse4_2", "popcnt", "cx16"];
/// Beyond x86-64-v2 and in v3; beyond both.
pub const OF_V3: [&str; 5] = ["avx", "avx2", "bmi2", "fma", "movbe"];
pub const BEYOND_V3: [&str; 3] = ["sha_ni", "adx", "vaes"];
/// Virtualisation, which no guest sees.
pub const HIDDEN: [&str; 2] = ["vmx", "svm"];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /bin /proc /sys /dev /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
say() { echo "<1>$*" >/dev/kmsg; }
trap 'say THE BUTTON WAS PRESSED; poweroff -f' TERM
for c in 0 1; do
    taskset $((1 << c)) sh -c "n=0; while :; do n=\$((n+1)); echo \$n >/tmp/new$c; mv /tmp/new$c /tmp/count$c; sleep 0.1; done" &
done
[ ! -e /sys/class/net/eth0 ] || ifconfig eth0 10.9.0.2 up
nc -ll -p 7 -e /bin/sh &
say processors $(nproc)
for flag in $(grep -m1 ^flags /proc/cpuinfo); do
    case " ASKED_FLAGS " in *" $flag "*) flags="$flags $flag";; esac
done
say flags $flags
say READY
while :; do sleep 0.2; done
"#;

/// The programs, in the node.
pub struct Bare {
    context: Context,
}

pub struct Machine<'a> {
    bare: &'a Bare,
    directory: String,
}

impl Bare {
    /// Brings the program and the guest's root into the node, once, and ends what an earlier case left.
    pub async fn new(context: Context) -> Result<Self> {
        let bare = Self { context };
        if bare.node("test -x {}/boot").await.is_err() {
            bare.fetch().await?;
        }
        bare.clear().await?;
        Ok(bare)
    }

    /// A command in the node, with `{}` for the directory.
    pub async fn node(&self, command: &str) -> Result<String> {
        self.context.in_node(&command.replace("{}", HERE)).await
    }

    async fn fetch(&self) -> Result<()> {
        let program = artifacts::program("examples/boot")?;
        let program = std::fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
        let asked = [&BASE_V2[..], &OF_V3, &BEYOND_V3, &HIDDEN].concat().join(" ");
        let init = INIT.replace("ASKED_FLAGS", &asked).replace('\'', "'\\''").replace('\n', "\\n");
        let root = format!(
            "mkdir -p {{}}/root/bin {{}}/root/dev && cd {{}}/root && cp /bin/busybox bin && mknod dev/console c 5 1 && \
             printf '%b' '{}' > init && chmod 755 init && find . | cpio -o -H newc > ../initrd",
            init.replace("\\$", "\\\\$")
        );
        self.node(&root).await?;
        self.node("printf '%s' {key} > {}/key".replace("{key}", KEY).as_str()).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let serve = async {
            let (mut stream, _) = listener.accept().await?;
            stream.write_all(&program).await?;
            stream.shutdown().await?;
            anyhow::Ok(())
        };
        let fetch = format!(
            "nc 10.0.2.2 {port} </dev/null > {{}}/new && chmod 755 {{}}/new && mv {{}}/new {{}}/boot"
        );
        let fetch = self.node(&fetch);
        let both = async { tokio::try_join!(serve, fetch) };
        tokio::time::timeout(FETCH_LIMIT, both).await.context("the node does not fetch its program")??;
        let bytes = self.node("stat -c %s {}/boot").await?;
        ensure!(bytes.trim() == program.len().to_string(), "{bytes} bytes of {} arrived", program.len());
        Ok(())
    }

    /// Ends every machine, by its pid, and removes what they have left.
    pub async fn clear(&self) -> Result<()> {
        let end = "cd {}; for p in m-*/pid; do [ ! -e $p ] || kill -9 $(cat $p) 2>/dev/null; done; rm -rf m-* saved-*; \
                   echo 0 > /proc/sys/vm/nr_hugepages";
        self.node(end).await.map(drop)
    }

    /// Boots a machine with further options of `boot`.
    pub async fn boot(&self, name: &str, options: &str) -> Result<Machine<'_>> {
        let guest = format!(
            "--kernel {IMAGE}/vmlinux --initrd {{}}/initrd --cmdline \"$(awk -F'\"' '/\"cmdline\"/ {{print $4}}' {IMAGE}/kernel.json)\""
        );
        self.start(name, &format!("{guest} {options}")).await
    }

    pub async fn start(&self, name: &str, options: &str) -> Result<Machine<'_>> {
        let directory = format!("{HERE}/m-{name}");
        let command = format!(
            "{{}}/boot start --vmm /usr/bin/pinfold-vmm --directory {directory} --memory-mib {MEMORY_MIB} {options}"
        );
        self.node(&command).await?;
        Ok(Machine { bare: self, directory })
    }

    /// Asks the VMM of a sandbox, past its agent.
    pub async fn ask_sandbox(&self, id: SandboxId, request: &Request) -> Result<Response> {
        let find = format!("find /var/lib/pinfold/sandboxes/{id} -type s -name 'control*'");
        let socket = self.node(&find).await?;
        ensure!(socket.lines().count() == 1, "its control socket is one of {socket:?}");
        let request = serde_json::to_string(request)?;
        let answer = self.node(&format!("{{}}/boot ask {} '{request}'", socket.trim())).await?;
        serde_json::from_str(answer.trim()).with_context(|| format!("not understood: {answer:?}"))
    }

    /// Two snapshots, in directories of the node, become one.
    pub async fn merge(&self, base: &str, diff: &str, into: &str) -> Result<()> {
        let merge = "mkdir -p {}/saved-INTO && pinfold-vmm snapshot-merge --key-file {}/key --base {}/saved-BASE \
                     --diff {}/saved-DIFF --into {}/saved-INTO";
        let merge = merge.replace("INTO", into).replace("BASE", base).replace("DIFF", diff);
        self.node(&merge).await.map(drop)
    }
}

impl Machine<'_> {
    /// What the console has said, once it has said `text`.
    pub async fn says(&self, text: &str) -> Result<String> {
        self.bare.node(&format!("{{}}/boot wait {} '{text}'", self.directory)).await
    }

    pub async fn ask(&self, request: &Request) -> Result<Response> {
        let request = serde_json::to_string(request)?;
        let answer = self.bare.node(&format!("{{}}/boot ask {}/control '{request}'", self.directory)).await?;
        serde_json::from_str(answer.trim()).with_context(|| format!("not understood: {answer:?}"))
    }

    pub async fn done(&self, request: &Request) -> Result<()> {
        let answer = self.ask(request).await?;
        ensure!(answer == Response::Done, "{request:?} was answered {answer:?}");
        Ok(())
    }

    pub async fn status(&self) -> Result<Status> {
        match self.ask(&Request::Status).await? {
            Response::Status(status) => Ok(status),
            other => bail!("a status was answered {other:?}"),
        }
    }

    /// Pauses, saves as `saved-NAME`, and leaves it paused.
    pub async fn save(&self, name: &str, kind: SnapshotKind) -> Result<SnapshotTaken> {
        self.done(&Request::Pause).await?;
        ensure!(self.status().await?.state == MachineState::Paused);
        let kind = serde_json::to_value(kind)?;
        let kind = kind.as_str().context("a kind is a word")?;
        let snapshot = format!("{{}}/boot snapshot {}/control {{}}/saved-{name} {kind}", self.directory);
        let answer = self.bare.node(&snapshot).await?;
        match serde_json::from_str(answer.trim())? {
            Response::Snapshot(taken) => Ok(taken),
            other => bail!("a snapshot was answered {other:?}"),
        }
    }

    /// A script in the guest, over its network; what it prints.
    pub async fn guest(&self, script: &str) -> Result<String> {
        let script = script.replace('\'', "'\\''");
        let command = format!("echo '{script}; echo the end' | timeout 30 nc -w 10 10.9.0.2 7");
        let output = self.bare.node(&command).await.context("the guest's shell")?;
        let output = output.strip_suffix("the end\n").with_context(|| format!("it is cut: {output:?}"))?;
        Ok(output.to_owned())
    }

    /// Until `holds`, which looks at what the guest prints for `script`.
    pub async fn guest_until(&self, script: &str, holds: impl Fn(&str) -> bool) -> Result<String> {
        let mut last = String::new();
        let until = async {
            loop {
                last = self.guest(script).await.unwrap_or_else(|error| format!("{error:#}"));
                if holds(&last) {
                    return last.clone();
                }
                // it is the guest's own doing: there is nothing to wait on
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        };
        let found = tokio::time::timeout(EVENTUALLY, until).await.ok();
        found.with_context(|| format!("{script:?} prints {last:?} still"))
    }

    /// The host's end of its network has an address.
    pub async fn connect(&self, tap: &str) -> Result<()> {
        self.bare.node(&format!("ifconfig {tap} 10.9.0.1 netmask 255.255.255.0 up")).await.map(drop)
    }

    /// The largest mapping of guest memory: path, bytes of a page, flags (proc(5), smaps).
    pub async fn memory(&self) -> Result<(String, u64, Vec<String>)> {
        let script = format!(
            "awk '/^[0-9a-f]+-/ {{name = $6}} /^Size:/ {{size = $2}} /^KernelPageSize:/ {{page = $2}} \
             /^VmFlags:/ {{if (size > most) {{most = size; line = (name ? name : \"none\") \" \" page \" \" $0}}}} END {{print line}}' \
             /proc/$(cat {}/pid)/smaps",
            self.directory
        );
        let output = self.bare.node(&script).await?;
        let mut words = output.split_whitespace().map(str::to_owned);
        let name = words.next().context("no mapping")?;
        let page_kib: u64 = words.next().context("no size of a page")?.parse()?;
        Ok((name, page_kib * 1024, words.skip(1).collect()))
    }

    /// Why it ended, once it has.
    pub async fn ended(&self) -> Result<ExitRecord> {
        let record = self.bare.node(&format!("{{}}/boot end {}", self.directory)).await?;
        serde_json::from_str(record.trim()).with_context(|| format!("not understood: {record:?}"))
    }

    pub async fn kill(&self) -> Result<()> {
        ensure!(self.ask(&Request::Kill).await? == Response::Killed);
        self.ended().await.map(drop)
    }
}
