//! From acceptance to the end, and what outlives what.

use crate::context::{Context, START_LIMIT};
use anyhow::{Context as _, Result, bail, ensure};
use pinfold_cli::dev::down::leftovers;
use pinfold_domain::{Milestone, Phase, Reason};
use pinfold_sdk::{ExecOptions, NewSandbox, Sandbox};
use std::time::Duration;

/// Prints the timeline: it is the record of what a start costs.
fn check_timeline(kernel: &str, sandbox: &Sandbox) -> Result<()> {
    use Milestone as M;
    let mut last = None;
    let mut line = format!("    timeline with kernel {kernel}:");
    let accepted = sandbox.reached(M::Accepted).context("it was accepted")?;
    // a machine that boots is not restored
    for milestone in M::ALL.into_iter().filter(|milestone| !matches!(milestone, M::Restored | M::Woken)) {
        let at = sandbox.reached(milestone);
        let at =
            at.with_context(|| format!("{} is missing in {:?}", milestone.as_str(), sandbox.timeline))?;
        ensure!(
            last.is_none_or(|last| last <= at),
            "{} comes too early: {:?}",
            milestone.as_str(),
            sandbox.timeline
        );
        last = Some(at);
        line.push_str(&format!(" {} {} ms,", milestone.as_str(), at.since(accepted).0));
    }
    println!("{}", line.trim_end_matches(','));
    Ok(())
}

/// Prints what the VMM has resident beside the guest's memory, and holds it to a bound.
async fn check_vmm_memory(context: &Context) -> Result<()> {
    /// of which the program itself is a third
    const LIMIT_KIB: u64 = 8 * 1024;
    // The guest's memory is what is never in a core dump (MADV_DONTDUMP): several mappings, where a kernel's file shows in it.
    let script = "p=$(pidof pinfold-vmm | cut -d' ' -f1); awk '/^Rss:/ {r = $2} /^Anonymous:/ {a = $2} \
                  /^VmFlags:/ {if (/ dd/) guest += r; else {own += r; private += a}} \
                  END {print own, private, guest}' /proc/$p/smaps";
    let output = context.in_node(script).await?;
    let numbers: Vec<u64> = output.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [resident, anonymous, guest] = numbers[..] else { bail!("not understood: {output:?}") };
    println!(
        "    VMM: {resident} KiB resident beside the guest's {guest} KiB, of these {anonymous} KiB anonymous"
    );
    ensure!(guest > 0 && resident > 0, "no mapping was found: {output:?}");
    ensure!(resident <= LIMIT_KIB, "{resident} KiB beside the guest's memory, the bound is {LIMIT_KIB}");
    Ok(())
}

pub async fn boots_with_every_kernel(context: Context) -> Result<()> {
    let nodes = context.client.nodes().await?;
    let kernels = nodes.first().context("the node is registered")?.kernels.iter();
    let kernels: Vec<&String> = kernels.filter(|kernel| !kernel.starts_with("test-")).collect();
    ensure!(kernels.iter().any(|kernel| *kernel == "stock"), "the node has no stock kernel: {kernels:?}");
    for kernel in kernels {
        let new = NewSandbox { kernel: Some(kernel.clone()), ..NewSandbox::default() };
        let sandbox = context.start(new).await.with_context(|| format!("kernel {kernel}"))?;
        let uname = context.shell(sandbox.id, "uname -sr; id -u; cat /proc/1/comm").await?;
        ensure!(uname.starts_with("Linux 6."), "{uname}");
        check_vmm_memory(&context).await?;
        context.client.stop(sandbox.id, None).await?;
        check_timeline(kernel, &context.ended(sandbox.id).await?)?;
    }
    Ok(())
}

pub async fn run_is_create_exec_delete(context: Context) -> Result<()> {
    let output = context.cli(&["run", "--label", "case=run", "--", "uname", "-a"], b"").await?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.code() == Some(0),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(stdout.starts_with("Linux ") && stdout.contains("x86_64"), "{stdout}");
    let list = context.cli(&["ls", "-o", "json"], b"").await?;
    ensure!(
        serde_json::from_slice::<Vec<serde_json::Value>>(&list.stdout)?.is_empty(),
        "the sandbox is left"
    );
    Ok(())
}

pub async fn stop_has_its_reason(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    context.client.stop(id, Some(Duration::from_secs(2))).await?;
    let sandbox = context.ended(id).await?;
    ensure!(sandbox.phase == Phase::Stopped, "{:?}", sandbox);
    ensure!(sandbox.cause.as_ref().map(|c| c.reason) == Some(Reason::StopRequested), "{:?}", sandbox.cause);
    context.client.delete(id).await?;
    context.client.wait_gone(id, Duration::from_secs(30)).await?;
    let error = context.client.get(id).await.err().context("it is still there")?;
    ensure!(error.cause().reason == Reason::SandboxNotFound, "{error}");
    context.reserved_is_zero_within(Duration::from_secs(20)).await
}

