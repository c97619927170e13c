//! Snapshots and templates: as tables for people, as JSON and YAML for scripts.

use super::table::{ago, grid, or_dash};
use super::view::{CauseView, ResourcesView};
use crate::parse::{format_cpus, format_size};
use pinfold_sdk::{Snapshot, Template};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Serialize)]
pub struct SnapshotView {
    id: String,
    name: String,
    state: &'static str,
    cause: Option<CauseView>,
    sandbox: String,
    node: String,
    image: String,
    kernel: Option<String>,
    resources: ResourcesView,
    vcpus: u32,
    state_bytes: u64,
    memory_bytes: u64,
    disk_bytes: u64,
    created_at_ms: u64,
    state_at_ms: u64,
    ephemeral: bool,
}

#[derive(Debug, Serialize)]
pub struct TemplateView {
    id: String,
    name: String,
    image: String,
    kernel: Option<String>,
    resources: ResourcesView,
    environment: BTreeMap<String, String>,
    created_at_ms: u64,
    nodes_eligible: u32,
    nodes_preparing: u32,
    nodes_prepared: u32,
    nodes_failed: u32,
    last_failure: Option<CauseView>,
}

impl From<&Snapshot> for SnapshotView {
    fn from(snapshot: &Snapshot) -> Self {
        Self {
            id: snapshot.id.to_string(),
            name: snapshot.name.clone(),
            state: snapshot.state.as_str(),
            cause: snapshot.cause.as_ref().map(Into::into),
            sandbox: snapshot.sandbox.to_string(),
            node: snapshot.node.clone(),
            image: snapshot.image.clone(),
            kernel: snapshot.kernel.clone(),
            resources: (&snapshot.resources).into(),
            vcpus: snapshot.vcpus,
            state_bytes: snapshot.sizes.state_bytes,
            memory_bytes: snapshot.sizes.memory_bytes,
            disk_bytes: snapshot.sizes.disk_bytes,
            created_at_ms: snapshot.created_at.0,
            state_at_ms: snapshot.state_at.0,
            ephemeral: snapshot.ephemeral,
        }
    }
}

impl From<&Template> for TemplateView {
    fn from(template: &Template) -> Self {
        Self {
            id: template.id.to_string(),
            name: template.name.clone(),
            image: template.image.clone(),
            kernel: template.kernel.clone(),
            resources: (&template.resources).into(),
            environment: template.environment.clone(),
            created_at_ms: template.created_at.0,
            nodes_eligible: template.nodes_eligible,
            nodes_preparing: template.nodes_preparing,
            nodes_prepared: template.nodes_prepared,
            nodes_failed: template.nodes_failed,
            last_failure: template.last_failure.as_ref().map(Into::into),
        }
    }
}

pub fn snapshots(snapshots: &[Snapshot], now_ms: u64) -> String {
    if snapshots.is_empty() {
        return "no snapshots\n".to_owned();
    }
    let row = |snapshot: &Snapshot| {
        let reason = snapshot.cause.as_ref().map_or("", |cause| cause.reason.as_str());
        vec![
            snapshot.id.to_string(),
            or_dash(&snapshot.name),
            snapshot.state.to_string(),
            or_dash(reason),
            snapshot.sandbox.to_string(),
            or_dash(&snapshot.node),
            format_size(snapshot.sizes.memory_bytes),
            format_size(snapshot.sizes.disk_bytes),
            ago(now_ms, snapshot.created_at.0),
        ]
    };
    let rows: Vec<Vec<String>> = snapshots.iter().map(row).collect();
    grid(&["SNAPSHOT", "NAME", "STATE", "REASON", "SANDBOX", "NODE", "MEMORY", "DISK", "CREATED"], &rows)
}

pub fn templates(templates: &[Template], now_ms: u64) -> String {
    if templates.is_empty() {
        return "no templates\n".to_owned();
    }
    let row = |template: &Template| {
        let failure = template.last_failure.as_ref().map_or("", |cause| cause.reason.as_str());
        vec![
            or_dash(&template.name),
            or_dash(&template.image),
            format_cpus(template.resources.cpu_millis),
            format_size(template.resources.memory_bytes),
            format!("{}/{}", template.nodes_prepared, template.nodes_eligible),
            template.nodes_failed.to_string(),
            or_dash(failure),
            ago(now_ms, template.created_at.0),
        ]
    };
    let rows: Vec<Vec<String>> = templates.iter().map(row).collect();
    grid(&["TEMPLATE", "IMAGE", "CPU", "MEMORY", "PREPARED", "FAILED", "REASON", "CREATED"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_domain::spec::defaults;
    use pinfold_domain::{Cause, Reason, SnapshotSizes, SnapshotState, Timestamp};

    const NOW: u64 = 1_700_000_062_500;

    fn snapshot() -> Snapshot {
        Snapshot {
            id: "0190b3f0-5a00-7000-8000-00000000000a".parse().unwrap(),
            name: "clean".into(),
            sandbox: "0190b3f0-5a00-7000-8000-000000000001".parse().unwrap(),
            node: "node-1".into(),
            state: SnapshotState::Ready,
            cause: None,
            image: "base".into(),
            kernel: None,
            resources: defaults::RESOURCES,
            vcpus: 1,
            sizes: SnapshotSizes { state_bytes: 4096, memory_bytes: 64 << 20, disk_bytes: 8 << 20 },
            created_at: Timestamp(1_700_000_000_000),
            state_at: Timestamp(1_700_000_001_000),
            ephemeral: false,
        }
    }

    fn template() -> Template {
        Template {
            id: "0190b3f0-5a00-7000-8000-00000000000b".parse().unwrap(),
            name: "python".into(),
            image: "base".into(),
            kernel: None,
            resources: defaults::RESOURCES,
            environment: BTreeMap::new(),
            created_at: Timestamp(1_700_000_000_000),
            nodes_eligible: 3,
            nodes_preparing: 1,
            nodes_prepared: 1,
            nodes_failed: 1,
            last_failure: Some(Cause::new(Reason::HostResources, "no room")),
        }
    }

    #[test]
    fn snapshot_ls() {
        assert_eq!(
            snapshots(&[snapshot()], NOW),
            "\
SNAPSHOT                              NAME   STATE  REASON  SANDBOX                               NODE    MEMORY  DISK   CREATED
0190b3f0-5a00-7000-8000-00000000000a  clean  ready  -       0190b3f0-5a00-7000-8000-000000000001  node-1  64 MiB  8 MiB  1 min ago
"
        );
        assert_eq!(snapshots(&[], NOW), "no snapshots\n");
    }

    #[test]
    fn template_ls() {
        assert_eq!(
            templates(&[template()], NOW),
            "\
TEMPLATE  IMAGE  CPU  MEMORY   PREPARED  FAILED  REASON         CREATED
python    base   1    256 MiB  1/3       1       HostResources  1 min ago
"
        );
        assert_eq!(templates(&[], NOW), "no templates\n");
    }

    #[test]
    fn scripts_see_every_number_with_its_unit() {
        let json = serde_json::to_value(SnapshotView::from(&snapshot())).unwrap();
        assert_eq!((&json["state"], &json["memory_bytes"]), (&"ready".into(), &(64 << 20).into()));
        assert_eq!(json["sandbox"], "0190b3f0-5a00-7000-8000-000000000001");
        let json = serde_json::to_value(TemplateView::from(&template())).unwrap();
        assert_eq!((&json["nodes_prepared"], &json["nodes_eligible"]), (&1.into(), &3.into()));
        assert_eq!(json["last_failure"]["reason"], "HostResources");
    }
}
