//! For tests: the scheduler's side of the node API over real gRPC, driven by the test message by message.

use crate::host::paths::StateDirectory;
use crate::registry::Registry;
use crate::relay::Relays;
use crate::sandbox::fake_host::{Fault, World, host};
use crate::session::term::TermKeeper;
use crate::session::{Identity, Session, endpoint};
use pinfold_domain::Resources;
use pinfold_proto::node::v1 as wire;
use pinfold_proto::node::v1::node_session_service_server::{NodeSessionService, NodeSessionServiceServer};
use pinfold_proto::node::v1::session_request::Message as Said;
use pinfold_proto::node::v1::session_response::Message as Order;
use pinfold_service::{CancellationToken, Tasks};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Real sockets, so real time: long enough for a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(20);

/// One call of the node.
pub struct Call<In, Out> {
    pub said: Streaming<In>,
    pub say: mpsc::Sender<Result<Out, Status>>,
}

pub type SessionCall = Call<wire::SessionRequest, wire::SessionResponse>;
pub type RelayCall = Call<wire::RelayRequest, wire::RelayResponse>;

struct Service {
    sessions: mpsc::Sender<SessionCall>,
    relays: mpsc::Sender<RelayCall>,
}

#[tonic::async_trait]
impl NodeSessionService for Service {
    type SessionStream = ReceiverStream<Result<wire::SessionResponse, Status>>;
    type RelayStream = ReceiverStream<Result<wire::RelayResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (say, orders) = mpsc::channel(16);
        let call = Call { said: request.into_inner(), say };
        self.sessions.send(call).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(orders)))
    }

    async fn relay(
        &self,
        request: Request<Streaming<wire::RelayRequest>>,
    ) -> Result<Response<Self::RelayStream>, Status> {
        let (say, frames) = mpsc::channel(16);
        let call = Call { said: request.into_inner(), say };
        self.relays.send(call).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(frames)))
    }
}

impl SessionCall {
    pub async fn next(&mut self) -> Said {
        let next = tokio::time::timeout(LIMIT, self.said.message()).await.expect("the node says something");
        next.expect("the stream is whole").expect("the node goes on").message.expect("a message")
    }

    /// The next one of the kind that `pick` takes.
    pub async fn next_that<T>(&mut self, pick: impl Fn(Said) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(self.next().await) {
                return found;
            }
        }
    }

    pub async fn order(&self, term: u64, order: Order) {
        let response = wire::SessionResponse { term, message: Some(order) };
        self.say.send(Ok(response)).await.expect("the node listens");
    }

    /// Takes the register and answers it.
    pub async fn welcome(&mut self, term: u64, heartbeat_interval_ms: u64) -> wire::Register {
        let Said::Register(register) = self.next().await else { panic!("the first message is register") };
        self.order(term, Order::Registered(wire::Registered { term, heartbeat_interval_ms })).await;
        register
    }

    /// The node gives this session up.
    pub async fn ends(mut self) {
        let end = async { while let Ok(Some(_)) = self.said.message().await {} };
        tokio::time::timeout(LIMIT, end).await.expect("the node ends the session");
    }
}

/// A node agent without a host, and the scheduler that it dials.
pub struct Bench {
    pub registry: Arc<Registry>,
    pub world: Arc<World>,
    sessions: mpsc::Receiver<SessionCall>,
    pub relays: mpsc::Receiver<RelayCall>,
    tasks: Tasks,
    directory: tempfile::TempDir,
}

impl Bench {
    pub async fn start(faults: impl IntoIterator<Item = Fault>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tasks = Tasks::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (sessions_in, sessions) = mpsc::channel(4);
        let (relays_in, relays) = mpsc::channel(4);
        let service = NodeSessionServiceServer::new(Service { sessions: sessions_in, relays: relays_in });
        let server = tonic::transport::Server::builder().add_service(service);
        drop(tasks.background("server", server.serve_with_incoming(TcpListenerStream::new(listener))));

        let world = World::with(faults);
        let room = Resources { cpu_millis: 4000, memory_bytes: 600 << 20, disk_bytes: 4 << 30, pids: 10_000 };
        let let_go = CancellationToken::new();
        let host = host(&world, directory.path());
        let registry = Arc::new(Registry::new(host, room, tasks.clone(), let_go.clone()));
        let endpoint = endpoint(&address).unwrap();
        let relay = Relays::new(
            endpoint.clone(),
            "node-1".into(),
            Arc::clone(&registry),
            tasks.clone(),
            let_go.clone(),
            8,
        );
        let state = StateDirectory::open(directory.path()).unwrap();
        let session = Session {
            identity: Identity { node_id: "node-1".into(), labels: Default::default(), zone: "a".into() },
            endpoint,
            registry: Arc::clone(&registry),
            relays: Arc::new(relay),
            term: TermKeeper::open(state.term_file()).unwrap(),
        };
        drop(tasks.background("session", session.run(let_go)));
        Self { registry, world, sessions, relays, tasks, directory }
    }

    /// The node's next session.
    pub async fn session(&mut self) -> SessionCall {
        tokio::time::timeout(LIMIT, self.sessions.recv()).await.expect("the node dials").expect("a session")
    }

    pub async fn relay(&mut self) -> RelayCall {
        tokio::time::timeout(LIMIT, self.relays.recv()).await.expect("the node dials").expect("a relay")
    }

    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Of the state directory.
    pub fn path(&self) -> &std::path::Path {
        self.directory.path()
    }
}