pub async fn time_to_live_ends_it(context: Context) -> Result<()> {
    let ttl = Some(Duration::from_secs(20));
    let sandbox = context.client.create(NewSandbox { ttl, ..NewSandbox::default() }).await?;
    let ended = context.ended(sandbox.id).await?;
    ensure!(ended.cause.as_ref().map(|c| c.reason) == Some(Reason::TtlExpired), "{:?}", ended.cause);
    let lived = ended.phase_at.since(ended.created_at).0;
    ensure!((19_000..60_000).contains(&lived), "it lived {lived} ms");
    Ok(())
}

/// Expects `sandbox` to end for `reason`.
async fn ends_for(context: &Context, id: pinfold_domain::SandboxId, reason: Reason) -> Result<()> {
    let ended = context.ended(id).await?;
    let cause = ended.cause.with_context(|| format!("no cause in phase {}", ended.phase))?;
    ensure!(
        cause.reason == reason,
        "{} ({}) instead of {}",
        cause.reason.as_str(),
        cause.message,
        reason.as_str()
    );
    ensure!(!cause.message.is_empty(), "the cause has no message");
    Ok(())
}

pub async fn guest_power_off_and_reset_are_told_apart(context: Context) -> Result<()> {
    // sysrq ends the machine under the agent's feet: nothing in the guest gets a word in
    for (key, reason) in [("o", Reason::GuestPowerOff), ("b", Reason::GuestReset)] {
        let id = context.sandbox().await?;
        let script = format!("echo 1 > /proc/sys/kernel/sysrq; echo {key} > /proc/sysrq-trigger; sleep 60");
        let process = context.client.exec(id, ExecOptions::command(["sh", "-c", script.as_str()])).await?;
        ends_for(&context, id, reason).await.with_context(|| format!("sysrq {key}"))?;
        drop(process);
    }
    Ok(())
}

pub async fn killed_vmm_is_vmm_failed(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    context.in_node("kill -9 $(pidof pinfold-vmm)").await?;
    ends_for(&context, id, Reason::VmmFailed).await?;
    context.reserved_is_zero_within(Duration::from_secs(20)).await
}

pub async fn agent_restart_keeps_the_sandbox(context: Context) -> Result<()> {
    let before = context.start(NewSandbox::default()).await?;
    context.shell(before.id, "echo kept > /root/state").await?;
    let (old, _) = context.in_node_process("pinfold-node-agent").await?;
    context
        .in_node(&format!("kill -9 {old}; setsid /etc/pinfold/agent </dev/null >/dev/console 2>&1 &"))
        .await?;
    // the same process answers for it when the new agent has adopted it
    let content = tokio::time::timeout(START_LIMIT, async {
        loop {
            match context.shell(before.id, "cat /root/state").await {
                Ok(content) => return content,
                // the agent is not back yet
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    });
    let content = content.await.context("the sandbox did not answer after the agent's restart")?;
    ensure!(content == "kept\n", "{content:?}");
    let (new, _) = context.in_node_process("pinfold-node-agent").await?;
    ensure!(new != old, "the agent was not restarted");
    let after = context.client.get(before.id).await?;
    ensure!(after.phase == Phase::Running && after.epoch == before.epoch, "{after:?}");
    Ok(())
}

pub async fn scheduler_restart_keeps_the_sandbox(context: Context) -> Result<()> {
    let before = context.start(NewSandbox::default()).await?;
    context.shell(before.id, "echo kept > /root/state").await?;
    let mut watch = context.client.watch(before.revision);
    context.restart_scheduler().await?;
    let content = tokio::time::timeout(START_LIMIT, async {
        loop {
            match context.shell(before.id, "cat /root/state").await {
                Ok(content) => return content,
                // the node has not dialled again yet
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    });
    let content = content.await.context("the sandbox did not answer after the scheduler's restart")?;
    ensure!(content == "kept\n", "{content:?}");
    let after = context.client.get(before.id).await?;
    ensure!(after.phase == Phase::Running && after.epoch == before.epoch, "{after:?}");
    ensure!(after.spec == before.spec, "the stored spec has changed: {:?}", after.spec);
    // a watch from before goes on by itself and misses nothing
    context.client.stop(before.id, None).await?;
    let seen = async {
        loop {
            let event = watch.next().await?;
            if event.sandbox.id == before.id && event.sandbox.phase == Phase::Stopped {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(START_LIMIT, seen).await.context("the watch did not see the end")?
}

/// Runs last: all the cases before, the failed starts among them, have left nothing in the node.
pub async fn nothing_is_left_at_the_end(context: Context) -> Result<()> {
    let left = leftovers(&context.node).await?;
    if left.count() > 0 {
        bail!("left in the node: {:?}", left.0);
    }
    ensure!(!left.0.is_empty(), "the node agent named no kind of leftover that it looked for");
    context.in_node("! pidof pinfold-vmm pinfold-jailer").await?;
    context.reserved_is_zero_within(Duration::from_secs(10)).await
}
