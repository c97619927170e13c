//! One node's session, from its first message to its end.
//!
//! ```text
//!   Register --> live --(its stream ends, it breaks a rule, a newer session, it does not read, shutdown)--> over
//! ```
//!
//! What the node says goes into the driver's inbox and waits there for room, so that a busy scheduler slows nodes down
//! through HTTP/2 flow control. Commands go the other way through the bounded queue of [`super::sessions`].

use super::sessions::{Session, Sessions};
use super::{convert, stuck};
use crate::api::status;
use crate::config::NodesConfig;
use crate::driver::DriverHandle;
use crate::listen::ConnectionHandle;
use futures::{Stream, StreamExt, stream};
use pinfold_domain::{Cause, NodeId, Reason};
use pinfold_engine::Event;
use pinfold_proto::node::v1 as wire;
use pinfold_proto::node::v1::session_request;
use pinfold_proto::node::v1::session_response::Message;
use pinfold_service::Tasks;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

pub type Commands = Pin<Box<dyn Stream<Item = Result<wire::SessionResponse, Status>> + Send>>;

/// Begins sessions.
pub struct SessionService {
    pub sessions: Arc<Sessions>,
    pub driver: DriverHandle,
    pub tasks: Tasks,
    pub config: NodesConfig,
}

impl SessionService {
    /// Waits for `Register`, then runs the session in a task of its own.
    pub async fn begin(
        &self,
        mut incoming: Streaming<wire::SessionRequest>,
        connection: Option<ConnectionHandle>,
    ) -> Result<Commands, Status> {
        let register = self.first_message(&mut incoming).await?;
        let node = convert::node_id(&register.node_id).map_err(status::refuse)?;
        if register.highest_term > self.sessions.term().0 {
            let message = format!(
                "node {node} has obeyed term {}, this scheduler is of term {}: it was replaced, or its store was lost",
                register.highest_term,
                self.sessions.term()
            );
            return Err(status::refuse(Cause::new(Reason::InvalidArgument, message)));
        }
        // checked before the older session is ended for it
        let id = self.sessions.next_id();
        let registration = convert::registration(register, id).map_err(status::refuse)?;
        tracing::info!(%node, version = registration.version, "a node registered");
        let registered = Message::Registered(wire::Registered {
            term: self.sessions.term().0,
            heartbeat_interval_ms: self.config.heartbeat_interval_ms,
        });
        let (session, commands) = self.sessions.begin(&node, id, registered);
        if let Err(cause) = self.driver.tell(Event::NodeJoined { node: Box::new(registration) }).await {
            self.sessions.remove(&node, id);
            return Err(status::refuse(cause));
        }
        let reader = Reader { node, session: session.clone(), driver: self.driver.clone() };
        let sessions = Arc::clone(&self.sessions);
        let shutdown = self.tasks.shutdown();
        drop(self.tasks.background("node-session", async move {
            reader.run(incoming, sessions, shutdown).await;
        }));
        let over = session.ended();
        let outgoing = outgoing(session, ReceiverStream::new(commands));
        Ok(Box::pin(stuck::watch(&self.tasks, connection.as_ref(), over, outgoing)))
    }

    async fn first_message(
        &self,
        incoming: &mut Streaming<wire::SessionRequest>,
    ) -> Result<wire::Register, Status> {
        let limit = Duration::from_millis(self.config.first_message_timeout_ms);
        let first = tokio::time::timeout(limit, incoming.message()).await.map_err(|_| {
            let message = format!("no register within {} ms", limit.as_millis());
            status::refuse(Cause::new(Reason::DeadlineExceeded, message))
        })??;
        match first.and_then(|request| request.message) {
            Some(session_request::Message::Register(register)) => Ok(register),
            _ => {
                let message = "the first message of a session is not register";
                Err(status::refuse(Cause::new(Reason::InvalidArgument, message)))
            }
        }
    }
}

/// Commands until the session is over, then the reason. Its loss (the node is gone) ends the session too.
fn outgoing(session: Session, commands: ReceiverStream<wire::SessionResponse>) -> Commands {
    let ended = session.ended().cancelled_owned();
    let lost = EndOnDrop(session.clone());
    let last = stream::once(async move { Err(status::refuse(session.why())) });
    let live = commands.map(move |command| {
        let _held = &lost;
        Ok(command)
    });
    Box::pin(live.take_until(ended).chain(last))
}

struct EndOnDrop(Session);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(Cause::new(Reason::NodeUnreachable, "the node's stream ended"));
    }
}

struct Reader {
    node: NodeId,
    session: Session,
    driver: DriverHandle,
}

impl Reader {
    async fn run(
        self,
        incoming: Streaming<wire::SessionRequest>,
        sessions: Arc<Sessions>,
        shutdown: pinfold_service::CancellationToken,
    ) {
        let why = tokio::select! {
            why = self.read(incoming) => why,
            () = self.session.ended().cancelled_owned() => self.session.why(),
            () = shutdown.cancelled() => Cause::new(Reason::NodeUnreachable, "the scheduler is shutting down"),
        };
        tracing::info!(node = %self.node, why = why.message, "a node's session ended");
        self.session.end(why);
        sessions.remove(&self.node, self.session.id);
        let gone = Event::NodeGone { node: self.node.clone(), session: self.session.id };
        // at a shutdown the driver may be gone already; the next start waits for the nodes anyway
        let _ = self.driver.tell(gone).await;
    }

    async fn read(&self, mut incoming: Streaming<wire::SessionRequest>) -> Cause {
        loop {
            let message = match incoming.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Cause::new(Reason::NodeUnreachable, "the node ended its session"),
                Err(error) => {
                    return Cause::new(Reason::NodeUnreachable, format!("the stream broke: {error}"));
                }
            };
            let told = match convert::event(message, &self.node, self.session.id) {
                Ok(event) => self.driver.tell(event).await,
                Err(cause) => return cause,
            };
            if let Err(cause) = told {
                return cause;
            }
        }
    }
}
