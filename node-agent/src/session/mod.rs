//! The session with the scheduler: this node dials, so it needs no open port.
//!
//! ```text
//!   Dialling --connected, Register--> Registering --Registered--> Live
//!      ^                                   |                        |
//!      +------ back off, with jitter ------+------ ended, broken ---+
//! ```
//!
//! Nothing is queued while there is no session: the next one begins with the full list, and each heartbeat repeats it, so
//! a report that was lost is said again.

pub mod backoff;
pub mod term;

use crate::clock::BootTime;
use crate::guest::link::causes;
use crate::registry::Registry;
use crate::relay::Relays;
use crate::sandbox::actor::Stop;
use crate::sandbox::record::Assignment;
use backoff::Backoff;
use pinfold_domain::{Cause, Epoch, IdError, SandboxId, TemplateId, Term};
use pinfold_proto::convert::sandbox::{cause_from_wire, cause_to_wire, report_to_wire};
use pinfold_proto::convert::snapshot::{snapshot_report_to_wire, template_report_to_wire};
use pinfold_proto::convert::{WireError, spec};
use pinfold_proto::limits::MESSAGE_BYTES;
use pinfold_proto::node::v1 as wire;
use pinfold_proto::node::v1::node_session_service_client::NodeSessionServiceClient;
use pinfold_proto::node::v1::session_request::Message as Say;
use pinfold_proto::node::v1::session_response::Message as Order;
use pinfold_service::CancellationToken;
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use term::TermKeeper;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 pings: a peer that is silent for the sum of both is gone.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// What the scheduler may ask for.
const HEARTBEAT_MS: (u64, u64) = (100, 60_000);
/// Messages that wait for the network. When it is full for a whole heartbeat, the session is given up.
const OUTBOX_MESSAGES: usize = 64;

/// What a node says of itself.
#[derive(Debug, Clone)]
pub struct Identity {
    pub node_id: String,
    pub labels: BTreeMap<String, String>,
    pub zone: String,
}

pub struct Session {
    pub identity: Identity,
    pub endpoint: Endpoint,
    pub registry: Arc<Registry>,
    pub relays: Arc<Relays>,
    pub term: TermKeeper,
}

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the scheduler cannot be reached: {0}")]
    Connect(String),
    #[error("the scheduler ended the session: {0}")]
    Refused(String),
    #[error("the scheduler is of term {0}, this node has obeyed term {1}")]
    Deposed(Term, Term),
    #[error("the scheduler did not {0} in time")]
    Slow(&'static str),
    #[error("the scheduler broke a rule of the session: {0}")]
    Protocol(String),
    #[error("the term cannot be kept: {0}")]
    Term(String),
}

