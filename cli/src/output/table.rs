//! Tables for people: aligned columns, short times and sizes, nothing that could drive a terminal.

use super::view::accepted_at;
use crate::escape;
use crate::parse::{format_cpus, format_millis, format_size};
use pinfold_domain::{Node, SandboxSpec, Source};
use pinfold_sdk::{Sandbox, WatchEvent};
use std::collections::BTreeMap;

/// Rows under a header. Columns are as wide as their widest cell; the last one is not padded.
pub fn grid(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&header).filter(|row| row.iter().any(|cell| !cell.is_empty())).chain(rows) {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if at + 1 < row.len() {
                let gap = widths[at] - cell.chars().count() + 2;
                line.extend(std::iter::repeat_n(' ', gap));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

pub fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { escape::line(text) }
}

/// What a sandbox began as.
fn source(spec: &SandboxSpec) -> String {
    match &spec.source {
        Source::Image => "image".to_owned(),
        Source::Template(name) => format!("template {}", escape::line(name)),
        Source::Snapshot(id) => format!("snapshot {id}"),
    }
}

fn pairs(pairs: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
    or_dash(&pairs.join(","))
}

pub fn ago(now_ms: u64, at_ms: u64) -> String {
    let millis = now_ms.saturating_sub(at_ms);
    // tables are for people: whole seconds
    format!("{} ago", format_millis(millis / 1000 * 1000).replace("0 ms", "0 s"))
}

pub fn sandboxes(sandboxes: &[Sandbox], now_ms: u64) -> String {
    if sandboxes.is_empty() {
        return "no sandboxes\n".to_owned();
    }
    let rows: Vec<Vec<String>> = sandboxes
        .iter()
        .map(|sandbox| {
            let reason = sandbox.cause.as_ref().map_or("", |cause| cause.reason.as_str());
            vec![
                sandbox.id.to_string(),
                or_dash(&sandbox.spec.name),
                sandbox.phase.to_string(),
                or_dash(reason),
                or_dash(sandbox.node.as_deref().unwrap_or_default()),
                format_cpus(sandbox.spec.resources.cpu_millis),
                format_size(sandbox.spec.resources.memory_bytes),
                ago(now_ms, sandbox.created_at.0),
                pairs(&sandbox.spec.labels),
            ]
        })
        .collect();
    grid(&["ID", "NAME", "PHASE", "REASON", "NODE", "CPU", "MEMORY", "CREATED", "LABELS"], &rows)
}

pub fn sandbox(sandbox: &Sandbox, now_ms: u64) -> String {
    let spec = &sandbox.spec;
    let resources = &spec.resources;
    let kernel = spec.kernel.as_deref().unwrap_or("the node's");
    let mut rows = vec![
        ("id", sandbox.id.to_string()),
        ("name", or_dash(&spec.name)),
        ("phase", format!("{}, {}", sandbox.phase, ago(now_ms, sandbox.phase_at.0))),
    ];
    if let Some(cause) = &sandbox.cause {
        rows.push(("cause", format!("{}: {}", cause.reason.as_str(), escape::line(&cause.message))));
    }
    rows.push(("node", or_dash(sandbox.node.as_deref().unwrap_or_default())));
    if let Some(explanation) = &sandbox.explanation {
        rows.push(("placement", escape::line(&explanation.sentence)));
    }
    rows.extend([
        ("source", source(spec)),
        ("image", escape::line(&spec.image)),
        ("kernel", escape::line(kernel)),
        (
            "resources",
            format!(
                "{} CPU, {} memory, {} disk, {} pids",
                format_cpus(resources.cpu_millis),
                format_size(resources.memory_bytes),
                format_size(resources.disk_bytes),
                resources.pids
            ),
        ),
        ("labels", pairs(&spec.labels)),
    ]);
    if let Some(expires) = sandbox.expires_at.filter(|_| !sandbox.phase.is_final()) {
        rows.push((
            "expires",
            format!("in {}", format_millis(expires.0.saturating_sub(now_ms) / 1000 * 1000)),
        ));
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(key, value)| vec![key.to_owned(), value]).collect();
    format!("{}\n{}", grid(&["", ""], &rows), timeline(sandbox))
}

/// Milliseconds since acceptance, and since the milestone before.
pub fn timeline(sandbox: &Sandbox) -> String {
    let accepted = accepted_at(sandbox);
    let mut before = accepted;
    let mut rows = Vec::new();
    for entry in &sandbox.timeline {
        let (since, step) = (entry.at.since(accepted).0, entry.at.since(before).0);
        rows.push(vec![entry.milestone.as_str().to_owned(), format!("{since:>8}"), format!("{step:>8}")]);
        before = entry.at;
    }
    grid(&["TIMELINE", "      ms", "    step"], &rows)
}

pub fn nodes(nodes: &[Node], now_ms: u64) -> String {
    if nodes.is_empty() {
        return "no nodes\n".to_owned();
    }
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            let (all, used) = (&node.allocatable, &node.reserved);
            vec![
                node.id.to_string(),
                node.state.as_str().to_owned(),
                node.sandboxes.to_string(),
                format!("{}/{}", format_cpus(used.cpu_millis), format_cpus(all.cpu_millis)),
                format!("{} / {}", format_size(used.memory_bytes), format_size(all.memory_bytes)),
                format!("{} / {}", format_size(used.disk_bytes), format_size(all.disk_bytes)),
                or_dash(&node.images.iter().cloned().collect::<Vec<_>>().join(",")),
                ago(now_ms, node.last_heartbeat.0),
                pairs(&node.labels),
            ]
        })
        .collect();
    grid(&["NODE", "STATE", "SANDBOXES", "CPU", "MEMORY", "DISK", "IMAGES", "HEARTBEAT", "LABELS"], &rows)
}

