//! The connection and the unary calls.

use crate::call::{self, idempotent};
use crate::connection;
use crate::error::Error;
use crate::model::{self, NewSandbox, Sandbox, SandboxFilter};
use crate::watch::{Watch, WatchEvent};
use futures::Stream;
use pinfold_domain::{Node, Phase, Revision, SandboxId};
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::file_service_client::FileServiceClient;
use pinfold_proto::api::v1::node_service_client::NodeServiceClient;
use pinfold_proto::api::v1::sandbox_service_client::SandboxServiceClient;
use pinfold_proto::limits;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

/// Times of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientOptions {
    /// for TCP and HTTP/2 together
    pub connect_timeout: Duration,
    /// for one call with one answer, its repetitions included
    pub call_timeout: Duration,
    /// until a stream has begun
    pub stream_start_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            stream_start_timeout: Duration::from_secs(30),
        }
    }
}

/// A client. Clones share one connection, which is made again by itself when it breaks. Processes that take input have
/// one each ([`crate::ExecOptions::without_input`]).
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) channel: Channel,
    /// for streams that need a connection of their own
    pub(crate) target: Endpoint,
    pub(crate) options: ClientOptions,
}

impl Client {
    /// Connects to `endpoint`, for example `http://127.0.0.1:7420`.
    pub async fn connect(endpoint: &str) -> Result<Self, Error> {
        Self::connect_with(endpoint, ClientOptions::default()).await
    }

    pub async fn connect_with(endpoint: &str, options: ClientOptions) -> Result<Self, Error> {
        let target = connection::endpoint(endpoint, options)?;
        let channel = connection::shared(&target).await?;
        Ok(Self { channel, target, options })
    }

    /// The same connection with another deadline for calls with one answer.
    #[must_use]
    pub fn with_call_timeout(&self, limit: Duration) -> Self {
        let options = ClientOptions { call_timeout: limit, ..self.options };
        Self { channel: self.channel.clone(), target: self.target.clone(), options }
    }

    pub(crate) fn sandboxes(&self) -> SandboxServiceClient<Channel> {
        SandboxServiceClient::new(self.channel.clone()).max_decoding_message_size(limits::MESSAGE_BYTES)
    }

    pub(crate) fn files(&self) -> FileServiceClient<Channel> {
        FileServiceClient::new(self.channel.clone()).max_decoding_message_size(limits::MESSAGE_BYTES)
    }

    /// Stores a new sandbox. It is placed and started after this has answered: see [`Self::wait_running`].
    pub async fn create(&self, new: NewSandbox) -> Result<Sandbox, Error> {
        let request_id = new.request_id.clone().unwrap_or_else(request_id);
        let body = wire::CreateSandboxRequest { request_id, spec: Some(new.into_wire()) };
        let answer = idempotent("CreateSandbox", self.options.call_timeout, body, |request| {
            let mut client = self.sandboxes();
            async move { client.create_sandbox(request).await }
        });
        model::sandbox("CreateSandbox", answer.await?.sandbox)
    }

    pub async fn get(&self, id: SandboxId) -> Result<Sandbox, Error> {
        let body = wire::GetSandboxRequest { sandbox_id: id.to_string() };
        let answer = idempotent("GetSandbox", self.options.call_timeout, body, |request| {
            let mut client = self.sandboxes();
            async move { client.get_sandbox(request).await }
        });
        model::sandbox("GetSandbox", answer.await?.sandbox)
    }

    /// One page: the sandboxes, the token of the next page (`None` on the last), the revision that was read.
    async fn page(
        &self,
        filter: SandboxFilter,
        token: String,
    ) -> Result<(Vec<Sandbox>, Option<String>, Revision), Error> {
        let body = filter.into_wire(limits::PAGE_SIZE.1, token);
        let answer = idempotent("ListSandboxes", self.options.call_timeout, body, |request| {
            let mut client = self.sandboxes();
            async move { client.list_sandboxes(request).await }
        })
        .await?;
        let sandboxes = answer.sandboxes.into_iter().map(|one| model::sandbox("ListSandboxes", Some(one)));
        let next = Some(answer.next_page_token).filter(|token| !token.is_empty());
        Ok((sandboxes.collect::<Result<_, _>>()?, next, Revision(answer.revision)))
    }

    /// All that match, page after page as they are asked for.
    pub fn list(&self, filter: SandboxFilter) -> impl Stream<Item = Result<Sandbox, Error>> + Send + use<> {
        let client = self.clone();
        async_stream::try_stream! {
            let mut token = Some(String::new());
            while let Some(from) = token {
                let (sandboxes, next, _) = client.page(filter.clone(), from).await?;
                for sandbox in sandboxes {
                    yield sandbox;
                }
                token = next;
            }
        }
    }

    /// All that match, and the revision of the first page: a watch from there misses nothing.
    pub async fn list_all(&self, filter: SandboxFilter) -> Result<(Vec<Sandbox>, Revision), Error> {
        let (mut all, mut token, revision) = self.page(filter.clone(), String::new()).await?;
        while let Some(from) = token {
            let (more, next, _) = self.page(filter.clone(), from).await?;
            all.extend(more);
            token = next;
        }
        Ok((all, revision))
    }

