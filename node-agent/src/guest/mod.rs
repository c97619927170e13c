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
use pinfold_proto::guest::v1::{ConfigureRequest, Hello, ShutdownRequest, SuspendRequest, WakeRequest};
use pinfold_proto::reasons::REASON_KEY;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    /// Resolves when the workload stands still and its files are on the disk.
    fn suspend<'a>(&'a self, paths: &'a SandboxPaths) -> BoxFuture<'a, Result<(), GuestError>>;
    /// Resolves when the guest has taken on what `request` says and its workload goes on. A guest that was restored may
    /// not take connections at once, or cut the first ones: it is asked until it answers.
    fn wake<'a>(
        &'a self,
        paths: &'a SandboxPaths,
        request: WakeRequest,
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
/// The guest bounds both of its steps: 10 s to stand still, 120 s to sync.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(150);
/// From the first instruction of a restored guest to its answer.
const WAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// For one try: a connection that a restored guest has forgotten answers never.
const WAKE_TRY: Duration = Duration::from_secs(5);
/// Between two tries: nothing tells when a guest takes connections again.
const WAKE_PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
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

    fn suspend<'a>(&'a self, paths: &'a SandboxPaths) -> BoxFuture<'a, Result<(), GuestError>> {
        Box::pin(bounded(SUSPEND_TIMEOUT, async move {
            let link = link::connect(&paths.vsock()).await?;
            GuestServiceClient::new(link.channel.clone()).suspend(SuspendRequest {}).await.map_err(answer)?;
            Ok(())
        }))
    }

    fn wake<'a>(
        &'a self,
        paths: &'a SandboxPaths,
        request: WakeRequest,
    ) -> BoxFuture<'a, Result<(), GuestError>> {
        Box::pin(bounded(WAKE_TIMEOUT, async move {
            let (mut pause, longest) = WAKE_PAUSE;
            loop {
                match bounded(WAKE_TRY, wake_once(paths, &request)).await {
                    Err(GuestError::Link(_) | GuestError::Timeout(_)) => {}
                    answered => return answered,
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
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

/// The clock is read at each try: it is what the workload sees first.
async fn wake_once(paths: &SandboxPaths, request: &WakeRequest) -> Result<(), GuestError> {
    let link = link::connect(&paths.vsock()).await?;
    let request = WakeRequest { clock_ms: clock_ms(), ..request.clone() };
    match GuestServiceClient::new(link.channel.clone()).wake(request).await {
        Ok(_) => Ok(()),
        // what the guest says has a reason; without one the connection broke
        Err(status) if status.metadata().contains_key(REASON_KEY) => Err(answer(status)),
        Err(status) => Err(GuestError::Link(format!("{:?}: {}", status.code(), status.message()))),
    }
}

/// The node's clock, for a guest: milliseconds since the Unix epoch.
pub fn clock_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
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