/// An endpoint with all limits set.
pub fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(address.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

impl Session {
    /// One session after the other, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut backoff = Backoff::default();
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                ended = self.once(&mut backoff) => ended,
            };
            let Err(error) = ended else { continue };
            let pause = backoff.next();
            tracing::warn!(%error, retry_ms = pause.as_millis(), "no session with the scheduler");
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn once(&mut self, backoff: &mut Backoff) -> Result<(), SessionError> {
        let channel = self.endpoint.connect().await.map_err(|error| SessionError::Connect(causes(&error)))?;
        let (say, outbox) = mpsc::channel(OUTBOX_MESSAGES);
        let register = wire::SessionRequest { message: Some(Say::Register(self.register())) };
        say.try_send(register).expect("a new queue has room");
        let (mut orders, registered) =
            tokio::time::timeout(REGISTER_TIMEOUT, self.open(channel, ReceiverStream::new(outbox)))
                .await
                .map_err(|_| SessionError::Slow("register this node"))??;
        backoff.reset();
        let (least, most) = HEARTBEAT_MS;
        let interval = Duration::from_millis(registered.heartbeat_interval_ms.clamp(least, most));
        tracing::info!(term = registered.term, heartbeat_ms = interval.as_millis(), "registered");
        let mut heartbeat = tokio::time::interval(interval);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                _ = heartbeat.tick() => Some(self.heartbeat()),
                changes = self.registry.next_changes() => {
                    for report in changes {
                        send(&say, Say::Status(report_to_wire(&report)), interval).await?;
                    }
                    None
                }
                (snapshots, templates) = self.registry.host().catalog.next_changes() => {
                    for report in snapshots {
                        send(&say, Say::Snapshot(snapshot_report_to_wire(&report)), interval).await?;
                    }
                    for report in templates {
                        send(&say, Say::Template(template_report_to_wire(&report)), interval).await?;
                    }
                    None
                }
                order = orders.message() => {
                    let order = order.map_err(|status| SessionError::Refused(said(&status)))?;
                    let order = order.ok_or_else(|| SessionError::Refused("its stream ended".to_owned()))?;
                    self.obey(order)?
                }
            };
            if let Some(message) = message {
                send(&say, message, interval).await?;
            }
        }
    }

    async fn open(
        &mut self,
        channel: Channel,
        outbox: ReceiverStream<wire::SessionRequest>,
    ) -> Result<(Streaming<wire::SessionResponse>, wire::Registered), SessionError> {
        let mut client = NodeSessionServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let refused = |status: tonic::Status| SessionError::Refused(said(&status));
        let mut orders = client.session(outbox).await.map_err(refused)?.into_inner();
        let first = orders.message().await.map_err(refused)?;
        let first = first.ok_or_else(|| SessionError::Refused("its stream ended".to_owned()))?;
        self.check_term(Term(first.term))?;
        match first.message {
            Some(Order::Registered(registered)) => Ok((orders, registered)),
            _ => Err(SessionError::Protocol("its first message is not registered".to_owned())),
        }
    }

    /// Refuses a deposed leader; keeps a newer term before anything of it is obeyed.
    fn check_term(&mut self, term: Term) -> Result<(), SessionError> {
        let highest = self.term.highest();
        if term < highest {
            return Err(SessionError::Deposed(term, highest));
        }
        self.term.raise(term).map_err(|error| SessionError::Term(error.sentence()))
    }

    fn register(&self) -> wire::Register {
        let images = &self.registry.host().images;
        wire::Register {
            node_id: self.identity.node_id.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            allocatable: Some(spec::resources_to_wire(&self.registry.allocatable())),
            labels: self.identity.labels.clone().into_iter().collect(),
            zone: self.identity.zone.clone(),
            images: images.images().into_iter().collect(),
            kernels: images.kernels().into_iter().collect(),
            sandboxes: self.registry.reports().iter().map(report_to_wire).collect(),
            highest_term: self.term.highest().0,
            snapshots: self.snapshots(),
            templates: self.templates(),
        }
    }

    fn heartbeat(&self) -> Say {
        let sandboxes = self.registry.reports().iter().map(report_to_wire).collect();
        Say::Heartbeat(wire::Heartbeat {
            sandboxes,
            snapshots: self.snapshots(),
            templates: self.templates(),
        })
    }

    fn snapshots(&self) -> Vec<wire::SnapshotStatus> {
        self.registry.host().catalog.snapshot_reports().iter().map(snapshot_report_to_wire).collect()
    }

    fn templates(&self) -> Vec<wire::TemplateStatus> {
        self.registry.host().catalog.template_reports().iter().map(template_report_to_wire).collect()
    }

    /// Carries an order out, or says why not. Only a broken session is an error.
    fn obey(&mut self, order: wire::SessionResponse) -> Result<Option<Say>, SessionError> {
        self.check_term(Term(order.term))?;
        match order.message {
            Some(Order::Assign(assign)) => Ok(self.assign(assign)),
            Some(Order::Stop(stop)) => {
                let (id, epoch) = sandbox(&stop.sandbox_id, stop.epoch)?;
                let cause = stop.cause.map(cause_from_wire);
                let cause =
                    cause.ok_or_else(|| SessionError::Protocol("a stop without a cause".to_owned()))?;
                let stop = Stop { cause, grace: Duration::from_millis(stop.grace_ms) };
                // The full list tells the scheduler that it is not here.
                Ok((!self.registry.stop(id, epoch, stop)).then(|| self.heartbeat()))
            }
            Some(Order::Forget(forget)) => {
                let (id, epoch) = sandbox(&forget.sandbox_id, forget.epoch)?;
                self.registry.forget(id, epoch);
                Ok(None)
            }
            Some(Order::OpenRelay(open)) => {
                self.relays.open(open);
                Ok(None)
            }
            Some(Order::Pause(pause)) => {
                let (id, epoch) = sandbox(&pause.sandbox_id, pause.epoch)?;
                Ok((!self.registry.pause(id, epoch, pause.order)).then(|| self.heartbeat()))
            }
            Some(Order::Resume(resume)) => {
                let (id, epoch) = sandbox(&resume.sandbox_id, resume.epoch)?;
                Ok((!self.registry.resume(id, epoch, resume.order)).then(|| self.heartbeat()))
            }
            Some(Order::TakeSnapshot(take)) => {
                let (id, epoch) = sandbox(&take.sandbox_id, take.epoch)?;
                self.registry.take_snapshot(parsed(&take.snapshot_id)?, id, epoch);
                Ok(None)
            }
            Some(Order::DropSnapshot(gone)) => {
                self.registry.drop_snapshot(parsed(&gone.snapshot_id)?);
                Ok(None)
            }
            Some(Order::PrepareTemplate(prepare)) => {
                self.prepare(prepare)?;
                Ok(None)
            }
            Some(Order::DropTemplate(gone)) => {
                self.registry.drop_template(parsed(&gone.template_id)?);
                Ok(None)
            }
            Some(Order::Registered(_)) => Err(SessionError::Protocol("registered twice".to_owned())),
            None => Err(SessionError::Protocol("an order that this version does not know".to_owned())),
        }
    }

    /// A spec that this version cannot take is a failure of the template, which is told.
    fn prepare(&self, prepare: wire::PrepareTemplate) -> Result<(), SessionError> {
        let id = parsed(&prepare.template_id)?;
        match spec::from_wire(prepare.spec) {
            Ok(spec) => self.registry.prepare_template(id, spec),
            Err(error) => self.registry.host().catalog.templates.refuse(id, error.into()),
        }
        Ok(())
    }

    fn assign(&self, assign: wire::Assign) -> Option<Say> {
        let refuse = |cause: &Cause| {
            tracing::warn!(
                sandbox = assign.sandbox_id,
                epoch = assign.epoch,
                reason = cause.reason.as_str(),
                message = cause.message,
                "an assignment was refused"
            );
            Some(Say::Refuse(wire::Refuse {
                sandbox_id: assign.sandbox_id.clone(),
                epoch: assign.epoch,
                cause: Some(cause_to_wire(cause)),
            }))
        };
        let checked = assign
            .sandbox_id
            .parse::<SandboxId>()
            .map_err(|error| Cause::from(WireError::from(error)))
            .and_then(|id| {
                let template = match assign.template_id.as_str() {
                    "" => None,
                    template => Some(template.parse::<TemplateId>().map_err(WireError::from)?),
                };
                Ok((id, spec::from_wire(assign.spec.clone())?, template))
            });
        let (id, spec, template) = match checked {
            Ok(checked) => checked,
            Err(cause) => return refuse(&cause),
        };
        let assigned_at = BootTime::now();
        let assignment = Assignment {
            id,
            epoch: Epoch(assign.epoch),
            tenant: assign.tenant.clone(),
            spec,
            assigned_at,
            expires_at: assigned_at.after(Duration::from_millis(assign.ttl_ms)),
            template,
        };
        self.registry.assign(assignment).err().and_then(|cause| refuse(&cause))
    }
}

fn sandbox(id: &str, epoch: u64) -> Result<(SandboxId, Epoch), SessionError> {
    Ok((parsed(id)?, Epoch(epoch)))
}

fn parsed<Id: FromStr<Err = IdError>>(id: &str) -> Result<Id, SessionError> {
    id.parse().map_err(|error: IdError| SessionError::Protocol(error.to_string()))
}

async fn send(
    say: &mpsc::Sender<wire::SessionRequest>,
    message: Say,
    limit: Duration,
) -> Result<(), SessionError> {
    let request = wire::SessionRequest { message: Some(message) };
    // at least a second: the interval may be very short in tests
    let limit = limit.max(Duration::from_secs(1));
    match tokio::time::timeout(limit, say.send(request)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(SessionError::Refused("it closed its end".to_owned())),
        Err(_) => Err(SessionError::Slow("read what this node says")),
    }
}

fn said(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

#[cfg(test)]
mod tests;
