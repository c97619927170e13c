//! Exec and files: frames are passed on as they come.

use super::{Client, Outcome, Say, guest_failure};
use crate::guest::link::{self, Link};
use crate::sandbox::record::Ledger;
use pinfold_domain::{Cause, Reason};
use pinfold_proto::guest::v1 as guest;
use pinfold_proto::guest::v1::guest_service_client::GuestServiceClient;
use pinfold_proto::limits::{MESSAGE_BYTES, STREAM_QUEUE_FRAMES};
use pinfold_proto::node::v1 as wire;
use pinfold_proto::node::v1::relay_response::Frame as Ask;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// A process in the guest.
pub async fn exec(client: &mut Client, ledger: &Arc<Ledger>, first: guest::ExecRequest) -> Outcome {
    // `_link` lives as long as the call: its end cuts the connection
    let (mut guest, _link) = match connect(ledger).await {
        Ok(connected) => connected,
        Err(outcome) => return outcome,
    };
    let (input, frames) = mpsc::channel(STREAM_QUEUE_FRAMES);
    let first = with_environment(first, ledger);
    input.try_send(first).expect("a new queue has room");
    let Client { frames: from_client, say } = client;
    let call = async {
        let mut output = guest.exec(ReceiverStream::new(frames)).await?.into_inner();
        while let Some(response) = output.message().await? {
            if !pass_on(say, Say::Exec(response)).await {
                return Ok(Outcome::ClientGone);
            }
        }
        Ok(Outcome::End)
    };
    let pump = pump(from_client, input, |frame| match frame {
        Ask::Exec(request) => Some(request),
        _ => None,
    });
    first_of(ledger, say, call, pump).await
}

pub async fn read_file(
    client: &mut Client,
    ledger: &Arc<Ledger>,
    request: guest::ReadFileRequest,
) -> Outcome {
    // `_link` lives as long as the call: its end cuts the connection
    let (mut guest, _link) = match connect(ledger).await {
        Ok(connected) => connected,
        Err(outcome) => return outcome,
    };
    let Client { frames: from_client, say } = client;
    let call = async {
        let mut content = guest.read_file(request).await?.into_inner();
        while let Some(response) = content.message().await? {
            if !pass_on(say, Say::ReadFile(response)).await {
                return Ok(Outcome::ClientGone);
            }
        }
        Ok(Outcome::End)
    };
    // A reader says nothing more; its frames are watched for the end of the call.
    let (nothing, _) = mpsc::channel::<()>(1);
    let pump = pump(from_client, nothing, |_| None);
    first_of(ledger, say, call, pump).await
}

pub async fn write_file(
    client: &mut Client,
    ledger: &Arc<Ledger>,
    first: guest::WriteFileRequest,
) -> Outcome {
    // `_link` lives as long as the call: its end cuts the connection
    let (mut guest, _link) = match connect(ledger).await {
        Ok(connected) => connected,
        Err(outcome) => return outcome,
    };
    let (input, frames) = mpsc::channel(STREAM_QUEUE_FRAMES);
    input.try_send(first).expect("a new queue has room");
    let Client { frames: from_client, say } = client;
    let call = async {
        let response = guest.write_file(ReceiverStream::new(frames)).await?.into_inner();
        Ok(if pass_on(say, Say::WriteFile(response)).await { Outcome::End } else { Outcome::ClientGone })
    };
    let pump = pump(from_client, input, |frame| match frame {
        Ask::WriteFile(request) => Some(request),
        _ => None,
    });
    first_of(ledger, say, call, pump).await
}

async fn connect(ledger: &Ledger) -> Result<(GuestServiceClient<Channel>, Link), Outcome> {
    match link::connect(&ledger.paths().vsock()).await {
        Ok(link) => {
            let client = GuestServiceClient::new(link.channel.clone())
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES);
            Ok((client, link))
        }
        Err(error) => Err(guest_failure(ledger, &Status::unavailable(error.to_string())).await),
    }
}

/// The sandbox's environment under that of the call.
fn with_environment(mut request: guest::ExecRequest, ledger: &Ledger) -> guest::ExecRequest {
    if let Some(guest::exec_request::Frame::Start(start)) = &mut request.frame {
        for (name, value) in ledger.assignment().spec.environment {
            start.environment.entry(name).or_insert(value);
        }
    }
    request
}

/// The guest's call, unless the client goes or breaks a rule first. What loses is dropped, which cancels it.
///
/// That the client is gone shows in its frames, but nobody reads them while input waits for a guest that takes none; so
/// the end of the way back to it counts too.
async fn first_of(
    ledger: &Ledger,
    say: &super::ToScheduler,
    call: impl Future<Output = Result<Outcome, Status>>,
    pump: impl Future<Output = Outcome>,
) -> Outcome {
    tokio::select! {
        outcome = call => match outcome {
            Ok(outcome) => outcome,
            Err(status) => guest_failure(ledger, &status).await,
        },
        outcome = pump => outcome,
        () = say.closed() => Outcome::ClientGone,
    }
}

/// Carries the client's frames to the guest until the client is gone. A guest that takes no more (its process has
/// ended) is no reason to stop: its last words are on their way.
async fn pump<T>(
    frames: &mut Streaming<wire::RelayResponse>,
    input: mpsc::Sender<T>,
    of_this_kind: impl Fn(Ask) -> Option<T>,
) -> Outcome {
    while let Ok(Some(response)) = frames.message().await {
        let Some(frame) = response.frame.and_then(&of_this_kind) else {
            let message = "a frame of another kind than the stream's first";
            return Outcome::Failed(Cause::new(Reason::InvalidArgument, message));
        };
        let _ = input.send(frame).await;
    }
    Outcome::ClientGone
}

async fn pass_on(say: &super::ToScheduler, frame: Say) -> bool {
    say.send(wire::RelayRequest { frame: Some(frame) }).await.is_ok()
}
