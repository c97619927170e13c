//! Streams of callers to guests. For each the node dials the scheduler once more and opens a connection to the guest.
//!
//! ```text
//!   scheduler --RelayResponse--> [8 frames] --> guest          a full buffer stops the reader before it, so HTTP/2's
//!   scheduler <--RelayRequest--- [8 frames] <-- guest          flow control reaches from the client to the process
//! ```
//!
//! Each stream has connections of its own on both sides, because HTTP/2's window is shared within a connection: a client
//! that does not read would otherwise hold back every other stream, and the session. When the scheduler ends the call,
//! the client is gone; dropping the guest's call cancels it, and the guest ends the process.

mod logs;
mod streams;

use crate::registry::Registry;
use crate::sandbox::record::Ledger;
use pinfold_domain::{Cause, Phase, Reason, SandboxId};
use pinfold_proto::convert::sandbox::cause_to_wire;
use pinfold_proto::limits::{MESSAGE_BYTES, STREAM_QUEUE_FRAMES};
use pinfold_proto::node::v1 as wire;
use pinfold_proto::node::v1::node_session_service_client::NodeSessionServiceClient;
use pinfold_proto::node::v1::relay_request::Frame as Say;
use pinfold_proto::node::v1::relay_response::Frame as Ask;
use pinfold_proto::reasons;
use pinfold_service::{CancellationToken, Tasks};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

/// From the order to the first frame of the client.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Refusals on their way at once, beside the streams.
const REFUSALS: usize = 64;
/// From a broken guest connection to the sandbox's report of its end.
const END_AFTER_BREAK: Duration = Duration::from_secs(2);

pub struct Relays {
    endpoint: Endpoint,
    node_id: String,
    registry: Arc<Registry>,
    tasks: Tasks,
    stop: CancellationToken,
    max_relays: usize,
    /// bounds streams at once
    slots: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

/// To the scheduler. A failed send means that the call is over.
type ToScheduler = mpsc::Sender<wire::RelayRequest>;

/// The client's side of a stream, after its first frame.
struct Client {
    frames: Streaming<wire::RelayResponse>,
    say: ToScheduler,
}

impl Relays {
    pub fn new(
        endpoint: Endpoint,
        node_id: String,
        registry: Arc<Registry>,
        tasks: Tasks,
        stop: CancellationToken,
        max_relays: usize,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(max_relays));
        let refusals = Arc::new(Semaphore::new(REFUSALS));
        Self { endpoint, node_id, registry, tasks, stop, max_relays, slots, refusals }
    }