    /// Ends a sandbox; its record stays. `grace`: whole seconds for a clean stop, `None`: the server's default.
    pub async fn stop(&self, id: SandboxId, grace: Option<Duration>) -> Result<Sandbox, Error> {
        let grace_seconds = grace.map(|grace| u32::try_from(grace.as_secs()).unwrap_or(u32::MAX));
        let (request_id, sandbox_id) = (request_id(), id.to_string());
        let body = wire::StopSandboxRequest { request_id, sandbox_id, grace_seconds };
        let answer = idempotent("StopSandbox", self.options.call_timeout, body, |request| {
            let mut client = self.sandboxes();
            async move { client.stop_sandbox(request).await }
        });
        model::sandbox("StopSandbox", answer.await?.sandbox)
    }

    /// Ends a sandbox and removes its record once its node has let go of it: see [`Self::wait_gone`].
    pub async fn delete(&self, id: SandboxId) -> Result<Sandbox, Error> {
        let body = wire::DeleteSandboxRequest { request_id: request_id(), sandbox_id: id.to_string() };
        let answer = idempotent("DeleteSandbox", self.options.call_timeout, body, |request| {
            let mut client = self.sandboxes();
            async move { client.delete_sandbox(request).await }
        });
        model::sandbox("DeleteSandbox", answer.await?.sandbox)
    }

    /// The fleet.
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        let mut nodes = Vec::new();
        let mut token = Some(String::new());
        while let Some(page_token) = token {
            let body = wire::ListNodesRequest { page_size: limits::PAGE_SIZE.1, page_token };
            let answer = idempotent("ListNodes", self.options.call_timeout, body, |request| {
                let mut client = NodeServiceClient::new(self.channel.clone())
                    .max_decoding_message_size(limits::MESSAGE_BYTES);
                async move { client.list_nodes(request).await }
            })
            .await?;
            for node in answer.nodes {
                nodes.push(model::node("ListNodes", node)?);
            }
            token = Some(answer.next_page_token).filter(|token| !token.is_empty());
        }
        Ok(nodes)
    }

    /// Changes of all sandboxes after `from` (0: the present state of all, then changes).
    pub fn watch(&self, from: Revision) -> Watch {
        Watch::new(self.clone(), from, None)
    }

    /// The present state of one sandbox, then its changes.
    pub fn watch_one(&self, id: SandboxId) -> Watch {
        Watch::new(self.clone(), Revision(0), Some(id))
    }

    /// Changes of one sandbox after `from` (0: its present state, then its changes).
    pub fn watch_one_from(&self, id: SandboxId, from: Revision) -> Watch {
        Watch::new(self.clone(), from, Some(id))
    }

    /// Waits until the sandbox runs. One that ends instead is [`Error::Ended`] with its cause.
    pub async fn wait_running(&self, id: SandboxId, limit: Duration) -> Result<Sandbox, Error> {
        let found = self.wait(id, limit, "a running sandbox", |event| match event.sandbox.phase {
            Phase::Running => true,
            phase => event.deleted || phase.is_final() || phase == Phase::Stopping,
        });
        let sandbox = found.await?.sandbox;
        if sandbox.phase == Phase::Running {
            return Ok(sandbox);
        }
        Err(Error::Ended { id, phase: sandbox.phase, cause: sandbox.cause })
    }

    /// Waits until the sandbox has ended: Stopped, Failed or Lost.
    pub async fn wait_ended(&self, id: SandboxId, limit: Duration) -> Result<Sandbox, Error> {
        let found = self
            .wait(id, limit, "the end of a sandbox", |event| event.deleted || event.sandbox.phase.is_final());
        Ok(found.await?.sandbox)
    }

    /// Waits until the record of a deleted sandbox is gone. `Ok` too if it is not there to begin with.
    pub async fn wait_gone(&self, id: SandboxId, limit: Duration) -> Result<(), Error> {
        match self.wait(id, limit, "the removal of a sandbox", |event| event.deleted).await {
            Err(error) if error.cause().reason == pinfold_domain::Reason::SandboxNotFound => Ok(()),
            other => other.map(|_| ()),
        }
    }

    pub(crate) async fn wait(
        &self,
        id: SandboxId,
        limit: Duration,
        what: &'static str,
        done: impl Fn(&WatchEvent) -> bool,
    ) -> Result<WatchEvent, Error> {
        let mut watch = self.watch_one(id);
        let found = async {
            loop {
                let event = watch.next().await?;
                if done(&event) {
                    return Ok(event);
                }
            }
        };
        tokio::time::timeout(limit, found).await.unwrap_or(Err(Error::Deadline { call: what, limit }))
    }

    pub(crate) async fn open_watch(
        &self,
        from: Revision,
        id: Option<SandboxId>,
    ) -> Result<tonic::Streaming<wire::WatchSandboxesResponse>, Error> {
        let body = wire::WatchSandboxesRequest {
            from_revision: from.0,
            sandbox_id: id.map(|id| id.to_string()).unwrap_or_default(),
        };
        let mut client = self.sandboxes();
        call::open("WatchSandboxes", self.options.stream_start_timeout, client.watch_sandboxes(body)).await
    }
}

/// UUID version 7: unique, and sorts by time in a log.
pub(crate) fn request_id() -> String {
    Uuid::now_v7().to_string()
}
