//! Pause, resume, fork, snapshots, templates.

use crate::call::idempotent;
use crate::client::{Client, request_id};
use crate::error::Error;
use crate::model::{self, Sandbox, millis, some};
use pinfold_domain::{
    Cause, Phase, Reason, Resources, SandboxId, SnapshotId, SnapshotSizes, SnapshotState, TemplateId,
    Timestamp,
};
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::fork_sandbox_request::Source;
use pinfold_proto::api::v1::snapshot_service_client::SnapshotServiceClient;
use pinfold_proto::api::v1::template_service_client::TemplateServiceClient;
use pinfold_proto::{convert, limits};
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::transport::Channel;

/// The longest that the server waits in one call.
const WAIT: Duration = Duration::from_secs(60);

/// What to fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForkOf {
    /// it must run, and goes on
    Sandbox(SandboxId),
    Snapshot(SnapshotId),
}

/// How to fork. What is left out is as in the source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForkOptions {
    /// the same id with the same content gives the same sandboxes; `None`: a new one
    pub request_id: Option<String>,
    pub name: Option<String>,
    /// added to those of the source
    pub labels: BTreeMap<String, String>,
    /// whole seconds
    pub ttl: Option<Duration>,
}

/// Machine and disk of one instant, on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub name: String,
    /// that it was taken of
    pub sandbox: SandboxId,
    pub node: String,
    pub state: SnapshotState,
    /// why it failed or was lost
    pub cause: Option<Cause>,
    pub image: String,
    pub kernel: Option<String>,
    /// of a sandbox that is made from it
    pub resources: Resources,
    pub vcpus: u32,
    /// zero until it is Ready
    pub sizes: SnapshotSizes,
    pub created_at: Timestamp,
    pub state_at: Timestamp,
    /// made for forks, dropped after them
    pub ephemeral: bool,
}

/// What to prepare. What is left out takes the server's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewTemplate {
    /// the same id with the same content gives the same template; `None`: a new one
    pub request_id: Option<String>,
    pub name: String,
    pub image: Option<String>,
    pub kernel: Option<String>,
    pub resources: Option<Resources>,
    pub environment: BTreeMap<String, String>,
}

/// A named spec, and how far the fleet is with its preparation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub id: TemplateId,
    pub name: String,
    pub image: String,
    pub kernel: Option<String>,
    pub resources: Resources,
    pub environment: BTreeMap<String, String>,
    pub created_at: Timestamp,
    /// nodes that could hold it when empty
    pub nodes_eligible: u32,
    pub nodes_preparing: u32,
    pub nodes_prepared: u32,
    pub nodes_failed: u32,
    /// of one of the nodes that failed
    pub last_failure: Option<Cause>,
}

impl Client {
    fn snapshot_service(&self) -> SnapshotServiceClient<Channel> {
        SnapshotServiceClient::new(self.channel.clone()).max_decoding_message_size(limits::MESSAGE_BYTES)
    }

    fn template_service(&self) -> TemplateServiceClient<Channel> {
        TemplateServiceClient::new(self.channel.clone()).max_decoding_message_size(limits::MESSAGE_BYTES)
    }

    /// Gives memory and CPU of a running sandbox back. Answered when it is accepted: see [`Self::wait_paused`].
    pub async fn pause(&self, id: SandboxId) -> Result<Sandbox, Error> {
        let body = wire::PauseSandboxRequest { request_id: request_id(), sandbox_id: id.to_string() };
        let answer = idempotent("PauseSandbox", self.options.call_timeout, body, |request| {
            let mut client = self.sandboxes();
            async move { client.pause_sandbox(request).await }
        });
        model::sandbox("PauseSandbox", answer.await?.sandbox)
    }

    /// Brings a paused sandbox back, on its node. Answered when its room is reserved: see [`Self::wait_resumed`].
    pub async fn resume(&self, id: SandboxId) -> Result<Sandbox, Error> {
        let body = wire::ResumeSandboxRequest { request_id: request_id(), sandbox_id: id.to_string() };
        let answer = idempotent("ResumeSandbox", self.options.call_timeout, body, |request| {
            let mut client = self.sandboxes();
            async move { client.resume_sandbox(request).await }
        });
        model::sandbox("ResumeSandbox", answer.await?.sandbox)
    }

    /// Waits for the end of a pause. One that goes on or ends instead is [`Error::Ended`] with its cause.
    pub async fn wait_paused(&self, id: SandboxId, limit: Duration) -> Result<Sandbox, Error> {
        self.wait_out(id, limit, "a paused sandbox", Phase::Pausing, Phase::Paused).await
    }

    /// Waits for the end of a resume. One that stays paused or ends instead is [`Error::Ended`] with its cause.
    pub async fn wait_resumed(&self, id: SandboxId, limit: Duration) -> Result<Sandbox, Error> {
        self.wait_out(id, limit, "a resumed sandbox", Phase::Resuming, Phase::Running).await
    }

