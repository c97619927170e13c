//! `pinfold-vmm`: runs one microVM, or says whether this machine can.

use anyhow::Context;
use pinfold_vmm::process::{self, Options};
use pinfold_vmm::snapshot::format::Key;
use pinfold_vmm::snapshot::merge::{self, Files};
use pinfold_vmm::userfault::server::{self, Ahead};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "\
One microVM in one process

Usage: pinfold-vmm run --config-fd N [--proc-fd N]
       pinfold-vmm probe [--kvm PATH]
       pinfold-vmm rules
       pinfold-vmm snapshot-merge --key-file PATH --base DIR --diff DIR --into DIR
       pinfold-vmm serve-pages --socket-fd N --memory PATH [--working-set PATH] [--fill]

run     runs the microVM of a config until it ends
          --config-fd N   descriptor from which the config is read as JSON
          --proc-fd N     descriptor of a directory with a procfs, where the jail has none; closed before the guest runs
probe   says as JSON whether this machine can run microVMs, and what to do if not
          --kvm PATH      the KVM device, if not /dev/kvm
snapshot-merge   makes one full snapshot of one and the diff that was taken after it; the files are `state` and `memory`
          --key-file PATH 64 hexadecimal digits, the key of both
          --into DIR      an empty directory
serve-pages   a page-fault handler: gives one restored machine its memory from the memory file of a snapshot
          --socket-fd N   descriptor of a Unix stream socket that is connected to the machine's
          --working-set PATH  put these pages in place before they are asked for
          --fill          then everything else, and end when the machine has it all
rules   lists as JSON the system calls that each thread may make, under which conditions and why
";

#[derive(Debug, Default)]
struct Merge {
    key_file: PathBuf,
    base: PathBuf,
    diff: PathBuf,
    into: PathBuf,
}

#[derive(Debug, Default)]
struct ServePages {
    socket_fd: Option<RawFd>,
    memory: Option<PathBuf>,
    working_set: Option<PathBuf>,
    fill: bool,
}

#[derive(Debug)]
enum Command {
    Run { config_fd: RawFd, proc_fd: Option<RawFd> },
    Probe { kvm: PathBuf },
    Rules,
    Merge(Merge),
    ServePages(ServePages),
    Help,
    Version,
}

