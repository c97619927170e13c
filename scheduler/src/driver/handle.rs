//! Calls into the driver: each puts one event into its inbox and waits for the answer to it.

use super::{Answer, Input};
use pinfold_domain::{
    Cause, Explanation, Millis, Node, NodeId, Reason, RequestId, Sandbox, SandboxId, SandboxSpec, Snapshot,
    SnapshotId, Template, TemplateId, TenantId, Timestamp,
};
use pinfold_engine::{Answered, CallId, Event, ForkRequest, ForkSource, Rejection, TemplateStatus};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot};

/// A fork as the caller sent it; ids are minted here.
pub struct ForkOrder {
    pub tenant: TenantId,
    pub request_id: RequestId,
    pub source: ForkSource,
    /// checked against its bound
    pub count: usize,
    /// empty: that of the source
    pub name: String,
    /// added to those of the source
    pub labels: BTreeMap<String, String>,
    /// `None`: that of the source
    pub ttl: Option<Millis>,
}

/// Puts things into the inbox. Cheap to clone.
#[derive(Clone)]
pub struct DriverHandle {
    inbox: mpsc::Sender<Input>,
    next_call: Arc<AtomicU64>,
    wait: Duration,
}

impl DriverHandle {
    pub(super) fn new(inbox: mpsc::Sender<Input>, wait: Duration) -> Self {
        Self { inbox, next_call: Arc::new(AtomicU64::new(1)), wait }
    }

    pub async fn create(
        &self,
        tenant: TenantId,
        request_id: RequestId,
        spec: SandboxSpec,
    ) -> Result<Box<Sandbox>, Rejection> {
        let sandbox_id = SandboxId(uuid::Uuid::now_v7());
        let spec = Box::new(spec);
        self.sandbox(|call| Event::Create { call, tenant, request_id, sandbox_id, spec }).await
    }

    pub async fn stop(
        &self,
        request_id: RequestId,
        sandbox_id: SandboxId,
        grace: Millis,
    ) -> Result<Box<Sandbox>, Rejection> {
        self.sandbox(|call| Event::Stop { call, request_id, sandbox_id, grace }).await
    }

    pub async fn delete(
        &self,
        request_id: RequestId,
        sandbox_id: SandboxId,
    ) -> Result<Box<Sandbox>, Rejection> {
        self.sandbox(|call| Event::Delete { call, request_id, sandbox_id }).await
    }

    pub async fn pause(
        &self,
        request_id: RequestId,
        sandbox_id: SandboxId,
    ) -> Result<Box<Sandbox>, Rejection> {
        self.sandbox(|call| Event::Pause { call, request_id, sandbox_id }).await
    }

    pub async fn resume(
        &self,
        request_id: RequestId,
        sandbox_id: SandboxId,
    ) -> Result<Box<Sandbox>, Rejection> {
        self.sandbox(|call| Event::Resume { call, request_id, sandbox_id }).await
    }

