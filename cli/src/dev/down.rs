//! `dev down`: ends everything in order and shows that nothing is left.
//!
//! ```text
//!   sandboxes --> nodes: what is left there? --> nodes off --> scheduler --> state directory --> is anything alive?
//! ```

use super::fleet::Fleet;
use super::host_node;
use super::state::{self, NodeKind, State};
use super::virtual_node::VirtualNode;
use crate::args::Format;
use crate::failure::advised;
use crate::output::{self, table};
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use futures::StreamExt;
use pinfold_sdk::{Client, ClientOptions, SandboxFilter};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

const SANDBOXES_LIMIT: Duration = Duration::from_secs(60);
const NODE_LIMIT: Duration = Duration::from_secs(30);
const SCHEDULER_GRACE: Duration = Duration::from_secs(15);

/// What `pinfold-node-agent leftovers -o json` prints: kind -> what was found.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Leftovers(pub std::collections::BTreeMap<String, Vec<String>>);

impl Leftovers {
    pub fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

#[derive(Debug, Default, Serialize)]
struct DownView {
    /// sandboxes that were ended
    sandboxes_ended: u64,
    nodes: Vec<NodeView>,
    /// processes that were started by `dev up` and still live
    processes_left: Vec<String>,
    /// paths that are still there
    paths_left: Vec<String>,
    /// everything is gone
    clean: bool,
}

#[derive(Debug, Serialize)]
struct NodeView {
    node: String,
    /// `null`: the node could not be asked
    left: Option<Leftovers>,
    /// why not
    problem: String,
}

pub async fn run(format: Format) -> Result<i32> {
    let directory = state::directory()?;
    if !directory.exists() {
        return Err(advised("no dev fleet runs", "`pinfold dev up` starts one"));
    }
    let lock = state::lock(&directory)?;
    let Some(state) = State::load_from(&directory)? else {
        remove(&directory)?;
        return Err(advised("no dev fleet runs", "`pinfold dev up` starts one"));
    };
    let mut progress = Progress::told();
    let fleet = Fleet { directory: directory.clone(), state };
    let mut view = DownView::default();
    progress.begin("sandboxes: ending them cleanly");
    match end_sandboxes(&fleet).await {
        Ok(count) => {
            view.sandboxes_ended = count;
            progress.done(&format!("{count} ended"));
        }
        Err(error) => progress.done(&format!("not all could be ended: {error:#}")),
    }
    progress.begin("nodes: what is left in them, then power off");
    let nodes = fleet.virtual_node_list();
    let nodes: Vec<_> = futures::stream::iter(&nodes).map(end_node).buffered(16).collect().await;
    for (node, ended) in nodes {
        view.nodes.push(node);
        ended?;
    }
    end_host_nodes(&fleet, &mut view).await?;
    progress.done("");
    progress.begin("scheduler");
    if let Some(scheduler) = &fleet.state.scheduler {
        scheduler.process.end(SCHEDULER_GRACE).await?;
    }
    remove(&directory)?;
    progress.done("");
    drop(progress);
    drop(lock);
    verify(&fleet, &directory, &mut view);
    output::show(format, &view, || text(&view))?;
    Ok(i32::from(!view.clean))
}

/// Deletes every sandbox and waits until each is gone.
async fn end_sandboxes(fleet: &Fleet) -> Result<u64> {
    let options = ClientOptions { connect_timeout: Duration::from_secs(2), ..ClientOptions::default() };
    let client = Client::connect_with(fleet.endpoint(), options).await?;
    let (all, _) = client.list_all(SandboxFilter::default()).await?;
    for sandbox in &all {
        client.delete(sandbox.id).await.with_context(|| format!("sandbox {}", sandbox.id))?;
    }
    let gone = async {
        for sandbox in &all {
            client.wait_gone(sandbox.id, SANDBOXES_LIMIT).await?;
        }
        Ok(all.len() as u64)
    };
    tokio::time::timeout(SANDBOXES_LIMIT, gone).await.context("they did not end in time")?
}

/// What the node agent finds of sandboxes in the node: nothing, when all have ended.
pub async fn leftovers(node: &VirtualNode) -> Result<Leftovers> {
    let command = "pinfold-node-agent leftovers -o json";
    let answer = node.run(command, NODE_LIMIT).await?;
    // the exit code tells whether there is any; what, is in the output
    match serde_json::from_str(answer.output.trim()) {
        Ok(leftovers) => Ok(leftovers),
        Err(_) => bail!("pinfold-node-agent leftovers (exit code {}): {}", answer.code, answer.output.trim()),
    }
}

async fn end_node(node: &VirtualNode) -> (NodeView, Result<()>) {
    let (left, problem) = match leftovers(node).await {
        Ok(left) => (Some(left), String::new()),
        Err(error) => (None, format!("{error:#}")),
    };
    let ended = node.power_off(Duration::from_secs(10)).await;
    (NodeView { node: node.name.clone(), left, problem }, ended)
}

async fn end_host_nodes(fleet: &Fleet, view: &mut DownView) -> Result<()> {
    for node in fleet.state.nodes.iter().filter(|node| node.kind == NodeKind::Host) {
        node.process.end(NODE_LIMIT).await?;
        let found = host_node::leftovers().await;
        let (left, problem) = match found.and_then(|json| Ok(serde_json::from_str(&json)?)) {
            Ok(left) => (Some(left), String::new()),
            Err(error) => (None, format!("{error:#}")),
        };
        view.nodes.push(NodeView { node: node.name.clone(), left, problem });
        host_node::remove_files()?;
    }
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    std::fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))
}

