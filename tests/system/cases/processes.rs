//! Exec: streams, terminals, signals, ends.

use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use pinfold_sdk::{ExecOptions, Exit, Outcome, Process, ProcessEvent, TerminalSize};
use std::time::{Duration, Instant};

/// Reads until `text` is in stdout; everything that was read.
async fn read_until(process: &mut Process, text: &str) -> Result<String> {
    let mut read = String::new();
    while !read.contains(text) {
        match process.next().await?.context("the process ended")? {
            ProcessEvent::Stdout(data) => read.push_str(&String::from_utf8_lossy(&data)),
            ProcessEvent::Exited(exit) => anyhow::bail!("it ended with {exit:?} after {read:?}"),
            ProcessEvent::Started(_) | ProcessEvent::Stderr(_) => {}
        }
    }
    Ok(read)
}

pub async fn output_comes_as_it_is_written(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    let script = "echo one; sleep 2; echo two; echo err >&2";
    let mut process = context.client.exec(id, ExecOptions::command(["sh", "-c", script])).await?;
    read_until(&mut process, "one\n").await?;
    let first = Instant::now();
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let exit = loop {
        match process.next().await?.context("it has an end")? {
            ProcessEvent::Stdout(data) => stdout.push_str(&String::from_utf8_lossy(&data)),
            ProcessEvent::Stderr(data) => stderr.push_str(&String::from_utf8_lossy(&data)),
            ProcessEvent::Exited(exit) => break exit,
            ProcessEvent::Started(_) => {}
        }
    };
    ensure!(first.elapsed() > Duration::from_millis(1500), "the first line came with the last");
    ensure!((stdout.as_str(), stderr.as_str()) == ("two\n", "err\n"), "{stdout:?} {stderr:?}");
    ensure!(exit.success(), "{exit:?}");
    Ok(())
}

pub async fn python_reads_its_script_from_stdin(context: Context) -> Result<()> {
    let id = context.sandbox().await?.to_string();
    let script = b"import sys\nprint(sum(range(10)), sys.version_info >= (3, 9))\nsys.exit(3)\n";
    let output = context.cli(&["exec", &id, "--", "python3", "-"], script).await?;
    ensure!(output.stdout == b"45 True\n", "{:?}", String::from_utf8_lossy(&output.stdout));
    ensure!(output.status.code() == Some(3), "{}", output.status);
    Ok(())
}

pub async fn git_commits(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    let script = "set -e; mkdir -p /workspace/r; cd /workspace/r; git init -q; echo hello > a; git add a; \
                  git -c user.name=agent -c user.email=agent@example.org commit -qm first; git log --oneline";
    let log = context.shell(id, script).await?;
    ensure!(log.trim_end().ends_with(" first") && log.lines().count() == 1, "{log:?}");
    Ok(())
}

pub async fn exit_code_is_the_processs_own(context: Context) -> Result<()> {
    let id = context.sandbox().await?.to_string();
    for code in [0, 7, 255] {
        let script = format!("exit {code}");
        let output = context.cli(&["exec", &id, "--", "sh", "-c", &script], b"").await?;
        ensure!(output.status.code() == Some(code), "{code}: {}", output.status);
    }
    Ok(())
}

pub async fn terminal_has_a_size_and_can_be_resized(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    let options = ExecOptions {
        terminal: Some(TerminalSize { rows: 40, columns: 100 }),
        ..ExecOptions::command(["sh", "-c", "tty; stty size; read line; stty size; echo \"got $line\""])
    };
    let mut process = context.client.exec(id, options).await?;
    let first = read_until(&mut process, "40 100").await?;
    ensure!(first.contains("/dev/pts/"), "{first:?}");
    process.input().resize(TerminalSize { rows: 50, columns: 120 }).await;
    process.input().write("hello\n").await;
    read_until(&mut process, "got hello").await.map(|text| assert!(text.contains("50 120"), "{text:?}"))?;
    ensure!(process.wait().await?.success());
    Ok(())
}

async fn sleeper(context: &Context, id: pinfold_domain::SandboxId, script: &str) -> Result<Process> {
    let mut process = context.client.exec(id, ExecOptions::command(["sh", "-c", script])).await?;
    read_until(&mut process, "ready").await?;
    Ok(process)
}

