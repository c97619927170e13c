//! The command line, as clap sees it.

mod saved;

pub use saved::{Fork, SnapshotCommand, Suspend, TemplateCommand};

use crate::parse;
use clap::{Args, Parser, Subcommand, ValueEnum};
use pinfold_domain::Phase;
use pinfold_domain::Resources;
use pinfold_domain::spec::defaults;
use pinfold_domain::{SnapshotId, Source};
use pinfold_sdk::NewSandbox;
use std::path::PathBuf;
use std::time::Duration;

const EXIT_CODES: &str = "Exit codes: 0 success, 2 wrong command line, 125 a call failed, 130 Ctrl-C.
`run` and `exec` end with the remote process's own code: 126 not executable, 127 not found,
128 + n ended by signal n, 124 ended by its time limit.";

/// Sandboxes in microVMs, placed on a fleet.
#[derive(Debug, Parser)]
#[command(name = "pinfold", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// Address of the scheduler [default: the running dev fleet's, else http://127.0.0.1:7420]
    #[arg(long, global = true, env = "PINFOLD_SCHEDULER", value_name = "URL")]
    pub scheduler: Option<String>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
    Yaml,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one command in a new sandbox, then delete the sandbox
    Run(Run),
    /// Create a sandbox and wait until it runs
    Create(Create),
    /// Run a command in a sandbox
    Exec(Exec),
    /// List sandboxes
    #[command(alias = "list")]
    Ls(Ls),
    /// Show one sandbox, with its timeline
    Get(Get),
    /// Show changes as they happen
    Watch(Watch),
    /// Show the guest's console
    Logs(Logs),
    /// Copy a file into or out of a sandbox
    Cp(Copy),
    /// End a sandbox; its record stays
    Stop(Stop),
    /// End a sandbox and remove its record
    #[command(alias = "delete")]
    Rm(Remove),
    /// Save sandboxes to the disk of their nodes: their memory and CPU are given back
    Pause(Suspend),
    /// Bring paused sandboxes back
    Resume(Suspend),
    /// Make sandboxes from what a running one, or a snapshot, is
    Fork(Fork),
    /// Saved machines, to make sandboxes from
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Specs that nodes keep booted and saved, so that a start is quick
    #[command(subcommand)]
    Template(TemplateCommand),
    /// List the nodes of the fleet
    Nodes,
    /// A local fleet on this machine
    #[command(subcommand)]
    Dev(Dev),
    /// Check whether and how this machine can run microVMs
    Doctor,
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

/// How large a sandbox is.
#[derive(Debug, Args)]
pub struct SizeFlags {
    /// CPUs, for example 0.5 [default: 1]
    #[arg(long, value_parser = parse::cpus, value_name = "N", allow_hyphen_values = true)]
    pub cpus: Option<u64>,
    /// Memory, for example 512MiB [default: 256MiB]
    #[arg(long, value_parser = parse::memory, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<u64>,
    /// Disk of its own, for example 2GiB [default: 1GiB]
    #[arg(long, value_parser = parse::disk, value_name = "SIZE", allow_hyphen_values = true)]
    pub disk: Option<u64>,
    /// Processes and threads [default: 512]
    #[arg(long, value_parser = parse::pids, value_name = "N", allow_hyphen_values = true)]
    pub pids: Option<u64>,
}

impl SizeFlags {
    /// On the wire either all of them are given or none.
    pub fn resources(&self) -> Option<Resources> {
        let any = [self.cpus, self.memory, self.disk, self.pids].iter().any(Option::is_some);
        let default = defaults::RESOURCES;
        any.then(|| Resources {
            cpu_millis: self.cpus.unwrap_or(default.cpu_millis),
            memory_bytes: self.memory.unwrap_or(default.memory_bytes),
            disk_bytes: self.disk.unwrap_or(default.disk_bytes),
            pids: self.pids.unwrap_or(default.pids),
        })
    }
}

/// What a template or a snapshot gives.
const GIVEN: [&str; 6] = ["image", "kernel", "cpus", "memory", "disk", "pids"];

