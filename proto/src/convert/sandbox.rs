//! Sandboxes, nodes and what nodes report.

use super::{WireError, spec, timestamp};
use crate::api::v1 as wire;
use crate::node::v1 as node_wire;
use pinfold_domain::{
    Cause, Epoch, Explanation, Milestone, Node, NodeState, Phase, Reason, Sandbox, SandboxId, Verdict,
};

/// Two functions for an enum that the wire and the domain share.
macro_rules! mirrored_enum {
    ($to:ident, $from:ident, $domain:ident, $wire:ident, $field:literal, [$($name:ident),*]) => {
        pub fn $to(value: $domain) -> wire::$wire {
            match value { $($domain::$name => wire::$wire::$name,)* }
        }

        /// Refuses 0 (unspecified) and numbers that this version does not know.
        pub fn $from(value: i32) -> Result<$domain, WireError> {
            match wire::$wire::try_from(value) {
                $(Ok(wire::$wire::$name) => Ok($domain::$name),)*
                Ok(wire::$wire::Unspecified) | Err(_) => Err(WireError::UnknownEnum { field: $field, value }),
            }
        }
    };
}

pub(super) use mirrored_enum;

mirrored_enum!(
    phase_to_wire,
    phase_from_wire,
    Phase,
    Phase,
    "phase",
    [Pending, Assigned, Starting, Running, Pausing, Paused, Resuming, Stopping, Stopped, Failed, Lost]
);
mirrored_enum!(
    milestone_to_wire,
    milestone_from_wire,
    Milestone,
    Milestone,
    "milestone",
    [Accepted, Placed, Jailed, Booted, Restored, Woken, GuestReady, FirstByte, Stopped]
);
mirrored_enum!(
    node_state_to_wire,
    node_state_from_wire,
    NodeState,
    NodeState,
    "node_state",
    [Joining, Ready, Suspect, Disconnected, Lost, Draining, Quarantined]
);

pub fn cause_to_wire(cause: &Cause) -> wire::Cause {
    wire::Cause { reason: cause.reason.as_str().to_owned(), message: cause.message.clone() }
}

/// A reason that this version does not know becomes `Internal`, its string is kept in the message.
pub fn cause_from_wire(cause: wire::Cause) -> Cause {
    match Reason::from_str_exact(&cause.reason) {
        Some(reason) => Cause::new(reason, cause.message),
        None => Cause::new(Reason::Internal, format!("{}: {}", super::excerpt(&cause.reason), cause.message)),
    }
}

pub fn explanation_to_wire(explanation: &Explanation) -> wire::Explanation {
    let (verdict, node_id) = match &explanation.verdict {
        Verdict::Placed { node } => (wire::Verdict::Placed, node.to_string()),
        Verdict::Wait => (wire::Verdict::Wait, String::new()),
        Verdict::Never => (wire::Verdict::Never, String::new()),
    };
    let filters = explanation.filters.iter();
    wire::Explanation {
        verdict: verdict.into(),
        nodes_considered: explanation.nodes_considered,
        filters: filters
            .map(|f| wire::FilterCount { filter: f.filter.clone(), rejected: f.rejected })
            .collect(),
        node_id,
        sentence: explanation.sentence(),
        note: explanation.note.clone(),
    }
}

pub fn to_wire(sandbox: &Sandbox) -> wire::Sandbox {
    let timeline = sandbox.timeline.iter();
    wire::Sandbox {
        id: sandbox.id.to_string(),
        tenant: sandbox.tenant.to_string(),
        spec: Some(spec::to_wire(&sandbox.spec)),
        phase: phase_to_wire(sandbox.phase).into(),
        cause: sandbox.cause.as_ref().map(cause_to_wire),
        node_id: sandbox.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        epoch: sandbox.epoch.0,
        revision: sandbox.revision.0,
        created_at: Some(timestamp(sandbox.created_at)),
        phase_at: Some(timestamp(sandbox.phase_at)),
        expires_at: sandbox.expires_at.map(timestamp),
        timeline: timeline
            .map(|entry| wire::TimelineEntry {
                milestone: milestone_to_wire(entry.milestone).into(),
                at: Some(timestamp(entry.at)),
            })
            .collect(),
        explanation: sandbox.explanation.as_ref().map(explanation_to_wire),
        held: sandbox.phase.holds_room().then(|| spec::resources_to_wire(&sandbox.held())),
    }
}

