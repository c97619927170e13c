//! The seccomp filters against a life of real work: a rule that nothing needs is a hole without a use.
//!
//! The node's kernel counts the system calls of the VMM's threads, by number and, where several rules are about one call,
//! by the argument that tells them apart. Whatever a bound thread calls has matched a rule, or the thread would be
//! gone, so a rule without a count was not used.

use crate::bare::Bare;
use crate::context::Context;
use anyhow::{Context as _, Result, bail, ensure};
use pinfold_sdk::{ExecOptions, WriteOptions};
use pinfold_vmm_api::control::{Request, Response};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const TRACING: &str = "/sys/kernel/tracing";
/// The trace point of every system call, and its field with the number.
const EVERY: (&str, &str) = ("raw_syscalls/sys_enter", "id");

/// One rule of `pinfold-vmm rules`.
#[derive(Debug, Deserialize)]
struct Rule {
    thread: String,
    call: u64,
    values: Vec<(u8, u64)>,
    why: String,
    kept: Option<String>,
}

/// Calls with several rules in one filter: number, trace point, its field, which argument that is.
const TOLD_APART: [(u64, &str, &str, u8); 5] = [
    (8, "syscalls/sys_enter_lseek", "whence", 2),
    (16, "syscalls/sys_enter_ioctl", "cmd", 1),
    (28, "syscalls/sys_enter_madvise", "behavior", 2),
    (72, "syscalls/sys_enter_fcntl", "cmd", 1),
    (234, "syscalls/sys_enter_tgkill", "sig", 2),
];

/// Kind of thread, value of the field.
type Seen = BTreeSet<(&'static str, u64)>;

pub async fn every_seccomp_rule_is_used(context: Context) -> Result<()> {
    let rules: Vec<Rule> = serde_json::from_str(&context.in_node("pinfold-vmm rules").await?)?;
    let id = context.sandbox().await?;
    context.in_node(&format!("mountpoint -q {TRACING} || mount -t tracefs tracefs {TRACING}")).await?;
    // those that are bound by now: what a thread does before that is not a rule's business
    let bound = "for t in /proc/[0-9]*/task/[0-9]*; do grep -q '^Seccomp:.2' $t/status 2>/dev/null && echo ${t##*/} $(cat $t/comm); done; true";
    let threads = threads(&context.in_node(bound).await?)?;
    count(&context, true).await?;
    let worked = work(&context, id).await;
    let seen = read(&context, &threads).await;
    count(&context, false).await?;
    worked?;
    let seen = seen?;
    let mut unused = Vec::new();
    for rule in &rules {
        let used = match (used(rule, &rules, &seen), &rule.kept) {
            (Err(_), Some(_)) => None,
            (used, _) => used?,
        };
        let Rule { thread, call, values, why, kept } = rule;
        let line = format!("  {thread} thread, call {call} {values:x?}: {why}");
        match (used, kept) {
            (Some(false), None) => unused.push(line),
            (Some(true), Some(kept)) => println!("{line} (used, and kept for: {kept})"),
            _ => {}
        }
    }
    ensure!(
        unused.is_empty(),
        "nothing uses these rules: take them out, or say in vmm/src/seccomp/kept.rs why they stay\n{}",
        unused.join("\n")
    );
    Ok(())
}

/// Everything that a sandbox does in its life, but for its end by its own hand.
async fn work(context: &Context, id: pinfold_domain::SandboxId) -> Result<()> {
    // disk: write, read back past the cache, flush, discard
    let disk = "dd if=/dev/urandom of=/var/tmp/f bs=64k count=64 2>/dev/null && sync && \
        echo 3 > /proc/sys/vm/drop_caches; cat /var/tmp/f | wc -c; rm /var/tmp/f; fstrim / 2>/dev/null; sync";
    context.shell(id, disk).await?;
    // random numbers of the host
    context.shell(id, "head -c 64 /dev/hwrng 2>/dev/null | wc -c").await?;
    // vsock in both directions, more than a credit
    let content = vec![7; 1 << 20];
    context.client.write_file(id, "/tmp/big", WriteOptions::default(), &mut content.as_slice()).await?;
    let read = context.client.read_file(id, "/tmp/big", None).await?.bytes(2 << 20).await?;
    ensure!(read.len() == 1 << 20);
    context.exec(id, ExecOptions::command(["sh", "-c", "cat > /dev/null"])).await?;
    // a port of the host that nobody serves: the VMM looks for its socket
    let call = "import socket\ns = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)\n\
        try: s.connect((2, 9))\nexcept OSError as error: print(error)\n";
    context.exec(id, ExecOptions::command(["python3", "-c", call])).await?;
    // console
    context.shell(id, "echo from the guest > /dev/console").await?;
    // saved while it runs
    let saved = context.client.create_snapshot(id, "rules", None).await?;
    context.client.wait_snapshot(saved.id, Duration::from_secs(60)).await?;
    context.client.delete_snapshot(saved.id).await?;
    // the status, which the agent asks for now and then
    let status = Bare::new(context.clone()).await?.ask_sandbox(id, &Request::Status).await?;
    ensure!(matches!(status, Response::Status(_)), "a status was answered {status:?}");
    context.client.stop(id, None).await?;
    context.ended(id).await?;
    Ok(())
}

/// Thread id to kind of thread.
fn threads(text: &str) -> Result<BTreeMap<u64, &'static str>> {
    let mut threads = BTreeMap::new();
    for line in text.lines() {
        let (id, name) = line.split_once(' ').with_context(|| line.to_owned())?;
        let kind = match name {
            "pinfold-vmm" => "devices",
            "disk" => "worker",
            "pages" => "pages",
            vcpu if vcpu.starts_with("vcpu") => "vcpu",
            // something else of the node is under seccomp
            _ => continue,
        };
        threads.insert(id.parse()?, kind);
    }
    for kind in ["devices", "vcpu"] {
        ensure!(threads.values().any(|seen| *seen == kind), "no {kind} thread of a VMM among {text:?}");
    }
    Ok(threads)
}

