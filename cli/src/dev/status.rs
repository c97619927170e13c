//! `dev status`: what was started, whether it lives, what the scheduler says of it.

use super::process::ProcessRef;
use super::state::{self, NodeKind, State};
use crate::args::Format;
use crate::failure::advised;
use crate::output::{self, table};
use crate::parse::format_size;
use anyhow::Result;
use pinfold_sdk::{Client, ClientOptions};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Serialize)]
struct StatusView {
    scheduler: String,
    state_dir: String,
    parts: Vec<PartView>,
    silent_nodes_restarted: u32,
}

#[derive(Debug, Serialize)]
struct PartView {
    name: String,
    kind: &'static str,
    /// of the process, or of the node as the scheduler sees it
    state: String,
    pid: u32,
    alive: bool,
    resident_bytes: u64,
    /// of the virtual machine
    memory_mib: Option<u64>,
    log: String,
}

pub async fn run(format: Format) -> Result<i32> {
    let Some(state) = State::load()? else {
        return Err(advised("no dev fleet runs", "`pinfold dev up` starts one"));
    };
    show(&state, format).await?;
    let all_alive = state.processes().all(|(_, process)| process.is_alive());
    Ok(i32::from(!all_alive))
}

pub async fn show(state: &State, format: Format) -> Result<()> {
    let states = node_states(state).await;
    let mut parts = Vec::new();
    if let Some(scheduler) = &state.scheduler {
        let log = scheduler.log.display().to_string();
        let up = if scheduler.process.is_alive() { "running" } else { "dead" };
        parts.push(part("scheduler", "scheduler", up.to_owned(), scheduler.process, None, log));
    }
    for node in &state.nodes {
        let kind = match node.kind {
            NodeKind::Virtual => "virtual node",
            NodeKind::Host => "host node",
        };
        let seen = states.get(&node.name).copied().unwrap_or("not registered");
        let up = if node.process.is_alive() { seen } else { "dead" };
        let log = node.log.display().to_string();
        parts.push(part(&node.name, kind, up.to_owned(), node.process, node.memory_mib, log));
    }
    let view = StatusView {
        scheduler: state.scheduler.as_ref().map(|s| s.endpoint.clone()).unwrap_or_default(),
        state_dir: state::directory()?.display().to_string(),
        parts,
        silent_nodes_restarted: state.silent_nodes_restarted,
    };
    output::show(format, &view, || text(&view))
}

fn text(view: &StatusView) -> String {
    let rows: Vec<Vec<String>> = view
        .parts
        .iter()
        .map(|part| {
            vec![
                part.name.clone(),
                part.kind.to_owned(),
                part.state.clone(),
                part.pid.to_string(),
                format_size(part.resident_bytes),
                part.memory_mib.map_or("-".to_owned(), |mib| format!("{mib} MiB")),
                part.log.clone(),
            ]
        })
        .collect();
    let mut text = format!("scheduler {}\n\n", view.scheduler);
    text.push_str(&table::grid(&["PART", "KIND", "STATE", "PID", "RESIDENT", "MEMORY", "LOG"], &rows));
    if view.silent_nodes_restarted > 0 {
        text.push_str(&format!("\nsilent nodes that were started again: {}\n", view.silent_nodes_restarted));
    }
    text
}

fn part(
    name: &str,
    kind: &'static str,
    state: String,
    process: ProcessRef,
    memory_mib: Option<u64>,
    log: String,
) -> PartView {
    let alive = process.is_alive();
    let resident_bytes = if alive { resident_bytes(process.pid).unwrap_or(0) } else { 0 };
    PartView { name: name.to_owned(), kind, state, pid: process.pid, alive, resident_bytes, memory_mib, log }
}

/// VmRSS of a process (proc_pid_status(5)).
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// What the scheduler says; nothing when it does not answer.
async fn node_states(state: &State) -> BTreeMap<String, &'static str> {
    let Some(scheduler) = &state.scheduler else { return BTreeMap::new() };
    let second = Duration::from_secs(1);
    let options =
        ClientOptions { connect_timeout: second, call_timeout: 2 * second, ..ClientOptions::default() };
    let Ok(client) = Client::connect_with(&scheduler.endpoint, options).await else { return BTreeMap::new() };
    let nodes = client.nodes().await.unwrap_or_default();
    nodes.into_iter().map(|node| (node.id.to_string(), node.state.as_str())).collect()
}