/// What a new sandbox is made of.
#[derive(Debug, Args)]
pub struct SpecFlags {
    /// For people; need not be unique
    #[arg(long)]
    pub name: Option<String>,
    /// Root file system image [default: base]
    #[arg(long)]
    pub image: Option<String>,
    /// Guest kernel [default: the node's]
    #[arg(long)]
    pub kernel: Option<String>,
    /// Start from this template
    #[arg(long, value_name = "NAME", conflicts_with_all = GIVEN)]
    pub template: Option<String>,
    /// Start from this snapshot: its id or name
    #[arg(long, value_name = "SNAPSHOT", conflicts_with_all = GIVEN, conflicts_with = "template")]
    pub snapshot: Option<String>,
    #[command(flatten)]
    pub size: SizeFlags,
    /// Time to live from acceptance on, for example 90s or 2h [default: 1h]
    #[arg(long, value_parser = parse::ttl, value_name = "TIME", allow_hyphen_values = true)]
    pub ttl: Option<Duration>,
    /// Limit for the start, from assignment to guest ready [default: 60s]
    #[arg(long, value_parser = parse::start_timeout, value_name = "TIME", allow_hyphen_values = true)]
    pub start_timeout: Option<Duration>,
    /// Bytes per second of disk reads, and of writes [default: not limited]
    #[arg(long, value_parser = parse::rate, value_name = "SIZE", allow_hyphen_values = true)]
    pub io_rate: Option<u64>,
    /// Label of the sandbox; may be repeated
    #[arg(long = "label", short = 'l', value_parser = parse::pair, value_name = "K=V")]
    pub labels: Vec<(String, String)>,
    /// Environment of every process; may be repeated
    #[arg(long = "env", short = 'e', value_parser = parse::pair, value_name = "K=V")]
    pub environment: Vec<(String, String)>,
    /// Only nodes with this label; may be repeated
    #[arg(long = "node-label", value_parser = parse::pair, value_name = "K=V")]
    pub node_labels: Vec<(String, String)>,
    /// The same id with the same content gives the same sandbox [default: a new one]
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
}

impl SpecFlags {
    /// `snapshot`: the id of the one that `--snapshot` names.
    pub fn into_new(self, snapshot: Option<SnapshotId>) -> NewSandbox {
        let source = match (self.template, snapshot) {
            (Some(template), _) => Source::Template(template),
            (None, Some(snapshot)) => Source::Snapshot(snapshot),
            (None, None) => Source::Image,
        };
        NewSandbox {
            request_id: self.request_id,
            name: self.name,
            image: self.image,
            kernel: self.kernel,
            resources: self.size.resources(),
            labels: self.labels.into_iter().collect(),
            environment: self.environment.into_iter().collect(),
            ttl: self.ttl,
            start_timeout: self.start_timeout,
            node_labels: self.node_labels.into_iter().collect(),
            io_bytes_per_second: self.io_rate,
            source,
        }
    }
}

/// How a command is run.
#[derive(Debug, Args)]
pub struct ProcessFlags {
    /// Pass stdin on although it is a terminal (what is piped in is always passed on)
    #[arg(short, long)]
    pub interactive: bool,
    /// Run on a pseudo-terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Do not pass stdin on
    #[arg(short, long, conflicts_with = "interactive")]
    pub no_stdin: bool,
    /// Guest user, by name or number [default: root]
    #[arg(long, short)]
    pub user: Option<String>,
    /// Working directory [default: the user's home]
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
    /// End the command after this time, for example 30s
    #[arg(long, value_parser = parse::timeout, value_name = "TIME", allow_hyphen_values = true)]
    pub timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub spec: SpecFlags,
    #[command(flatten)]
    pub process: ProcessFlags,
    /// Print the timeline of the sandbox on stderr at the end
    #[arg(long)]
    pub timeline: bool,
    /// Leave the sandbox as it is at the end
    #[arg(long)]
    pub keep: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    pub spec: SpecFlags,
    /// Return as soon as the sandbox is stored
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Id, a part of it from its start or end (4 characters or more), or name
    pub sandbox: String,
    #[command(flatten)]
    pub process: ProcessFlags,
    /// Environment of this command; may be repeated
    #[arg(long = "env", short = 'e', value_parser = parse::pair, value_name = "K=V")]
    pub environment: Vec<(String, String)>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Ls {
    /// Only with this label (`key` alone: with any value); may be repeated
    #[arg(long = "label", short = 'l', value_parser = parse::label_filter, value_name = "K[=V]")]
    pub labels: Vec<(String, String)>,
    /// Only in this phase; may be repeated
    #[arg(long = "phase", short = 'p', value_parser = phase, value_name = "PHASE")]
    pub phases: Vec<Phase>,
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
}

fn phase(text: &str) -> Result<Phase, String> {
    Phase::ALL.into_iter().find(|phase| phase.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
        let known: Vec<&str> = Phase::ALL.iter().map(|phase| phase.as_str()).collect();
        format!("it is not a phase: use one of {}", known.join(", "))
    })
}

#[derive(Debug, Args)]
pub struct Get {
    /// Id, a part of it from its start or end (4 characters or more), or name
    pub sandbox: String,
}

