//! placeholder until scenario
use crate::workspace::Workspace;
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[arg(long, default_value_t = 1)]
    pub nodes: u32,
}
pub fn run(_workspace: &Workspace, _arguments: &Arguments) -> anyhow::Result<()> {
    anyhow::bail!("the demo needs the CLI")
}