    async fn wait_out(
        &self,
        id: SandboxId,
        limit: Duration,
        what: &'static str,
        passing: Phase,
        wanted: Phase,
    ) -> Result<Sandbox, Error> {
        let done = |event: &crate::WatchEvent| event.deleted || event.sandbox.phase != passing;
        let event = self.wait(id, limit, what, done).await?;
        let sandbox = event.sandbox;
        match sandbox.phase == wanted && !event.deleted {
            true => Ok(sandbox),
            false => Err(Error::Ended { id, phase: sandbox.phase, cause: sandbox.cause }),
        }
    }

    /// Makes `count` sandboxes from what `of` is now; all of them are accepted or none. They start after this has
    /// answered: see [`Self::wait_running`]. The snapshot is the one that they start from.
    pub async fn fork(
        &self,
        of: ForkOf,
        count: u32,
        options: ForkOptions,
    ) -> Result<(Vec<Sandbox>, SnapshotId), Error> {
        let body = wire::ForkSandboxRequest {
            request_id: options.request_id.unwrap_or_else(request_id),
            source: Some(match of {
                ForkOf::Sandbox(id) => Source::SandboxId(id.to_string()),
                ForkOf::Snapshot(id) => Source::SnapshotId(id.to_string()),
            }),
            count,
            name: options.name.unwrap_or_default(),
            labels: options.labels.into_iter().collect(),
            ttl_seconds: options.ttl.map(|ttl| ttl.as_secs()),
        };
        let answer = idempotent("ForkSandbox", self.options.call_timeout, body, |request| {
            let mut client = self.sandboxes();
            async move { client.fork_sandbox(request).await }
        })
        .await?;
        let sandboxes = answer.sandboxes.into_iter().map(|one| model::sandbox("ForkSandbox", Some(one)));
        let snapshot = answer.snapshot_id.parse().map_err(|error| protocol("ForkSandbox", &error))?;
        Ok((sandboxes.collect::<Result<_, _>>()?, snapshot))
    }

    /// Saves a running sandbox, which then goes on. Answered when it is accepted: see [`Self::wait_snapshot`].
    pub async fn create_snapshot(
        &self,
        sandbox: SandboxId,
        name: &str,
        request: Option<String>,
    ) -> Result<Snapshot, Error> {
        let (request_id, sandbox_id) = (request.unwrap_or_else(request_id), sandbox.to_string());
        let body = wire::CreateSnapshotRequest { request_id, sandbox_id, name: name.to_owned() };
        let answer = idempotent("CreateSnapshot", self.options.call_timeout, body, |request| {
            let mut client = self.snapshot_service();
            async move { client.create_snapshot(request).await }
        });
        snapshot("CreateSnapshot", answer.await?.snapshot)
    }

    pub async fn get_snapshot(&self, id: SnapshotId) -> Result<Snapshot, Error> {
        self.get_snapshot_within(id, Duration::ZERO).await
    }

    /// Answered when it is no longer being taken, or after `wait`: whole seconds, at most 60.
    async fn get_snapshot_within(&self, id: SnapshotId, wait: Duration) -> Result<Snapshot, Error> {
        let wait_seconds = u32::try_from(wait.min(WAIT).as_secs()).unwrap_or(u32::MAX);
        let body = wire::GetSnapshotRequest { snapshot_id: id.to_string(), wait_seconds };
        let limit = self.options.call_timeout + wait;
        let answer = idempotent("GetSnapshot", limit, body, |request| {
            let mut client = self.snapshot_service();
            async move { client.get_snapshot(request).await }
        });
        snapshot("GetSnapshot", answer.await?.snapshot)
    }

    /// Waits until the snapshot is Ready. One that is not in the end is an error with its cause.
    pub async fn wait_snapshot(&self, id: SnapshotId, limit: Duration) -> Result<Snapshot, Error> {
        let settled = async {
            loop {
                let found = self.get_snapshot_within(id, WAIT).await?;
                match found.state {
                    SnapshotState::Creating => {}
                    SnapshotState::Ready => return Ok(found),
                    state => {
                        let unknown = || Cause::new(Reason::SnapshotUnusable, format!("it is {state}"));
                        let cause = found.cause.unwrap_or_else(unknown);
                        let (code, retryable) = pinfold_proto::reasons::wire(cause.reason);
                        return Err(Error::Call { call: "CreateSnapshot", cause, code, retryable });
                    }
                }
            }
        };
        let late = Err(Error::Deadline { call: "a snapshot", limit });
        tokio::time::timeout(limit, settled).await.unwrap_or(late)
    }

    /// All snapshots, or those of one sandbox.
    pub async fn snapshots(&self, sandbox: Option<SandboxId>) -> Result<Vec<Snapshot>, Error> {
        let (mut all, mut token) = (Vec::new(), Some(String::new()));
        while let Some(page_token) = token {
            let sandbox_id = sandbox.map(|id| id.to_string()).unwrap_or_default();
            let body = wire::ListSnapshotsRequest { page_size: limits::PAGE_SIZE.1, page_token, sandbox_id };
            let answer = idempotent("ListSnapshots", self.options.call_timeout, body, |request| {
                let mut client = self.snapshot_service();
                async move { client.list_snapshots(request).await }
            })
            .await?;
            for one in answer.snapshots {
                all.push(snapshot("ListSnapshots", Some(one))?);
            }
            token = some(answer.next_page_token);
        }
        Ok(all)
    }

