//! A host whose every part can be made to fail. Fakes stand at the traits; the files are real.

use super::Host;
use crate::catalog::{Bounds, Catalog};
use crate::host::HostError;
use crate::host::paths::StateDirectory;
use crate::host::snapshots::{SnapshotKey, SnapshotStore};
use crate::host::uids::UidPool;
use crate::machine::{ControlError, Exit};
use pinfold_service::CancellationToken;
use pinfold_vmm_api::control::{ExitReason, ExitRecord};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Image,
    Disk,
    Cgroup,
    Launch,
    LaunchHangs,
    Status,
    NoHello,
    Configure,
    /// the guest does not answer a shutdown
    Shutdown,
    /// the VMM does not obey a kill over its control socket
    Kill,
    Suspend,
    Pause,
    Save,
    /// the machine stays in the act of being saved
    SaveHangs,
    Copy,
    /// the VMM does not let a paused machine go on
    Resume,
    /// the VMM is late to let it go on, some times
    ResumeLate,
    ResumeHangs,
    Wake,
    /// the restored guest does not answer
    WakeHangs,
    /// the VMM says that the saved machine is damaged
    BadSnapshot,
    /// the cgroup cannot be removed for some tries
    RemoveSome,
    RemoveAlways,
}

/// Every part of a host in one place: what it holds for sandboxes, and what goes wrong.
#[derive(Debug, Default)]
pub struct World {
    faults: Mutex<BTreeSet<Fault>>,
    /// what exists now
    held: Mutex<BTreeSet<String>>,
    /// what has happened, in order
    pub log: Mutex<Vec<String>>,
    /// another root image and kernel than the usual
    pub image: Mutex<Option<PathBuf>>,
    pub kernel: Mutex<Option<PathBuf>>,
    removals_failed: Mutex<u32>,
    resumes_late: Mutex<u32>,
    pub machine: FakeMachine,
}

#[derive(Debug, Clone, Default)]
pub struct FakeMachine {
    /// another one for each launch
    gone: Arc<Mutex<CancellationToken>>,
    exit: Arc<Mutex<Exit>>,
    obeys: Arc<Mutex<bool>>,
    /// of the last launch; before the first, that of the tests' spec
    memory_mib: Arc<Mutex<Option<u64>>>,
}

impl FakeMachine {
    pub fn end(&self, exit: Exit) {
        *self.exit.lock().unwrap() = exit;
        self.cancel();
    }

    fn cancel(&self) {
        self.gone.lock().unwrap().cancel();
    }

    fn gone(&self) -> CancellationToken {
        self.gone.lock().unwrap().clone()
    }
}

impl World {
    pub fn with(faults: impl IntoIterator<Item = Fault>) -> Arc<Self> {
        let world = Self { faults: Mutex::new(faults.into_iter().collect()), ..Self::default() };
        *world.machine.obeys.lock().unwrap() = !world.has(Fault::Kill);
        Arc::new(world)
    }

    pub fn has(&self, fault: Fault) -> bool {
        self.faults.lock().unwrap().contains(&fault)
    }

    /// From now on it goes wrong.
    pub fn break_by(&self, fault: Fault) {
        self.faults.lock().unwrap().insert(fault);
    }

    /// From now on it goes well.
    pub fn mend(&self, fault: Fault) {
        self.faults.lock().unwrap().remove(&fault);
    }

    pub fn note(&self, what: &str) {
        self.log.lock().unwrap().push(what.to_owned());
    }

    pub fn hold(&self, what: &str) {
        self.note(&format!("+{what}"));
        self.held.lock().unwrap().insert(what.to_owned());
    }

    pub fn release(&self, what: &str) {
        if self.held.lock().unwrap().remove(what) {
            self.note(&format!("-{what}"));
        }
    }

    pub fn held(&self) -> Vec<String> {
        self.held.lock().unwrap().iter().cloned().collect()
    }

    pub fn control(&self, fault: Fault, what: &str) -> Result<(), ControlError> {
        if self.has(fault) {
            return Err(ControlError::Protocol("on purpose".into()));
        }
        self.note(what);
        Ok(())
    }

    pub fn fail<T>(&self, fault: Fault, value: T) -> Result<T, HostError> {
        if self.has(fault) {
            return Err(HostError::new(format!("do {fault:?}"), std::io::Error::other("on purpose")));
        }
        Ok(value)
    }
}

mod parts;

#[derive(Clone)]
pub struct Fake(pub Arc<World>);

/// What a VMM writes that ends for `reason`.
pub fn exit(reason: ExitReason) -> Exit {
    Exit { record: Some(ExitRecord::without_cost(reason, "on purpose")), signal: None }
}

/// Room for two of each.
fn catalog(state: &StateDirectory) -> Catalog {
    let key = SnapshotKey::generate().unwrap();
    let store =
        |name| (SnapshotStore::open(state, name, &key).unwrap(), Bounds { number: 2, bytes: 1 << 40 });
    Catalog::open(store("snapshots"), store("templates"), 1).unwrap()
}

pub fn host(world: &Arc<World>, directory: &Path) -> Host {
    let fake = Fake(Arc::clone(world));
    let state = StateDirectory::open(directory).unwrap();
    // uid of this process: a test need not be root
    let uid = rustix::process::geteuid().as_raw();
    Host {
        images: Arc::new(fake.clone()),
        disks: Arc::new(fake.clone()),
        cgroups: Arc::new(fake.clone()),
        machines: Arc::new(fake.clone()),
        guests: Arc::new(fake),
        uids: Arc::new(UidPool::new(uid, 1)),
        catalog: Arc::new(catalog(&state)),
        state,
        boot_id: "boot".into(),
    }
}
