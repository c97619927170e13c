//! `pinfold.node.v1.NodeSessionService`.

use super::relay::Relays;
use super::session::{Commands, SessionService};
use pinfold_proto::node::v1::node_session_service_server::NodeSessionService;
use pinfold_proto::node::v1::{RelayRequest, RelayResponse, SessionRequest};
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub struct NodeApi {
    pub sessions: SessionService,
    pub relays: Arc<Relays>,
}

#[tonic::async_trait]
impl NodeSessionService for NodeApi {
    type SessionStream = Commands;
    type RelayStream = ReceiverStream<Result<RelayResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.sessions.begin(request.into_inner()).await.map(Response::new)
    }

    async fn relay(
        &self,
        request: Request<Streaming<RelayRequest>>,
    ) -> Result<Response<Self::RelayStream>, Status> {
        self.relays.accept(request.into_inner()).await.map(Response::new)
    }
}