#[derive(Debug, Args)]
pub struct Watch {
    /// Only this one: id, a part of it, or name
    pub sandbox: Option<String>,
    /// Changes after this revision [default: the present state, then changes]
    #[arg(long, value_name = "REVISION")]
    pub from: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// Id, a part of it from its start or end (4 characters or more), or name
    pub sandbox: String,
    /// Go on as more is written
    #[arg(short, long)]
    pub follow: bool,
    /// Do not escape control characters: they can act on your terminal
    #[arg(long)]
    pub raw: bool,
}

#[derive(Debug, Args)]
pub struct Copy {
    /// A local path, or SANDBOX:/absolute/path, or - for stdin
    pub source: String,
    /// A local path, or SANDBOX:/absolute/path, or - for stdout
    pub destination: String,
    /// Guest user whose rights count [default: root]
    #[arg(long, short)]
    pub user: Option<String>,
    /// Make missing directories in the guest
    #[arg(long, short)]
    pub parents: bool,
}

#[derive(Debug, Args)]
pub struct Stop {
    /// Ids, parts of them, or names
    #[arg(required = true)]
    pub sandboxes: Vec<String>,
    /// Time for a clean stop, then it is killed [default: 5s]
    #[arg(long, value_parser = parse::grace, value_name = "TIME", allow_hyphen_values = true)]
    pub grace: Option<Duration>,
    /// Return at once
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Args)]
pub struct Remove {
    /// Ids, parts of them, or names
    #[arg(required_unless_present = "all")]
    pub sandboxes: Vec<String>,
    /// Every sandbox
    #[arg(long, conflicts_with = "sandboxes")]
    pub all: bool,
    /// Return at once
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Subcommand)]
pub enum Dev {
    /// Start a scheduler and nodes on this machine
    Up(DevUp),
    /// Show what runs
    Status,
    /// End everything and show that nothing is left
    Down,
}

#[derive(Debug, Args)]
pub struct DevUp {
    /// Nodes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub nodes: u32,
    /// Memory of each virtual node, in MiB [default: 3072, less where that does not fit]
    #[arg(long, value_parser = clap::value_parser!(u64).range(512..=262_144))]
    pub memory_mib: Option<u64>,
    /// CPUs of each virtual node
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// Use virtual nodes even where this machine could run microVMs itself
    #[arg(long)]
    pub virtual_nodes: bool,
    /// How sandboxes are put on nodes
    #[arg(long, default_value = "spread", value_parser = ["spread", "pack"])]
    pub placement: String,
    /// Files of the virtual node (vmlinuz, initrd.cpio, images.ext4) [default: build/node, searched upwards]
    #[arg(long, value_name = "DIR")]
    pub node_files: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bad_value_is_refused_with_field_value_and_limit() {
        let error = Cli::try_parse_from(["pinfold", "create", "--memory", "-1"]).unwrap_err().to_string();
        assert!(error.contains("'-1' for '--memory <SIZE>': a size cannot be negative"), "{error}");
        let error = Cli::try_parse_from(["pinfold", "create", "--cpus", "inf"]).unwrap_err().to_string();
        assert!(error.contains("'inf' for '--cpus <N>'"), "{error}");
        let error = Cli::try_parse_from(["pinfold", "ls", "--phase", "happy"]).unwrap_err();
        assert!(error.to_string().contains("pending, assigned, starting, running"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_source_stands_alone() {
        let parse = |arguments: &[&str]| {
            Cli::try_parse_from(["pinfold"].iter().chain(arguments)).map_err(|error| error.to_string())
        };
        let Command::Create(create) = parse(&["create", "--template", "python"]).unwrap().command else {
            panic!("not a create")
        };
        let new = create.spec.into_new(None);
        assert_eq!((new.source, new.image, new.resources), (Source::Template("python".into()), None, None));
        for refused in [
            &["create", "--template", "python", "--memory", "1GiB"][..],
            &["run", "--snapshot", "a1b2", "--image", "base", "--", "true"],
            &["create", "--snapshot", "a1b2", "--template", "python"],
            &["fork", "web", "--snapshot", "a1b2"],
        ] {
            let error = parse(refused).unwrap_err();
            assert!(error.contains("cannot be used with"), "{refused:?}: {error}");
        }
        assert!(parse(&["fork"]).unwrap_err().contains("required"));
        assert!(parse(&["fork", "web", "-n", "65"]).unwrap_err().contains("65 is not in 1..=64"));
        assert!(parse(&["fork", "web", "-n", "64"]).is_ok());
    }

    #[test]
    fn flags_after_the_dashes_belong_to_the_command() {
        let cli =
            Cli::try_parse_from(["pinfold", "run", "--cpus", "0.5", "--", "ls", "-l", "--help"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not a run") };
        assert_eq!(run.command, ["ls", "-l", "--help"]);
        let resources = run.spec.into_new(None).resources.unwrap();
        assert_eq!((resources.cpu_millis, resources.pids), (500, defaults::RESOURCES.pids));
    }
}
