//! The way up, one type for each stage; a stage is consumed by the step that leads to the next.
//!
//! ```text
//!   Accepted --prepare--> Prepared --jail--> Jailed --boot--> Booted --ready--> Ready
//! ```
//!
//! A machine that was saved takes the way of [`super::restore`], with the same steps up to its jail.
//!
//! Undo does not depend on how far a step came, because a step may be dropped in the middle (a stop, the start limit):
//! what a step is **about to** take is noted in the [`Taken`] list first, and the list is undone in reverse by
//! [`super::teardown`], each act of which is idempotent. So a cause for failure is all that a step returns.

use super::record::{Assignment, Ledger};
use super::restore::Restored;
use super::{Host, policy, restore, teardown};
use crate::catalog::Origin;
use crate::clock::BootTime;
use crate::guest::{GuestError, HelloFuture, clock_ms};
use crate::host::paths::remove_file;
use crate::host::{HostError, ImageError, Kernel};
use crate::machine::ending::{Evidence, classify};
use crate::machine::{Exit, LaunchError, LaunchPlan, Machine, Start, confinement, launch};
use pinfold_domain::{Cause, Milestone, Reason};
use pinfold_proto::guest::v1::ConfigureRequest;
use pinfold_service::CancellationToken;
use pinfold_vmm_api::console::Reader;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Of the console, for the cause of an end.
const CONSOLE_TAIL_BYTES: usize = 64 * 1024;
/// From a broken connection to the end of the process that it may be a sign of.
const END_AFTER_FAULT: Duration = Duration::from_secs(2);
/// Between two tries to reach a guest whose hello may have been said to an earlier agent.
const ADOPTED_RETRY: Duration = Duration::from_millis(500);

/// What a sandbox has taken from its host, in the order in which it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Taken {
    Uid(u32),
    Disk,
    Cgroup,
    /// the jail directory and the sockets
    RunFiles,
    Machine,
}

/// Grows while a sandbox comes up; shared with whoever undoes it.
#[derive(Debug, Clone, Default)]
pub struct TakenList(Arc<Mutex<Vec<Taken>>>);

impl TakenList {
    /// Everything that a sandbox can take: for one that an earlier agent began.
    pub fn all(uid: Option<u32>) -> Self {
        let mut list: Vec<Taken> = uid.map(Taken::Uid).into_iter().collect();
        list.extend([Taken::Disk, Taken::Cgroup, Taken::RunFiles, Taken::Machine]);
        Self(Arc::new(Mutex::new(list)))
    }

    pub fn push(&self, taken: Taken) {
        self.lock().push(taken);
    }

    /// The last one; it stays in the list until [`Self::pop`].
    pub fn last(&self) -> Option<Taken> {
        self.lock().last().copied()
    }

