//! The gRPC server: all services on one port, each with its bounds, reflection and health beside them.

use crate::api::exec::ProcessApi;
use crate::api::files::FileApi;
use crate::api::nodes::FleetApi;
use crate::api::sandboxes::SandboxApi;
use crate::api::snapshots::SnapshotApi;
use crate::api::templates::TemplateApi;
use crate::config::ServerConfig;
use crate::listen;
use crate::nodes::service::NodeApi;
use anyhow::Context;
use pinfold_proto::api::v1::file_service_server::FileServiceServer;
use pinfold_proto::api::v1::node_service_server::NodeServiceServer;
use pinfold_proto::api::v1::process_service_server::ProcessServiceServer;
use pinfold_proto::api::v1::sandbox_service_server::SandboxServiceServer;
use pinfold_proto::api::v1::snapshot_service_server::SnapshotServiceServer;
use pinfold_proto::api::v1::template_service_server::TemplateServiceServer;
use pinfold_proto::limits::MESSAGE_BYTES;
use pinfold_proto::node::v1::node_session_service_server::NodeSessionServiceServer;
use pinfold_service::CancellationToken;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic_reflection::server::Builder as ReflectionBuilder;

/// A spec holds at most 32 KiB of environment and 32 labels of each kind.
const CONTROL_MESSAGE_BYTES: usize = 128 * 1024;
/// A command line of 120 KiB with 32 KiB of environment, or a frame of 64 KiB.
const STREAM_MESSAGE_BYTES: usize = 256 * 1024;

pub struct Services {
    pub sandboxes: SandboxApi,
    pub snapshots: SnapshotApi,
    pub templates: TemplateApi,
    pub processes: ProcessApi,
    pub files: FileApi,
    pub fleet: FleetApi,
    pub nodes: NodeApi,
}

/// Serves until `shutdown`, then waits at most `grace` for the calls that are still open.
pub async fn serve(
    listener: TcpListener,
    config: ServerConfig,
    services: Services,
    shutdown: CancellationToken,
    grace: Duration,
) -> anyhow::Result<()> {
    let Services { sandboxes, snapshots, templates, processes, files, fleet, nodes } = services;
    let sandboxes = SandboxServiceServer::new(sandboxes).max_decoding_message_size(CONTROL_MESSAGE_BYTES);
    let snapshots = SnapshotServiceServer::new(snapshots).max_decoding_message_size(CONTROL_MESSAGE_BYTES);
    let templates = TemplateServiceServer::new(templates).max_decoding_message_size(CONTROL_MESSAGE_BYTES);
    let processes = ProcessServiceServer::new(processes).max_decoding_message_size(STREAM_MESSAGE_BYTES);
    let files = FileServiceServer::new(files).max_decoding_message_size(STREAM_MESSAGE_BYTES);
    let fleet = NodeServiceServer::new(fleet).max_decoding_message_size(CONTROL_MESSAGE_BYTES);
    // a full list of a node's sandboxes is the largest message
    let nodes = NodeSessionServiceServer::new(nodes).max_decoding_message_size(MESSAGE_BYTES);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<SandboxServiceServer<SandboxApi>>().await;
    health.set_serving::<SnapshotServiceServer<SnapshotApi>>().await;
    health.set_serving::<TemplateServiceServer<TemplateApi>>().await;
    health.set_serving::<ProcessServiceServer<ProcessApi>>().await;
    health.set_serving::<FileServiceServer<FileApi>>().await;
    health.set_serving::<NodeServiceServer<FleetApi>>().await;
    health.set_serving::<NodeSessionServiceServer<NodeApi>>().await;
    // grpcurl before 1.9 asks for v1alpha
    let reflection = reflection().build_v1().context("the reflection service cannot be built")?;
    let reflection_alpha = reflection_alpha()?;
    let serving = bounded(&config)
        .add_service(sandboxes)
        .add_service(snapshots)
        .add_service(templates)
        .add_service(processes)
        .add_service(files)
        .add_service(fleet)
        .add_service(nodes)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(reflection_alpha)
        .serve_with_incoming_shutdown(
            listen::incoming(listener, &config),
            shutdown.clone().cancelled_owned(),
        );
    let given_up = async {
        shutdown.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        served = serving => served.context("the gRPC server failed"),
        () = given_up => {
            tracing::warn!("connections are still open {} ms after the shutdown began", grace.as_millis());
            Ok(())
        }
    }
}

fn bounded(config: &ServerConfig) -> Server {
    Server::builder()
        .max_concurrent_streams(config.streams_per_connection)
        .concurrency_limit_per_connection(config.calls_per_connection)
        .load_shed(true)
        .initial_stream_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.connection_window_bytes())
        .http2_max_header_list_size(config.header_list_bytes)
        .http2_keepalive_interval(Some(Duration::from_millis(config.keepalive_interval_ms)))
        .http2_keepalive_timeout(Some(Duration::from_millis(config.keepalive_timeout_ms)))
        .accept_http1(false)
}

/// Names what is served here; the descriptors hold more (the guest's API).
fn reflection() -> ReflectionBuilder<'static> {
    let served = [
        SandboxServiceServer::<SandboxApi>::NAME,
        SnapshotServiceServer::<SnapshotApi>::NAME,
        TemplateServiceServer::<TemplateApi>::NAME,
        ProcessServiceServer::<ProcessApi>::NAME,
        FileServiceServer::<FileApi>::NAME,
        NodeServiceServer::<FleetApi>::NAME,
        NodeSessionServiceServer::<NodeApi>::NAME,
        "grpc.health.v1.Health",
    ];
    served
        .into_iter()
        .fold(ReflectionBuilder::configure(), ReflectionBuilder::with_service_name)
        .register_encoded_file_descriptor_set(pinfold_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

fn reflection_alpha() -> anyhow::Result<
    tonic_reflection::server::v1alpha::ServerReflectionServer<
        impl tonic_reflection::server::v1alpha::ServerReflection,
    >,
> {
    reflection().build_v1alpha().context("the reflection service cannot be built")
}
