//! Wiring of `pinfold-node-agent run`, and the order of its end.
//!
//! ```text
//!   signal -> (stop_on_exit: all sandboxes end, their last reports are sent) -> session, relays and actors let go
//! ```
//!
//! Sandboxes outlive the agent: their VMMs are no children that end with it, and the next agent adopts them.

use crate::catalog::Catalog;
use crate::clock;
use crate::config::{AgentConfig, Capacity};
use crate::guest::VsockGuests;
use crate::host::HostError;
use crate::host::capacity;
use crate::host::cgroup::CgroupTree;
use crate::host::disk::Ext4Disks;
use crate::host::images::ImageDirectory;
use crate::host::paths::StateDirectory;
use crate::host::snapshots::{SnapshotKey, SnapshotStore};
use crate::host::uids::UidPool;
use crate::machine::launch::Programs;
use crate::machine::linux::LinuxMachines;
use crate::registry::Registry;
use crate::relay::Relays;
use crate::sandbox::actor::Stop;
use crate::sandbox::{Host, recover};
use crate::session::term::TermKeeper;
use crate::session::{Identity, Session, endpoint};
use anyhow::Context as _;
use pinfold_domain::{Cause, Reason};
use pinfold_service::{CancellationToken, Tasks, shutdown};
use std::sync::Arc;
use std::time::Duration;

/// For the tasks to end after they were told.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);
/// For a sandbox when the agent ends them all.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// For all of them.
const STOP_ALL_TIMEOUT: Duration = Duration::from_secs(60);
/// For the last reports to reach the scheduler.
const LAST_REPORTS: Duration = Duration::from_millis(500);

pub async fn run(config: AgentConfig) -> anyhow::Result<()> {
    // The VMMs' parents end; as a subreaper this process is told how they ended.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("become a subreaper")?;
    let tasks = Tasks::default();
    shutdown::on_signals(&tasks).context("listen for signals")?;
    let state = StateDirectory::open(&config.state_dir).map_err(sentence)?;
    let capacity = config.capacity(capacity::of_machine(&state).map_err(sentence)?);
    if capacity.promised_twice_bytes > 0 {
        tracing::warn!(
            bytes = capacity.promised_twice_bytes,
            "disk_bytes, snapshot_bytes and template_bytes are more than this node's disk has: what was left out gets nothing; lower one of them"
        );
    }
    let allocatable = capacity.allocatable;
    let host = host(&config, state, &capacity, &tasks)?;
    host.catalog.outdate_templates(&*host.images).await;
    let term = TermKeeper::open(host.state.term_file()).map_err(sentence)?;
    let let_go = CancellationToken::new();
    let registry = Arc::new(Registry::new(host.clone(), allocatable, tasks.clone(), let_go.clone()));
    for found in recover::run(&host, &registry.changed()).await.map_err(sentence)? {
        registry.adopt(found);
    }
    tracing::info!(node = config.node_id, scheduler = config.scheduler, ?allocatable,
        snapshots = ?capacity.snapshots, templates = ?capacity.templates,
        images = ?host.images.images(), kernels = ?host.images.kernels(), "node agent is up");

    let endpoint = endpoint(&config.scheduler).context("the scheduler's address")?;
    let relays = Arc::new(Relays::new(
        endpoint.clone(),
        config.node_id.clone(),
        Arc::clone(&registry),
        tasks.clone(),
        let_go.clone(),
        config.max_relays,
    ));
    let identity = Identity { node_id: config.node_id, labels: config.labels, zone: config.zone };
    let session = Session { identity, endpoint, registry: Arc::clone(&registry), relays, term };
    tasks.essential("session", session.run(let_go.clone()));
    tasks.essential("end", end(tasks.shutdown(), let_go, registry, config.stop_on_exit));
    tasks.shutdown().cancelled().await;
    let limit = if config.stop_on_exit { STOP_ALL_TIMEOUT + FINISH_TIMEOUT } else { FINISH_TIMEOUT };
    tasks.finish(limit).await
}

/// What happens between the signal and the end.
async fn end(
    shutdown: CancellationToken,
    let_go: CancellationToken,
    registry: Arc<Registry>,
    stop_on_exit: bool,
) -> anyhow::Result<()> {
    shutdown.cancelled().await;
    if stop_on_exit {
        let cause = Cause::new(Reason::StopRequested, "the node agent was told to end with its sandboxes");
        let stop = Stop { cause, grace: STOP_GRACE };
        if tokio::time::timeout(STOP_ALL_TIMEOUT, registry.stop_all(&stop)).await.is_err() {
            tracing::error!("some sandboxes did not end in time");
        }
        // The session has no acknowledgement of a report but Forget, which may never come.
        tokio::time::sleep(LAST_REPORTS).await;
        registry.forget_ended();
    }
    let_go.cancel();
    Ok(())
}

fn host(
    config: &AgentConfig,
    state: StateDirectory,
    capacity: &Capacity,
    tasks: &Tasks,
) -> anyhow::Result<Host> {
    let catalog = catalog(config, &state, capacity).map_err(sentence)?;
    Ok(Host {
        images: Arc::new(ImageDirectory::new(config.images_dir())),
        disks: Arc::new(Ext4Disks),
        cgroups: Arc::new(CgroupTree::open(&config.cgroup_root).map_err(sentence)?),
        machines: Arc::new(LinuxMachines::new(
            Programs { jailer: config.jailer.clone(), vmm: config.vmm.clone() },
            config.disk_rate.limit(),
            tasks.clone(),
        )),
        guests: Arc::new(VsockGuests),
        uids: Arc::new(UidPool::new(config.uid_base, config.uid_count)),
        catalog: Arc::new(catalog),
        state,
        boot_id: clock::boot_id().context("read the boot id")?.into(),
    })
}

fn catalog(config: &AgentConfig, state: &StateDirectory, capacity: &Capacity) -> Result<Catalog, HostError> {
    let key = SnapshotKey::open(&state.snapshot_key())?;
    let snapshots = (SnapshotStore::open(state, "snapshots", &key)?, capacity.snapshots);
    let templates = (SnapshotStore::open(state, "templates", &key)?, capacity.templates);
    Catalog::open(snapshots, templates, config.saves_at_once)
}

fn sentence(error: crate::host::HostError) -> anyhow::Error {
    anyhow::anyhow!(error.sentence())
}
