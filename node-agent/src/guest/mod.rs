//! The guest's PID 1, reached over the VMM's vsock. The host knows a guest by its socket, never by what it claims.
//!
//! [`link`] is the transport, [`hello`] the guest's first word, [`Guests`] what the sandbox's actor asks of it. Streams
//! of callers (exec, files) go through [`crate::relay`].

pub mod hello;
pub mod link;

use crate::host::HostError;
use crate::host::paths::SandboxPaths;
use futures::future::BoxFuture;
use pinfold_proto::guest::v1::guest_service_client::GuestServiceClient;
use pinfold_proto::guest::v1::{ConfigureRequest, Hello, ShutdownRequest};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("the guest cannot be reached: {0}")]
    Link(String),
    #[error("the guest answered: {0}")]
    Answer(String),
    #[error("the guest did not answer within {0} ms")]
    Timeout(u128),
}

/// What resolves when the guest has called in.
pub type HelloFuture = BoxFuture<'static, Result<Hello, GuestError>>;

pub trait Guests: Send + Sync {
    /// Listens for the guest's hello. Before the VMM starts, so that it cannot be missed.
    fn listen(&self, paths: &SandboxPaths, uid: u32) -> Result<HelloFuture, HostError>;
    fn configure<'a>(
        &'a self,
        paths: &'a SandboxPaths,
        request: ConfigureRequest,
    ) -> BoxFuture<'a, Result<(), GuestError>>;
    /// Resolves when the workload has ended; the guest powers itself off after it.
    fn shutdown<'a>(
        &'a self,
        paths: &'a SandboxPaths,
        grace: Duration,
    ) -> BoxFuture<'a, Result<(), GuestError>>;
}

/// For the guest to take its settings. The start limit is usually shorter.
const CONFIGURE_TIMEOUT: Duration = Duration::from_secs(60);
/// Beyond the grace of a shutdown: for the call to reach the guest and its answer to come back.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub struct VsockGuests;

impl Guests for VsockGuests {
    fn listen(&self, paths: &SandboxPaths, uid: u32) -> Result<HelloFuture, HostError> {
        hello::listen(&paths.hello(), uid)
    }

    fn configure<'a>(
        &'a self,
        paths: &'a SandboxPaths,
        request: ConfigureRequest,
    ) -> BoxFuture<'a, Result<(), GuestError>> {
        Box::pin(bounded(CONFIGURE_TIMEOUT, async move {
            let link = link::connect(&paths.vsock()).await?;
            GuestServiceClient::new(link.channel.clone()).configure(request).await.map_err(answer)?;
            Ok(())
        }))
    }

    fn shutdown<'a>(
        &'a self,
        paths: &'a SandboxPaths,
        grace: Duration,
    ) -> BoxFuture<'a, Result<(), GuestError>> {
        Box::pin(bounded(grace.saturating_add(SHUTDOWN_MARGIN), async move {
            let link = link::connect(&paths.vsock()).await?;
            let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
            let mut guest = GuestServiceClient::new(link.channel.clone());
            guest.shutdown(ShutdownRequest { grace_ms }).await.map_err(answer)?;
            Ok(())
        }))
    }
}

async fn bounded<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, GuestError>>,
) -> Result<T, GuestError> {
    tokio::time::timeout(limit, call).await.map_err(|_| GuestError::Timeout(limit.as_millis()))?
}

fn answer(status: tonic::Status) -> GuestError {
    GuestError::Answer(format!("{:?}: {}", status.code(), status.message()))
}
