//! What nodes say, checked once and turned into events.

use pinfold_domain::spec::check_labels;
use pinfold_domain::{Cause, Epoch, NodeId, SnapshotReport, TemplateReport};
use pinfold_engine::{Event, NodeRegistration, NodeReport, SessionId};
use pinfold_proto::convert::WireError;
use pinfold_proto::convert::sandbox::{StatusReport, cause_from_wire, report_from_wire};
use pinfold_proto::convert::snapshot::{snapshot_report_from_wire, template_report_from_wire};
use pinfold_proto::convert::spec::resources_from_wire;
use pinfold_proto::node::v1 as wire;
use pinfold_proto::node::v1::session_request::Message;
use std::collections::BTreeSet;

/// Images or kernels of one node.
const NAMES: u64 = 1024;
/// Longest version string of an agent.
const VERSION_BYTES: usize = 64;

/// A node's first message.
pub fn registration(register: wire::Register, session: SessionId) -> Result<NodeRegistration, Cause> {
    let labels = register.labels.into_iter().collect();
    check_labels("labels", &labels).map_err(WireError::from)?;
    if !register.zone.is_empty() {
        pinfold_domain::ids::check_name("zone", &register.zone).map_err(WireError::from)?;
    }
    if register.agent_version.len() > VERSION_BYTES {
        let bytes = register.agent_version.len();
        return Err(WireError::TooLarge { field: "agent_version", bytes, max: VERSION_BYTES }.into());
    }
    Ok(NodeRegistration {
        id: node_id(&register.node_id)?,
        session,
        version: register.agent_version,
        allocatable: resources_from_wire(
            register.allocatable.ok_or(WireError::Missing { field: "allocatable" })?,
        ),
        labels,
        zone: register.zone,
        images: names("images", register.images)?,
        kernels: names("kernels", register.kernels)?,
        statuses: reports(register.sandboxes)?,
        snapshots: snapshot_reports(register.snapshots)?,
        templates: template_reports(register.templates)?,
    })
}

pub fn node_id(text: &str) -> Result<NodeId, WireError> {
    Ok(text.parse()?)
}

/// Every message after the first.
pub fn event(message: wire::SessionRequest, node: &NodeId, session: SessionId) -> Result<Event, Cause> {
    let node = node.clone();
    match message.message.ok_or(WireError::Missing { field: "message" })? {
        Message::Register(_) => {
            let why = "register comes first, and once";
            Err(WireError::NotAllowed { field: "message", value: "register".to_owned(), why }.into())
        }
        Message::Heartbeat(heartbeat) => {
            let statuses = reports(heartbeat.sandboxes)?;
            let snapshots = snapshot_reports(heartbeat.snapshots)?;
            let templates = template_reports(heartbeat.templates)?;
            Ok(Event::Heartbeat { node, session, statuses, snapshots, templates })
        }
        Message::Status(status) => Ok(Event::Report { node, session, status: report(status)? }),
        Message::Snapshot(status) => {
            Ok(Event::SnapshotReported { node, session, status: snapshot_report_from_wire(status)? })
        }
        Message::Template(status) => {
            Ok(Event::TemplateReported { node, session, status: template_report_from_wire(status)? })
        }
        Message::Refuse(refuse) => Ok(Event::Refused {
            node,
            session,
            sandbox_id: refuse.sandbox_id.parse().map_err(WireError::from)?,
            epoch: Epoch(refuse.epoch),
            cause: cause_from_wire(refuse.cause.ok_or(WireError::Missing { field: "cause" })?),
        }),
    }
}

fn names(field: &'static str, names: Vec<String>) -> Result<BTreeSet<String>, WireError> {
    let count = names.len() as u64;
    if count > NAMES {
        return Err(WireError::OutOfRange { field, value: count, min: 0, max: NAMES });
    }
    for name in &names {
        pinfold_domain::ids::check_name(field, name)?;
    }
    Ok(names.into_iter().collect())
}

fn reports(statuses: Vec<wire::SandboxStatus>) -> Result<Vec<NodeReport>, WireError> {
    statuses.into_iter().map(report).collect()
}

fn snapshot_reports(statuses: Vec<wire::SnapshotStatus>) -> Result<Vec<SnapshotReport>, WireError> {
    statuses.into_iter().map(snapshot_report_from_wire).collect()
}

fn template_reports(statuses: Vec<wire::TemplateStatus>) -> Result<Vec<TemplateReport>, WireError> {
    statuses.into_iter().map(template_report_from_wire).collect()
}

fn report(status: wire::SandboxStatus) -> Result<NodeReport, WireError> {
    let StatusReport { sandbox_id, epoch, sequence, phase, cause, milestones, order } =
        report_from_wire(status)?;
    Ok(NodeReport { sandbox_id, epoch, sequence, phase, cause, milestones, order })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_proto::api::v1::Resources;

    fn register() -> wire::Register {
        wire::Register {
            node_id: "node-1".into(),
            allocatable: Some(Resources { cpu_millis: 4000, ..Resources::default() }),
            images: vec!["base".into()],
            ..wire::Register::default()
        }
    }

    fn error_of(change: impl FnOnce(&mut wire::Register)) -> String {
        let mut changed = register();
        change(&mut changed);
        registration(changed, SessionId(1)).unwrap_err().message
    }

    #[test]
    fn a_registration_is_checked_field_by_field() {
        assert!(registration(register(), SessionId(1)).is_ok());
        assert!(error_of(|r| r.node_id = "Node 1".into()).contains("node_id"));
        assert!(error_of(|r| r.allocatable = None).contains("allocatable"));
        assert!(error_of(|r| r.images.push("../base".into())).contains("images"));
        assert!(error_of(|r| r.kernels = vec!["k".into(); 1025]).contains("1024"));
        assert!(error_of(|r| r.zone = "a/b".into()).contains("zone"));
        assert!(error_of(|r| r.agent_version = "v".repeat(65)).contains("agent_version"));
        assert!(error_of(|r| drop(r.labels.insert("a b".into(), String::new()))).contains("labels"));
        assert!(error_of(|r| r.sandboxes.push(wire::SandboxStatus::default())).contains("sandbox_id"));
        assert!(error_of(|r| r.snapshots.push(wire::SnapshotStatus::default())).contains("snapshot_id"));
        assert!(error_of(|r| r.templates.push(wire::TemplateStatus::default())).contains("template_id"));
    }

    #[test]
    fn a_second_register_is_refused() {
        let again = wire::SessionRequest { message: Some(Message::Register(register())) };
        let node = "node-1".parse().unwrap();
        assert!(event(again, &node, SessionId(1)).unwrap_err().message.contains("once"));
        let empty = wire::SessionRequest { message: None };
        assert!(event(empty, &node, SessionId(1)).is_err());
    }
}