pub fn node_to_wire(node: &Node) -> wire::Node {
    wire::Node {
        id: node.id.to_string(),
        state: node_state_to_wire(node.state).into(),
        allocatable: Some(spec::resources_to_wire(&node.allocatable)),
        reserved: Some(spec::resources_to_wire(&node.reserved)),
        labels: node.labels.clone().into_iter().collect(),
        zone: node.zone.clone(),
        images: node.images.iter().cloned().collect(),
        kernels: node.kernels.iter().cloned().collect(),
        version: node.version.clone(),
        last_heartbeat_at: Some(timestamp(node.last_heartbeat)),
        sandboxes: node.sandboxes,
    }
}

/// One sandbox as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusReport {
    pub sandbox_id: SandboxId,
    pub epoch: Epoch,
    pub sequence: u64,
    pub phase: Phase,
    pub cause: Option<Cause>,
    /// microseconds since the assignment reached the node
    pub milestones: Vec<(Milestone, u64)>,
    /// the highest order that the node has taken up for this epoch
    pub order: u64,
}

pub fn report_from_wire(status: node_wire::SandboxStatus) -> Result<StatusReport, WireError> {
    let milestones = status.milestones.into_iter();
    Ok(StatusReport {
        sandbox_id: status.sandbox_id.parse()?,
        epoch: Epoch(status.epoch),
        sequence: status.sequence,
        phase: phase_from_wire(status.phase)?,
        cause: status.cause.map(cause_from_wire),
        milestones: milestones
            .map(|m| Ok((milestone_from_wire(m.milestone)?, m.since_assignment_us)))
            .collect::<Result<_, WireError>>()?,
        order: status.order,
    })
}

pub fn report_to_wire(report: &StatusReport) -> node_wire::SandboxStatus {
    let milestones = report.milestones.iter();
    node_wire::SandboxStatus {
        sandbox_id: report.sandbox_id.to_string(),
        epoch: report.epoch.0,
        sequence: report.sequence,
        phase: phase_to_wire(report.phase).into(),
        cause: report.cause.as_ref().map(cause_to_wire),
        milestones: milestones
            .map(|&(milestone, since_assignment_us)| node_wire::MilestoneReached {
                milestone: milestone_to_wire(milestone).into(),
                since_assignment_us,
            })
            .collect(),
        order: report.order,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enums_round_trip_and_refuse_the_unknown() {
        for phase in Phase::ALL {
            assert_eq!(phase_from_wire(phase_to_wire(phase).into()), Ok(phase));
        }
        for milestone in Milestone::ALL {
            assert_eq!(milestone_from_wire(milestone_to_wire(milestone).into()), Ok(milestone));
        }
        assert!(phase_from_wire(0).is_err());
        assert_eq!(phase_from_wire(99).unwrap_err().to_string(), "phase is 99, which is not a known value");
    }

    #[test]
    fn an_unknown_reason_is_kept_in_the_message() {
        let cause = cause_from_wire(wire::Cause { reason: "FromTheFuture".into(), message: "m".into() });
        assert_eq!(cause, Cause::new(Reason::Internal, "FromTheFuture: m"));
    }

    #[test]
    fn a_report_round_trips() {
        let report = StatusReport {
            sandbox_id: "0190b3f0-5a00-7000-8000-000000000001".parse().unwrap(),
            epoch: Epoch(3),
            sequence: 9,
            phase: Phase::Failed,
            cause: Some(Cause::new(Reason::GuestPanic, "not syncing")),
            milestones: vec![(Milestone::Jailed, 1500), (Milestone::Booted, 9000)],
            order: 4,
        };
        assert_eq!(report_from_wire(report_to_wire(&report)), Ok(report));
    }
}