/// Each trace point with the field that is counted.
fn points() -> impl Iterator<Item = (&'static str, &'static str)> {
    std::iter::once(EVERY).chain(TOLD_APART.map(|(_, point, field, _)| (point, field)))
}

async fn count(context: &Context, on: bool) -> Result<()> {
    for (point, field) in points() {
        let sign = if on { "" } else { "!" };
        let trigger = format!("{sign}hist:keys=common_pid,{field}:size=8192");
        context.in_node(&format!("echo '{trigger}' > {TRACING}/events/{point}/trigger")).await?;
    }
    Ok(())
}

/// What was counted for `threads`, by trace point.
async fn read(
    context: &Context,
    threads: &BTreeMap<u64, &'static str>,
) -> Result<BTreeMap<&'static str, Seen>> {
    let mut all = BTreeMap::new();
    for (point, field) in points() {
        let text = context.in_node(&format!("grep '^{{' {TRACING}/events/{point}/hist || true")).await?;
        all.insert(point, text.lines().filter_map(|line| entry(line, field, threads)).collect());
    }
    Ok(all)
}

/// `{ common_pid:  123, id:  16 } hitcount:  5`
fn entry(line: &str, field: &str, threads: &BTreeMap<u64, &'static str>) -> Option<(&'static str, u64)> {
    let number = |key: &str| {
        let rest = line.split(&format!("{key}:")).nth(1)?;
        rest.trim_start().split([' ', ',', '}']).next()?.parse().ok()
    };
    // "common_pid:" ends as the field "id:" does
    threads.get(&number("common_pid")?).copied().zip(number(&format!(", {field}")))
}

/// `None` for a rule of threads that this node does not have.
fn used(rule: &Rule, rules: &[Rule], seen: &BTreeMap<&'static str, Seen>) -> Result<Option<bool>> {
    let every = &seen[EVERY.0];
    if !every.iter().any(|(thread, _)| *thread == rule.thread) {
        return Ok(None);
    }
    let same = rules.iter().filter(|other| (&other.thread, other.call) == (&rule.thread, rule.call)).count();
    if same == 1 {
        return Ok(Some(every.iter().any(|(thread, call)| *thread == rule.thread && *call == rule.call)));
    }
    let Some((_, point, _, argument)) = TOLD_APART.iter().find(|(call, ..)| *call == rule.call) else {
        bail!("call {} has several rules: add to TOLD_APART what tells them apart", rule.call);
    };
    let value = rule.values.iter().find(|(which, _)| which == argument).map(|(_, value)| *value);
    let value = value.with_context(|| format!("{rule:?} has no value for argument {argument}"))?;
    Ok(Some(seen[point].iter().any(|(thread, seen)| *thread == rule.thread && *seen == value)))
}
