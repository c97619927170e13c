//! The agent's session: dial, register, obey, dial again.

use super::node::Node;
use super::{OnAssign, REDIAL, guest};
use pinfold_proto::api::v1 as api;
use pinfold_proto::node::v1 as wire;
use pinfold_proto::node::v1::node_session_service_client::NodeSessionServiceClient;
use pinfold_proto::node::v1::session_request::Message;
use pinfold_proto::node::v1::session_response::Message as Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

pub async fn run(node: Arc<Node>) {
    loop {
        let why = match session(&node).await {
            Ok(()) => "the scheduler ended the session".to_owned(),
            Err(status) => status.message().to_owned(),
        };
        node.set_session(None);
        node.stats.send_modify(|stats| {
            stats.ended += 1;
            stats.last_end = why;
        });
        tokio::time::sleep(REDIAL).await;
    }
}

/// HTTP/2's own default (RFC 9113, 6.9.2): small, so that what is not read is felt soon.
const WINDOW_BYTES: u32 = 65_535;

/// Messages that wait for a scheduler that does not read; one more is lost, as in a report that is lost.
const OUTBOX: usize = 1024;

/// A connection for one call: the session, or one relay, so that one which is not read does not hold the others back.
pub async fn connect(endpoint: &str) -> Result<Channel, tonic::Status> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).expect("a good address");
    let endpoint =
        endpoint.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    endpoint.connect().await.map_err(|error| tonic::Status::unavailable(error.to_string()))
}

/// One session. The relays of a session end with it.
async fn session(node: &Arc<Node>) -> Result<(), tonic::Status> {
    let mut client = NodeSessionServiceClient::new(connect(&node.endpoint).await?);
    let (sender, receiver) = mpsc::channel(OUTBOX);
    let register = wire::Register {
        sandboxes: node.statuses(),
        snapshots: node.snapshots(),
        templates: node.templates(),
        ..node.config.register.clone()
    };
    let first = wire::SessionRequest { message: Some(Message::Register(register)) };
    sender.try_send(first).expect("a new queue has room");
    let mut commands = client.session(ReceiverStream::new(receiver)).await?.into_inner();
    node.set_session(Some(sender));
    let mut relays = JoinSet::new();
    let mut heartbeat = tokio::time::interval(Duration::from_millis(100));
    loop {
        let command = tokio::select! {
            command = commands.message() => command?,
            _ = heartbeat.tick() => {
                // a session that is over is noticed by reading
                let _ = node.say(node.heartbeat());
                continue;
            }
        };
        let Some(wire::SessionResponse { term, message: Some(message) }) = command else { return Ok(()) };
        node.stats.send_modify(|stats| stats.term = term);
        match message {
            Command::OpenRelay(open) if node.config.answers_relays => {
                relays.spawn(guest::relay(Arc::clone(node), open));
            }
            command => obey(node, command),
        }
        if node.config.deaf {
            return deaf(node).await;
        }
    }
}

/// Reads no more, so that writing is how it notices the end.
async fn deaf(node: &Node) -> Result<(), tonic::Status> {
    while node.say(node.heartbeat()) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(tonic::Status::unavailable("the session was cut"))
}

fn obey(node: &Node, command: Command) {
    match command {
        Command::Registered(_) => node.stats.send_modify(|stats| stats.sessions += 1),
        Command::Assign(assign) => on_assign(node, &assign),
        Command::Stop(stop) => {
            node.stats.send_modify(|stats| stats.stopped += 1);
            node.report(&stop.sandbox_id, api::Phase::Stopping, stop.cause.clone());
            node.report(&stop.sandbox_id, api::Phase::Stopped, stop.cause);
        }
        Command::Forget(forget) => {
            node.forget(&forget.sandbox_id);
            node.stats.send_modify(|stats| stats.forgotten += 1);
        }
        Command::OpenRelay(_) => {}
        Command::Pause(pause) => node.pause(&pause),
        Command::Resume(resume) => node.resume(&resume),
        Command::TakeSnapshot(take) => node.take_snapshot(take),
        Command::DropSnapshot(drop) => node.drop_snapshot(&drop.snapshot_id),
        Command::PrepareTemplate(prepare) => node.prepare(prepare),
        Command::DropTemplate(drop) => node.drop_template(&drop.template_id),
    }
}

fn on_assign(node: &Node, assign: &wire::Assign) {
    node.stats.send_modify(|stats| stats.assigned += 1);
    let id = &assign.sandbox_id;
    match &node.config.on_assign {
        OnAssign::Ignore => {}
        OnAssign::Refuse(cause) => {
            let (sandbox_id, cause) = (id.clone(), Some(cause.clone()));
            let _ = node.say(Message::Refuse(wire::Refuse { sandbox_id, epoch: assign.epoch, cause }));
        }
        on_assign => {
            if !node.assign(assign) {
                return;
            }
            node.report(id, api::Phase::Starting, None);
            if !node.can_begin(assign) {
                let message = "the snapshot is not here".to_owned();
                let cause = api::Cause { reason: "SnapshotInvalid".to_owned(), message };
                return node.report(id, api::Phase::Failed, Some(cause));
            }
            match on_assign {
                OnAssign::Run => node.report(id, api::Phase::Running, None),
                OnAssign::Fail(cause) => node.report(id, api::Phase::Failed, Some(cause.clone())),
                OnAssign::Start | OnAssign::Ignore | OnAssign::Refuse(_) => {}
            }
        }
    }
}