    /// Its last state; it is gone when its node has let go of it.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<Snapshot, Error> {
        let body = wire::DeleteSnapshotRequest { request_id: request_id(), snapshot_id: id.to_string() };
        let answer = idempotent("DeleteSnapshot", self.options.call_timeout, body, |request| {
            let mut client = self.snapshot_service();
            async move { client.delete_snapshot(request).await }
        });
        snapshot("DeleteSnapshot", answer.await?.snapshot)
    }

    /// Stores a template; nodes prepare it from now on.
    pub async fn create_template(&self, new: NewTemplate) -> Result<Template, Error> {
        let spec = wire::TemplateSpec {
            image: new.image.unwrap_or_default(),
            kernel: new.kernel.unwrap_or_default(),
            resources: new.resources.as_ref().map(convert::spec::resources_to_wire),
            environment: new.environment.into_iter().collect(),
        };
        let request_id = new.request_id.unwrap_or_else(request_id);
        let body = wire::CreateTemplateRequest { request_id, name: new.name, spec: Some(spec) };
        let answer = idempotent("CreateTemplate", self.options.call_timeout, body, |request| {
            let mut client = self.template_service();
            async move { client.create_template(request).await }
        });
        template("CreateTemplate", answer.await?.template)
    }

    pub async fn get_template(&self, name: &str) -> Result<Template, Error> {
        let body = wire::GetTemplateRequest { name: name.to_owned() };
        let answer = idempotent("GetTemplate", self.options.call_timeout, body, |request| {
            let mut client = self.template_service();
            async move { client.get_template(request).await }
        });
        template("GetTemplate", answer.await?.template)
    }

    /// By their names.
    pub async fn templates(&self) -> Result<Vec<Template>, Error> {
        let (mut all, mut token) = (Vec::new(), Some(String::new()));
        while let Some(page_token) = token {
            let body = wire::ListTemplatesRequest { page_size: limits::PAGE_SIZE.1, page_token };
            let answer = idempotent("ListTemplates", self.options.call_timeout, body, |request| {
                let mut client = self.template_service();
                async move { client.list_templates(request).await }
            })
            .await?;
            for one in answer.templates {
                all.push(template("ListTemplates", Some(one))?);
            }
            token = some(answer.next_page_token);
        }
        Ok(all)
    }

    /// Its last state. Sandboxes that were made from it go on.
    pub async fn delete_template(&self, name: &str) -> Result<Template, Error> {
        let body = wire::DeleteTemplateRequest { request_id: request_id(), name: name.to_owned() };
        let answer = idempotent("DeleteTemplate", self.options.call_timeout, body, |request| {
            let mut client = self.template_service();
            async move { client.delete_template(request).await }
        });
        template("DeleteTemplate", answer.await?.template)
    }
}

fn protocol(call: &'static str, error: &dyn std::fmt::Display) -> Error {
    Error::Protocol { call, what: error.to_string() }
}

fn resources(resources: Option<wire::Resources>) -> Resources {
    resources.map(convert::spec::resources_from_wire).unwrap_or_default()
}

fn snapshot(call: &'static str, snapshot: Option<wire::Snapshot>) -> Result<Snapshot, Error> {
    let snapshot = snapshot.ok_or_else(|| protocol(call, &"snapshot is missing"))?;
    let state = convert::snapshot::state_from_wire(snapshot.state).map_err(|error| protocol(call, &error))?;
    Ok(Snapshot {
        id: snapshot.id.parse().map_err(|error| protocol(call, &error))?,
        name: snapshot.name,
        sandbox: snapshot.sandbox_id.parse().map_err(|error| protocol(call, &error))?,
        node: snapshot.node_id,
        state,
        cause: snapshot.cause.map(convert::sandbox::cause_from_wire),
        image: snapshot.image,
        kernel: some(snapshot.kernel),
        resources: resources(snapshot.resources),
        vcpus: snapshot.vcpus,
        sizes: convert::snapshot::sizes_from_wire(snapshot.sizes),
        created_at: millis(snapshot.created_at),
        state_at: millis(snapshot.state_at),
        ephemeral: snapshot.ephemeral,
    })
}

fn template(call: &'static str, template: Option<wire::Template>) -> Result<Template, Error> {
    let template = template.ok_or_else(|| protocol(call, &"template is missing"))?;
    let spec = template.spec.unwrap_or_default();
    Ok(Template {
        id: template.id.parse().map_err(|error| protocol(call, &error))?,
        name: template.name,
        image: spec.image,
        kernel: some(spec.kernel),
        resources: resources(spec.resources),
        environment: spec.environment.into_iter().collect(),
        created_at: millis(template.created_at),
        nodes_eligible: template.nodes_eligible,
        nodes_preparing: template.nodes_preparing,
        nodes_prepared: template.nodes_prepared,
        nodes_failed: template.nodes_failed,
        last_failure: template.last_failure.map(convert::sandbox::cause_from_wire),
    })
}
