//! What a caller asks of a fork, checked.

use super::sandboxes::{request_id, sandbox_id};
use super::snapshots::snapshot_id;
use crate::driver::ForkOrder;
use pinfold_domain::spec::{check_labels, limits};
use pinfold_domain::{Millis, TenantId};
use pinfold_engine::ForkSource;
use pinfold_proto::api::v1::ForkSandboxRequest;
use pinfold_proto::api::v1::fork_sandbox_request::Source;
use pinfold_proto::convert::WireError;

/// What the source gives is checked by the engine once more, together with this.
pub fn order(request: ForkSandboxRequest) -> Result<ForkOrder, WireError> {
    let request_id = request_id(&request.request_id)?;
    let source = match request.source.ok_or(WireError::Missing { field: "source" })? {
        Source::SandboxId(id) => ForkSource::Sandbox(sandbox_id(&id)?),
        Source::SnapshotId(id) => ForkSource::Snapshot(snapshot_id(&id)?),
    };
    let (value, max) = (u64::from(request.count), limits::FORKS as u64);
    if !(1..=max).contains(&value) {
        return Err(WireError::OutOfRange { field: "count", value, min: 1, max });
    }
    if !request.name.is_empty() {
        pinfold_domain::ids::check_name("name", &request.name)?;
    }
    let labels = request.labels.into_iter().collect();
    check_labels("labels", &labels)?;
    if let Some(value) = request.ttl_seconds {
        let (min, max) = limits::TTL_SECONDS;
        if !(min..=max).contains(&value) {
            return Err(WireError::OutOfRange { field: "ttl_seconds", value, min, max });
        }
    }
    Ok(ForkOrder {
        tenant: TenantId::default(),
        request_id,
        source,
        count: request.count as usize,
        name: request.name,
        labels,
        ttl: request.ttl_seconds.map(Millis::from_secs),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_is_checked_field_by_field() {
        let id = "0190b3f0-5a00-7000-8000-000000000001".to_owned();
        let good = ForkSandboxRequest {
            request_id: "r".into(),
            source: Some(Source::SandboxId(id)),
            count: 64,
            ..ForkSandboxRequest::default()
        };
        assert_eq!(order(good.clone()).unwrap().count, 64);
        let refused = |change: fn(&mut ForkSandboxRequest)| {
            let mut changed = good.clone();
            change(&mut changed);
            order(changed).err().expect("refused").to_string()
        };
        assert_eq!(refused(|r| r.count = 0), "count is 0, outside 1 to 64");
        assert_eq!(refused(|r| r.count = 65), "count is 65, outside 1 to 64");
        assert_eq!(refused(|r| r.source = None), "source is missing");
        assert!(refused(|r| r.source = Some(Source::SnapshotId("7".into()))).contains("snapshot_id"));
        assert!(refused(|r| r.request_id.clear()).contains("request_id"));
        assert!(refused(|r| r.name = "No Name".into()).contains("name"));
        assert!(refused(|r| r.ttl_seconds = Some(0)).contains("ttl_seconds is 0"));
        assert!(refused(|r| drop(r.labels.insert("a b".into(), String::new()))).contains("labels"));
    }
}