    /// The forks, in the order of their ids, and the snapshot that they start from.
    pub async fn fork(&self, order: ForkOrder) -> Result<(Vec<Sandbox>, SnapshotId), Rejection> {
        let ForkOrder { tenant, request_id, source, count, name, labels, ttl } = order;
        let sandbox_ids = (0..count).map(|_| SandboxId(uuid::Uuid::now_v7())).collect();
        let snapshot_id = SnapshotId(uuid::Uuid::now_v7());
        let fork = ForkRequest { tenant, request_id, source, sandbox_ids, snapshot_id, name, labels, ttl };
        match self.call(|call| Event::Fork { call, fork: Box::new(fork) }).await? {
            Answered::Forks { sandboxes, snapshot_id } => Ok((sandboxes, snapshot_id)),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn create_snapshot(
        &self,
        tenant: TenantId,
        request_id: RequestId,
        sandbox_id: SandboxId,
        name: String,
    ) -> Result<Box<Snapshot>, Rejection> {
        let snapshot_id = SnapshotId(uuid::Uuid::now_v7());
        self.snapshot(|call| Event::CreateSnapshot {
            call,
            tenant,
            request_id,
            snapshot_id,
            sandbox_id,
            name,
        })
        .await
    }

    pub async fn delete_snapshot(
        &self,
        tenant: TenantId,
        request_id: RequestId,
        snapshot_id: SnapshotId,
    ) -> Result<Box<Snapshot>, Rejection> {
        self.snapshot(|call| Event::DeleteSnapshot { call, tenant, request_id, snapshot_id }).await
    }

    /// `spec` gives image, kernel, resources and environment; its name is that of the template.
    pub async fn create_template(
        &self,
        tenant: TenantId,
        request_id: RequestId,
        spec: SandboxSpec,
    ) -> Result<Box<Template>, Rejection> {
        let template = Box::new(Template {
            id: TemplateId(uuid::Uuid::now_v7()),
            tenant,
            request_id,
            name: spec.name,
            image: spec.image,
            kernel: spec.kernel,
            resources: spec.resources,
            environment: spec.environment,
            created_at: Timestamp::default(),
        });
        self.template(|call| Event::CreateTemplate { call, template }).await
    }

    pub async fn delete_template(
        &self,
        tenant: TenantId,
        request_id: RequestId,
        name: String,
    ) -> Result<Box<Template>, Rejection> {
        self.template(|call| Event::DeleteTemplate { call, tenant, request_id, name }).await
    }

    pub async fn list_templates(
        &self,
        tenant: TenantId,
        after: Option<String>,
        limit: usize,
    ) -> Result<Vec<TemplateStatus>, Cause> {
        let (answer, templates) = oneshot::channel();
        self.put(Input::ListTemplates { tenant, after, limit, answer }).await?;
        templates.await.map_err(|_| gone())
    }

    pub async fn get_template(
        &self,
        tenant: TenantId,
        name: String,
    ) -> Result<Option<TemplateStatus>, Cause> {
        let (answer, template) = oneshot::channel();
        self.put(Input::GetTemplate { tenant, name, answer }).await?;
        template.await.map_err(|_| gone())
    }

    pub async fn list_nodes(&self, after: Option<NodeId>, limit: usize) -> Result<Vec<Node>, Cause> {
        let (answer, nodes) = oneshot::channel();
        self.put(Input::ListNodes { after, limit, answer }).await?;
        nodes.await.map_err(|_| gone())
    }

    /// `None` when it does not wait.
    pub async fn explain(&self, sandbox_id: SandboxId) -> Result<Option<Explanation>, Cause> {
        let (answer, explanation) = oneshot::channel();
        self.put(Input::Explain { sandbox_id, answer }).await?;
        explanation.await.map_err(|_| gone())
    }

    /// For what nodes say: waits for room as long as it takes, so that a node is slowed down and nothing is lost.
    pub async fn tell(&self, event: Event) -> Result<(), Cause> {
        self.inbox.send(Input::Event(event)).await.map_err(|_| gone())
    }

    /// For what may be lost when the inbox is full.
    pub fn hint(&self, event: Event) {
        let _ = self.inbox.try_send(Input::Event(event));
    }

    async fn sandbox(&self, event: impl FnOnce(CallId) -> Event) -> Result<Box<Sandbox>, Rejection> {
        match self.call(event).await? {
            Answered::Sandbox(sandbox) => Ok(sandbox),
            other => Err(unexpected(&other)),
        }
    }

    async fn snapshot(&self, event: impl FnOnce(CallId) -> Event) -> Result<Box<Snapshot>, Rejection> {
        match self.call(event).await? {
            Answered::Snapshot(snapshot) => Ok(snapshot),
            other => Err(unexpected(&other)),
        }
    }

    async fn template(&self, event: impl FnOnce(CallId) -> Event) -> Result<Box<Template>, Rejection> {
        match self.call(event).await? {
            Answered::Template(template) => Ok(template),
            other => Err(unexpected(&other)),
        }
    }

    async fn call(&self, event: impl FnOnce(CallId) -> Event) -> Answer {
        let call = CallId(self.next_call.fetch_add(1, Ordering::Relaxed));
        let (answer, outcome) = oneshot::channel();
        let rejected = |cause| Rejection { cause, explanation: None };
        self.put(Input::Call { call, event: event(call), answer }).await.map_err(rejected)?;
        outcome.await.map_err(|_| rejected(gone()))?
    }

    async fn put(&self, input: Input) -> Result<(), Cause> {
        self.inbox.send_timeout(input, self.wait).await.map_err(|error| match error {
            SendTimeoutError::Closed(_) => gone(),
            SendTimeoutError::Timeout(_) => {
                let message = format!(
                    "{} calls wait for the scheduler, which is its limit: try again later",
                    self.inbox.max_capacity()
                );
                Cause::new(Reason::QueueFull, message)
            }
        })
    }
}

/// Each event has answers of one kind.
fn unexpected(answered: &Answered) -> Rejection {
    tracing::error!(?answered, "the engine gave an answer of another kind");
    Rejection { cause: Cause::new(Reason::Internal, "an answer of another kind"), explanation: None }
}

pub(super) fn gone() -> Cause {
    Cause::new(Reason::StoreUnavailable, "the scheduler is shutting down")
}
