//! `SandboxService`.

use super::guest::Guests;
use super::streams::Answers;
use super::{deadline, forks, logs, pages, status, watch};
use crate::driver::DriverHandle;
use crate::view::{ListFilter, View};
use pinfold_domain::spec::check_labels;
use pinfold_domain::{Cause, IdError, Millis, Phase, RequestId, SandboxId, TenantId};
use pinfold_proto::api::v1::sandbox_service_server::SandboxService;
use pinfold_proto::api::v1::{self as wire};
use pinfold_proto::convert::{WireError, sandbox, spec};
use pinfold_service::CancellationToken;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

/// Where a stop without a grace begins to kill.
const DEFAULT_GRACE_SECONDS: u32 = 5;
const MAX_GRACE_SECONDS: u64 = 3600;

pub struct SandboxApi {
    pub view: Arc<View>,
    pub driver: DriverHandle,
    pub guests: Guests,
    pub watches: Arc<Semaphore>,
    pub call_timeout: Duration,
    pub shutdown: CancellationToken,
}

#[tonic::async_trait]
impl SandboxService for SandboxApi {
    type WatchSandboxesStream = Answers<wire::WatchSandboxesResponse>;
    type StreamLogsStream = Answers<wire::StreamLogsResponse>;

    async fn create_sandbox(
        &self,
        request: Request<wire::CreateSandboxRequest>,
    ) -> Result<Response<wire::CreateSandboxResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let request = request.into_inner();
        let request_id = request_id(&request.request_id).map_err(status::refuse)?;
        let spec = spec::from_caller(request.spec).map_err(status::refuse)?;
        let create = async {
            let created = self.driver.create(TenantId::default(), request_id, spec).await;
            created.map_err(status::rejected)
        };
        let created = deadline::within(deadline, self.call_timeout, create).await?;
        Ok(Response::new(wire::CreateSandboxResponse { sandbox: Some(sandbox::to_wire(&created)) }))
    }

    async fn get_sandbox(
        &self,
        request: Request<wire::GetSandboxRequest>,
    ) -> Result<Response<wire::GetSandboxResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let id = sandbox_id(&request.into_inner().sandbox_id).map_err(status::refuse)?;
        let found = self.view.get(id).map_err(status::refuse)?;
        let mut answer = sandbox::to_wire(&found);
        // what is stored is the decision at its acceptance; whoever waits wants to know what it waits for now
        if found.phase == Phase::Pending {
            let explain = async { self.driver.explain(id).await.map_err(status::refuse) };
            let current = deadline::within(deadline, self.call_timeout, explain).await?;
            answer.explanation = current.as_ref().map(sandbox::explanation_to_wire).or(answer.explanation);
        }
        Ok(Response::new(wire::GetSandboxResponse { sandbox: Some(answer) }))
    }

    async fn list_sandboxes(
        &self,
        request: Request<wire::ListSandboxesRequest>,
    ) -> Result<Response<wire::ListSandboxesResponse>, Status> {
        self.list(request.into_inner()).map(Response::new).map_err(status::refuse)
    }

    async fn watch_sandboxes(
        &self,
        request: Request<wire::WatchSandboxesRequest>,
    ) -> Result<Response<Self::WatchSandboxesStream>, Status> {
        watch::start(self, request).map(Response::new)
    }

    async fn stop_sandbox(
        &self,
        request: Request<wire::StopSandboxRequest>,
    ) -> Result<Response<wire::StopSandboxResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let request = request.into_inner();
        let request_id = request_id(&request.request_id).map_err(status::refuse)?;
        let id = sandbox_id(&request.sandbox_id).map_err(status::refuse)?;
        let grace = grace(request.grace_seconds).map_err(status::refuse)?;
        let stop = async { self.driver.stop(request_id, id, grace).await.map_err(status::rejected) };
        let stopped = deadline::within(deadline, self.call_timeout, stop).await?;
        Ok(Response::new(wire::StopSandboxResponse { sandbox: Some(sandbox::to_wire(&stopped)) }))
    }

    async fn delete_sandbox(
        &self,
        request: Request<wire::DeleteSandboxRequest>,
    ) -> Result<Response<wire::DeleteSandboxResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let request = request.into_inner();
        let request_id = request_id(&request.request_id).map_err(status::refuse)?;
        let id = sandbox_id(&request.sandbox_id).map_err(status::refuse)?;
        let delete = async { self.driver.delete(request_id, id).await.map_err(status::rejected) };
        let deleted = deadline::within(deadline, self.call_timeout, delete).await?;
        Ok(Response::new(wire::DeleteSandboxResponse { sandbox: Some(sandbox::to_wire(&deleted)) }))
    }

    async fn pause_sandbox(
        &self,
        request: Request<wire::PauseSandboxRequest>,
    ) -> Result<Response<wire::PauseSandboxResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let request = request.into_inner();
        let request_id = request_id(&request.request_id).map_err(status::refuse)?;
        let id = sandbox_id(&request.sandbox_id).map_err(status::refuse)?;
        let pause = async { self.driver.pause(request_id, id).await.map_err(status::rejected) };
        let paused = deadline::within(deadline, self.call_timeout, pause).await?;
        Ok(Response::new(wire::PauseSandboxResponse { sandbox: Some(sandbox::to_wire(&paused)) }))
    }

    async fn resume_sandbox(
        &self,
        request: Request<wire::ResumeSandboxRequest>,
    ) -> Result<Response<wire::ResumeSandboxResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let request = request.into_inner();
        let request_id = request_id(&request.request_id).map_err(status::refuse)?;
        let id = sandbox_id(&request.sandbox_id).map_err(status::refuse)?;
        let resume = async { self.driver.resume(request_id, id).await.map_err(status::rejected) };
        let resumed = deadline::within(deadline, self.call_timeout, resume).await?;
        Ok(Response::new(wire::ResumeSandboxResponse { sandbox: Some(sandbox::to_wire(&resumed)) }))
    }

    async fn fork_sandbox(
        &self,
        request: Request<wire::ForkSandboxRequest>,
    ) -> Result<Response<wire::ForkSandboxResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let order = forks::order(request.into_inner()).map_err(status::refuse)?;
        let fork = async { self.driver.fork(order).await.map_err(status::rejected) };
        let (forks, snapshot) = deadline::within(deadline, self.call_timeout, fork).await?;
        let sandboxes = forks.iter().map(sandbox::to_wire).collect();
        Ok(Response::new(wire::ForkSandboxResponse { sandboxes, snapshot_id: snapshot.to_string() }))
    }

    async fn stream_logs(
        &self,
        request: Request<wire::StreamLogsRequest>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        logs::start(self, request).await.map(Response::new)
    }
}