/// One line of `watch`.
pub fn event(event: &WatchEvent) -> String {
    let sandbox = &event.sandbox;
    let phase = if event.deleted { "deleted" } else { sandbox.phase.as_str() };
    let cause = sandbox.cause.as_ref().map_or_else(String::new, |cause| {
        format!("{}: {}", cause.reason.as_str(), escape::line(&cause.message))
    });
    let name = or_dash(&sandbox.spec.name);
    let node = or_dash(sandbox.node.as_deref().unwrap_or_default());
    let line = format!("{:>8}  {}  {name:<12}  {phase:<9}  {node:<10}  {cause}", event.revision, sandbox.id);
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::sandbox as example;
    use pinfold_domain::{NodeState, Resources, Revision, Timestamp};

    const ID: &str = "0190b3f0-5a00-7000-8000-000000000001";
    const NOW: u64 = 1_700_000_062_500;

    #[test]
    fn ls() {
        assert_eq!(
            sandboxes(&[example(ID)], NOW),
            "\
ID                                    NAME  PHASE   REASON      NODE    CPU  MEMORY   CREATED    LABELS
0190b3f0-5a00-7000-8000-000000000001  web   failed  GuestPanic  node-1  1    256 MiB  1 min ago  team=blue
"
        );
        assert_eq!(sandboxes(&[], NOW), "no sandboxes\n");
    }

    #[test]
    fn get_shows_the_timeline_and_nothing_that_drives_a_terminal() {
        assert_eq!(
            sandbox(&example(ID), NOW),
            "\
id         0190b3f0-5a00-7000-8000-000000000001
name       web
phase      failed, 1 min ago
cause      GuestPanic: not syncing: \\x1b[2J
node       node-1
placement  2 of 3 nodes fit: 1 rejected by memory
source     image
image      base
kernel     the node's
resources  1 CPU, 256 MiB memory, 1 GiB disk, 512 pids
labels     team=blue

TIMELINE           ms      step
accepted            0         0
placed              1         1
jailed             46        45
booted             61        15
guest_ready      1905      1844
stopped          2500       595
"
        );
    }

    #[test]
    fn nodes_table() {
        let resources = |cpu_millis, memory_bytes| Resources {
            cpu_millis,
            memory_bytes,
            disk_bytes: 1 << 30,
            pids: 1000,
        };
        let node = Node {
            id: "node-1".parse().unwrap(),
            state: NodeState::Ready,
            allocatable: resources(2000, 2 << 30),
            reserved: resources(500, 256 << 20),
            labels: [].into(),
            zone: String::new(),
            images: ["base".to_owned()].into(),
            kernels: ["stock".to_owned()].into(),
            version: "0.1.0".into(),
            last_heartbeat: Timestamp(NOW - 200),
            sandboxes: 1,
        };
        assert_eq!(
            nodes(&[node], NOW),
            "\
NODE    STATE  SANDBOXES  CPU    MEMORY           DISK           IMAGES  HEARTBEAT  LABELS
node-1  ready  1          0.5/2  256 MiB / 2 GiB  1 GiB / 1 GiB  base    0 s ago    -
"
        );
    }

    #[test]
    fn watch_line() {
        let event_of = WatchEvent { sandbox: example(ID), deleted: true, revision: Revision(43) };
        assert_eq!(
            event(&event_of),
            "      43  0190b3f0-5a00-7000-8000-000000000001  web           deleted    node-1      \
             GuestPanic: not syncing: \\x1b[2J\n"
        );
    }
}
