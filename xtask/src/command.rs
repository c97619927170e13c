//! Running other programs: output into a log file and the step's display, errors with the end of that output.

use crate::progress::Step;
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Lines of a failed command's output that are shown.
const TAIL_LINES: usize = 15;

/// Runs `command`; both of its streams go to `log` (truncated first) and, line by line, to `step`.
pub fn run(step: &Step, log: &Path, command: &mut Command) -> Result<()> {
    let shown = describe(command);
    let mut log_file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    writeln!(log_file, "$ {shown}")?;
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("starting {shown}"))?;
    // the command still holds the pipe's writing end: without this the reader below would never see the end
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).context("reading a command's output")? > 0 {
        log_file.write_all(&line)?;
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        step.note(&text);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text);
        line.clear();
    }
    let status = child.wait().with_context(|| format!("waiting for {shown}"))?;
    if status.success() {
        return Ok(());
    }
    let tail = Vec::from(tail).join("\n    ");
    bail!(
        "{shown}\n  ended with {status}; the end of its output ({} has all of it):\n    {tail}",
        log.display()
    )
}

/// Runs `command` and returns its standard output. Its error output is part of the error.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = describe(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {shown}"))?;
    if !output.status.success() {
        bail!("{shown}\n  ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{shown}: output is not UTF-8"))
}

/// `program` with root's rights: as it is for root, through sudo otherwise.
pub fn privileged(program: &str) -> Result<Command> {
    if output(Command::new("id").arg("-u"))?.trim() == "0" {
        return Ok(Command::new(program));
    }
    if find("sudo").is_none() {
        bail!("{program} needs root's rights: run this as root, or install sudo");
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    Ok(command)
}

/// Looks `program` up in PATH and in the directories that only root has there by default.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_end_of_the_output_and_the_log_has_all() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("log");
        let step = Step::begin("test", "a command that fails");
        let mut command = Command::new("sh");
        command.args(["-c", "seq 1 40; echo to stderr >&2; exit 3"]);
        let error = run(&step, &log, &mut command).expect_err("exit code 3").to_string();
        step.done("over");
        assert!(error.contains("exit status: 3") && error.contains("to stderr"), "{error}");
        assert!(!error.contains("\n    20\n"), "{error}");
        assert!(std::fs::read_to_string(&log).expect("the log").contains("\n20\n"));
    }

    #[test]
    fn output_has_the_error_stream_in_its_error() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo why >&2; exit 1"]);
        assert!(output(&mut command).expect_err("exit code 1").to_string().ends_with("why"));
    }

    #[test]
    fn finds_programs_of_root() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
