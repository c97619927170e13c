//! What a hostile workload does from inside a Linux guest; the rest of the list is in `tests/evil`.

use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use pinfold_domain::spec::defaults;
use pinfold_domain::{Reason, Resources, SandboxId};
use pinfold_sdk::{ExecOptions, NewSandbox, Outcome};
use std::time::Duration;

/// Runs a script of Python's; its output.
async fn python(context: &Context, id: SandboxId, script: &str) -> Result<String> {
    let output = context.exec(id, ExecOptions::command(["python3", "-c", script])).await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.exit.outcome == Outcome::Code(0), "{:?}: {stdout}{stderr}", output.exit);
    Ok(stdout)
}

pub async fn two_and_eight_processors(context: Context) -> Result<()> {
    for cpus in [2, 8] {
        let resources = Resources { cpu_millis: 1000 * cpus, ..defaults::RESOURCES };
        let new = NewSandbox { resources: Some(resources), ..NewSandbox::default() };
        let id = context.start(new).await.with_context(|| format!("{cpus} processors"))?.id;
        let count = context.shell(id, "nproc; grep -c ^processor /proc/cpuinfo").await?;
        ensure!(count == format!("{cpus}\n{cpus}\n"), "{count:?} of {cpus} processors");
        context.client.stop(id, Some(Duration::from_secs(5))).await?;
        context.ended(id).await?;
    }
    Ok(())
}

pub async fn panic_is_told_as_one(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    let script = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; sleep 60";
    let process = context.client.exec(id, ExecOptions::command(["sh", "-c", script])).await?;
    let ended = context.ended(id).await?;
    drop(process);
    let cause = ended.cause.context("it has no cause")?;
    ensure!(cause.reason == Reason::GuestPanic, "{} ({})", cause.reason.as_str(), cause.message);
    context.reserved_is_zero_within(Duration::from_secs(20)).await
}

pub async fn clock_of_the_guest_is_its_own(context: Context) -> Result<()> {
    let ttl = Some(Duration::from_secs(40));
    let sandbox = context.start(NewSandbox { ttl, ..NewSandbox::default() }).await?;
    for (date, year) in
        [("2000-01-02 03:04", "2000"), ("2037-01-02 03:04", "2037"), ("2016-12-31 23:59:59", "2016")]
    {
        let seen = context.shell(sandbox.id, &format!("date -s '{date}' >/dev/null; date +%Y")).await?;
        ensure!(seen.trim() == year, "{seen:?} after setting {date}");
    }
    // what the host counts by its own clock is not moved by it
    let ended = context.ended(sandbox.id).await?;
    let reason = ended.cause.as_ref().map(|cause| cause.reason);
    ensure!(reason == Some(Reason::TtlExpired), "{:?}", ended.cause);
    let lived = ended.phase_at.since(ended.created_at).0;
    ensure!((39_000..90_000).contains(&lived), "it lived {lived} ms");
    Ok(())
}

/// Modules, BPF programs, another kernel, page faults by hand, raw memory: what the guest's kernel permits is the guest's
/// own affair, and none of it reaches past the machine.
pub async fn what_a_kernel_permits_hurts_itself_alone(context: Context) -> Result<()> {
    let victim = context.sandbox().await?;
    let id = context.sandbox().await?;
    let script = "import ctypes, os\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        junk = os.urandom(65536)\n\
        def call(name, *arguments):\n\
        \x20   result = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])\n\
        \x20   print(name, result, os.strerror(ctypes.get_errno()) if result < 0 else 'permitted')\n\
        call('init_module', 175, junk, len(junk), b'')\n\
        call('kexec_load', 246, 0, 0, None, 0)\n\
        call('userfaultfd', 323, 0)\n\
        call('iopl', 172, 3)\n\
        call('keyctl', 250, 0, -3, 1)\n\
        call('perf_event_open', 298, junk, 0, -1, -1, 0)\n\
        for command in range(40):\n\
        \x20   libc.syscall(321, command, junk, 128)\n\
        for path in ['/dev/mem', '/dev/port', '/proc/kcore', '/dev/kvm']:\n\
        \x20   try:\n\
        \x20       with open(path, 'r+b' if path.startswith('/dev') else 'rb', buffering=0) as f: f.read(4096)\n\
        \x20       print(path, 'opened')\n\
        \x20   except OSError as error: print(path, error.strerror)\n\
        print('survived')";
    let output = python(&context, id, script).await?;
    println!("    {}", output.trim_end().replace('\n', "; "));
    ensure!(output.ends_with("survived\n"), "{output}");
    ensure!(!output.contains("/dev/kvm opened"), "a guest has a KVM of its own: {output}");
    for (id, who) in [(id, "the hostile sandbox"), (victim, "its neighbour")] {
        ensure!(context.shell(id, "echo alive").await? == "alive\n", "{who} does not answer");
    }
    Ok(())
}

/// The guest agent is dialled, it does not dial: there is nothing on the host's side of the sockets for a workload to reach,
/// and no place that it could take by being there first.
pub async fn workload_reaches_no_port_of_the_host(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    let script = "import socket\n\
        reached = []\n\
        for port in list(range(1, 64)) + [1024, 1025, 2375, 8080, 9090, 1 << 30, 0xfffffffe]:\n\
        \x20   s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)\n\
        \x20   s.settimeout(5)\n\
        \x20   try:\n\
        \x20       s.connect((2, port)); reached.append(port)\n\
        \x20   except OSError: pass\n\
        \x20   s.close()\n\
        print('reached', reached)\n\
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)\n\
        try:\n\
        \x20   s.bind((socket.VMADDR_CID_ANY, 1024)); print('bound')\n\
        except OSError as error: print('refused', error.errno)";
    let output = python(&context, id, script).await?;
    ensure!(output.starts_with("reached []\n"), "{output}");
    ensure!(output.contains("refused"), "a workload has taken the agent's port: {output}");
    ensure!(context.shell(id, "echo alive").await? == "alive\n");
    Ok(())
}