impl SandboxApi {
    fn list(&self, request: wire::ListSandboxesRequest) -> Result<wire::ListSandboxesResponse, Cause> {
        let labels = request.labels.into_iter().collect();
        check_labels("labels", &labels).map_err(WireError::from)?;
        let phases = request.phases.into_iter().map(sandbox::phase_from_wire).collect::<Result<_, _>>()?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(page_token(token)?),
        };
        let page = self.view.list(&ListFilter { labels, phases }, after, pages::size(request.page_size)?);
        let (sandboxes, cut) = pages::fit(page.sandboxes.iter().map(|found| sandbox::to_wire(found)));
        let next_page_token = match sandboxes.last() {
            Some(last) if cut => last.id.clone(),
            _ => page.next_after.map(|id| id.to_string()).unwrap_or_default(),
        };
        Ok(wire::ListSandboxesResponse { sandboxes, next_page_token, revision: page.revision.0 })
    }
}

pub fn sandbox_id(text: &str) -> Result<SandboxId, WireError> {
    if text.is_empty() {
        return Err(WireError::Missing { field: "sandbox_id" });
    }
    Ok(text.parse()?)
}

pub fn request_id(text: &str) -> Result<RequestId, WireError> {
    Ok(text.parse()?)
}

fn page_token(text: &str) -> Result<SandboxId, WireError> {
    text.parse().map_err(|_: IdError| pages::not_ours(text))
}

fn grace(seconds: Option<u32>) -> Result<Millis, WireError> {
    let value = u64::from(seconds.unwrap_or(DEFAULT_GRACE_SECONDS));
    if value > MAX_GRACE_SECONDS {
        return Err(WireError::OutOfRange { field: "grace_seconds", value, min: 0, max: MAX_GRACE_SECONDS });
    }
    Ok(Millis::from_secs(value))
}