    pub fn pop(&self) {
        self.lock().pop();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Taken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What each step works with.
#[derive(Clone)]
pub struct Context {
    pub host: Host,
    pub ledger: Arc<Ledger>,
    pub taken: TakenList,
}

pub struct Accepted {
    assignment: Assignment,
}

pub struct Prepared {
    assignment: Assignment,
    uid: u32,
    kernel: Kernel,
    root_image: PathBuf,
    hello: HelloFuture,
}

pub struct Jailed {
    assignment: Assignment,
    machine: Arc<dyn Machine>,
    hello: HelloFuture,
    at: BootTime,
}

pub struct Booted {
    assignment: Assignment,
    machine: Arc<dyn Machine>,
    hello: HelloFuture,
}

/// The guest has called in and is configured.
pub struct Ready {
    pub machine: Arc<dyn Machine>,
    /// what it was restored from, where that is listed
    pub origin: Option<Origin>,
    /// it was not booted
    pub restored: Option<Restored>,
}

/// All steps, from what the sandbox is to be made of. The caller bounds the time and undoes on failure. `after`: cancelled
/// when an earlier epoch of this sandbox, which has the same directory and cgroup, is gone.
pub async fn run(context: &Context, after: Option<CancellationToken>) -> Result<Ready, Cause> {
    if let Some(after) = after {
        after.cancelled().await;
        context.ledger.paths().remove().map_err(host_cause)?;
    }
    context.ledger.paths().create().map_err(host_cause)?;
    context.ledger.save();
    restore::or_boot(context).await
}

/// All steps with a kernel.
pub async fn boot(context: &Context) -> Result<Ready, Cause> {
    let accepted = Accepted { assignment: context.ledger.assignment() };
    accepted.prepare(context).await?.jail(context).await?.boot(context).await?.ready(context).await
}

/// All steps once more, after what the first try had taken is undone.
pub async fn again(context: &Context) -> Result<Ready, Cause> {
    teardown::run(context, None).await.map_err(|left| Cause::new(Reason::HostResources, left))?;
    run(context, None).await
}

/// The last two steps, for a machine that an earlier agent started. Its guest may have said hello already, so it is
/// asked instead.
pub async fn resume(context: &Context, machine: Arc<dyn Machine>) -> Result<Ready, Cause> {
    if context.ledger.saving().generation.is_some() {
        return restore::wake_again(context, machine).await;
    }
    let assignment = context.ledger.assignment();
    let jailed = Jailed { assignment, machine, hello: Box::pin(std::future::pending()), at: BootTime::now() };
    let Booted { assignment, machine, .. } = jailed.boot(context).await?;
    loop {
        let asked = configure(context, &assignment);
        match or_exit(context, &machine, asked).await? {
            Ok(()) => break,
            // The guest has no event for "asked again by a new agent": bounded by the start limit of the caller.
            Err(_) => tokio::time::sleep(ADOPTED_RETRY).await,
        }
    }
    context.ledger.reach(Milestone::GuestReady, None);
    Ok(Ready { machine, origin: None, restored: None })
}

impl Accepted {
    /// Directory, uid, disk, cgroup with its limits, jail directory, the socket for the hello.
    async fn prepare(self, context: &Context) -> Result<Prepared, Cause> {
        let Self { assignment } = self;
        let Context { host, ledger, taken } = context;
        let (spec, paths) = (&assignment.spec, ledger.paths());
        let root_image = host.images.root_image(&spec.image).map_err(image_cause)?;
        let kernel = host.images.kernel(spec.kernel.as_deref()).map_err(image_cause)?;
        let uid = take_uid(context)?;
        taken.push(Taken::Disk);
        host.disks.create(&paths.disk(), spec.resources.disk_bytes).await.map_err(host_cause)?;
        confine(context, uid)?;
        let hello = host.guests.listen(paths, uid).map_err(host_cause)?;
        Ok(Prepared { assignment, uid, kernel, root_image, hello })
    }
}

pub fn take_uid(context: &Context) -> Result<u32, Cause> {
    let Context { host, ledger, taken } = context;
    let uid = host.uids.take().ok_or_else(|| {
        let message = format!("all {} uids of this node are in use", host.uids.taken());
        Cause::new(Reason::HostResources, message)
    })?;
    taken.push(Taken::Uid(uid));
    ledger.set_uid(uid);
    Ok(uid)
}

/// The cgroup with its limits, and the jail's directory.
pub fn confine(context: &Context, uid: u32) -> Result<(), Cause> {
    let Context { host, ledger, taken } = context;
    let Assignment { id, spec, .. } = ledger.assignment();
    let paths = ledger.paths();
    taken.push(Taken::Cgroup);
    host.cgroups.create(id, &policy::cgroup_limits(&spec, &paths.disk())).map_err(host_cause)?;
    taken.push(Taken::RunFiles);
    launch::make_jail(paths, uid).map_err(host_cause)
}

impl Prepared {
    /// The VMM process exists inside its jail.
    async fn jail(self, context: &Context) -> Result<Jailed, Cause> {
        let Self { assignment, uid, kernel, root_image, hello } = self;
        let Context { host, ledger, .. } = context;
        let plan = LaunchPlan {
            id: assignment.id,
            paths: ledger.paths().clone(),
            cgroup: host.cgroups.path(assignment.id),
            uid,
            vcpus: assignment.spec.vcpus(),
            memory_mib: policy::memory_mib(&assignment.spec),
            start: Start::Boot(kernel),
            root_image,
            file_size_bytes: policy::file_size_bytes(&assignment.spec),
        };
        let (machine, at) = launch(context, plan).await?;
        Ok(Jailed { assignment, machine, hello, at })
    }
}

/// Starts the machine and notes which process it is. Returns when it was jailed, too.
pub async fn launch(context: &Context, plan: LaunchPlan) -> Result<(Arc<dyn Machine>, BootTime), Cause> {
    let Context { host, ledger, taken } = context;
    taken.push(Taken::Machine);
    ledger.set_made(plan.start.made());
    let machine = match host.machines.launch(plan).await {
        Ok(machine) => machine,
        Err(LaunchError::Host(error)) => return Err(host_cause(error)),
        Err(LaunchError::Ended(exit)) => return Err(classify(&evidence(context, exit))),
        Err(LaunchError::Jail(text)) => return Err(Cause::new(Reason::JailFailed, text)),
    };
    ledger.set_process(machine.process());
    let at = BootTime::now();
    ledger.reach(Milestone::Jailed, Some(at));
    Ok((machine, at))
}

impl Jailed {
    /// The VMM has loaded the kernel and answers.
    async fn boot(self, context: &Context) -> Result<Booted, Cause> {
        let Self { assignment, machine, hello, at } = self;
        let status = or_exit(context, &machine, machine.status()).await?;
        let status = match status {
            Ok(status) => status,
            Err(error) => return Err(fault(context, &machine, Reason::VmmFailed, error.to_string()).await),
        };
        tracing::info!(sandbox = %assignment.id, version = status.version, timing = ?status.timing,
            memory = ?status.memory, "the VMM runs");
        confinement::log(assignment.id, &status.confinement, machine.has_user_namespace());
        // The VMM knows better than this question when it first ran the guest, but not when it was jailed; it cannot
        // have been later than now.
        let first_run = at.after(Duration::from_micros(status.timing.first_run_us));
        context.ledger.reach(Milestone::Booted, Some(first_run.min(BootTime::now())));
        Ok(Booted { assignment, machine, hello })
    }
}

impl Booted {
    /// The guest's PID 1 has called in and knows its host name, the time and its limits.
    async fn ready(self, context: &Context) -> Result<Ready, Cause> {
        let Self { assignment, machine, hello } = self;
        let hello = match or_exit(context, &machine, hello).await? {
            Ok(hello) => hello,
            Err(error) => return Err(unresponsive(context, &machine, error).await),
        };
        tracing::info!(sandbox = %assignment.id, agent = hello.agent_version, kernel = hello.kernel_release,
            uptime_ms = hello.uptime_ms, "the guest has called in");
        if let Err(error) = or_exit(context, &machine, configure(context, &assignment)).await? {
            return Err(unresponsive(context, &machine, error).await);
        }
        // The guest has nothing more to say here: from now on it cannot connect to the host at all.
        remove_file(&context.ledger.paths().hello()).map_err(host_cause)?;
        context.ledger.reach(Milestone::GuestReady, None);
        Ok(Ready { machine, origin: None, restored: None })
    }
}

async fn configure(context: &Context, assignment: &Assignment) -> Result<(), GuestError> {
    let request = ConfigureRequest {
        hostname: hostname(assignment),
        clock_ms: clock_ms(),
        pids_max: assignment.spec.resources.pids,
        machine_id: machine_id(assignment),
    };
    context.host.guests.configure(context.ledger.paths(), request).await
}

/// The sandbox's name, else the last part of its id: both are DNS labels.
pub fn hostname(assignment: &Assignment) -> String {
    if assignment.spec.name.is_empty() {
        let id = assignment.id.to_string();
        format!("sandbox-{}", id.rsplit('-').next().unwrap_or(&id))
    } else {
        assignment.spec.name.clone()
    }
}

/// machine-id(5): the sandbox's id, which is 128 bits as well.
pub fn machine_id(assignment: &Assignment) -> String {
    assignment.id.to_string().replace('-', "")
}

/// `act`, unless the machine ends before it.
pub async fn or_exit<T>(
    context: &Context,
    machine: &Arc<dyn Machine>,
    act: impl Future<Output = T>,
) -> Result<T, Cause> {
    tokio::select! {
        // When both are there the end is what matters: an act that failed has failed because of it.
        biased;
        exit = machine.exited() => Err(classify(&evidence(context, exit))),
        result = act => Ok(result),
    }
}

pub async fn unresponsive(context: &Context, machine: &Arc<dyn Machine>, error: GuestError) -> Cause {
    fault(context, machine, Reason::GuestUnresponsive, error.to_string()).await
}

/// A broken connection is often the first sign of an end: the end's own reason is the true one.
async fn fault(context: &Context, machine: &Arc<dyn Machine>, reason: Reason, message: String) -> Cause {
    match tokio::time::timeout(END_AFTER_FAULT, machine.exited()).await {
        Ok(exit) => classify(&evidence(context, exit)),
        Err(_) => Cause::new(reason, message),
    }
}

/// What is known of an end, collected before anything is taken away.
pub fn evidence(context: &Context, exit: Exit) -> Evidence {
    let oom_kills = context.host.cgroups.oom_kills(context.ledger.assignment().id);
    let was_ready = context.ledger.record().was_ready();
    Evidence { exit, oom_kills, console: console_tail(context), was_ready }
}

/// The last part of the guest's console; empty when there is none.
pub fn console_tail(context: &Context) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let reader = Reader::new(File::open(context.ledger.paths().console())?);
        let newest = reader.read(u64::MAX, 0)?.offset;
        Ok(reader.read(newest.saturating_sub(CONSOLE_TAIL_BYTES as u64), CONSOLE_TAIL_BYTES)?.data)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

pub fn host_cause(error: HostError) -> Cause {
    Cause::new(Reason::HostResources, error.sentence())
}

pub fn image_cause(error: ImageError) -> Cause {
    let reason = match error {
        ImageError::Unknown { .. } => Reason::ImageUnknown,
        ImageError::Unusable { kind: "kernel", .. } => Reason::KernelInvalid,
        ImageError::Unusable { .. } => Reason::RootImageInvalid,
    };
    Cause::new(reason, error.to_string())
}
