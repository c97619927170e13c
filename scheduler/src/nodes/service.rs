//! `pinfold.node.v1.NodeSessionService`.

use super::relay::{Relays, ToNodeStream};
use super::session::{Commands, SessionService};
use crate::listen::ConnectionHandle;
use pinfold_proto::node::v1::node_session_service_server::NodeSessionService;
use pinfold_proto::node::v1::{RelayRequest, SessionRequest};
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

pub struct NodeApi {
    pub sessions: SessionService,
    pub relays: Arc<Relays>,
}

#[tonic::async_trait]
impl NodeSessionService for NodeApi {
    type SessionStream = Commands;
    type RelayStream = ToNodeStream;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let connection = request.extensions().get::<ConnectionHandle>().cloned();
        self.sessions.begin(request.into_inner(), connection).await.map(Response::new)
    }

    async fn relay(
        &self,
        request: Request<Streaming<RelayRequest>>,
    ) -> Result<Response<Self::RelayStream>, Status> {
        let connection = request.extensions().get::<ConnectionHandle>().cloned();
        self.relays.accept(request.into_inner(), connection).await.map(Response::new)
    }
}
