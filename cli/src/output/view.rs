//! The JSON and YAML form: names and units are part of the contract with scripts.

use pinfold_domain::{Cause, Node, Resources, Source, Timestamp};
use pinfold_sdk::{Sandbox, WatchEvent};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Serialize)]
pub struct SandboxView {
    id: String,
    name: String,
    tenant: String,
    phase: &'static str,
    /// null until placed
    node: Option<String>,
    cause: Option<CauseView>,
    /// in order of time
    timeline: Vec<TimelineView>,
    epoch: u64,
    revision: u64,
    created_at_ms: u64,
    phase_at_ms: u64,
    expires_at_ms: Option<u64>,
    spec: SpecView,
    explanation: Option<ExplanationView>,
    /// on its node now; null when it has none
    held: Option<ResourcesView>,
}

#[derive(Debug, Serialize)]
pub struct CauseView {
    reason: &'static str,
    message: String,
}

#[derive(Debug, Serialize)]
struct TimelineView {
    milestone: &'static str,
    /// since the Unix epoch
    at_ms: u64,
    since_accepted_ms: u64,
}

#[derive(Debug, Serialize)]
pub struct ResourcesView {
    cpu_millis: u64,
    memory_bytes: u64,
    disk_bytes: u64,
    pids: u64,
}

#[derive(Debug, Serialize)]
struct SpecView {
    image: String,
    kernel: Option<String>,
    resources: ResourcesView,
    labels: BTreeMap<String, String>,
    environment: BTreeMap<String, String>,
    ttl_seconds: u64,
    start_timeout_seconds: u64,
    node_labels: BTreeMap<String, String>,
    io_bytes_per_second: Option<u64>,
    /// null unless it was made from one
    template: Option<String>,
    snapshot: Option<String>,
}

#[derive(Debug, Serialize)]
struct ExplanationView {
    verdict: &'static str,
    sentence: String,
    nodes_considered: u64,
    filters: Vec<FilterView>,
    node: Option<String>,
}

#[derive(Debug, Serialize)]
struct FilterView {
    filter: String,
    rejected: u64,
}

#[derive(Debug, Serialize)]
pub struct NodeView {
    id: String,
    state: &'static str,
    sandboxes: u64,
    allocatable: ResourcesView,
    reserved: ResourcesView,
    labels: BTreeMap<String, String>,
    zone: String,
    images: Vec<String>,
    kernels: Vec<String>,
    version: String,
    last_heartbeat_ms: u64,
}

#[derive(Debug, Serialize)]
pub struct EventView {
    revision: u64,
    deleted: bool,
    sandbox: SandboxView,
}

/// When the timeline begins.
pub fn accepted_at(sandbox: &Sandbox) -> Timestamp {
    sandbox.reached(pinfold_domain::Milestone::Accepted).unwrap_or(sandbox.created_at)
}

impl From<&Cause> for CauseView {
    fn from(cause: &Cause) -> Self {
        Self { reason: cause.reason.as_str(), message: cause.message.clone() }
    }
}

impl From<&Resources> for ResourcesView {
    fn from(resources: &Resources) -> Self {
        let Resources { cpu_millis, memory_bytes, disk_bytes, pids } = *resources;
        Self { cpu_millis, memory_bytes, disk_bytes, pids }
    }
}

impl From<&Sandbox> for SandboxView {
    fn from(sandbox: &Sandbox) -> Self {
        let accepted = accepted_at(sandbox);
        let spec = &sandbox.spec;
        let timeline = sandbox.timeline.iter();
        Self {
            id: sandbox.id.to_string(),
            name: spec.name.clone(),
            tenant: sandbox.tenant.clone(),
            phase: sandbox.phase.as_str(),
            node: sandbox.node.clone(),
            cause: sandbox.cause.as_ref().map(Into::into),
            timeline: timeline
                .map(|entry| TimelineView {
                    milestone: entry.milestone.as_str(),
                    at_ms: entry.at.0,
                    since_accepted_ms: entry.at.since(accepted).0,
                })
                .collect(),
            epoch: sandbox.epoch.0,
            revision: sandbox.revision.0,
            created_at_ms: sandbox.created_at.0,
            phase_at_ms: sandbox.phase_at.0,
            expires_at_ms: sandbox.expires_at.map(|at| at.0),
            spec: SpecView {
                image: spec.image.clone(),
                kernel: spec.kernel.clone(),
                resources: (&spec.resources).into(),
                labels: spec.labels.clone(),
                environment: spec.environment.clone(),
                ttl_seconds: spec.ttl.0 / 1000,
                start_timeout_seconds: spec.start_timeout.0 / 1000,
                node_labels: spec.node_labels.clone(),
                io_bytes_per_second: spec.io_bytes_per_second,
                template: match &spec.source {
                    Source::Template(name) => Some(name.clone()),
                    Source::Image | Source::Snapshot(_) => None,
                },
                snapshot: match &spec.source {
                    Source::Snapshot(id) => Some(id.to_string()),
                    Source::Image | Source::Template(_) => None,
                },
            },
            held: sandbox.held.as_ref().map(Into::into),
            explanation: sandbox.explanation.as_ref().map(|explanation| ExplanationView {
                verdict: explanation.verdict.as_str(),
                sentence: explanation.sentence.clone(),
                nodes_considered: explanation.nodes_considered,
                filters: explanation
                    .filters
                    .iter()
                    .map(|f| FilterView { filter: f.filter.clone(), rejected: f.rejected })
                    .collect(),
                node: explanation.node.clone(),
            }),
        }
    }
}

impl From<&Node> for NodeView {
    fn from(node: &Node) -> Self {
        Self {
            id: node.id.to_string(),
            state: node.state.as_str(),
            sandboxes: node.sandboxes,
            allocatable: (&node.allocatable).into(),
            reserved: (&node.reserved).into(),
            labels: node.labels.clone(),
            zone: node.zone.clone(),
            images: node.images.iter().cloned().collect(),
            kernels: node.kernels.iter().cloned().collect(),
            version: node.version.clone(),
            last_heartbeat_ms: node.last_heartbeat.0,
        }
    }
}

impl From<&WatchEvent> for EventView {
    fn from(event: &WatchEvent) -> Self {
        Self { revision: event.revision.0, deleted: event.deleted, sandbox: (&event.sandbox).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::sandbox;

    #[test]
    fn the_json_form_is_a_contract() {
        let view = SandboxView::from(&sandbox("0190b3f0-5a00-7000-8000-000000000001"));
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["id"], "0190b3f0-5a00-7000-8000-000000000001");
        assert_eq!(json["phase"], "failed");
        assert_eq!(
            json["cause"],
            serde_json::json!({"reason": "GuestPanic", "message": "not syncing: \u{1b}[2J"})
        );
        let booted = serde_json::json!(
            {"milestone": "booted", "at_ms": 1_700_000_000_061_u64, "since_accepted_ms": 61}
        );
        assert_eq!(json["timeline"][3], booted);
        assert_eq!(json["spec"]["resources"]["memory_bytes"], 256 << 20);
        assert_eq!(json["spec"]["ttl_seconds"], 3600);
        assert_eq!(json["explanation"]["sentence"], "2 of 3 nodes fit: 1 rejected by memory");
        assert_eq!(json["explanation"]["filters"][0], serde_json::json!({"filter": "memory", "rejected": 1}));
    }
}