pub async fn signals_reach_the_process(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    let mut process = sleeper(&context, id, "echo ready; exec sleep 600").await?;
    process.input().signal(15).await;
    ensure!(process.wait().await?.outcome == Outcome::Signal(15));
    let mut process =
        sleeper(&context, id, "trap 'exit 5' USR1; echo ready; while :; do sleep 0.1; done").await?;
    process.input().signal(10).await;
    ensure!(process.wait().await?.outcome == Outcome::Code(5));
    Ok(())
}

pub async fn time_limit_ends_the_process(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    let began = Instant::now();
    let timeout = Some(Duration::from_secs(2));
    let options = ExecOptions { timeout, ..ExecOptions::command(["sleep", "600"]) };
    let output = context.exec(id, options).await?;
    ensure!(output.exit.timed_out, "{:?}", output.exit);
    ensure!(matches!(output.exit.outcome, Outcome::Signal(_)), "{:?}", output.exit);
    ensure!(began.elapsed() > Duration::from_secs(2) && began.elapsed() < Duration::from_secs(30));
    let output =
        context.cli(&["exec", "--timeout", "1s", &id.to_string(), "--", "sleep", "600"], b"").await?;
    ensure!(output.status.code() == Some(124), "{}", output.status);
    Ok(())
}

/// The pids of processes whose command line holds `word`, itself left out.
pub async fn processes_with(context: &Context, id: pinfold_domain::SandboxId, word: &str) -> Result<String> {
    // the brackets keep the pattern from finding itself
    let (first, rest) = word.split_at(1);
    context.shell(id, &format!("grep -l '[{first}]{rest}' /proc/[0-9]*/cmdline 2>/dev/null || true")).await
}

pub async fn client_that_leaves_ends_its_process(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    let process = sleeper(&context, id, "echo ready; exec sleep 54321").await?;
    ensure!(
        !processes_with(&context, id, "54321").await?.is_empty(),
        "the process is not there to begin with"
    );
    drop(process);
    let gone = async {
        while !processes_with(&context, id, "54321").await?.is_empty() {
            // nothing in the guest tells the end of a process that is not ours
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.context("it still runs")?
}

pub async fn missing_command_is_127(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    let cases = [("no-such-program", 127), ("/nowhere/x", 127), ("/etc/passwd", 126), ("/tmp", 126)];
    for (command, code) in cases {
        let exit: Exit = context.exec(id, ExecOptions::command([command])).await?.exit;
        ensure!(exit.outcome == Outcome::Code(code), "{command}: {exit:?}");
        ensure!(exit.message.contains(command), "{command}: {:?}", exit.message);
    }
    let output = context.cli(&["exec", &id.to_string(), "--", "no-such-program"], b"").await?;
    ensure!(output.status.code() == Some(127), "{}", output.status);
    ensure!(String::from_utf8_lossy(&output.stderr).contains("no-such-program"));
    Ok(())
}

pub async fn user_directory_and_environment(context: Context) -> Result<()> {
    let environment =
        [("A".to_owned(), "of the sandbox".to_owned()), ("B".to_owned(), "old".to_owned())].into();
    let new = pinfold_sdk::NewSandbox { environment, ..Default::default() };
    let id = context.start(new).await?.id;
    let options = ExecOptions {
        user: Some("sandbox".into()),
        working_directory: Some("/tmp".into()),
        environment: [("B".to_owned(), "new".to_owned())].into(),
        ..ExecOptions::command(["sh", "-c", "id -un; pwd; echo $A/$B; echo $HOME"])
    };
    let output = context.exec(id, options).await?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(stdout == "sandbox\n/tmp\nof the sandbox/new\n/home/sandbox\n", "{stdout:?} {:?}", output.exit);
    Ok(())
}

pub async fn console_is_kept(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    context.shell(id, "echo 'a line of the test' > /dev/console").await?;
    let read = async {
        let mut logs = context.client.logs(id, 0, true).await?;
        let mut text = String::new();
        let mut expected = 0;
        while !text.contains("a line of the test") {
            let chunk = logs.next().await?.context("the console ended")?;
            ensure!(chunk.offset == expected, "a gap at {expected}: {}", chunk.offset);
            expected += chunk.data.len() as u64;
            text.push_str(&String::from_utf8_lossy(&chunk.data));
        }
        Ok(())
    };
    tokio::time::timeout(Duration::from_secs(30), read).await.context("the line is not on the console")??;
    let output = context.cli(&["logs", &id.to_string()], b"").await?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains("a line of the test"));
    Ok(())
}