fn main() -> ExitCode {
    let began = Instant::now();
    one_arena();
    match command(lexopt::Parser::from_env()).and_then(|command| carry_out(command, began)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pinfold-vmm: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// All threads share one heap. An arena for each lies on a boundary of 64 MiB, where the host may make its first page a huge
/// one: 2 MiB for a few hundred bytes.
fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number before there is a second thread; on failure there are more arenas.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

fn carry_out(command: Command, began: Instant) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { config_fd, proc_fd } => {
            process::run(&Options { config_fd, proc_fd, began, landlock: true, once_bound: None })
        }
        Command::Probe { kvm } => probe(&kvm),
        Command::Rules => print(&serde_json::to_string(&pinfold_vmm::seccomp::listing::all())?),
        Command::Merge(merge) => snapshot_merge(&merge),
        Command::ServePages(options) => serve_pages(&options),
        Command::Help => print(USAGE),
        Command::Version => print(concat!("pinfold-vmm ", env!("CARGO_PKG_VERSION"), "\n")),
    }
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the command line: one command, then its options in any order.
fn command(mut arguments: lexopt::Parser) -> anyhow::Result<Command> {
    use lexopt::prelude::{Long, Short, Value, ValueExt};
    let name = match arguments.next()? {
        Some(Long("help") | Short('h')) => return Ok(Command::Help),
        Some(Long("version") | Short('V')) => return Ok(Command::Version),
        Some(Value(name)) => name.string()?,
        Some(other) => return Err(other.unexpected().into()),
        None => anyhow::bail!("no command given; see pinfold-vmm --help"),
    };
    let mut merge = Merge::default();
    let mut pages = ServePages::default();
    let (mut config_fd, mut proc_fd, mut kvm) = (None, None, PathBuf::from("/dev/kvm"));
    while let Some(argument) = arguments.next()? {
        match (name.as_str(), argument) {
            (_, Long("help") | Short('h')) => return Ok(Command::Help),
            ("run", Long("config-fd")) => config_fd = Some(arguments.value()?.parse()?),
            ("run", Long("proc-fd")) => proc_fd = Some(arguments.value()?.parse()?),
            ("probe", Long("kvm")) => kvm = arguments.value()?.into(),
            ("snapshot-merge", Long("key-file")) => merge.key_file = arguments.value()?.into(),
            ("snapshot-merge", Long("base")) => merge.base = arguments.value()?.into(),
            ("snapshot-merge", Long("diff")) => merge.diff = arguments.value()?.into(),
            ("snapshot-merge", Long("into")) => merge.into = arguments.value()?.into(),
            ("serve-pages", Long("socket-fd")) => pages.socket_fd = Some(arguments.value()?.parse()?),
            ("serve-pages", Long("memory")) => pages.memory = Some(arguments.value()?.into()),
            ("serve-pages", Long("working-set")) => pages.working_set = Some(arguments.value()?.into()),
            ("serve-pages", Long("fill")) => pages.fill = true,
            (_, other) => return Err(other.unexpected().into()),
        }
    }
    match name.as_str() {
        "run" => Ok(Command::Run { config_fd: config_fd.context("run needs --config-fd")?, proc_fd }),
        "probe" => Ok(Command::Probe { kvm }),
        "snapshot-merge" => Ok(Command::Merge(merge)),
        "serve-pages" => Ok(Command::ServePages(pages)),
        "rules" => Ok(Command::Rules),
        other => anyhow::bail!("{other:?} is no command; see pinfold-vmm --help"),
    }
}

/// Missing paths are named by what cannot be opened.
fn snapshot_merge(paths: &Merge) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(&paths.key_file)
        .with_context(|| format!("snapshot-merge cannot read --key-file {:?}", paths.key_file))?;
    let key = Key::from_hex(text.trim())?;
    let open = |directory: &Path, new: bool| {
        let file = |name| {
            let path = directory.join(name);
            let mut how = OpenOptions::new();
            how.read(true).write(new).create_new(new);
            how.open(&path).with_context(|| format!("snapshot-merge cannot open {path:?}"))
        };
        anyhow::Ok(Files { state: file("state")?, memory: file("memory")? })
    };
    merge::merge(&open(&paths.base, false)?, &open(&paths.diff, false)?, &open(&paths.into, true)?, &key)?;
    Ok(ExitCode::SUCCESS)
}

fn serve_pages(options: &ServePages) -> anyhow::Result<ExitCode> {
    let number = options.socket_fd.context("serve-pages needs --socket-fd")?;
    let memory = options.memory.as_deref().context("serve-pages needs --memory")?;
    anyhow::ensure!(number >= 3, "serve-pages: --socket-fd is {number}, it must be 3 or more");
    // SAFETY: nothing else in this process uses the descriptor; a wrong number makes the greeting fail.
    let socket = unsafe { UnixStream::from_raw_fd(number) };
    let open =
        |path: &Path| std::fs::File::open(path).with_context(|| format!("serve-pages cannot open {path:?}"));
    let working_set = options.working_set.as_deref().map(open).transpose()?;
    let ahead = Ahead { working_set, fill: options.fill };
    let served = server::serve(socket, &open(memory)?, &ahead)?;
    println!("{served:?}");
    Ok(ExitCode::SUCCESS)
}

/// The exit code says that the question was answered, not what the answer is.
fn probe(kvm: &Path) -> anyhow::Result<ExitCode> {
    println!("{}", serde_json::to_string_pretty(&pinfold_vmm::probe::probe(kvm))?);
    Ok(ExitCode::SUCCESS)
}
