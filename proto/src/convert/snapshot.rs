//! Snapshots, templates, and what nodes have of them.

use super::sandbox::{cause_from_wire, cause_to_wire, mirrored_enum};
use super::{WireError, spec, timestamp};
use crate::api::v1 as wire;
use crate::node::v1 as node_wire;
use pinfold_domain::{
    Preparation, Snapshot, SnapshotReport, SnapshotSizes, SnapshotState, Template, TemplateReport,
};

mirrored_enum!(
    state_to_wire,
    state_from_wire,
    SnapshotState,
    SnapshotState,
    "state",
    [Creating, Ready, Failed, Deleting, Lost]
);
mirrored_enum!(
    preparation_to_wire,
    preparation_from_wire,
    Preparation,
    Preparation,
    "preparation",
    [Preparing, Prepared, Failed]
);

fn sizes_to_wire(sizes: SnapshotSizes) -> wire::SnapshotSizes {
    let SnapshotSizes { state_bytes, memory_bytes, disk_bytes } = sizes;
    wire::SnapshotSizes { state_bytes, memory_bytes, disk_bytes }
}

pub fn sizes_from_wire(sizes: Option<wire::SnapshotSizes>) -> SnapshotSizes {
    let wire::SnapshotSizes { state_bytes, memory_bytes, disk_bytes } = sizes.unwrap_or_default();
    SnapshotSizes { state_bytes, memory_bytes, disk_bytes }
}

pub fn to_wire(snapshot: &Snapshot) -> wire::Snapshot {
    wire::Snapshot {
        id: snapshot.id.to_string(),
        tenant: snapshot.tenant.to_string(),
        name: snapshot.name.clone(),
        sandbox_id: snapshot.sandbox.to_string(),
        node_id: snapshot.node.to_string(),
        state: state_to_wire(snapshot.state).into(),
        cause: snapshot.cause.as_ref().map(cause_to_wire),
        image: snapshot.spec.image.clone(),
        kernel: snapshot.spec.kernel.clone().unwrap_or_default(),
        resources: Some(spec::resources_to_wire(&snapshot.spec.resources)),
        vcpus: snapshot.spec.vcpus(),
        sizes: Some(sizes_to_wire(snapshot.sizes)),
        created_at: Some(timestamp(snapshot.created_at)),
        state_at: Some(timestamp(snapshot.state_at)),
        ephemeral: snapshot.ephemeral,
    }
}

/// The counts of nodes are left at zero: they are not part of what is stored.
pub fn template_to_wire(template: &Template) -> wire::Template {
    wire::Template {
        id: template.id.to_string(),
        tenant: template.tenant.to_string(),
        name: template.name.clone(),
        spec: Some(wire::TemplateSpec {
            image: template.image.clone(),
            kernel: template.kernel.clone().unwrap_or_default(),
            resources: Some(spec::resources_to_wire(&template.resources)),
            environment: template.environment.clone().into_iter().collect(),
        }),
        created_at: Some(timestamp(template.created_at)),
        ..wire::Template::default()
    }
}

pub fn snapshot_report_from_wire(status: node_wire::SnapshotStatus) -> Result<SnapshotReport, WireError> {
    Ok(SnapshotReport {
        snapshot_id: status.snapshot_id.parse()?,
        state: state_from_wire(status.state)?,
        cause: status.cause.map(cause_from_wire),
        sizes: sizes_from_wire(status.sizes),
    })
}

pub fn snapshot_report_to_wire(report: &SnapshotReport) -> node_wire::SnapshotStatus {
    node_wire::SnapshotStatus {
        snapshot_id: report.snapshot_id.to_string(),
        state: state_to_wire(report.state).into(),
        cause: report.cause.as_ref().map(cause_to_wire),
        sizes: Some(sizes_to_wire(report.sizes)),
    }
}

pub fn template_report_from_wire(status: node_wire::TemplateStatus) -> Result<TemplateReport, WireError> {
    Ok(TemplateReport {
        template_id: status.template_id.parse()?,
        preparation: preparation_from_wire(status.preparation)?,
        cause: status.cause.map(cause_from_wire),
        sizes: sizes_from_wire(status.sizes),
    })
}

pub fn template_report_to_wire(report: &TemplateReport) -> node_wire::TemplateStatus {
    node_wire::TemplateStatus {
        template_id: report.template_id.to_string(),
        preparation: preparation_to_wire(report.preparation).into(),
        cause: report.cause.as_ref().map(cause_to_wire),
        sizes: Some(sizes_to_wire(report.sizes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_domain::{Cause, Reason};

    const ID: &str = "0190b3f0-5a00-7000-8000-000000000001";
    const SIZES: SnapshotSizes = SnapshotSizes { state_bytes: 1, memory_bytes: 2, disk_bytes: 3 };

    #[test]
    fn reports_of_snapshots_and_templates_round_trip() {
        let cause = Some(Cause::new(Reason::SnapshotFailed, "no space"));
        for state in SnapshotState::ALL {
            let report = SnapshotReport {
                snapshot_id: ID.parse().unwrap(),
                state,
                cause: cause.clone(),
                sizes: SIZES,
            };
            assert_eq!(snapshot_report_from_wire(snapshot_report_to_wire(&report)), Ok(report));
        }
        for preparation in Preparation::ALL {
            let template_id = ID.parse().unwrap();
            let report = TemplateReport { template_id, preparation, cause: cause.clone(), sizes: SIZES };
            assert_eq!(template_report_from_wire(template_report_to_wire(&report)), Ok(report));
        }
        let unknown = node_wire::SnapshotStatus { snapshot_id: ID.into(), ..Default::default() };
        assert!(snapshot_report_from_wire(unknown).unwrap_err().to_string().starts_with("state is 0"));
    }
}
