//! A scheduler for a test: the real one, in this process, on a free port of loopback, with a store of its own.

use anyhow::Context;
use pinfold_scheduler::app::App;
use pinfold_scheduler::config::SchedulerConfig;
use pinfold_sdk::Client;
use pinfold_service::Tasks;
use pinfold_service::logs::{self, LogConfig};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

/// Every wait of a test ends here: far above what any step takes, far below the suite's limit.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Waits at most [`LIMIT`]; panics with `what` after it.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {LIMIT:?}"),
    }
}

pub struct Scheduler {
    pub address: SocketAddr,
    config: SchedulerConfig,
    data: Arc<TempDir>,
    tasks: Tasks,
    /// its own, so that it can be dropped as a crash drops everything
    runtime: Option<Runtime>,
    end: JoinHandle<anyhow::Result<()>>,
}

impl Scheduler {
    /// A new scheduler with an empty store; `change` adapts its configuration.
    pub async fn start(change: impl FnOnce(&mut SchedulerConfig)) -> Self {
        open_log();
        let data = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        let mut config = SchedulerConfig {
            listen: "127.0.0.1:0".parse().expect("a literal address"),
            data_dir: data.path().to_owned(),
            shutdown_timeout_ms: 4000,
            ..SchedulerConfig::default()
        };
        config.nodes.heartbeat_interval_ms = 100;
        // nothing waits for a fleet that has to dial in again, unless a test says so
        config.engine.settle_after_restore = pinfold_sdk::domain::Millis(0);
        change(&mut config);
        Self::run(config, data).await.expect("the scheduler starts")
    }

    async fn run(config: SchedulerConfig, data: Arc<TempDir>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let tasks = Tasks::default();
        let starting = runtime.spawn(App::start(config.clone(), tasks.clone()));
        let app = match starting.await.context("the scheduler panicked").flatten() {
            Ok(app) => app,
            Err(error) => {
                // a runtime must not be dropped where others run
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let address = app.address();
        let end = runtime.spawn(app.run_to_end());
        Ok(Self { address, config, data, tasks, runtime: Some(runtime), end })
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.endpoint()).await.expect("the scheduler listens")
    }

    /// A bare connection, for what the client would not send.
    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.endpoint()).expect("a good address");
        endpoint.connect().await.expect("the scheduler listens")
    }

    /// Ends in order, and begins again with the same store on the same port.
    pub async fn restart(mut self) -> Self {
        self.tasks.shutdown().cancel();
        soon("an orderly end", &mut self.end).await.expect("no panic").expect("an end without an error");
        self.again().await
    }

    /// Drops everything where it stands, and begins again with the same store on the same port.
    pub async fn crash(self) -> Self {
        self.again().await
    }

    async fn again(mut self) -> Self {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        let mut config = self.config.clone();
        config.listen = self.address;
        let data = Arc::clone(&self.data);
        drop(self);
        // the dropped runtime closes the store and the port in its own time, and tells nobody
        let mut last = None;
        for _ in 0..200 {
            match Self::run(config.clone(), Arc::clone(&data)).await {
                Ok(scheduler) => return scheduler,
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the scheduler does not start again: {last:?}");
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// `PINFOLD_TEST_LOG=info,pinfold_scheduler=debug` shows what the scheduler says; without it, nothing.
fn open_log() {
    if let Ok(filter) = std::env::var("PINFOLD_TEST_LOG") {
        // open already when a test starts two schedulers
        let _ = logs::init(&LogConfig { filter, ..LogConfig::default() });
    }
}

/// Resident memory of this process in bytes (proc(5), `statm`).
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs is mounted");
    let pages = statm.split_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok());
    pages.expect("the second field is a number") * 4096
}
