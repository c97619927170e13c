//! `SnapshotService`.

use super::sandboxes::{request_id, sandbox_id};
use super::{deadline, pages, status};
use crate::driver::DriverHandle;
use crate::view::View;
use pinfold_domain::{IdError, SnapshotId, TenantId};
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::snapshot_service_server::SnapshotService;
use pinfold_proto::convert::{WireError, snapshot};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

/// Longest wait of one call.
const MAX_WAIT_SECONDS: u32 = 60;

pub struct SnapshotApi {
    pub view: Arc<View>,
    pub driver: DriverHandle,
    /// a call that waits takes the place of a watch
    pub watches: Arc<Semaphore>,
    pub call_timeout: Duration,
}

#[tonic::async_trait]
impl SnapshotService for SnapshotApi {
    async fn create_snapshot(
        &self,
        request: Request<wire::CreateSnapshotRequest>,
    ) -> Result<Response<wire::CreateSnapshotResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let request = request.into_inner();
        let request_id = request_id(&request.request_id).map_err(status::refuse)?;
        let id = sandbox_id(&request.sandbox_id).map_err(status::refuse)?;
        let name = name(request.name).map_err(status::refuse)?;
        let create = async {
            let created = self.driver.create_snapshot(TenantId::default(), request_id, id, name).await;
            created.map_err(status::rejected)
        };
        let created = deadline::within(deadline, self.call_timeout, create).await?;
        Ok(Response::new(wire::CreateSnapshotResponse { snapshot: Some(snapshot::to_wire(&created)) }))
    }

    async fn get_snapshot(
        &self,
        request: Request<wire::GetSnapshotRequest>,
    ) -> Result<Response<wire::GetSnapshotResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let request = request.into_inner();
        let id = snapshot_id(&request.snapshot_id).map_err(status::refuse)?;
        let wait = wait(request.wait_seconds).map_err(status::refuse)?;
        let mut found = self.view.snapshot(id).map_err(status::refuse)?;
        if !wait.is_zero() {
            let _place = self.watches.try_acquire().map_err(|_| status::too_many_watches())?;
            let settled = async { self.view.snapshot_settled(id).await.map_err(status::refuse) };
            let waited = tokio::time::timeout(wait, settled);
            // a wait that is over is answered with the state of that moment
            let settled =
                async { waited.await.unwrap_or_else(|_| self.view.snapshot(id).map_err(status::refuse)) };
            found = deadline::within(deadline, wait + self.call_timeout, settled).await?;
        }
        Ok(Response::new(wire::GetSnapshotResponse { snapshot: Some(snapshot::to_wire(&found)) }))
    }

    async fn list_snapshots(
        &self,
        request: Request<wire::ListSnapshotsRequest>,
    ) -> Result<Response<wire::ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let size = pages::size(request.page_size).map_err(status::refuse)?;
        let after = page_token(&request.page_token).map_err(status::refuse)?;
        let sandbox = match request.sandbox_id.as_str() {
            "" => None,
            text => Some(sandbox_id(text).map_err(status::refuse)?),
        };
        let page = self.view.snapshots(sandbox, after, size);
        let (snapshots, cut) = pages::fit(page.snapshots.iter().map(|found| snapshot::to_wire(found)));
        let next_page_token = match snapshots.last() {
            Some(last) if cut => last.id.clone(),
            _ => page.next_after.map(|id| id.to_string()).unwrap_or_default(),
        };
        Ok(Response::new(wire::ListSnapshotsResponse { snapshots, next_page_token }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<wire::DeleteSnapshotRequest>,
    ) -> Result<Response<wire::DeleteSnapshotResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let request = request.into_inner();
        let request_id = request_id(&request.request_id).map_err(status::refuse)?;
        let id = snapshot_id(&request.snapshot_id).map_err(status::refuse)?;
        let delete = async {
            let deleted = self.driver.delete_snapshot(TenantId::default(), request_id, id).await;
            deleted.map_err(status::rejected)
        };
        let deleted = deadline::within(deadline, self.call_timeout, delete).await?;
        Ok(Response::new(wire::DeleteSnapshotResponse { snapshot: Some(snapshot::to_wire(&deleted)) }))
    }
}

pub fn snapshot_id(text: &str) -> Result<SnapshotId, WireError> {
    if text.is_empty() {
        return Err(WireError::Missing { field: "snapshot_id" });
    }
    Ok(text.parse()?)
}

/// For people; may be empty.
fn name(text: String) -> Result<String, WireError> {
    if !text.is_empty() {
        pinfold_domain::ids::check_name("name", &text)?;
    }
    Ok(text)
}

fn wait(seconds: u32) -> Result<Duration, WireError> {
    if seconds > MAX_WAIT_SECONDS {
        let (value, max) = (u64::from(seconds), u64::from(MAX_WAIT_SECONDS));
        return Err(WireError::OutOfRange { field: "wait_seconds", value, min: 0, max });
    }
    Ok(Duration::from_secs(u64::from(seconds)))
}

fn page_token(text: &str) -> Result<Option<SnapshotId>, WireError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_: IdError| pages::not_ours(text))
}
