//! `StreamLogs`: the console, from the ring that its node keeps. Also of a sandbox that has ended, while the node has it.

use super::guest::{hear, node_of};
use super::sandboxes::{SandboxApi, sandbox_id};
use super::streams::{Answers, bounded};
use super::{deadline, status};
use futures::stream;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::node::v1::{LogsRequest, relay_request, relay_response};
use tonic::{Request, Status};

pub async fn start(
    api: &SandboxApi,
    request: Request<wire::StreamLogsRequest>,
) -> Result<Answers<wire::StreamLogsResponse>, Status> {
    let deadline = deadline::of(request.metadata());
    let request = request.into_inner();
    let id = sandbox_id(&request.sandbox_id).map_err(status::refuse)?;
    let sandbox = api.view.get(id).map_err(status::refuse)?;
    let node = node_of(&sandbox).map_err(status::refuse)?;
    let first = LogsRequest { from_offset: request.from_offset, follow: request.follow };
    let link = api.guests.open(&node, id, relay_response::Frame::Logs(first), deadline).await?;
    let chunks = stream::try_unfold(link, |mut link| async move {
        let chunk = hear(&mut link.from_node, chunk).await?;
        Ok(chunk.map(|chunk| (chunk, link)))
    });
    Ok(bounded(chunks, deadline, api.shutdown.clone()))
}

fn chunk(frame: relay_request::Frame) -> Option<wire::StreamLogsResponse> {
    match frame {
        relay_request::Frame::Logs(chunk) => {
            Some(wire::StreamLogsResponse { offset: chunk.offset, data: chunk.data })
        }
        _ => None,
    }
}
