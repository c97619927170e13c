//! The wiring: what is made from what, what runs, and in which order it ends.
//!
//! The end: the server stops taking calls and ends its streams -> the driver finishes its inbox -> the store closes.

use crate::api::exec::ProcessApi;
use crate::api::files::FileApi;
use crate::api::guest::Guests;
use crate::api::nodes::FleetApi;
use crate::api::sandboxes::SandboxApi;
use crate::api::snapshots::SnapshotApi;
use crate::api::templates::TemplateApi;
use crate::config::SchedulerConfig;
use crate::driver::{Driver, DriverHandle, now};
use crate::effects::Executor;
use crate::nodes::relay::Relays;
use crate::nodes::service::NodeApi;
use crate::nodes::session::SessionService;
use crate::nodes::sessions::Sessions;
use crate::server::{self, Services};
use crate::store::embedded::EmbeddedStore;
use crate::store::writer::{Closed, Writer};
use crate::store::{Loaded, Store};
use crate::view::View;
use anyhow::Context;
use pinfold_domain::Term;
use pinfold_engine::Engine;
use pinfold_service::{CancellationToken, Tasks};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// A scheduler that runs.
pub struct App {
    address: SocketAddr,
    tasks: Tasks,
    store_closed: Closed,
    ready_file: Option<PathBuf>,
    shutdown_timeout: Duration,
}

impl App {
    /// Opens the store, begins a term, listens. Calls are answered when this returns.
    pub async fn start(config: SchedulerConfig, tasks: Tasks) -> anyhow::Result<Self> {
        let (store, term, loaded) = open_store(&config).await?;
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let address = listener.local_addr().context("the address cannot be read")?;
        tracing::info!(
            %address, %term, revision = %loaded.state.revision, sandboxes = loaded.state.sandboxes.len(), "starting"
        );

        let history_entries = usize::try_from(config.store.history_entries).unwrap_or(usize::MAX);
        let view = Arc::new(View::new(&loaded, history_entries));
        let sessions = Arc::new(Sessions::new(term, config.nodes.command_queue));
        let engine = Engine::restore(config.engine.clone(), now(), loaded.state);
        let (writer, store_closed) = Writer::start(store).context("the store's thread cannot start")?;
        let executor = Executor::new(Arc::clone(&view), Arc::clone(&sessions));
        let (driver, handle) = Driver::new(engine, &config.driver, writer, executor);
        let services = services(&config, &tasks, &view, &sessions, &handle);

        let driver_stop = CancellationToken::new();
        tasks.essential("driver", driver.run(driver_stop.clone()));
        let (server_config, shutdown) = (config.server.clone(), tasks.shutdown());
        let grace = config.shutdown_timeout() / 2;
        tasks.essential("server", async move {
            // after the server, whatever its end: nobody asks any more
            let _stop = driver_stop.drop_guard();
            server::serve(listener, server_config, services, shutdown, grace).await
        });

        if let Some(path) = &config.ready_file {
            write_ready_file(path, address)?;
        }
        let shutdown_timeout = config.shutdown_timeout();
        Ok(Self { address, tasks, store_closed, ready_file: config.ready_file, shutdown_timeout })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the shutdown, then ends in order. The store is closed when this returns without an error.
    pub async fn run_to_end(self) -> anyhow::Result<()> {
        self.tasks.shutdown().cancelled().await;
        if let Some(path) = &self.ready_file {
            // it may never have been read
            let _ = std::fs::remove_file(path);
        }
        self.tasks.finish(self.shutdown_timeout).await?;
        tokio::time::timeout(self.shutdown_timeout, self.store_closed)
            .await
            .context("the store did not close in time")?
            .context("the store's thread panicked")?;
        tracing::info!("ended");
        Ok(())
    }
}

/// Off the async threads: it reads the disk.
async fn open_store(config: &SchedulerConfig) -> anyhow::Result<(EmbeddedStore, Term, Loaded)> {
    let (directory, store) = (config.data_dir.clone(), config.store.clone());
    let open = move || -> anyhow::Result<_> {
        let mut store = EmbeddedStore::open(&directory, store.history_entries, store.cache_bytes)?;
        let term = store.begin_term()?;
        let loaded = store.load()?;
        Ok((store, term, loaded))
    };
    tokio::task::spawn_blocking(open).await.context("opening the store panicked")?
}

fn services(
    config: &SchedulerConfig,
    tasks: &Tasks,
    view: &Arc<View>,
    sessions: &Arc<Sessions>,
    driver: &DriverHandle,
) -> Services {
    let relays =
        Arc::new(Relays::new(Arc::clone(sessions), tasks.clone(), config.relay.clone(), &config.nodes));
    let guests = Guests { view: Arc::clone(view), relays: Arc::clone(&relays) };
    let call_timeout = Duration::from_millis(config.server.call_timeout_ms);
    let watches = Arc::new(Semaphore::new(config.server.watches));
    Services {
        snapshots: SnapshotApi {
            view: Arc::clone(view),
            driver: driver.clone(),
            watches: Arc::clone(&watches),
            call_timeout,
        },
        templates: TemplateApi { driver: driver.clone(), call_timeout },
        sandboxes: SandboxApi {
            view: Arc::clone(view),
            driver: driver.clone(),
            guests: guests.clone(),
            watches,
            call_timeout,
            shutdown: tasks.shutdown(),
        },
        processes: ProcessApi {
            guests: guests.clone(),
            driver: driver.clone(),
            tasks: tasks.clone(),
            first_frame_timeout: call_timeout,
        },
        files: FileApi { guests, shutdown: tasks.shutdown(), first_frame_timeout: call_timeout },
        fleet: FleetApi { driver: driver.clone(), call_timeout },
        nodes: NodeApi {
            sessions: SessionService {
                sessions: Arc::clone(sessions),
                driver: driver.clone(),
                tasks: tasks.clone(),
                config: config.nodes.clone(),
            },
            relays,
        },
    }
}

/// By rename, so that a reader never sees half of it.
fn write_ready_file(path: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let written =
        std::fs::write(&partial, format!("{address}\n")).and_then(|()| std::fs::rename(&partial, path));
    written.with_context(|| format!("the ready file {} cannot be written", path.display()))
}
