//! The way to a guest: may this sandbox be reached now, and what its node says on the relay.

use super::{deadline, status};
use crate::nodes::relay::{Link, Relays};
use crate::view::View;
use pinfold_domain::{Cause, NodeId, Phase, Reason, Sandbox, SandboxId};
use pinfold_proto::node::v1::{RelayRequest, RelayResponse, relay_request, relay_response};
use std::sync::Arc;
use tokio::time::Instant;
use tonic::{Status, Streaming};

/// What the handlers of guest streams work with.
#[derive(Clone)]
pub struct Guests {
    pub view: Arc<View>,
    pub relays: Arc<Relays>,
}

impl Guests {
    /// The sandbox and its node, if its guest can be talked to now.
    pub fn running(&self, id: SandboxId) -> Result<(Arc<Sandbox>, NodeId), Cause> {
        let sandbox = self.view.get(id)?;
        check_running(&sandbox)?;
        let node = node_of(&sandbox)?;
        Ok((sandbox, node))
    }

    /// A relay to the sandbox on which `first` has been said.
    pub async fn open(
        &self,
        node: &NodeId,
        id: SandboxId,
        first: relay_response::Frame,
        call_deadline: Option<Instant>,
    ) -> Result<Link, Status> {
        let open = async {
            let link = self.relays.open(node, id).await?;
            say(&link.to_node, first).await.map_err(|()| cut())?;
            Ok(link)
        };
        tokio::select! {
            biased;
            opened = open => opened.map_err(|cause: Cause| status::refuse(cause)),
            () = deadline::passed(call_deadline) => Err(status::deadline_exceeded()),
        }
    }
}

fn check_running(sandbox: &Sandbox) -> Result<(), Cause> {
    let id = sandbox.id;
    let phase = sandbox.phase;
    match phase {
        Phase::Running => Ok(()),
        Phase::Pending | Phase::Assigned | Phase::Starting => Err(Cause::new(
            Reason::SandboxStarting,
            format!("sandbox {id} is {phase}: it is not running yet"),
        )),
        Phase::Pausing | Phase::Paused | Phase::Resuming => {
            Err(Cause::new(Reason::WrongPhase, format!("sandbox {id} is {phase}")))
        }
        Phase::Stopping | Phase::Stopped | Phase::Failed | Phase::Lost => {
            let why = sandbox
                .cause
                .as_ref()
                .map_or_else(String::new, |cause| format!(": {}: {}", cause.reason.as_str(), cause.message));
            Err(Cause::new(Reason::SandboxEnded, format!("sandbox {id} is {phase}{why}")))
        }
    }
}

/// The node that has, or had, the sandbox.
pub fn node_of(sandbox: &Sandbox) -> Result<NodeId, Cause> {
    sandbox.node.clone().ok_or_else(|| {
        let message = format!("sandbox {} is {} and is on no node", sandbox.id, sandbox.phase);
        let reason = if sandbox.phase.is_final() { Reason::SandboxEnded } else { Reason::SandboxStarting };
        Cause::new(reason, message)
    })
}

/// Says one frame to the node; an error when it has gone.
pub async fn say(to_node: &crate::nodes::relay::ToNode, frame: relay_response::Frame) -> Result<(), ()> {
    to_node.send(Ok(RelayResponse { frame: Some(frame) })).await.map_err(drop)
}

/// The next frame of the kind that `take` takes; `None` at the good end of the guest's stream.
pub async fn hear<T>(
    from_node: &mut Streaming<RelayRequest>,
    take: fn(relay_request::Frame) -> Option<T>,
) -> Result<Option<T>, Status> {
    use relay_request::Frame;
    let frame = match from_node.message().await {
        Ok(Some(request)) => request.frame,
        Ok(None) => return Err(status::refuse(cut())),
        Err(error) => {
            tracing::debug!(%error, "a relay broke");
            return Err(status::refuse(cut()));
        }
    };
    match frame {
        Some(Frame::End(_)) => Ok(None),
        Some(Frame::Error(error)) => Err(status::relayed(error)),
        Some(frame) => take(frame).map(Some).ok_or_else(unexpected),
        None => Err(unexpected()),
    }
}

fn cut() -> Cause {
    Cause::new(Reason::NodeUnreachable, "the stream to the sandbox was cut: its node went away")
}

fn unexpected() -> Status {
    status::refuse(Cause::new(Reason::Internal, "the node sent a frame that does not belong to this stream"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::sandbox;

    #[test]
    fn every_phase_has_its_reason() {
        let reason = |phase| {
            let mut sandbox = sandbox(1, 1);
            sandbox.phase = phase;
            check_running(&sandbox).err().map(|cause| cause.reason)
        };
        for phase in Phase::ALL {
            let expected = match phase {
                Phase::Running => None,
                Phase::Pending | Phase::Assigned | Phase::Starting => Some(Reason::SandboxStarting),
                Phase::Pausing | Phase::Paused | Phase::Resuming => Some(Reason::WrongPhase),
                Phase::Stopping | Phase::Stopped | Phase::Failed | Phase::Lost => Some(Reason::SandboxEnded),
            };
            assert_eq!(reason(phase), expected, "{phase}");
        }
    }

    #[test]
    fn an_ended_sandbox_says_why_it_ended() {
        let mut ended = sandbox(1, 1);
        ended.phase = Phase::Failed;
        ended.cause = Some(Cause::new(Reason::GuestPanic, "not syncing"));
        let message = check_running(&ended).unwrap_err().message;
        assert!(message.ends_with("is failed: GuestPanic: not syncing"), "{message}");
    }
}
