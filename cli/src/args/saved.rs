//! Pause, resume, fork, snapshots and templates, as clap sees them.

use super::SizeFlags;
use crate::parse;
use clap::{Args, Subcommand};
use std::time::Duration;

#[derive(Debug, Args)]
pub struct Suspend {
    /// Ids, parts of them, or names
    #[arg(required = true)]
    pub sandboxes: Vec<String>,
    /// Return at once
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Args)]
pub struct Fork {
    /// Id, a part of it, or name of a running sandbox
    #[arg(required_unless_present = "snapshot")]
    pub sandbox: Option<String>,
    /// Fork this snapshot instead: its id or name
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "sandbox")]
    pub snapshot: Option<String>,
    /// How many
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub count: u32,
    /// Of each of them [default: that of the source]
    #[arg(long)]
    pub name: Option<String>,
    /// Added to the labels of the source; may be repeated
    #[arg(long = "label", short = 'l', value_parser = parse::pair, value_name = "K=V")]
    pub labels: Vec<(String, String)>,
    /// Time to live from now on [default: that of the source]
    #[arg(long, value_parser = parse::ttl, value_name = "TIME", allow_hyphen_values = true)]
    pub ttl: Option<Duration>,
    /// The same id with the same content gives the same sandboxes [default: a new one]
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    /// Return as soon as they are stored
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Save a running sandbox, which then goes on
    Create(SnapshotCreate),
    /// List snapshots
    #[command(alias = "list")]
    Ls(SnapshotLs),
    /// Remove snapshots
    #[command(alias = "delete")]
    Rm(SnapshotRemove),
}

#[derive(Debug, Args)]
pub struct SnapshotCreate {
    /// Id, a part of it, or name of a running sandbox
    pub sandbox: String,
    /// For people; need not be unique
    #[arg(long)]
    pub name: Option<String>,
    /// The same id with the same content gives the same snapshot [default: a new one]
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    /// Return as soon as it is accepted
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Args)]
pub struct SnapshotLs {
    /// Only those of this sandbox: its id, a part of it, or its name
    pub sandbox: Option<String>,
}

#[derive(Debug, Args)]
pub struct SnapshotRemove {
    /// Ids, parts of them, or names
    #[arg(required = true)]
    pub snapshots: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Store a template and wait until nodes have prepared it
    Create(TemplateCreate),
    /// List templates, with how many nodes have prepared each
    #[command(alias = "list")]
    Ls,
    /// Remove templates; sandboxes that were made from them go on
    #[command(alias = "delete")]
    Rm(TemplateRemove),
}

#[derive(Debug, Args)]
pub struct TemplateCreate {
    /// Unique
    pub name: String,
    /// Root file system image [default: base]
    #[arg(long)]
    pub image: Option<String>,
    /// Guest kernel [default: the node's]
    #[arg(long)]
    pub kernel: Option<String>,
    #[command(flatten)]
    pub size: SizeFlags,
    /// Environment of every process; may be repeated
    #[arg(long = "env", short = 'e', value_parser = parse::pair, value_name = "K=V")]
    pub environment: Vec<(String, String)>,
    /// The same id with the same content gives the same template [default: a new one]
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    /// Return as soon as it is stored
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Args)]
pub struct TemplateRemove {
    #[arg(required = true)]
    pub names: Vec<String>,
}
