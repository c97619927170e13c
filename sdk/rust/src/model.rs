//! What the API says, in domain types.

use crate::error::Error;
use pinfold_domain::spec::{SandboxSpec, Source};
use pinfold_domain::{
    Cause, Epoch, FilterCount, Milestone, Node, Phase, Resources, Revision, SandboxId, TimelineEntry,
    Timestamp,
};
use pinfold_proto::api::v1 as wire;
use pinfold_proto::convert;
use std::collections::BTreeMap;
use std::time::Duration;

/// What to ask for. What is left out takes the server's default (`pinfold_domain::spec::defaults`). The server
/// checks every bound (`pinfold_domain::spec::limits`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewSandbox {
    /// 1 to 64 printable ASCII characters; the same id with the same content gives the same sandbox. `None`: a new one.
    pub request_id: Option<String>,
    pub name: Option<String>,
    pub image: Option<String>,
    pub kernel: Option<String>,
    pub resources: Option<Resources>,
    pub labels: BTreeMap<String, String>,
    pub environment: BTreeMap<String, String>,
    /// whole seconds
    pub ttl: Option<Duration>,
    /// whole seconds, from assignment to guest ready
    pub start_timeout: Option<Duration>,
    /// only nodes that carry all of these
    pub node_labels: BTreeMap<String, String>,
    pub io_bytes_per_second: Option<u64>,
    /// with another source than the image, `image`, `kernel` and `resources` stay `None`
    pub source: Source,
}

impl NewSandbox {
    pub(crate) fn into_wire(self) -> wire::SandboxSpec {
        let (template, snapshot_id) = match self.source {
            Source::Image => (String::new(), String::new()),
            Source::Template(name) => (name, String::new()),
            Source::Snapshot(id) => (String::new(), id.to_string()),
        };
        wire::SandboxSpec {
            name: self.name.unwrap_or_default(),
            image: self.image.unwrap_or_default(),
            kernel: self.kernel.unwrap_or_default(),
            resources: self.resources.as_ref().map(convert::spec::resources_to_wire),
            labels: self.labels.into_iter().collect(),
            environment: self.environment.into_iter().collect(),
            ttl_seconds: self.ttl.map(|ttl| ttl.as_secs()),
            start_timeout_seconds: self.start_timeout.map(|limit| limit.as_secs()),
            node_labels: self.node_labels.into_iter().collect(),
            io_bytes_per_second: self.io_bytes_per_second,
            template,
            snapshot_id,
        }
    }
}

/// A sandbox at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    pub id: SandboxId,
    pub tenant: String,
    pub spec: SandboxSpec,
    pub phase: Phase,
    pub cause: Option<Cause>,
    pub node: Option<String>,
    pub epoch: Epoch,
    pub revision: Revision,
    pub created_at: Timestamp,
    pub phase_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    /// in order of time
    pub timeline: Vec<TimelineEntry>,
    pub explanation: Option<Explanation>,
    /// what it holds on its node now; `None` when it has none
    pub held: Option<Resources>,
}

impl Sandbox {
    pub fn reached(&self, milestone: Milestone) -> Option<Timestamp> {
        self.timeline.iter().find(|entry| entry.milestone == milestone).map(|entry| entry.at)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Placed,
    Wait,
    Never,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Wait => "wait",
            Self::Never => "never",
        }
    }
}

/// The last placement decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub verdict: Verdict,
    pub nodes_considered: u64,
    /// in the order in which the filters ran
    pub filters: Vec<FilterCount>,
    pub node: Option<String>,
    /// the server's sentence for a person
    pub sentence: String,
}

/// Which sandboxes to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxFilter {
    /// all of these; an empty value asks for the key alone
    pub labels: BTreeMap<String, String>,
    /// any of these; none: all
    pub phases: Vec<Phase>,
}

impl SandboxFilter {
    pub(crate) fn into_wire(self, page_size: u32, page_token: String) -> wire::ListSandboxesRequest {
        let phases = self.phases.into_iter();
        wire::ListSandboxesRequest {
            page_size,
            page_token,
            labels: self.labels.into_iter().collect(),
            phases: phases.map(|phase| convert::sandbox::phase_to_wire(phase).into()).collect(),
        }
    }
}

pub(crate) fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

pub(crate) fn millis(at: Option<prost_types::Timestamp>) -> Timestamp {
    at.as_ref().map(convert::timestamp_from_wire).unwrap_or_default()
}