/// Looks at everything that was started once more.
fn verify(fleet: &Fleet, directory: &Path, view: &mut DownView) {
    for (name, process) in fleet.state.processes() {
        if process.is_alive() {
            view.processes_left.push(format!("{name} (pid {})", process.pid));
        }
    }
    let node_directories = fleet.state.nodes.iter().map(|node| node.directory.as_path());
    for path in std::iter::once(directory).chain(node_directories) {
        if path.exists() {
            view.paths_left.push(path.display().to_string());
        }
    }
    let nodes_clean = view.nodes.iter().all(|node| node.left.as_ref().is_some_and(|left| left.count() == 0));
    view.clean = nodes_clean && view.processes_left.is_empty() && view.paths_left.is_empty();
}

fn text(view: &DownView) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let nothing = |list: &[String]| if list.is_empty() { "nothing".to_owned() } else { list.join(", ") };
    for node in &view.nodes {
        let Some(left) = &node.left else {
            rows.push(vec![node.node.clone(), "-".into(), format!("could not be asked: {}", node.problem)]);
            continue;
        };
        for (kind, found) in &left.0 {
            rows.push(vec![node.node.clone(), kind.clone(), nothing(found)]);
        }
    }
    rows.push(vec!["this machine".into(), "processes".into(), nothing(&view.processes_left)]);
    rows.push(vec!["this machine".into(), "directories and sockets".into(), nothing(&view.paths_left)]);
    let mut text = table::grid(&["WHERE", "KIND", "LEFT"], &rows);
    text.push_str(if view.clean { "nothing is left\n" } else { "NOT CLEAN: see above\n" });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_shown_by_kind() {
        let left = r#"{"cgroups": [], "processes": ["412 pinfold-vmm"]}"#;
        let view = DownView {
            nodes: vec![NodeView {
                node: "node-1".into(),
                left: Some(serde_json::from_str(left).unwrap()),
                problem: String::new(),
            }],
            ..DownView::default()
        };
        assert_eq!(
            text(&view),
            "\
WHERE         KIND                     LEFT
node-1        cgroups                  nothing
node-1        processes                412 pinfold-vmm
this machine  processes                nothing
this machine  directories and sockets  nothing
NOT CLEAN: see above
"
        );
    }
}
