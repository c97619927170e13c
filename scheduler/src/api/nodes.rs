//! `NodeService`.

use super::{deadline, pages, status};
use crate::driver::DriverHandle;
use pinfold_domain::{IdError, NodeId};
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::node_service_server::NodeService;
use pinfold_proto::convert::WireError;
use pinfold_proto::convert::sandbox::node_to_wire;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Nodes are observed state: they are read from the engine itself, through the driver.
pub struct FleetApi {
    pub driver: DriverHandle,
    pub call_timeout: Duration,
}

#[tonic::async_trait]
impl NodeService for FleetApi {
    async fn list_nodes(
        &self,
        request: Request<wire::ListNodesRequest>,
    ) -> Result<Response<wire::ListNodesResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let request = request.into_inner();
        let size = pages::size(request.page_size).map_err(status::refuse)?;
        let after = page_token(&request.page_token).map_err(status::refuse)?;
        // one more than asked for tells whether there is a next page
        let list = async { self.driver.list_nodes(after, size + 1).await.map_err(status::refuse) };
        let mut nodes = deadline::within(deadline, self.call_timeout, list).await?;
        let more = nodes.len() > size;
        nodes.truncate(size);
        let (nodes, cut) = pages::fit(nodes.iter().map(node_to_wire));
        let last = nodes.last().filter(|_| more || cut);
        let next_page_token = last.map(|node| node.id.clone()).unwrap_or_default();
        Ok(Response::new(wire::ListNodesResponse { nodes, next_page_token }))
    }
}

fn page_token(text: &str) -> Result<Option<NodeId>, WireError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_: IdError| pages::not_ours(text))
}
