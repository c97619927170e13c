//! Streams to guests: the scheduler asks through the session, the node dials in, the two ends are joined.
//!
//! ```text
//!   open(node, sandbox) --OpenRelay{id}--> node --Relay, RelayAccept{id}--> accept --> Link
//!         '--- awaited at most `open_timeout`; given up when the session ends or the client goes ---'
//! ```
//!
//! Invariant: a relay id is used once, by the node that was asked, within its time. Both directions of a link are
//! HTTP/2 streams with a few frames between them, so that an end that does not read holds its other end back.

use super::sessions::Sessions;
use super::stuck::Watched;
use super::{convert, stuck};
use crate::api::status;
use crate::config::{NodesConfig, RelayConfig};
use crate::listen::ConnectionHandle;
use pinfold_domain::{Cause, NodeId, Reason, SandboxId};
use pinfold_proto::limits::STREAM_QUEUE_FRAMES;
use pinfold_proto::node::v1 as wire;
use pinfold_proto::node::v1::relay_request;
use pinfold_proto::node::v1::session_response::Message;
use pinfold_service::{CancellationToken, Tasks};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::DropGuard;
use tonic::{Status, Streaming};
use uuid::Uuid;

/// What the scheduler says on a relay. When the sender is dropped the call ends: for the node the client is gone.
pub type ToNode = mpsc::Sender<Result<wire::RelayResponse, Status>>;

/// The answer stream of a relay call.
pub type ToNodeStream = Watched<ReceiverStream<Result<wire::RelayResponse, Status>>>;

/// A joined relay. Dropping it ends the node's call.
pub struct Link {
    pub to_node: ToNode,
    pub from_node: Streaming<wire::RelayRequest>,
    _permit: Permit,
    _over: DropGuard,
}

/// The node's end of a relay.
struct Joined {
    to_node: ToNode,
    from_node: Streaming<wire::RelayRequest>,
    over: DropGuard,
}

/// Room for one stream, given back on drop.
struct Permit {
    sandbox: SandboxId,
    relays: Arc<Relays>,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.relays.lock();
        if let Entry::Occupied(mut count) = state.per_sandbox.entry(self.sandbox) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

pub struct Relays {
    sessions: Arc<Sessions>,
    config: RelayConfig,
    first_message_timeout: Duration,
    slots: Arc<Semaphore>,
    tasks: Tasks,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    awaited: HashMap<Uuid, Awaited>,
    per_sandbox: HashMap<SandboxId, usize>,
}

struct Awaited {
    node: NodeId,
    join: oneshot::Sender<Joined>,
}

/// Takes the id back when nobody waits for it any more.
struct Withdraw<'a> {
    relays: &'a Relays,
    id: Uuid,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.relays.lock().awaited.remove(&self.id);
    }
}

impl Relays {
    pub fn new(sessions: Arc<Sessions>, tasks: Tasks, config: RelayConfig, nodes: &NodesConfig) -> Self {
        Self {
            sessions,
            tasks,
            slots: Arc::new(Semaphore::new(config.streams)),
            config,
            first_message_timeout: Duration::from_millis(nodes.first_message_timeout_ms),
            state: Mutex::default(),
        }
    }

    /// Asks `node` for a stream to `sandbox` and waits until it has dialled in.
    pub async fn open(self: &Arc<Self>, node: &NodeId, sandbox: SandboxId) -> Result<Link, Cause> {
        let permit = self.permit(sandbox)?;
        let session = self.sessions.get(node).ok_or_else(|| {
            Cause::new(Reason::NodeUnreachable, format!("node {node} has no session with the scheduler"))
        })?;
        let id = Uuid::new_v4();
        let (join, joined) = oneshot::channel();
        self.lock().awaited.insert(id, Awaited { node: node.clone(), join });
        let _withdraw = Withdraw { relays: self, id };
        let open = wire::OpenRelay { relay_id: id.to_string(), sandbox_id: sandbox.to_string() };
        self.sessions.queue(node, &session, Message::OpenRelay(open))?;
        let limit = Duration::from_millis(self.config.open_timeout_ms);
        tokio::select! {
            joined = tokio::time::timeout(limit, joined) => match joined {
                Ok(Ok(Joined { to_node, from_node, over })) => {
                    Ok(Link { to_node, from_node, _permit: permit, _over: over })
                }
                Ok(Err(_)) => Err(Cause::new(Reason::Internal, "the relay was withdrawn")),
                Err(_) => {
                    let message = format!("node {node} did not open a stream within {} ms", limit.as_millis());
                    Err(Cause::new(Reason::NodeUnreachable, message))
                }
            },
            () = session.ended().cancelled_owned() => {
                let message = format!("the session of node {node} ended: {}", session.why().message);
                Err(Cause::new(Reason::NodeUnreachable, message))
            }
        }
    }

    fn permit(self: &Arc<Self>, sandbox: SandboxId) -> Result<Permit, Cause> {
        let full = |message| Cause::new(Reason::TooManyStreams, message);
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            full(format!("{} streams to guests are open, which is the limit", self.config.streams))
        })?;
        let mut state = self.lock();
        let count = state.per_sandbox.entry(sandbox).or_default();
        if *count >= self.config.streams_per_sandbox {
            let message = format!("{count} streams to sandbox {sandbox} are open, which is the limit");
            return Err(full(message));
        }
        *count += 1;
        drop(state);
        Ok(Permit { sandbox, relays: Arc::clone(self), _slot: slot })
    }

    /// A node dialled in: its first frame says what for.
    pub async fn accept(
        &self,
        mut from_node: Streaming<wire::RelayRequest>,
        connection: Option<ConnectionHandle>,
    ) -> Result<ToNodeStream, Status> {
        let first =
            tokio::time::timeout(self.first_message_timeout, from_node.message()).await.map_err(|_| {
                let message = format!("no accept within {} ms", self.first_message_timeout.as_millis());
                status::refuse(Cause::new(Reason::DeadlineExceeded, message))
            })??;
        let Some(relay_request::Frame::Accept(accept)) = first.and_then(|request| request.frame) else {
            let message = "the first frame of a relay is not accept";
            return Err(status::refuse(Cause::new(Reason::InvalidArgument, message)));
        };
        let join = self.claim(&accept).map_err(status::refuse)?;
        let (to_node, frames) = mpsc::channel(STREAM_QUEUE_FRAMES);
        let client_gone = |_| status::refuse(Cause::new(Reason::InvalidArgument, "the client is gone"));
        let over = CancellationToken::new();
        let answers =
            stuck::watch(&self.tasks, connection.as_ref(), over.clone(), ReceiverStream::new(frames));
        join.send(Joined { to_node, from_node, over: over.drop_guard() }).map_err(client_gone)?;
        Ok(answers)
    }

    /// Takes the relay out of the awaited ones, if this node was asked for it.
    fn claim(&self, accept: &wire::RelayAccept) -> Result<oneshot::Sender<Joined>, Cause> {
        // one answer for every failure: it must not tell a stranger which ids exist
        let unknown = || Cause::new(Reason::InvalidArgument, "relay_id is not awaited from this node");
        let node = convert::node_id(&accept.node_id)?;
        let id = Uuid::try_parse(&accept.relay_id).map_err(|_| unknown())?;
        match self.lock().awaited.entry(id) {
            Entry::Occupied(entry) if entry.get().node == node => Ok(entry.remove().join),
            _ => Err(unknown()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
