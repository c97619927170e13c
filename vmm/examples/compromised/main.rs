//! A VMM that its guest has taken over: the library of the real one, and on one of its threads code that tries a forbidden
//! thing once the thread is bound. `tests/compromised` runs it, with all layers of confinement and with each alone.
//!
//! It is an example and not a feature of the crate, so no build of `pinfold-vmm` can hold any of it.
//!
//! ```text
//!   compromised list                       name, tab, what, tab, who stops it; one line for each attempt
//!   compromised run --config-fd N --attempt NAME --thread devices|vcpu --report-fd N
//!                   --outside DIR --victim PID --port P --name NAME [--file-fd N] [--proc-fd N] [--without-landlock]
//! ```
//!
//! The report is `begun`, then `passed` or `refused <errno>`; after `begun` alone the attempt has ended the process.

mod attempts;

use anyhow::{Context, bail};
use attempts::{ALL, Attempt, World};
use pinfold_vmm::process::{self, Options};
use pinfold_vmm::seccomp::Thread;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, RawFd};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

/// What is to be tried, on which thread, and where to say how it went.
struct Job {
    attempt: &'static Attempt,
    thread: Thread,
    report: File,
    world: World,
}

/// A function pointer carries nothing, and this is what it has to know.
static JOB: OnceLock<Job> = OnceLock::new();

fn main() -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let mut arguments = lexopt::Parser::from_env();
    let command = first(&mut arguments)?;
    match command.to_str() {
        Some("list") => list(),
        Some("run") => run(arguments, began),
        _ => bail!("list or run"),
    }
}

fn first(arguments: &mut lexopt::Parser) -> anyhow::Result<std::ffi::OsString> {
    match arguments.next()? {
        Some(lexopt::Arg::Value(word)) => Ok(word),
        _ => bail!("list or run"),
    }
}

fn list() -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    for attempt in ALL.iter().copied().flatten() {
        writeln!(out, "{}\t{}\t{}", attempt.name, attempt.what, attempt.stops)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run(mut arguments: lexopt::Parser, began: Instant) -> anyhow::Result<ExitCode> {
    use lexopt::prelude::{Long, ValueExt};
    let mut options =
        Options { config_fd: -1, proc_fd: None, began, landlock: true, once_bound: Some(once_bound) };
    let mut world = World::default();
    let (mut attempt, mut thread, mut report_fd) = (None, Thread::Devices, None::<RawFd>);
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("config-fd") => options.config_fd = arguments.value()?.parse()?,
            Long("proc-fd") => options.proc_fd = Some(arguments.value()?.parse()?),
            Long("without-landlock") => options.landlock = false,
            Long("attempt") => {
                let name = arguments.value()?.string()?;
                let mut all = ALL.iter().copied().flatten();
                attempt = Some(all.find(|attempt| attempt.name == name).context(name)?);
            }
            Long("thread") => {
                thread = match arguments.value()?.to_str() {
                    Some("devices") => Thread::Devices,
                    Some("vcpu") => Thread::Vcpu,
                    _ => bail!("a thread is devices or vcpu"),
                }
            }
            Long("report-fd") => report_fd = Some(arguments.value()?.parse()?),
            Long("file-fd") => world.file = arguments.value()?.parse()?,
            Long("outside") => world.outside = CString::new(arguments.value()?.string()?)?,
            Long("victim") => world.victim = arguments.value()?.parse()?,
            Long("port") => world.port = arguments.value()?.parse()?,
            Long("name") => world.abstract_name = arguments.value()?.string()?,
            other => return Err(other.unexpected().into()),
        }
    }
    let report_fd = report_fd.context("--report-fd")?;
    // SAFETY: the caller passes this descriptor for the report, and nothing else uses it.
    let report = unsafe { File::from_raw_fd(report_fd) };
    let job = Job { attempt: attempt.context("--attempt")?, thread, report, world };
    anyhow::ensure!(JOB.set(job).is_ok(), "one job");
    process::run(&options)
}

fn once_bound(thread: Thread) {
    let Some(job) = JOB.get().filter(|job| job.thread == thread) else { return };
    let mut report = &job.report;
    // a report that nobody reads is the test's failure
    let _ = report.write_all(b"begun\n");
    let line = match (job.attempt.act)(&job.world) {
        Ok(_) => "passed\n".to_owned(),
        Err(errno) => format!("refused {errno}\n"),
    };
    let _ = report.write_all(line.as_bytes());
    // SAFETY: ends the process at once; nothing runs after it.
    unsafe { libc::_exit(0) }
}