    /// Dials in for `order`, in a task of its own.
    pub fn open(self: &Arc<Self>, order: wire::OpenRelay) {
        let (permit, refused) = match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(permit) => (permit, None),
            Err(_) => {
                let message = format!("this node has {} streams open, which is its limit", self.max_relays);
                let cause = Cause::new(Reason::TooManyStreams, message);
                // who is refused is told so, but telling is bounded too: past that the scheduler's time limit speaks
                let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() else {
                    return tracing::warn!(sandbox = order.sandbox_id, "a stream was refused unheard");
                };
                (permit, Some(cause))
            }
        };
        let relays = Arc::clone(self);
        drop(self.tasks.background("relay", async move {
            let stop = relays.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = relays.serve(order, refused, permit) => {}
            }
        }));
    }

    async fn serve(&self, order: wire::OpenRelay, refused: Option<Cause>, _permit: OwnedSemaphorePermit) {
        let opened = tokio::time::timeout(OPEN_TIMEOUT, self.dial(&order.relay_id)).await;
        let (mut client, first) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(status)) => {
                return tracing::info!(
                    sandbox = order.sandbox_id,
                    why = status.message(),
                    "a stream did not open"
                );
            }
            Err(_) => return tracing::info!(sandbox = order.sandbox_id, "a stream had no first frame"),
        };
        let outcome = match refused {
            Some(cause) => Outcome::Failed(cause),
            None => self.outcome(&order, &mut client, first).await,
        };
        let last = match outcome {
            Outcome::ClientGone => return,
            Outcome::End => Say::End(wire::RelayEnd {}),
            Outcome::Failed(cause) => {
                let (code, _) = reasons::wire(cause.reason);
                Say::Error(wire::RelayError { code: code.into(), cause: Some(cause_to_wire(&cause)) })
            }
        };
        let frame = wire::RelayRequest { frame: Some(last) };
        // No clock here: output may wait for a client that reads slowly (a pager). What bounds it is the call, which ends
        // with the client's, and the number of streams. A scheduler that has gone knows that the stream was cut.
        let _ = client.say.send(frame).await;
        // The call ends in order: this end first, then the scheduler's. Dropping it now would cut the last frames off.
        drop(client.say);
        while let Ok(Some(_)) = client.frames.message().await {}
    }

    async fn outcome(&self, order: &wire::OpenRelay, client: &mut Client, first: Ask) -> Outcome {
        match order.sandbox_id.parse::<SandboxId>().ok().and_then(|id| self.registry.ledger(id)) {
            Some(ledger) => self.stream(client, &ledger, first).await,
            None => {
                let message = format!("sandbox {} is not on this node", order.sandbox_id);
                Outcome::Failed(Cause::new(Reason::SandboxNotFound, message))
            }
        }
    }

    /// Connects, accepts the relay, waits for the client's first frame.
    async fn dial(&self, relay_id: &str) -> Result<(Client, Ask), Status> {
        let channel =
            self.endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let (say, outbox) = mpsc::channel(STREAM_QUEUE_FRAMES);
        let accept = wire::RelayAccept { relay_id: relay_id.to_owned(), node_id: self.node_id.clone() };
        say.try_send(wire::RelayRequest { frame: Some(Say::Accept(accept)) }).expect("a new queue has room");
        let mut call = NodeSessionServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let mut frames = call.relay(ReceiverStream::new(outbox)).await?.into_inner();
        let first = frames.message().await?.and_then(|response| response.frame);
        let first = first.ok_or_else(|| Status::cancelled("the client is gone"))?;
        Ok((Client { frames, say }, first))
    }

    async fn stream(&self, client: &mut Client, ledger: &Arc<Ledger>, first: Ask) -> Outcome {
        if let Ask::Logs(request) = first {
            return logs::run(client, ledger, request).await;
        }
        if let Err(cause) = must_run(ledger) {
            return Outcome::Failed(cause);
        }
        match first {
            Ask::Exec(start) => streams::exec(client, ledger, start).await,
            Ask::ReadFile(request) => streams::read_file(client, ledger, request).await,
            Ask::WriteFile(start) => streams::write_file(client, ledger, start).await,
            Ask::Logs(_) => unreachable!("answered above"),
        }
    }
}

/// How a stream ended, for its last frame.
enum Outcome {
    End,
    Failed(Cause),
    /// nobody is left to be told
    ClientGone,
}

/// A guest serves streams only while its sandbox runs.
fn must_run(ledger: &Ledger) -> Result<(), Cause> {
    let report = ledger.reports().borrow().clone();
    let (reason, state) = match report.phase {
        Phase::Running => return Ok(()),
        Phase::Pending | Phase::Assigned | Phase::Starting | Phase::Resuming => {
            (Reason::SandboxStarting, "starting")
        }
        Phase::Pausing | Phase::Paused => (Reason::WrongPhase, "paused"),
        Phase::Stopping | Phase::Stopped | Phase::Failed | Phase::Lost => {
            (Reason::SandboxEnded, "at its end")
        }
    };
    let why = report.cause.map(|cause| format!(": {}: {}", cause.reason.as_str(), cause.message));
    Err(Cause::new(reason, format!("the sandbox is {state}{}", why.unwrap_or_default())))
}

/// Why a guest's call failed. A guest that spoke gave its reason; when the connection broke, the sandbox may have ended,
/// which its report tells a moment later.
async fn guest_failure(ledger: &Ledger, status: &Status) -> Outcome {
    if status.metadata().contains_key(reasons::REASON_KEY) {
        return Outcome::Failed(reasons::cause(status));
    }
    let mut reports = ledger.reports();
    let left_running = reports.wait_for(|report| report.phase != Phase::Running);
    let _ = tokio::time::timeout(END_AFTER_BREAK, left_running).await;
    Outcome::Failed(match must_run(ledger) {
        Err(cause) => cause,
        Ok(()) => {
            Cause::new(Reason::GuestUnresponsive, format!("the guest's stream broke: {}", status.message()))
        }
    })
}

#[cfg(test)]
mod tests;