fn explanation(explanation: wire::Explanation) -> Explanation {
    let verdict = match explanation.verdict() {
        wire::Verdict::Placed => Verdict::Placed,
        wire::Verdict::Never => Verdict::Never,
        wire::Verdict::Wait | wire::Verdict::Unspecified => Verdict::Wait,
    };
    let filters = explanation.filters.into_iter();
    Explanation {
        verdict,
        nodes_considered: explanation.nodes_considered,
        filters: filters.map(|f| FilterCount { filter: f.filter, rejected: f.rejected }).collect(),
        node: some(explanation.node_id),
        sentence: explanation.sentence,
    }
}

/// A milestone that this version does not know is left out: a newer server may have more of them.
fn timeline(entries: Vec<wire::TimelineEntry>) -> Vec<TimelineEntry> {
    let known = entries.into_iter().filter_map(|entry| {
        let milestone = convert::sandbox::milestone_from_wire(entry.milestone).ok()?;
        Some(TimelineEntry { milestone, at: millis(entry.at) })
    });
    known.collect()
}

/// `call` is named in the error.
pub(crate) fn sandbox(call: &'static str, sandbox: Option<wire::Sandbox>) -> Result<Sandbox, Error> {
    let protocol = |what: String| Error::Protocol { call, what };
    let sandbox = sandbox.ok_or_else(|| protocol("sandbox is missing".to_owned()))?;
    let spec = convert::spec::from_wire(sandbox.spec).map_err(|error| protocol(error.to_string()))?;
    let phase =
        convert::sandbox::phase_from_wire(sandbox.phase).map_err(|error| protocol(error.to_string()))?;
    Ok(Sandbox {
        id: sandbox.id.parse().map_err(|error: pinfold_domain::IdError| protocol(error.to_string()))?,
        tenant: sandbox.tenant,
        spec,
        phase,
        cause: sandbox.cause.map(convert::sandbox::cause_from_wire),
        node: some(sandbox.node_id),
        epoch: Epoch(sandbox.epoch),
        revision: Revision(sandbox.revision),
        created_at: millis(sandbox.created_at),
        phase_at: millis(sandbox.phase_at),
        expires_at: sandbox.expires_at.as_ref().map(convert::timestamp_from_wire),
        timeline: timeline(sandbox.timeline),
        explanation: sandbox.explanation.map(explanation),
        held: sandbox.held.map(convert::spec::resources_from_wire),
    })
}

pub(crate) fn node(call: &'static str, node: wire::Node) -> Result<Node, Error> {
    let protocol = |what: String| Error::Protocol { call, what };
    let resources = |resources: Option<wire::Resources>| {
        resources.map(convert::spec::resources_from_wire).unwrap_or_default()
    };
    Ok(Node {
        id: node.id.parse().map_err(|error: pinfold_domain::IdError| protocol(error.to_string()))?,
        state: convert::sandbox::node_state_from_wire(node.state)
            .map_err(|error| protocol(error.to_string()))?,
        allocatable: resources(node.allocatable),
        reserved: resources(node.reserved),
        labels: node.labels.into_iter().collect(),
        zone: node.zone,
        images: node.images.into_iter().collect(),
        kernels: node.kernels.into_iter().collect(),
        version: node.version,
        last_heartbeat: millis(node.last_heartbeat_at),
        sandboxes: node.sandboxes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire_sandbox() -> wire::Sandbox {
        wire::Sandbox {
            id: "0190b3f0-5a00-7000-8000-000000000001".into(),
            tenant: "default".into(),
            spec: Some(wire::SandboxSpec::default()),
            phase: wire::Phase::Running.into(),
            node_id: "node-1".into(),
            timeline: vec![
                wire::TimelineEntry {
                    milestone: wire::Milestone::Accepted.into(),
                    at: Some(prost_types::Timestamp { seconds: 1, nanos: 500_000_000 }),
                },
                wire::TimelineEntry { milestone: 99, at: None },
            ],
            ..Default::default()
        }
    }

    #[test]
    fn a_milestone_of_a_newer_server_is_left_out() {
        let sandbox = sandbox("GetSandbox", Some(wire_sandbox())).unwrap();
        assert_eq!(sandbox.timeline.len(), 1);
        assert_eq!(sandbox.reached(Milestone::Accepted), Some(Timestamp(1500)));
        assert_eq!(sandbox.node.as_deref(), Some("node-1"));
    }

    #[test]
    fn a_phase_that_is_not_known_is_an_error_and_not_a_guess() {
        let wire = wire::Sandbox { phase: 77, ..wire_sandbox() };
        let error = sandbox("GetSandbox", Some(wire)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "GetSandbox: the server's answer is not understood: phase is 77, which is not a known value"
        );
        assert!(sandbox("GetSandbox", None).is_err());
    }

    #[test]
    fn what_is_left_out_stays_out_of_the_wire() {
        let wire = NewSandbox::default().into_wire();
        assert_eq!(wire, wire::SandboxSpec::default());
    }
}
