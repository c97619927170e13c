//! `FileService`: files of a guest, streamed through the relay.

use super::guest::{Guests, hear, say};
use super::streams::{Answers, bounded};
use super::{deadline, status};
use crate::nodes::relay::ToNode;
use futures::stream;
use pinfold_domain::{Cause, Reason};
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::file_service_server::FileService;
use pinfold_proto::api::v1::write_file_request;
use pinfold_proto::convert::file::{
    read_from_guest, read_to_guest, write_frame_to_guest, write_start_to_guest,
};
use pinfold_proto::guest::v1 as guest;
use pinfold_proto::node::v1::{relay_request, relay_response};
use pinfold_service::CancellationToken;
use std::time::Duration;
use tonic::{Request, Response, Status, Streaming};

pub struct FileApi {
    pub guests: Guests,
    pub shutdown: CancellationToken,
    /// from the beginning of a write to its first frame
    pub first_frame_timeout: Duration,
}

#[tonic::async_trait]
impl FileService for FileApi {
    type ReadFileStream = Answers<wire::ReadFileResponse>;

    async fn read_file(
        &self,
        request: Request<wire::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let deadline = deadline::of(request.metadata());
        let (id, read) = read_to_guest(request.into_inner()).map_err(status::refuse)?;
        let (_, node) = self.guests.running(id).map_err(status::refuse)?;
        let link = self.guests.open(&node, id, relay_response::Frame::ReadFile(read), deadline).await?;
        let frames = stream::try_unfold(link, |mut link| async move {
            let frame = hear(&mut link.from_node, read_frame).await?;
            Ok(frame.map(|frame| (frame, link)))
        });
        Ok(Response::new(bounded(frames, deadline, self.shutdown.clone())))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<wire::WriteFileRequest>>,
    ) -> Result<Response<wire::WriteFileResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let mut incoming = request.into_inner();
        let start = deadline::within(deadline, self.first_frame_timeout, first_frame(&mut incoming)).await?;
        let (id, start) = write_start_to_guest(start).map_err(status::refuse)?;
        let (_, node) = self.guests.running(id).map_err(status::refuse)?;
        let start = guest::WriteFileRequest { frame: Some(guest::write_file_request::Frame::Start(start)) };
        let mut link = self.guests.open(&node, id, relay_response::Frame::WriteFile(start), deadline).await?;
        // the guest may refuse before all is said: its answer comes first
        let written = tokio::select! {
            biased;
            written = hear(&mut link.from_node, write_answer) => written?,
            broken = pump(&mut incoming, link.to_node.clone()) => return Err(broken),
            () = deadline::passed(deadline) => return Err(status::deadline_exceeded()),
            () = self.shutdown.cancelled() => return Err(status::shutting_down()),
        };
        written.map(Response::new).ok_or_else(|| {
            let message = "the stream of the write ended without an answer";
            status::refuse(Cause::new(Reason::GuestUnresponsive, message))
        })
    }
}

async fn first_frame(
    incoming: &mut Streaming<wire::WriteFileRequest>,
) -> Result<wire::WriteFileStart, Status> {
    match incoming.message().await?.and_then(|request| request.frame) {
        Some(write_file_request::Frame::Start(start)) => Ok(start),
        _ => Err(status::refuse(Cause::new(
            Reason::InvalidArgument,
            "the first frame of a write is not start",
        ))),
    }
}

/// Carries the content to the node up to the commit. Ends only when the call must end for it.
async fn pump(incoming: &mut Streaming<wire::WriteFileRequest>, to_node: ToNode) -> Status {
    loop {
        let frame = match incoming.message().await {
            Ok(Some(request)) => match write_frame_to_guest(request) {
                Ok(frame) => frame,
                Err(error) => return status::refuse(error),
            },
            Ok(None) => {
                let message = "the stream ended without commit: nothing was written";
                return status::refuse(Cause::new(Reason::InvalidArgument, message));
            }
            Err(error) => return error,
        };
        let committed = matches!(frame.frame, Some(guest::write_file_request::Frame::Commit(_)));
        let said = say(&to_node, relay_response::Frame::WriteFile(frame)).await;
        if committed || said.is_err() {
            // the answer, or the end of the relay, decides
            return std::future::pending().await;
        }
    }
}

fn read_frame(frame: relay_request::Frame) -> Option<wire::ReadFileResponse> {
    match frame {
        relay_request::Frame::ReadFile(response) if response.frame.is_some() => {
            Some(read_from_guest(response))
        }
        _ => None,
    }
}

fn write_answer(frame: relay_request::Frame) -> Option<wire::WriteFileResponse> {
    match frame {
        relay_request::Frame::WriteFile(answer) => {
            Some(wire::WriteFileResponse { size_bytes: answer.size_bytes })
        }
        _ => None,
    }
}
